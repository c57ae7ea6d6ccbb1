r"""Teachers: by the irrationalities of B-Pref (Lee et al. 2021, arXiv 2111.03026), or by any preference model.

:class:`SimulatedTeacher` compares true returns with five irrationalities, in B-Pref's order:

1. *skip*: both segments earn too little to say anything · 2. *equal*: their returns are too close to call
3. *myopic*: step t counts γ^{H−1−t} · 4. *noisy*: Bradley–Terry with rationality β; the better one if β = ∞
5. *mistake*: the answer is turned around with probability ε. What is equal stays equal (0.5).

:class:`PreferenceTeacher` compares what a preference model (:mod:`prefrl.preference_models`: Knox et al. 2022,
arXiv 2206.02231) makes of the values that an oracle knows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from prefrl.core import SegmentBatch, require_finite
from prefrl.errors import ConfigError, InvalidData
from prefrl.losses.choice import bradley_terry
from prefrl.preference_models import label, segment_score
from prefrl.value_oracles import ValueOracle

__all__ = ["PreferenceTeacher", "SimulatedTeacher"]

# knob -> (allowed set in words, test)
ALLOWED = {
    "beta": ("[0, inf]", lambda x: x >= 0),
    "gamma": ("(0, 1]", lambda x: 0 < x <= 1),
    "mistake": ("[0, 1]", lambda x: 0 <= x <= 1),
    "skip": ("[0, inf)", lambda x: 0 <= x < math.inf),
    "equal": ("[0, inf)", lambda x: 0 <= x < math.inf),
}


@dataclass(frozen=True, kw_only=True)
class SimulatedTeacher:
    r"""Compares segments by their true reward; the defaults are the oracle.

    Args:
        beta: rationality in [0, ∞]; P(first) = σ(β ΔR). ∞ is noiseless, 0 is a coin.
        gamma: myopia in (0, 1]; 1 weighs all steps alike, smaller ones forget the beginning.
        mistake: probability in [0, 1] of turning the answer around.
        skip: no answer if both returns are at most ``skip · reward_per_step · T`` (undiscounted).
        equal: "equal" if the returns differ by less than ``equal · reward_per_step · T`` (undiscounted).
        reward_per_step: mean true reward of a step, > 0: B-Pref's "mean episode return / episode length".
            Needed by skip and equal; set it from data by ``calibrated``. T is the longer segment's length.

    An exact tie under β = ∞ is answered 0.5, the limit of σ(β·0), so that swapping a pair always turns the
    answer around (B-Pref's code says "first"). B-Pref's code multiplies its thresholds by ε once more in the
    sessions after the first; here they stay what they are, as in its paper.

    >>> from prefrl.core import Segment
    >>> pair = [SegmentBatch.from_segments([Segment(torch.zeros(3, 1), torch.zeros(2, 1), torch.tensor(r))])
    ...         for r in ([1.0, 0.0], [0.0, 0.9])]
    >>> SimulatedTeacher().answer(*pair, np.random.default_rng(0))
    array([1.])
    >>> SimulatedTeacher(gamma=0.5).answer(*pair, np.random.default_rng(0))  # 0.5 < 0.9
    array([0.])
    """

    beta: float = math.inf
    gamma: float = 1.0
    mistake: float = 0.0
    skip: float = 0.0
    equal: float = 0.0
    reward_per_step: float | None = None

    def __post_init__(self) -> None:
        for knob, (allowed, holds) in ALLOWED.items():
            if not holds(getattr(self, knob)):
                raise ConfigError(f"teacher: {knob} must be in {allowed}, but is {getattr(self, knob)}.")
        scale = self.reward_per_step
        if scale is None:
            return
        if not math.isfinite(scale):
            raise InvalidData(f"teacher: reward_per_step must be finite, but is {scale}. Check the dataset's rewards.")
        if self._has_thresholds and scale <= 0:
            raise InvalidData(
                "teacher: skip and equal are shares of the mean true reward per step, which must be > 0, "
                f"but is {scale:g}. Shift the environment's reward above 0, or set skip and equal to 0."
            )

    @property
    def _has_thresholds(self) -> bool:
        return self.skip > 0 or self.equal > 0

    def calibrated(self, reward_per_step: float) -> SimulatedTeacher:
        """The same teacher with the scale of its thresholds: the mean true reward per step of a dataset."""
        return replace(self, reward_per_step=float(reward_per_step))

    def parameters(self) -> dict[str, Any]:
        """The knobs as JSON values (an infinite beta is written "inf")."""
        knobs = asdict(self)
        return {"teacher": "simulated", **knobs, "beta": "inf" if math.isinf(self.beta) else self.beta}

    def answer(self, first: SegmentBatch, second: SegmentBatch, rng: np.random.Generator) -> np.ndarray:
        """(N,) float64 p_first: 1, 0, 0.5 for "equal", NaN for "skip".

        Two uniform numbers are drawn per pair whatever the knobs: with one rng seed, teachers differ only
        where their knobs matter.
        """
        choice_noise, mistake_noise = rng.random(len(first)), rng.random(len(first))
        p_first = self._choose(first, second, choice_noise)
        p_first = np.where(mistake_noise < self.mistake, 1 - p_first, p_first)
        if self._has_thresholds:
            one, two = _returns(first, 1.0), _returns(second, 1.0)
            reward_scale = self._threshold_scale(first, second)  # (N,)
            p_first[np.abs(one - two) < self.equal * reward_scale] = 0.5
            if self.skip > 0:
                p_first[np.maximum(one, two) <= self.skip * reward_scale] = np.nan
        return p_first

    def _choose(self, first: SegmentBatch, second: SegmentBatch, noise: np.ndarray) -> np.ndarray:
        one, two = _returns(first, self.gamma), _returns(second, self.gamma)
        if math.isinf(self.beta):
            return 0.5 + 0.5 * np.sign(one - two)
        probability = bradley_terry(torch.from_numpy(one), torch.from_numpy(two), beta=self.beta).numpy()
        return (noise < probability).astype(np.float64)

    def _threshold_scale(self, first: SegmentBatch, second: SegmentBatch) -> np.ndarray:
        if self.reward_per_step is None:
            raise InvalidData(
                "teacher: skip and equal need the mean true reward per step of the data; "
                "call teacher.calibrated(mean_reward), or set reward_per_step."
            )
        return self.reward_per_step * np.maximum(first.lengths.numpy(), second.lengths.numpy())


def _returns(segments: SegmentBatch, gamma: float) -> np.ndarray:
    """(B,) float64: Σ_t γ^{H−1−t} r_t over the H real steps of each segment."""
    if segments.true_reward is None:
        raise InvalidData("A simulated teacher compares by the true reward, but these segments carry none.")
    mask = segments.mask.numpy()
    rewards = segments.true_reward.numpy().astype(np.float64) * mask  # (B, T)
    steps_to_go = np.maximum(mask.sum(1, keepdims=True) - 1 - np.arange(mask.shape[1]), 0)
    return (rewards * gamma**steps_to_go).sum(1)


@dataclass(frozen=True, kw_only=True)
class PreferenceTeacher:
    """Compares segments by a preference model of what an oracle knows.

    Args:
        oracle: who knows the rewards and values (:mod:`prefrl.value_oracles`).
        model: one of ``prefrl.preference_models.PREFERENCE_MODELS`` that the oracle has the statistics for.
        noise: none (the better one), bernoulli (one draw of σ(β Δ)) or probability (σ(β Δ) itself).
        beta: rationality in [0, ∞), 1 in arXiv 2206.02231; it does not matter without noise.
        decimals: scores that are equal when rounded to so many decimals are a tie (2 in the paper's code); without
            noise only.
        ties: answer a tie by 0.5; False skips it (NaN). Without noise only.
    """

    oracle: ValueOracle
    model: str = "regret"
    noise: Literal["none", "bernoulli", "probability"] = "none"
    beta: float = 1.0
    decimals: int = 2
    ties: bool = True

    def __post_init__(self) -> None:
        known = self.oracle.models
        allowed = {
            f"model must be one that {type(self.oracle).__name__} can serve, {', '.join(known)}, "
            f"but is {self.model!r}": self.model in known,
            f"noise must be one of none, bernoulli, probability, but is {self.noise!r}": self.noise
            in ("none", "bernoulli", "probability"),
            f"beta must be in [0, inf), but is {self.beta}": 0 <= self.beta < math.inf,
            f"decimals must be >= 0, but is {self.decimals}": self.decimals >= 0,
        }
        for message, holds in allowed.items():
            if not holds:
                raise ConfigError(f"teacher: {message}.")

    def calibrated(self, reward_per_step: float) -> PreferenceTeacher:
        """Itself: nothing refers to the scale of rewards."""
        return self

    def check(self) -> None:
        """Raise ``ConfigError`` at once if the oracle cannot act in its environment."""
        self.oracle.check()

    def ineffective(self, key: str) -> str | None:
        """Why an option that the user set, as ``beta`` or ``oracle.seed``, changes no answer; None if it can."""
        if key.startswith("oracle."):
            return self.oracle.ineffective(key.removeprefix("oracle."))
        if key == "beta" and self.noise == "none":
            return "teacher.noise=none always prefers the better one"
        if key in ("decimals", "ties") and self.noise != "none":
            return f"teacher.noise={self.noise} knows no ties"
        return None

    def parameters(self) -> dict[str, Any]:
        """The knobs, and what the oracle says of itself: its values, gamma and sign convention."""
        knobs = {name: getattr(self, name) for name in ("model", "noise", "beta", "decimals", "ties")}
        return {"teacher": "preference_model", **knobs, **self.oracle.parameters()}

    def answer(self, first: SegmentBatch, second: SegmentBatch, rng: np.random.Generator) -> np.ndarray:
        """(N,) float64 p_first; NaN for a tie where ties are skipped. One number is drawn whatever the noise."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        scores = [segment_score(self.oracle.statistics(segments), self.model) for segments in (first, second)]
        for score in scores:
            require_finite(f"score of model {self.model!r}", score)
        answers = label(
            *scores,
            noise=self.noise,
            beta=self.beta,
            decimals=self.decimals,
            ties=self.ties,
            generator=generator,
        )
        return answers.to(torch.float64).numpy()
