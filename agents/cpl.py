r"""Contrastive preference learning (CPL): Hejna et al. 2024, arXiv 2310.13639; a policy straight from comparisons.

A rater prefers the segment of less regret, and in maximum-entropy RL the optimal advantage is α log π*(a | s). So the
choices are explained by a policy (see :mod:`prefrl.losses.contrastive`), with neither reward nor value, in two stages:

    1. behavior cloning of both segments of every pair for ``bc_steps`` updates   L = −E log π(a | s)
    2. a new optimizer, its rate rising linearly, on the loss of the pairs        L = E −log σ(A_w − λ A_l)

Labels are soft: p L(first ≻ second) + (1 − p) L(second ≻ first), so a tie is half of either order. Of the policy only
``log_prob(segments) -> (B, T)`` and its parameters are used: any module can be one, and the loss can be any of the
losses of one ordered pair. A loss that reads a reference is given the policy as it was after stage 1, frozen.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agents.policies import MakePolicy, SquashedMeanPolicy, make_policy
from prefrl.core import Comparisons, SegmentBatch, Transitions, require_finite, require_probability
from prefrl.errors import ConfigError, InvalidData
from prefrl.losses import LogProbs, Pairs, cpl, with_soft_labels
from prefrl.losses.lifts import SoftPairLoss

__all__ = ["CPL", "SquaredErrorPolicy"]


class SquaredErrorPolicy(SquashedMeanPolicy):
    r"""a = tanh f(z), with log π(a | s) := −‖u − tanh f(z)‖², u the action in units of half the action range.

    As in the authors' code: N(μ, ½ I) without the constant of its density, which λ < 1 would feel (a constant c moves
    the logit of a pair by α (1 − λ) c T). ``sample`` draws from that Gaussian.
    squash: false leaves out the tanh (``act`` still clips to the box); with ``hidden=()`` the policy is linear in s.
    """

    def __init__(self, *, squash: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.squash = squash
        with torch.no_grad():  # begin at the middle of the box (Andrychowicz et al. 2020, arXiv 2006.05990)
            last: Any = self.network.layers[-1]
            last.weight *= 1e-2

    def distribution(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(normalized)
        mean = torch.tanh(output) if self.squash else output
        return mean, torch.full_like(mean, -0.5 * math.log(2))

    def unit_log_prob(self, normalized: Tensor, actions: Tensor) -> Tensor:
        """(B, D) normalized, (B, A) → (B,): minus the squared error."""
        return -(self.to_units(actions) - self.distribution(normalized)[0]).square().sum(-1)


class CPL:
    """Learner from comparisons. The defaults are those of the paper's experiments from states, but for normalization
    of observations, the initial scale of the policy, and its dropout, which is left out.

    comparisons: all of them, for sizes and statistics only · action_low, action_high: (A,) · seed: of the
    initialization, the only randomness. The other arguments are explained in ``configs/agent/cpl.yaml``.
    """

    def __init__(
        self,
        *,
        comparisons: Comparisons,
        action_low: np.ndarray,
        action_high: np.ndarray,
        seed: int,
        loss: Callable[..., Tensor] = cpl,
        bc_steps: int = 200_000,
        warmup_steps: int = 10_000,
        decay_steps: int | None = None,
        lr: float = 1e-4,
        bc_lr: float = 1e-4,
        hidden: Sequence[int] = (512, 512),
        policy: Literal["deterministic", "gaussian"] | MakePolicy = "deterministic",
        normalize_observations: bool = True,
        std_floor: float = 1e-2,
    ) -> None:
        _require_data(comparisons, action_low)
        self.loss, self.needs_reference = _prepared(loss)
        _require_ranges(bc_steps, warmup_steps, decay_steps, lr, bc_lr, self.needs_reference)
        _warn_without_regularization(loss)
        self.bc_steps, self.warmup_steps, self.decay_steps = bc_steps, warmup_steps, decay_steps
        self.lr, self.bc_lr = lr, bc_lr
        self.policy = make_policy(
            SquaredErrorPolicy if policy == "deterministic" else policy,
            data=_steps(comparisons),
            action_low=action_low,
            action_high=action_high,
            hidden=hidden,
            normalize_observations=normalize_observations,
            std_floor=std_floor,
            seed=seed,
        )
        self.reference: torch.nn.Module | None = None
        self.optimizer = self._new_optimizer()
        self.step = 0

    def update(self, batch: Comparisons) -> dict[str, Tensor]:
        """One gradient step on B comparisons. Returns scalar metrics; log-probs are means over the steps of a segment.

        Each is weighted by the probability of being chosen, or rejected, so that a tie counts as half of either;
        accuracy is the share of answers that the policy's advantages agree with. It says nothing about rollouts.
        """
        if self.step == self.bc_steps:
            self._begin_contrast()
        first, second = self._log_probs(batch.first), self._log_probs(batch.second)
        if self.step < self.bc_steps:
            loss = -(first.total + second.total).sum() / (first.lengths + second.lengths).sum()
        else:
            self.optimizer.param_groups[0]["lr"] = self.lr * self._schedule()
            loss = self.loss(Pairs(first, second), batch.p_first).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return {"policy_loss": loss.detach(), **_metrics(first, second, batch.p_first)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs."""
        return {
            "policy": self.policy.state_dict(),
            "reference": None if self.reference is None else self.reference.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.reference = None
        if state["reference"] is not None:
            self.reference = self._frozen_policy()
            self.reference.load_state_dict(state["reference"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _begin_contrast(self) -> None:
        """Stage 2: forget the moments of stage 1; its policy is the reference from here on."""
        self.optimizer = self._new_optimizer()
        if self.needs_reference:
            self.reference = self._frozen_policy()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.bc_lr, fused=True)

    def _frozen_policy(self) -> Any:
        return copy.deepcopy(self.policy).requires_grad_(False)

    def _schedule(self) -> float:
        """Share in (0, 1] of the learning rate in this update of stage 2: a linear rise, then a cosine to 1 %."""
        done = self.step - self.bc_steps
        share = min(1.0, (done + 1) / max(self.warmup_steps, 1))
        if self.decay_steps is None:
            return share
        return share * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done / self.decay_steps))))

    def _log_probs(self, segments: SegmentBatch) -> LogProbs:
        """Log-probs (B, T) under the policy and, in stage 2, under the reference if the loss reads one."""
        reference: Any = self.reference
        with torch.no_grad():
            frozen = None if reference is None else reference.log_prob(segments)
        return LogProbs(self.policy.log_prob(segments), frozen, segments.mask)


@torch.no_grad()
def _metrics(first: LogProbs, second: LogProbs, p_first: Tensor) -> dict[str, Tensor]:
    advantage = first.total - second.total if first.reference is None else first.ratio - second.ratio  # (B,)
    p, agrees = p_first.to(advantage), 0.5 + 0.5 * advantage.sign()
    return {
        "chosen_log_prob": (p * first.mean + (1 - p) * second.mean).mean(),
        "rejected_log_prob": ((1 - p) * first.mean + p * second.mean).mean(),
        "accuracy": (p * agrees + (1 - p) * (1 - agrees)).mean(),
    }


def _steps(comparisons: Comparisons) -> Transitions:
    """Observations and actions of every real step of both sides, for sizes and statistics; the rest is a filler."""
    sides = (comparisons.first, comparisons.second)
    seen = torch.cat([side.observations[:, :-1][side.mask] for side in sides])
    none = torch.zeros(len(seen), device=seen.device)
    return Transitions(seen, torch.cat([side.actions[side.mask] for side in sides]), none, seen, none)


def _prepared(loss: Callable[..., Tensor]) -> tuple[SoftPairLoss, bool]:
    """The loss for soft labels, and whether it reads a reference.

    Found by trying it on one pair, so that an option out of range, or an input that there is none of, is an error
    before stage 1 and not after it.
    """
    zeros, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    problem: Exception | None = None
    for reference in (None, zeros):
        side = LogProbs(zeros, reference, mask)
        try:
            soft = with_soft_labels(loss)
            soft(Pairs(side, side), torch.tensor([0.5]))
        except (TypeError, ValueError) as error:
            problem = error
        else:
            return soft, reference is not None
    raise ConfigError(f"CPL: loss cannot be used on pairs of segments: {problem}") from problem


def _warn_without_regularization(loss: Callable[..., Tensor]) -> None:
    options = {p.name: p.default for p in inspect.signature(loss).parameters.values()}
    if options.get("contrastive_bias") == 1 and not options.get("bc_coefficient"):
        warnings.warn(
            "CPL: contrastive_bias=1 without a BC term. On finite data many policies explain the comparisons equally "
            "well, and some of them leave the data (arXiv 2310.13639): watch chosen_log_prob and rollouts, or give "
            "contrastive_bias < 1 (the paper has 0.5) or the loss cpl_bc.",
            stacklevel=3,
        )


def _require_data(comparisons: Comparisons, action_low: np.ndarray) -> None:
    if len(comparisons) == 0:
        raise InvalidData("CPL: comparisons is empty; at least one is needed.")
    A = comparisons.first.actions.shape[-1]
    if np.shape(action_low) != (A,):  # one of size 1 would be broadcast
        raise InvalidData(f"CPL: action_low must have shape {(A,)}, as the actions, but has {np.shape(action_low)}.")
    for name, side in (("first", comparisons.first), ("second", comparisons.second)):
        require_finite(f"{name}.observations", side.observations)
        require_finite(f"{name}.actions", side.actions)
    require_probability("p_first", comparisons.p_first)


def _require_ranges(
    bc_steps: int, warmup_steps: int, decay_steps: int | None, lr: float, bc_lr: float, needs_reference: bool
) -> None:
    least = 1 if needs_reference else 0
    why = " for a loss that reads a reference, which is the policy after them" if needs_reference else ""
    allowed = {
        f"bc_steps must be >= {least}{why}, but is {bc_steps}": bc_steps >= least,
        f"warmup_steps must be >= 0, but is {warmup_steps}": warmup_steps >= 0,
        f"decay_steps must be >= 1 or null, but is {decay_steps}": decay_steps is None or decay_steps >= 1,
        f"lr must be > 0, but is {lr}": lr > 0,
        f"bc_lr must be > 0, but is {bc_lr}": bc_lr > 0,
    }
    for message, holds in allowed.items():
        if not holds:
            raise ConfigError(f"CPL: {message}.")
