r"""Optimal transport between embedded videos: how far two sequences of frames are apart, whatever their speed.

The distance ⟨P, C⟩ of RAPL (arXiv 2310.07932, arXiv 2412.04835): C holds the costs of frames, P is a plan with uniform
marginals over the frames. Plans: ``entropic`` (Sinkhorn) · ``exact`` (earth mover's) · ``uniform`` (every frame with
every frame: ε → ∞) · ``identity`` (time-aligned: no transport at all) · ``banded`` (entropic, near the diagonal of time
only: TemporalOT, arXiv 2410.21795). All but the last two are blind to the order of frames.

The embedding sets the scale of its costs, so ε is in units of the mean cost of each problem where ``relative``: the
mean over all pairs of frames that are there, also of those outside a band, and a constant of differentiation.

Axes: B problems, n frames of the first video, m of the second, E numbers of an embedding.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from prefrl.errors import ConfigError, InvalidData
from prefrl.transport.sequence_plans import Domain, aligned_plans, entropic_plans, exact_plans, time_band

__all__ = ["Gradient", "Metric", "Plan", "pairwise_costs", "plan_entropy", "plans", "transport_distance"]

Metric = Literal["euclidean", "cosine"]
Plan = Literal["entropic", "exact", "uniform", "identity", "banded"]
Gradient = Literal["envelope", "autodiff"]


def pairwise_costs(x: Tensor, y: Tensor, metric: Metric = "euclidean") -> Tensor:
    """x (B, n, E), y (B, m, E) -> (B, n, m): distances of frames; cosine is 1 − cos, in [0, 2], 1 to a zero vector.

    >>> pairwise_costs(torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[4.0, 0.0], [0.0, 1.0]]]))
    tensor([[[5., 2.]]])
    """
    _check_option("metric", metric, Metric)
    if x.ndim != 3 or y.ndim != 3 or len(x) != len(y) or x.shape[2] != y.shape[2]:
        raise InvalidData(f"x and y must be (B, n, E) and (B, m, E), but are {tuple(x.shape)} and {tuple(y.shape)}.")
    if metric == "cosine":
        return 1 - F.normalize(x, dim=2) @ F.normalize(y, dim=2).transpose(1, 2)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # exact near 0, where a video meets itself


def plans(
    costs: Tensor,
    plan: Plan = "entropic",
    *,
    epsilon: float = 0.1,
    relative: bool = True,
    band: float = 0.1,
    mask_x: Tensor | None = None,
    mask_y: Tensor | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
    domain: Domain = "auto",
) -> Tensor:
    """costs (B, n, m) -> plans (B, n, m), the same weight on every frame and 0 on padding.

    Of entropic and banded plans a gradient goes through all iterations to the costs where these want one (detach them
    if it should not); the others are constants.

    - epsilon: weight of the entropy, times the mean cost where ``relative``. RAPL's code has 1 in units of its costs,
      where the plan is nearly uniform; ROT (arXiv 2206.15469) and TemporalOT have 0.01 of cosine costs
    - band: largest difference of relative times in a banded plan, in [0, 1]; 0.1 is TemporalOT's 10 frames of 100. A
      band always has room for the identity plan
    - mask_x (B, n), mask_y (B, m): bool, False on padding
    - max_iterations, tolerance: of Sinkhorn, which ends when no problem has more mass than this in wrong columns
    - domain: ``kernel`` is fast, ``log`` never underflows, ``auto`` takes log for a batch that needs it

    >>> plans(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), "exact")
    tensor([[[0.5000, 0.0000],
             [0.0000, 0.5000]]])
    """
    _check_option("plan", plan, Plan)
    _check_option("domain", domain, Domain)
    _check_numbers(epsilon, band, max_iterations, tolerance)
    if costs.ndim != 3 or 0 in costs.shape:
        raise InvalidData(f"costs must be (B, n, m) and not empty, but have shape {tuple(costs.shape)}.")
    costs = costs if costs.dtype == torch.float64 else costs.float()
    a, b = (_weights(mask, costs, axis) for mask, axis in ((mask_x, 1), (mask_y, 2)))
    padded = mask_x is not None or mask_y is not None
    there = (a > 0)[:, :, None] & (b > 0)[:, None] if padded else None
    costs = costs if there is None else costs.masked_fill(~there, 0.0)
    totals = costs.detach().sum((1, 2))
    if not bool(totals.isfinite().all()):
        raise InvalidData("The costs of frames hold NaN or an infinite value: look for it in the embeddings.")
    if plan == "uniform":
        return a[:, :, None] * b[:, None]
    if plan == "identity":
        return aligned_plans(a, b)
    if plan == "exact":
        return exact_plans(costs, a, b)
    frames = (a > 0).sum(1) * (b > 0).sum(1)
    weight = epsilon * totals / frames if relative else torch.full_like(totals, epsilon)
    allowed = time_band(a, b, band) if plan == "banded" else there
    options: dict[str, Any] = {"max_iterations": max_iterations, "tolerance": tolerance, "domain": domain}
    return entropic_plans(costs, a, b, weight.clamp_min(1e-12)[:, None, None], allowed, **options)


def transport_distance(
    x: Tensor,
    y: Tensor,
    metric: Metric = "euclidean",
    *,
    gradient: Gradient = "envelope",
    mask_x: Tensor | None = None,
    mask_y: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """x (B, n, E), y (B, m, E) -> (B,) distances ⟨P, C⟩; options: those of :func:`plans`.

    gradient: ``envelope`` holds the plan fixed. That is exact for exact plans (almost everywhere) and for those that
    no cost moves; for an entropic plan it is the gradient of ⟨P, C⟩ + ε Σ P log P, and leaves out how the plan moves.
    ``autodiff`` has that too, through all iterations, and takes longer; with ``relative`` it still holds
    the scale of ε fixed.

    >>> video = torch.tensor([[[0.0], [1.0], [5.0]]])
    >>> transport_distance(video, video.flip(1) + 2.0, plan="exact")  # the order of frames does not matter
    tensor([2.])
    """
    _check_option("gradient", gradient, Gradient)
    costs = pairwise_costs(x, y, metric)
    found = plans(costs if gradient == "autodiff" else costs.detach(), mask_x=mask_x, mask_y=mask_y, **options)
    return (found * costs.to(found.dtype).where(found > 0, 0.0)).sum((1, 2))


def plan_entropy(plan: Tensor, mask_x: Tensor | None = None, mask_y: Tensor | None = None) -> Tensor:
    """plan (B, n, m) -> (B,): −Σ P log P over log(n m), frames of padding not counted: 1 is uniform.

    ½ is a matching of equally many frames. RAPL's published plans have 0.96 and more.

    >>> plan_entropy(torch.stack([torch.full((2, 2), 0.25), torch.eye(2) / 2]))
    tensor([1.0000, 0.5000])
    """
    counts = [(_weights(mask, plan, axis) > 0).sum(1) for mask, axis in ((mask_x, 1), (mask_y, 2))]
    most = (counts[0] * counts[1]).to(plan.dtype).log()
    return torch.special.entr(plan).sum((1, 2)).where(most > 0, 1.0) / most.where(most > 0, 1.0)


def _weights(mask: Tensor | None, costs: Tensor, axis: int) -> Tensor:
    """(B, frames): one over the number of frames, 0 on padding."""
    shape = (len(costs), costs.shape[axis])
    if mask is None:
        return costs.new_full(shape, 1 / shape[1])
    name = "mask_x" if axis == 1 else "mask_y"
    if mask.shape != shape or mask.dtype != torch.bool:
        raise InvalidData(f"{name} must be bool of shape {shape}, but is {mask.dtype} of shape {tuple(mask.shape)}.")
    counts = mask.sum(1, keepdim=True)
    if not bool(counts.all()):
        raise InvalidData(f"Video {int(counts.argmin())} of {name} has no frame: leave it out.")
    return mask.to(costs.dtype) / counts


def _check_option(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ConfigError(f"{name} must be one of {', '.join(get_args(allowed))}, but is {value!r}.")


def _check_numbers(epsilon: float, band: float, max_iterations: int, tolerance: float) -> None:
    for name, value, holds, wanted in (
        ("epsilon", epsilon, 0 < epsilon < math.inf, "above 0 (for the limit 0 use plan='exact', for ∞ 'uniform')"),
        ("band", band, 0 <= band <= 1, "in [0, 1], in parts of the video"),
        ("max_iterations", max_iterations, max_iterations >= 1, "at least 1"),
        ("tolerance", tolerance, tolerance >= 0, "at least 0"),
    ):
        if not holds:
            raise ConfigError(f"{name} must be {wanted}, but is {value}.")
