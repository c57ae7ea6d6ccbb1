"""Imitation of scored data: likelihood weighted, filtered or reversed by what each sequence or step was worth.

The objectives of pretraining with human preferences (PHF, arXiv 2302.08582) on log-probs of any policy. Each sums over
the steps of a sequence; divide by ``sequences.lengths`` for means over steps. Its conditional objective is :func:`nll`
of a policy that also sees a label of quality (:func:`control_labels`), and acts on ``GOOD`` afterwards.

References: PHF arXiv 2302.08582, unlikelihood arXiv 1908.04319, AWR arXiv 1910.00177.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefrl.losses.inputs import LogProbs, Pairs, check, wide
from prefrl.losses.table import loss
from prefrl.losses.tangents import log1mexp

__all__ = [
    "BAD",
    "GOOD",
    "UNCONDITIONED",
    "awr",
    "awr_with_value",
    "chosen_nll",
    "control_labels",
    "filtered",
    "nll",
    "rwr",
    "unlikelihood",
]

BAD, GOOD, UNCONDITIONED = 0, 1, 2  # labels of quality that a policy may be conditioned on


@loss("maximum likelihood (MLE in PHF), arXiv 2302.08582", takes="sequences")
def nll(sequences: LogProbs) -> Tensor:
    """Negative log-likelihood, behavior cloning: −ℓ(τ); (B,).

    MLE in arXiv 2302.08582. Of log-probs under a policy that sees :func:`control_labels`, it is the conditional
    objective of that paper. TRL's ``sft`` is the mean over all steps of the batch: sum of values / sum of lengths.

    >>> nll(LogProbs(torch.tensor([[-1.0, -2.0]]), mask=torch.tensor([[True, True]])))
    tensor([3.])
    """
    return -sequences.total


def chosen_nll(pairs: Pairs[LogProbs]) -> Tensor:
    """Imitation of the chosen sequence only, by step: −ℓ_w / L_w; (B,).

    The second stage of SFT, the supervised baseline of CPL (arXiv 2310.13639): no contrast, the rejected is not read;
    sequences count alike, whatever their lengths, which it needs. Not in the table, because it is :func:`nll` of one
    side. For soft labels, with which a tie is half of either: :func:`prefrl.losses.with_soft_labels`.

    >>> side, other = (LogProbs(torch.tensor([-4.0]), length=torch.tensor([n])) for n in (2, 4))
    >>> chosen_nll(Pairs(side, other))
    tensor([2.])
    """
    return -pairs.chosen.mean


@loss("filtering in PHF, arXiv 2302.08582", takes="sequences", needs=["score"])
def filtered(sequences: LogProbs, *, threshold: float = 0.0) -> Tensor:
    """Imitation of good sequences only: −ℓ(τ) where score ≥ threshold, else 0; (B,).

    Filtering in arXiv 2302.08582. Score: larger is better, a reward (the paper's code has harm, and keeps ≤).
    A threshold below all scores is :func:`nll`. Dropped sequences stay in the batch as zeros.

    >>> filtered(LogProbs(torch.tensor([-1.0, -2.0]), score=torch.tensor([0.3, -0.3])))
    tensor([1., 0.])
    """
    values = nll(sequences)
    assert sequences.score is not None
    return torch.where(_good(sequences.score, threshold), values, 0)


def control_labels(
    score: Tensor, *, threshold: float, drop_prefix: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Labels of quality for conditional training: GOOD where score ≥ threshold, else BAD; long, the shape of score.

    Conditional training in arXiv 2302.08582. score: any shape, of sequences or of steps, larger is better ·
    drop_prefix: the fraction of labels that become UNCONDITIONED at random, drawn from ``generator`` (0.01 there, and
    what classifier-free guidance needs). The labels 0, 1, 2 index an embedding, or a tensor of prefix tokens.

    >>> control_labels(torch.tensor([0.3, -0.3]), threshold=0.0)
    tensor([1, 0])
    """
    check(0 <= drop_prefix <= 1, "drop_prefix", drop_prefix, "in [0, 1]")
    check((drop_prefix > 0) == (generator is not None), "generator", generator, "given if and only if drop_prefix > 0")
    labels = torch.where(_good(score, threshold), GOOD, BAD)
    if generator is None:
        return labels
    drawn = torch.rand(score.shape, generator=generator, device=generator.device).to(score.device)
    return torch.where(drawn < drop_prefix, UNCONDITIONED, labels)


@loss("unlikelihood in PHF, arXiv 2302.08582, arXiv 1908.04319", takes="sequences", needs=["steps"])
def unlikelihood(sequences: LogProbs, good: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Likelihood of good steps, unlikelihood of bad ones: −Σ_good log p_t − α Σ_bad log(1 − p_t); (B,).

    arXiv 1908.04319 as in arXiv 2302.08582, α = 0.01. good: (B, T) bool. For probabilities, of discrete actions or
    tokens, not for densities: log-probs above 0, by more than rounding (1e-3), are refused. Exact up to log p = −1e-4
    (p = 0.9999) and linear beyond, so that the gradient of a bad step that is certain stays finite, 1e4 α (the paper's
    code has none there: it clips 1 − p).
    All good is :func:`nll`.

    >>> steps = LogProbs(torch.tensor([[0.5, 0.5]]).log(), mask=torch.tensor([[True, True]]))
    >>> unlikelihood(steps, torch.tensor([[True, False]]), alpha=1.0)
    tensor([1.3863])
    """
    assert sequences.mask is not None
    check(good.dtype == torch.bool, "good", good.dtype, "bool")
    expected = tuple(sequences.mask.shape)
    check(tuple(good.shape) == expected, "good", f"of shape {tuple(good.shape)}", f"of shape {expected}")
    check(alpha >= 0, "alpha", alpha, ">= 0")
    log_probs = torch.where(sequences.mask, sequences.policy, -1)
    _check_probabilities(log_probs)
    steps = torch.where(good, -log_probs, -alpha * log1mexp(log_probs))
    return torch.where(sequences.mask, steps, 0).sum(-1)


@loss("AWR, arXiv 1910.00177", takes="sequences")
def awr(sequences: LogProbs, advantage: Tensor, *, beta: float = 1.0, max_weight: float = 1000.0) -> Tensor:
    """Advantage-weighted regression of the policy: −Σ_t min(e^{A_t/β}, max_weight) ℓ_t; (B,).

    arXiv 1910.00177, with β = 1 and the cap 1000 of arXiv 2302.08582. advantage: (B, T) of steps, or (B,) of whole
    sequences; without gradient. A = 0 is :func:`nll`. Its optimum is the data's policy times e^{A/β}.

    >>> awr(LogProbs(torch.tensor([-1.0, -1.0])), torch.tensor([0.0, 99.0]), max_weight=20.0)
    tensor([ 1., 20.])
    """
    check(max_weight > 0, "max_weight", max_weight, "> 0")
    advantage = _valued("advantage", advantage, sequences).detach()
    # the cap is put on the exponent, which does not overflow
    weights = (advantage / beta).clamp(max=math.log(max_weight)).exp()
    return nll(sequences) * weights if weights.shape == sequences.shape else nll(sequences.weighted(weights))


@loss("AWR in PHF, arXiv 2302.08582", takes="sequences")
def awr_with_value(
    sequences: LogProbs, values: Tensor, returns: Tensor, *, alpha: float = 0.5, beta: float = 1.0
) -> Tensor:
    """AWR of policy and value together: α · awr(A = R − V) + (1 − α) Σ_t (V_t − R_t)²; (B,).

    AWR in arXiv 2302.08582 (α from 0.05 to 0.5, β = 1). values, returns: (B, T) of steps, or (B,) of whole sequences;
    the policy's term is :func:`awr` and gives the values no gradient, the second term gives the policy none.

    >>> awr_with_value(LogProbs(torch.tensor([-1.0])), torch.tensor([2.0]), torch.tensor([2.0]))
    tensor([0.5000])
    """
    check(0 <= alpha <= 1, "alpha", alpha, "in [0, 1]")
    values, returns = _valued("values", values, sequences), _valued("returns", returns, sequences)
    if values.shape != returns.shape:
        raise ValueError(f"returns must have the shape of values, {tuple(values.shape)}, not {tuple(returns.shape)}.")
    errors = (values - returns) ** 2
    errors = errors if errors.shape == sequences.shape else errors.sum(-1)
    return alpha * awr(sequences, returns - values, beta=beta) + (1 - alpha) * errors


@loss("RWR in PHF, arXiv 2302.08582", takes="sequences", needs=["score"])
def rwr(sequences: LogProbs, *, beta: float = 10.0, max_weight: float = 1000.0) -> Tensor:
    """Reward-weighted regression: −min(e^{R/β}, max_weight) ℓ(τ); (B,).

    RWR in arXiv 2302.08582 (β = 10, R the score): :func:`awr` with the reward for the advantage, and its cap of 1000:
    rewards from β ln 1000 = 6.9 β on weigh alike. For rewards of steps call :func:`awr`. β → ∞ is :func:`nll`.

    >>> rwr(LogProbs(torch.tensor([-1.0, -1.0]), score=torch.tensor([0.0, 10.0])))
    tensor([1.0000, 2.7183])
    """
    assert sequences.score is not None
    return awr(sequences, sequences.score, beta=beta, max_weight=max_weight)


def _check_probabilities(log_probs: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    positive = bool((log_probs > 1e-3).any())  # more than rounding
    check(not positive, "policy", f"up to {log_probs.max().item():.4g}" if positive else "", "log-probs ≤ 0")


def _good(score: Tensor, threshold: float) -> Tensor:
    check(not math.isnan(threshold), "threshold", threshold, "a number")
    check(not bool(score.isnan().any()), "score", score, "without NaN")
    return score >= threshold


def _valued(name: str, values: Tensor, sequences: LogProbs) -> Tensor:
    """Values of sequences, or of steps with 0 where there is none; never of fewer digits than they are given with."""
    shape, allowed = tuple(values.shape), [tuple(sequences.shape), tuple(sequences.policy.shape)]
    check(shape in allowed, name, f"of shape {shape}", f"of shape {' or '.join(map(str, dict.fromkeys(allowed)))}")
    if sequences.mask is not None and shape != tuple(sequences.shape):
        values = torch.where(sequences.mask, values, 0)
    check(not bool(values.isnan().any()), name, values, "without NaN")
    return wide(values).to(torch.promote_types(values.dtype, sequences.policy.dtype))
