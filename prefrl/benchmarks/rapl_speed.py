"""Rows speed of ``prefrl bench rapl``: transport of many videos at once, raced with POT's loop and with its batches.

100 pairs of videos of 50 frames, embedded in 32 numbers: random walks in four directions of it. All three find the
entropic plans of the same costs, at ε = 0.1 of the mean cost of each pair and to the same tolerance, on one thread,
timed by the processor, in turns; costs and ε are made before. Ours stops at a sum of absolute errors of the columns,
both of POT's at their Euclidean norm, so their tolerance is less by √50: then the sum is kept too. A row is the median
of the turns' ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ot
import ot.batch
import torch
from torch import Tensor

from prefrl.benchmarks.core import one_thread
from prefrl.benchmarks.findings import Finding, at_least, at_most
from prefrl.evaluation.intervals import Estimate
from prefrl.progress import Bars
from prefrl.transport.sequences import pairwise_costs, plans

__all__ = ["SPEED_ROWS", "rows_of_speed"]

PAIRS, FRAMES, EMBEDDING, DIRECTIONS = 100, 50, 32, 4
EPSILON, TOLERANCE = 0.1, 1e-5
NORM_TOLERANCE = TOLERANCE / FRAMES**0.5
SPEED_BAR, DIFFERENCE_BAR = 5.0, 1e-4
SPEED_ROWS = ("speed_loop", "speed_loop_float64", "speed_batch", "speed_difference")
PRECISIONS = {"": torch.float32, "_float64": torch.float64}


def rows_of_speed(seeds: Sequence[int], *, show: Bars) -> list[Finding]:
    """The rows of SPEED_ROWS; seeds: of the videos, one a turn."""
    turns = []
    with one_thread():
        for seed in seeds:
            turns.append({name: _turn(seed, dtype) for name, dtype in PRECISIONS.items()})
            show("speed", len(turns), len(seeds))
    what = f"transport of {PAIRS} pairs of {FRAMES} frames"
    more: dict[str, Any] = {"seeds": tuple(seeds)}
    median = {
        (peer, name): _median([turn[name][peer] / turn[name]["ours"] for turn in turns])
        for peer in ("loop", "batch")
        for name in PRECISIONS
    }
    worst = max(turn[name]["difference"] for turn in turns for name in PRECISIONS)
    return [
        at_least("speed_loop", f"{what}: loop of ot.sinkhorn / prefrl", median["loop", ""], SPEED_BAR, **more),
        at_least("speed_loop_float64", f"{what}, float64: loop / prefrl", median["loop", "_float64"], **more),
        at_least("speed_batch", f"{what}: ot.batch.solve_batch / prefrl", median["batch", ""], **more),
        at_most("speed_difference", f"largest |difference| of distances, {what}", worst, DIFFERENCE_BAR, **more),
    ]


def _turn(seed: int, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of each, and how far the distances of ours and the loop's are apart at most."""
    costs = pairwise_costs(*_videos(seed, dtype))
    epsilon = EPSILON * costs.mean((1, 2))
    matrices, weights = costs.numpy(), np.full(FRAMES, 1 / FRAMES, costs.numpy().dtype)
    scaled = costs / epsilon[:, None, None]
    contenders: dict[str, Callable[[], Any]] = {
        "loop": lambda: np.stack([
            ot.sinkhorn(weights, weights, cost, float(reg), stopThr=NORM_TOLERANCE)
            for cost, reg in zip(matrices, epsilon, strict=True)
        ]),
        "batch": lambda: ot.batch.solve_batch(scaled, 1.0, method="sinkhorn", tol=NORM_TOLERANCE, grad="detach").plan,
        "ours": lambda: plans(costs, epsilon=EPSILON, tolerance=TOLERANCE),
    }  # fmt: skip
    found: dict[str, float] = {}
    distances = {}
    for name, solve in contenders.items():
        solve()  # warm up
        begin = time.process_time()
        plan = solve()
        found[name] = time.process_time() - begin
        distances[name] = (torch.as_tensor(plan) * costs).sum((1, 2))
    found["difference"] = float((distances["ours"] - distances["loop"]).abs().max())
    return found


def _videos(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two (PAIRS, FRAMES, EMBEDDING); a coordinate of a last frame has a variance of about 1."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(DIRECTIONS, EMBEDDING, generator=generator) / DIRECTIONS**0.5
    steps = torch.randn(2, PAIRS, FRAMES, DIRECTIONS, generator=generator) / FRAMES**0.5
    first, second = (steps.cumsum(2) @ head).to(dtype)
    return first, second


def _median(ratios: Sequence[float]) -> Estimate:
    return Estimate(float(np.median(ratios)), min(ratios), max(ratios))
