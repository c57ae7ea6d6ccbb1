"""What every value oracle promises (the regret of Knox et al. 2022, arXiv 2206.02231), and what they share."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
from torch import Tensor

from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError
from prefrl.preference_models import SegmentStatistics
from prefrl.protocols import MakeEnv

__all__ = ["SIGN", "ValueOracle", "env_name", "open_env", "require_allowed", "require_known", "zero_where_terminal"]

SIGN = "a score is higher where a segment is better: regret counts negative; p_first = P(first is preferred)"


class ValueOracle(Protocol):
    """Who knows the true task."""

    models: tuple[str, ...]
    """Names of the preference models whose statistics it knows."""

    def statistics(self, segments: SegmentBatch) -> SegmentStatistics:
        """(B,) float64 each, of the true task; undiscounted sums over real steps, value 0 after a terminal state."""
        ...

    def check(self) -> None:
        """Raise ``ConfigError`` at once, before data are collected, if it cannot act in its environment."""
        ...

    def ineffective(self, key: str) -> str | None:
        """Why an option of its own that the user set, as ``pool_size``, changes no answer; None if it can."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Plain JSON: oracle, gamma, how the values were made, sign convention; stored beside every answer."""
        ...


def require_allowed(who: str, allowed: dict[str, bool]) -> None:
    """Raise ``ConfigError`` with the first message that does not hold."""
    for message, holds in allowed.items():
        if not holds:
            raise ConfigError(f"{who}: {message}.")


def require_known(task: Any, oracle: str) -> Any:
    """``task``, or the error of an oracle that was made without an environment."""
    if task is None:
        raise ConfigError(f"{oracle} reads the environment, but there is none: give env=… (prefrl list envs).")
    return task


def open_env(env: MakeEnv | None, oracle: str, needs: str | None = None) -> gym.Env:
    """The environment, if it has the method that the oracle needs."""
    made: gym.Env = require_known(env, oracle)(seed=0)
    if needs is not None and not hasattr(made.unwrapped, needs):
        name = env_name(made)
        made.close()
        raise ConfigError(f"{oracle} needs an environment with {needs}(), but {name} has none. Choose another env=….")
    return made


def env_name(env: gym.Env) -> str:
    """Its id, or its class."""
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id


def zero_where_terminal(end_value: Tensor, segments: SegmentBatch) -> Tensor:
    """(B,) values of end states: 0 where the segment ended in a terminal one."""
    return end_value if segments.terminal is None else end_value.masked_fill(segments.terminal, 0)
