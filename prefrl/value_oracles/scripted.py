"""A scripted policy as stand-in for the optimal one: ``rl_l2`` of the code of CPL, arXiv 2310.13639."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, InvalidData
from prefrl.preference_models import SegmentStatistics
from prefrl.protocols import Behavior, MakeEnv
from prefrl.spaces import action_bounds, as_vector, space_size
from prefrl.value_oracles.interface import SIGN, env_name, open_env

__all__ = ["ScriptedOracle"]

GENERATORS, STEPS = 16, 3  # random numbers under which a script must act alike, and for how long that is tried


class _AdvantageOnly(SegmentStatistics):
    """Σ A alone: to read another statistic is an error, not a number."""

    __slots__ = ()

    def _unknown(self) -> Tensor:
        raise InvalidData(
            "ScriptedOracle knows neither rewards nor values of states, only how far actions are from the script's: "
            "use the preference model 'regret' or 'advantage'."
        )

    reward = start_value = end_value = property(_unknown)


class ScriptedOracle:
    r"""A script as if it were optimal: A(s, a) = −‖(a − π_script(s)) / half range‖², what CPL's code calls ``rl_l2``.

    (github.com/jhejna/cpl, of arXiv 2310.13639; in units of half the action range, so that coordinates count alike.)

    behavior: a script that draws no random numbers; it begins anew with each segment, because it may remember its stage
    env: the constructor of the environment that it acts in, made when it is first needed; None is an error then.
    """

    models = ("regret", "advantage")

    def __init__(self, *, behavior: Behavior, env: MakeEnv | None) -> None:
        self.behavior, self._make_env = behavior, env
        kinds = (str, int, float, bool, type(None))
        plain = {name: value for name, value in vars(behavior).items() if type(value) in kinds}
        self._described = {name: value for name, value in plain.items() if not name.startswith("_")}

    def check(self) -> None:
        """Raise ``ConfigError`` if the script cannot act in the environment, or draws random numbers."""
        _ = self._box

    def statistics(self, segments: SegmentBatch) -> SegmentStatistics:
        """Σ A alone; reading another of the statistics raises ``InvalidData``."""
        low, high = self._box
        if segments.actions.shape[-1] != len(low):
            raise InvalidData(
                f"ScriptedOracle: the environment's actions have size {len(low)}, but the segments' "
                f"{segments.actions.shape[-1]}."
            )
        wanted = np.zeros(segments.actions.shape)  # (B, T, A)
        observations = segments.observations.numpy()
        for b, length in enumerate(segments.lengths.tolist()):
            self._begin()
            for t in range(length):
                wanted[b, t] = self.behavior.act(observations[b, t])
        taken, wanted = (actions.clip(low, high) for actions in (segments.actions.double().numpy(), wanted))
        steps = -torch.from_numpy(((taken - wanted) / ((high - low) / 2)) ** 2).sum(-1)
        unknown = torch.empty(0, dtype=torch.float64)
        return _AdvantageOnly(unknown, unknown, unknown, steps.where(segments.mask, 0).sum(1))

    def ineffective(self, key: str) -> str | None:
        """Nothing: what a script has as options shapes its actions."""
        return None

    def parameters(self) -> dict[str, Any]:
        """Oracle, script, gamma (none), how the values were made, and the sign convention."""
        script = {"behavior": type(self.behavior).__name__, **self._described}
        values = "advantage = minus squared distance to the script's action, in units of half the action range"
        where = env_name(self._env)
        return {"oracle": "scripted", "env": where, "script": script, "gamma": None, "values": values, "sign": SIGN}

    @cached_property
    def _env(self) -> gym.Env:
        return open_env(self._make_env, "ScriptedOracle")

    @cached_property
    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        """(A,) bounds of the actions, once it is known that the script fits the environment and has no noise."""
        low, high = (bound.astype(np.float64) for bound in action_bounds(self._env.action_space))
        if not (np.isfinite(high - low) & (high > low)).all():
            raise ConfigError(f"ScriptedOracle needs a bounded action space, but has {self._env.action_space}.")
        self._require_deterministic()
        return low, high

    def _require_deterministic(self) -> None:
        observation, _ = self._env.reset(seed=0)
        first, *others = (self._try(as_vector(observation), seed) for seed in range(GENERATORS))  # (STEPS, A) each
        expected = space_size(self._env.action_space)
        if first.shape[1:] != expected:
            raise ConfigError(
                f"ScriptedOracle: the script's actions have shape {first.shape[1:]}, but those of "
                f"{env_name(self._env)} {expected}. Choose another behavior."
            )
        if any((first != other).any() for other in others):
            raise ConfigError(
                f"ScriptedOracle: {type(self.behavior).__name__} draws random numbers, so its actions are not those "
                "of one policy. Give a script without noise: noise=0 (teacher.oracle.behavior.noise=0)."
            )

    def _try(self, observation: np.ndarray, seed: int) -> np.ndarray:
        self._begin(seed)
        return np.stack([self.behavior.act(observation) for _ in range(STEPS)])

    def _begin(self, seed: int = 0) -> None:
        try:
            self.behavior.reset(self._env, np.random.default_rng(seed))
        except ValueError as error:
            raise ConfigError(
                f"ScriptedOracle: the behavior cannot act in {env_name(self._env)}: {error}. Choose the script of this "
                "environment: teacher=regret_point in PointReach, teacher=regret_scripted in Meta-World."
            ) from error
