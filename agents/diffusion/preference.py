r"""Preference learning of a diffusion policy: Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) on action chunks.

A trained policy is tuned on pairs of trajectories; its frozen copy is the reference. A trajectory τ stands for its
chunks: with n of their starts, a time t and a noise ε each, drawn anew at every update,

    e(τ) = mean or sum over chunks of the denoising error,   Δ = (e_θ − e_ref)(first) − (e_θ − e_ref)(second)
    L = p ℓ(Δ) + (1 − p) ℓ(−Δ),   ℓ(Δ) = −log σ(−½ β Δ) + λ e_θ(chosen)

Starts, times and noises are the same for both trajectories and both networks, or Δ would be noise. ℓ can be any loss on
pairs of denoising errors or of log-probs, which are −½ e here. Without the anchor λ the policy leaves its data at the
β that move it, which is watched: :mod:`agents.diffusion.collapse`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agents.diffusion.collapse import CollapseDetected, DemonstrationError, describe_collapse
from agents.diffusion.optimization import make_optimizer, rate_share, require_schedule
from agents.diffusion.policy import DiffusionPolicy
from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError, InvalidData
from prefrl.losses import DenoisingErrors, Pairs, as_log_probs, diffusion_dpo, with_anchor, with_soft_labels
from prefrl.losses.lifts import SoftPairLoss, named_lift

__all__ = ["DiffusionPreference"]

DIFFUSION_DPO_50 = functools.partial(diffusion_dpo, beta=50.0)  # for chunks; the 5000 of images is a no-op
NUMBERS = ("step", "demo_error_ratio", "collapsed", "best_step", "best_loss", "_losses")  # the learner's own, to resume


class DiffusionPreference:
    """Learner from comparisons. ``update`` raises ``CollapseDetected`` after putting the best weights back.

    comparisons: all of them, for sizes only · action_low, action_high: (A,), checked against the policy's
    policy: a trained one; it is copied · demonstrations: what it must not forget (see ``DemonstrationError``)
    seed: of all randomness. The other arguments are explained in ``configs/agent/diffusion_preference.yaml``.
    """

    def __init__(
        self,
        *,
        comparisons: Comparisons,
        action_low: np.ndarray,
        action_high: np.ndarray,
        seed: int,
        policy: DiffusionPolicy,
        demonstrations: SegmentBatch,
        loss: Callable[..., Tensor] = DIFFUSION_DPO_50,
        anchor: float = 5.0,
        draws: int = 4,
        reduction: Literal["mean", "sum"] = "mean",
        lr: float = 1e-4,
        weight_decay: float = 1e-6,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        demo_chunks: int = 1024,
        monitor_every: int = 25,
        collapse_limit: float = 0.2,
    ) -> None:
        _require_data(comparisons, policy, action_low, action_high)
        _require_ranges(anchor, draws, reduction, monitor_every)
        require_schedule(
            "DiffusionPreference", lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps, decay_steps=decay_steps
        )
        self.policy = copy.deepcopy(policy).requires_grad_(True)
        self.reference = copy.deepcopy(policy).requires_grad_(False)
        self.loss = _prepared(loss, anchor)
        self.draws, self.reduction, self.monitor_every = draws, reduction, monitor_every
        self.lr, self.warmup_steps, self.decay_steps = lr, warmup_steps, decay_steps
        self.optimizer = make_optimizer(self.policy.parameters(), lr=lr, weight_decay=weight_decay)
        self.generator = torch.Generator(self.policy.mean.device).manual_seed(seed)
        self.monitor = DemonstrationError(policy, demonstrations, chunks=demo_chunks, limit=collapse_limit, seed=seed)
        self.step, self.demo_error_ratio, self.collapsed = 0, 1.0, False
        self.best_step, self.best_loss, self._losses = 0, float("inf"), 0.0
        self.best = copy.deepcopy(self.policy.state_dict())

    def update(self, batch: Comparisons) -> dict[str, Tensor]:
        """One gradient step on B comparisons. Returns scalar metrics.

        margin: −½ Δ in favor of the answer (a tie counts 0) · accuracy: share of answers that it agrees with · anchor:
        error of the chosen · demo_error_ratio: as of the last look, every ``monitor_every`` updates.
        """
        if self.collapsed:
            raise CollapseDetected("The policy has collapsed before; make a new learner, with a larger anchor.")
        pairs = self.errors(batch)
        loss = self.loss(pairs, batch.p_first).mean()
        share = rate_share(self.step, warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)
        self.optimizer.param_groups[0]["lr"] = self.lr * share
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self._losses += loss.item()
        if self.step % self.monitor_every == 0:
            self._look()
        ratio = torch.tensor(self.demo_error_ratio, device=loss.device)
        return {"policy_loss": loss.detach(), **_metrics(pairs, batch.p_first), "demo_error_ratio": ratio}

    def errors(self, batch: Comparisons) -> Pairs[DenoisingErrors]:
        """Errors of first (as chosen) and second of B pairs, under policy and reference, on the same fresh draws."""
        policy, device = self.policy, self.policy.mean.device
        B, A = len(batch), len(policy.low)
        shape = (B, self.draws)
        place = torch.rand(shape, generator=self.generator, device=device)
        t = torch.randint(policy.train_steps, shape, generator=self.generator, device=device)
        noise = torch.randn((*shape, policy.horizon, A), generator=self.generator, device=device)
        sides = []
        for segments in (batch.first, batch.second):
            lengths = segments.lengths[:, None]  # (B, 1)
            starts = torch.minimum((place * lengths).long(), lengths - 1)
            scale = lengths[:, 0] if self.reduction == "sum" else 1
            error = policy.denoising_error(segments, noise, t, starts=starts).mean(1) * scale
            with torch.no_grad():
                frozen = self.reference.denoising_error(segments, noise, t, starts=starts).mean(1) * scale
            if not bool(error.isfinite().all()):
                self._look()  # collapsed, and past all numbers
            sides.append(DenoisingErrors(error, frozen))
        return Pairs(*sides)

    def _look(self) -> None:
        """Measure the error on demonstrations; keep the weights, or put the best ones back and stop."""
        self.demo_error_ratio = self.monitor.ratio(self.policy)
        loss, self._losses = self._losses / self.monitor_every, 0.0
        if self.monitor.collapsed(self.demo_error_ratio):
            self.collapsed = True
            self.policy.load_state_dict(self.best)
            raise CollapseDetected(
                describe_collapse(self.demo_error_ratio, self.step, self.monitor.limit, self.best_step)
            )
        if loss <= self.best_loss:
            self.best_loss, self.best_step, self.best = loss, self.step, copy.deepcopy(self.policy.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs, beside the arguments of the constructor."""
        return {
            "policy": self.policy.state_dict(),
            "reference": self.reference.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "numbers": {name: getattr(self, name) for name in NUMBERS},
            "demo_error_at_start": self.monitor.start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.reference.load_state_dict(state["reference"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        for name in NUMBERS:
            setattr(self, name, state["numbers"][name])
        self.monitor.start = state["demo_error_at_start"]


@torch.no_grad()
def _metrics(pairs: Pairs[DenoisingErrors], p_first: Tensor) -> dict[str, Tensor]:
    margin = 0.5 * (pairs.rejected.excess - pairs.chosen.excess)  # (B,), positive for the first
    p, agrees = p_first.to(margin), 0.5 + 0.5 * margin.sign()
    return {
        "margin": ((2 * p - 1) * margin).mean(),
        "accuracy": (p * agrees + (1 - p) * (1 - agrees)).mean(),
        "anchor": (p * pairs.chosen.policy + (1 - p) * pairs.rejected.policy).mean(),
    }


def _prepared(loss: Callable[..., Tensor], anchor: float) -> SoftPairLoss:
    """The loss for soft labels, with the anchor; a loss on log-probs is given those of :func:`as_log_probs`.

    Which one it is is found by trying it, so that an option out of range is an error before training.
    """
    same = DenoisingErrors(torch.ones(1), torch.ones(1))
    problems = []
    for form in (loss, named_lift(lambda pairs: loss(as_log_probs(pairs)), loss, "{}")):
        try:
            soft = with_soft_labels(with_anchor(form, weight=anchor) if anchor > 0 else form)
            soft(Pairs(same, same), torch.tensor([0.5]))
        except (AttributeError, TypeError, ValueError) as error:
            problems.append(error)
        else:
            return soft
    raise ConfigError(
        f"DiffusionPreference: loss cannot be used on pairs of denoising errors ({problems[0]}), nor of log-probs made "
        f"of them ({problems[1]})."
    ) from problems[0]


def _require_data(
    comparisons: Comparisons, policy: DiffusionPolicy, action_low: np.ndarray, action_high: np.ndarray
) -> None:
    if len(comparisons) == 0:
        raise InvalidData("DiffusionPreference: comparisons is empty; at least one is needed.")
    sizes = comparisons.first.observations.shape[-1], comparisons.first.actions.shape[-1]
    expected = len(policy.mean), len(policy.low)
    if sizes != expected or np.shape(action_low) != expected[1:] or np.shape(action_high) != expected[1:]:
        raise InvalidData(
            f"DiffusionPreference: comparisons have observations and actions of sizes {sizes}, action_low and "
            f"action_high shapes {np.shape(action_low)} and {np.shape(action_high)}, but the policy is for {expected}."
        )


def _require_ranges(anchor: float, draws: int, reduction: str, monitor_every: int) -> None:
    allowed = {
        f"anchor must be >= 0, but is {anchor}": anchor >= 0,
        f"draws must be >= 1, but is {draws}": draws >= 1,
        f"reduction must be 'mean' or 'sum', but is {reduction!r}": reduction in ("mean", "sum"),
        f"monitor_every must be >= 1, but is {monitor_every}": monitor_every >= 1,
    }
    for message, holds in allowed.items():
        if not holds:
            raise ConfigError(f"DiffusionPreference: {message}.")
