r"""Policies over a box of actions: what acts, with ``act`` and ``log_prob`` (``prefrl.protocols.Policy``).

Both see normalized observations z = (s − mean) / std and make a mean μ = tanh(f(z)) in [−1, 1]^A, which is
carried to the action box by a = low + (μ + 1)(high − low)/2. Statistics and box are buffers: they travel with
the policy.

The density is that of the *unclipped* Gaussian around μ, as in the authors' IQL (Kostrikov et al. 2021,
arXiv 2110.06169): actions that are drawn are clipped to the box, log-probs are not corrected for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agents.networks import MLP
from prefrl.core import SegmentBatch, Transitions
from prefrl.errors import ConfigError, InvalidData

__all__ = [
    "POLICIES",
    "DeterministicPolicy",
    "GaussianPolicy",
    "MakePolicy",
    "SquashedMeanPolicy",
    "make_policy",
    "masked_log_prob",
    "normal_log_prob",
    "observation_statistics",
]

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # the authors' IQL: learner.py (log_std_min) and policy.py (LOG_STD_MAX)


def observation_statistics(observations: Tensor, *, floor: float = 1e-2) -> tuple[Tensor, Tensor]:
    """(mean, std), each (D,), of (N, D) observations; std ≥ ``floor``, in the observation's unit.

    A constant coordinate gets std 1: it normalizes to 0, and is not blown up if it moves at test time.

    >>> observation_statistics(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    (tensor([1., 5.]), tensor([1., 1.]))
    """
    wide = observations.to(torch.float64)  # the float32 mean of a constant is not that constant
    mean, std = wide.mean(0), wide.std(0, correction=0)
    std = torch.where(std < 1e-6, torch.ones_like(std), std.clamp(min=floor))
    return mean.to(observations.dtype), std.to(observations.dtype)


def normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, diag exp(2 log_std)), summed over the last axis: (B, A) → (B,).

    >>> normal_log_prob(torch.zeros(1, 2), torch.zeros(2), torch.zeros(2))
    tensor([-1.8379])
    """
    z = (x - mean) * torch.exp(-log_std)
    return -(0.5 * z.square() + log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]


def masked_log_prob(policy: Any, segments: SegmentBatch) -> Tensor:
    """(B, T) log-probs from ``policy.step_log_prob``, computed on real steps only; 0 on padding."""
    mask = segments.mask
    steps = policy.step_log_prob(segments.observations[:, :-1][mask], segments.actions[mask])
    return torch.zeros(mask.shape, dtype=steps.dtype, device=steps.device).masked_scatter(mask, steps)


class SquashedMeanPolicy(nn.Module):
    """Base: normalization, tanh mean and action box. A subclass says its ``log_std``.

    observation_mean, observation_std: (D,) or None (no normalization) · action_low, action_high: (A,)
    hidden: widths of the hidden layers · seed: of the initialization.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        *,
        observation_dim: int,
        action_low: np.ndarray | Sequence[float],
        action_high: np.ndarray | Sequence[float],
        observation_mean: Tensor | None = None,
        observation_std: Tensor | None = None,
        hidden: Sequence[int] = (256, 256),
        seed: int = 0,
        heads: int = 1,
    ) -> None:
        super().__init__()
        low, high = (torch.as_tensor(np.asarray(x, dtype=np.float32)) for x in (action_low, action_high))
        _require_box(low, high)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer(
            "mean", torch.zeros(observation_dim) if observation_mean is None else observation_mean.clone()
        )
        self.register_buffer("std", torch.ones(observation_dim) if observation_std is None else observation_std.clone())
        generator = torch.Generator().manual_seed(seed)
        self.network = MLP([observation_dim, *hidden, heads * len(low)], generator=generator)

    def normalize(self, observations: Tensor) -> Tensor:
        """(…, D) → (…, D): z = (s − mean) / std."""
        return (observations - self.mean) / self.std

    def to_units(self, actions: Tensor) -> Tensor:
        """(…, A) → (…, A): the action box as [−1, 1]^A."""
        return (actions - self.low) * (2 / (self.high - self.low)) - 1

    def distribution(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized observations (B, D) → mean (B, A) in [−1, 1] and log std, broadcastable to it."""
        raise NotImplementedError

    def unit_log_prob(self, normalized: Tensor, actions: Tensor) -> Tensor:
        """(B, D) normalized, (B, A) → (B,): log density of the actions in their own units."""
        mean, log_std = self.distribution(normalized)
        return normal_log_prob(self.to_units(actions), mean, log_std) - ((self.high - self.low) / 2).log().sum()

    def step_log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, D), (B, A) → (B,): log π(a | s)."""
        return self.unit_log_prob(self.normalize(observations), actions)

    def log_prob(self, segments: SegmentBatch) -> Tensor:
        """(B, T): log π(a_t | s_t); 0 on padding."""
        return masked_log_prob(self, segments)

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """(B, D) → (B, A): the mean, in the action box."""
        return self._to_box(self.distribution(self.normalize(observations))[0])

    @torch.no_grad()
    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """(B, D) → (B, A): a random action, clipped to the box."""
        mean, log_std = self.distribution(self.normalize(observations))
        noise = torch.empty_like(mean).normal_(generator=generator)
        return self._to_box(mean + log_std.exp() * noise)

    def _to_box(self, units: Tensor) -> Tensor:
        actions = self.low + (units + 1) * (self.high - self.low) / 2
        return torch.clamp(actions, self.low, self.high)


class GaussianPolicy(SquashedMeanPolicy):
    r"""π(a|s) = N(tanh f(z), diag σ²), with σ a free parameter, starting at 1 (the authors' IQL).

    state_dependent_std: σ is a second head of the network instead. log σ is kept in [−5, 2].
    """

    def __init__(self, *, state_dependent_std: bool = False, **arguments: Any) -> None:
        super().__init__(heads=2 if state_dependent_std else 1, **arguments)
        self.state_dependent_std = state_dependent_std
        if state_dependent_std:
            A = len(self.low)
            with torch.no_grad():  # the second head starts at log σ ≈ 0, as the authors' (log_std_scale 1e-3)
                last: Any = self.network.layers[-1]
                last.weight[A:] *= 1e-3
        else:
            self.log_std = nn.Parameter(torch.zeros(len(self.low)))

    def distribution(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(normalized)
        mean, log_std = output.chunk(2, -1) if self.state_dependent_std else (output, self.log_std)
        return torch.tanh(mean), log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


class DeterministicPolicy(SquashedMeanPolicy):
    r"""a = tanh f(z), with N(tanh f(z), std²) standing in for its missing density.

    With std = √½ (default) −log π(a|s) = ‖u − μ‖² + constant in box units u: weighted regression on it is
    exactly the weighted squared error. Contrastive losses see std as a temperature: log-ratios scale with
    1/std².
    """

    log_std: Tensor

    def __init__(self, *, std: float = math.sqrt(0.5), **arguments: Any) -> None:
        if not std > 0:
            raise ConfigError(
                f"DeterministicPolicy: std must be > 0 (in units of half the action range), but is {std}."
            )
        super().__init__(**arguments)
        self.register_buffer("log_std", torch.tensor(math.log(std)))

    def distribution(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tanh(self.network(normalized))
        return mean, self.log_std.expand_as(mean)


class MakePolicy(Protocol):
    """A policy's constructor with its options bound."""

    def __call__(self, **arguments: Any) -> SquashedMeanPolicy: ...


POLICIES: dict[str, type[SquashedMeanPolicy]] = {
    "gaussian": GaussianPolicy,
    "deterministic": DeterministicPolicy,
}


def make_policy(
    kind: str | MakePolicy,
    *,
    data: Transitions,
    action_low: np.ndarray,
    action_high: np.ndarray,
    hidden: Sequence[int],
    normalize_observations: bool,
    std_floor: float,
    seed: int,
) -> SquashedMeanPolicy:
    """A policy of ``kind``, "gaussian", "deterministic" or a constructor, for a dataset and an action box."""
    make = POLICIES.get(kind) if isinstance(kind, str) else kind
    if make is None:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, or a constructor, but is {kind!r}.")
    mean, std = observation_statistics(data.observations, floor=std_floor) if normalize_observations else (None, None)
    made = make(
        observation_dim=data.observations.shape[1],
        action_low=action_low,
        action_high=action_high,
        observation_mean=mean,
        observation_std=std,
        hidden=hidden,
        seed=seed,
    )
    return made.to(data.observations.device)


def _require_box(low: Tensor, high: Tensor) -> None:
    if (
        low.ndim != 1
        or low.shape != high.shape
        or not bool(torch.isfinite(high - low).all())
        or not bool((low < high).all())
    ):
        raise InvalidData(
            f"The action box must be finite, of shape (A,), with low < high, but is low={low.tolist()}, "
            f"high={high.tolist()}. Wrap the environment with gymnasium.wrappers.RescaleAction or ClipAction."
        )
