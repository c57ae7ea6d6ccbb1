"""Values of a linear-quadratic task in closed form (Bertsekas 2012, §4.2; see prefrl.solvers.linear_quadratic)."""

from __future__ import annotations

from typing import Any

from prefrl.core import SegmentBatch
from prefrl.errors import InvalidData
from prefrl.preference_models import PREFERENCE_MODELS, SegmentStatistics
from prefrl.protocols import MakeEnv
from prefrl.solvers import LinearQuadratic, LinearQuadraticSolution, solve_linear_quadratic
from prefrl.value_oracles.interface import SIGN, env_name, open_env, require_known, zero_where_terminal

__all__ = ["LinearQuadraticOracle"]


class LinearQuadraticOracle:
    """The closed form of a linear-quadratic environment, which has ``matrices()`` A, B, Q, R, gamma.

    env: the environment's constructor; None where none was chosen, which is an error once values are asked for.
    """

    models = tuple(PREFERENCE_MODELS)

    def __init__(self, *, env: MakeEnv | None) -> None:
        self._task = None if env is None else _solve_matrices(env)

    def statistics(self, segments: SegmentBatch) -> SegmentStatistics:
        """Rewards and values by formula; the rewards in the data are not read."""
        task, solution, name = require_known(self._task, "LinearQuadraticOracle")
        (D, A), sizes = task.control.shape, (segments.observations.shape[-1], segments.actions.shape[-1])
        if sizes != (D, A):
            raise InvalidData(f"{name} has observations and actions of sizes {(D, A)}, but the segments of {sizes}.")
        observations, actions = segments.observations.double(), segments.actions.double()
        found = solution.segment_statistics(task, observations, actions, mask=segments.mask)
        return found._replace(end_value=zero_where_terminal(found.end_value, segments))

    def check(self) -> None:
        """Raise ``ConfigError`` without an environment; its matrices were solved when this was made."""
        require_known(self._task, "LinearQuadraticOracle")

    def ineffective(self, key: str) -> str | None:
        """Nothing: it has no options."""
        return None

    def parameters(self) -> dict[str, Any]:
        """Oracle, task, gamma, how the values were made, and the sign convention."""
        task, _, name = require_known(self._task, "LinearQuadraticOracle")
        values = "Riccati equation"
        return {"oracle": "linear_quadratic", "env": name, "gamma": task.gamma, "values": values, "sign": SIGN}


def _solve_matrices(make_env: MakeEnv) -> tuple[LinearQuadratic, LinearQuadraticSolution, str]:
    env = open_env(make_env, "LinearQuadraticOracle", "matrices")
    known: Any = env.unwrapped
    task, name = LinearQuadratic.from_arrays(*known.matrices()), env_name(env)
    env.close()
    return task, solve_linear_quadratic(task), name
