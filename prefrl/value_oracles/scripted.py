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
from prefrl.spaces import action_bounds
from prefrl.value_oracles.interface import SIGN, open_env

__all__ = ["ScriptedOracle"]


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

    behavior: a script without noise, which begins anew at the start of each segment, because it may remember its stage
    env: the constructor of the environment that it acts in, made when it is first needed; None is an error then.
    """

    models = ("regret", "advantage")

    def __init__(self, *, behavior: Behavior, env: MakeEnv | None) -> None:
        self.behavior, self._make_env = behavior, env
        plain = {name: value for name, value in vars(behavior).items() if type(value) in (str, int, float, bool)}
        self._described = {name: value for name, value in plain.items() if not name.startswith("_")}

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

    def parameters(self) -> dict[str, Any]:
        """Oracle, script, gamma (none), how the values were made, and the sign convention."""
        where = self._env.spec.id if self._env.spec else type(self._env.unwrapped).__name__
        script = {"behavior": type(self.behavior).__name__, **self._described}
        values = "advantage = minus squared distance to the script's action, in units of half the action range"
        return {"oracle": "scripted", "env": where, "script": script, "gamma": None, "values": values, "sign": SIGN}

    @cached_property
    def _env(self) -> gym.Env:
        return open_env(self._make_env, "ScriptedOracle")

    @cached_property
    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = (bound.astype(np.float64) for bound in action_bounds(self._env.action_space))
        if not (np.isfinite(high - low) & (high > low)).all():
            raise InvalidData(f"ScriptedOracle needs a bounded action space, but has {self._env.action_space}.")
        return low, high

    def _begin(self) -> None:
        try:
            self.behavior.reset(self._env, np.random.default_rng(0))
        except ValueError as error:
            raise ConfigError(f"ScriptedOracle: the behavior cannot act in the environment: {error}") from error
