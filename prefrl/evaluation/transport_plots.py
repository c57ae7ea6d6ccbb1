"""Pictures of a transport between two tasks: its plan as a heat map (after Liu et al. 2024, arXiv 2306.03615)."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from prefrl.core import require_finite
from prefrl.evaluation.plots import STYLE

__all__ = ["binned_plan", "plan_map"]


def binned_plan(plan: np.ndarray, source_order: np.ndarray, target_order: np.ndarray, *, bins: int = 40) -> np.ndarray:
    """A plan (n, m) with rows and columns sorted by (n,) and (m,), summed to at most (bins, bins); the mass stays.

    >>> binned_plan(np.eye(4) / 4, np.array([3, 2, 1, 0]), np.arange(4), bins=2)
    array([[0. , 0.5],
           [0.5, 0. ]])
    """
    ordered = plan[np.argsort(source_order, kind="stable")][:, np.argsort(target_order, kind="stable")]
    for axis in (0, 1):
        size = ordered.shape[axis]
        starts = np.unique(np.arange(min(bins, size)) * size // min(bins, size))
        ordered = np.add.reduceat(ordered, starts, axis=axis)
    return ordered


def plan_map(plan: np.ndarray, *, source: str, target: str, title: str = "Transport plan") -> bytes:
    """A PNG of a plan (n, m): the darker, the more of a source row's mass goes to a target column."""
    plan = np.asarray(plan, dtype=np.float64)
    require_finite("the plan", plan)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        share = plan / np.maximum(plan.sum(1, keepdims=True), np.finfo(float).tiny)
        image = axes.imshow(share, cmap="Blues", origin="lower", aspect="auto", interpolation="nearest", vmin=0)
        axes.set(title=title, xlabel=target, ylabel=source, xticks=[], yticks=[])
        figure.colorbar(image, ax=axes, label="share of a row's mass")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})  # equal pictures are equal bytes
        return buffer.getvalue()
