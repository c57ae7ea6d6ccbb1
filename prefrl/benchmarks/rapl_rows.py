"""What rows metric and arms of ``prefrl bench rapl`` say: accuracies and their bars, from the outcomes of all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefrl.benchmarks.findings import Finding, at_least, at_most
from prefrl.benchmarks.rapl_metric import Method, Outcome
from prefrl.evaluation.intervals import Estimate, mean, paired_difference, stratified_bootstrap

__all__ = ["rows_of_metric"]

Outcomes = Mapping[tuple[str, int, int], Outcome]


def rows_of_metric(
    prefix: str, outcomes: Outcomes, methods: Mapping[str, Method], *, seeds: Sequence[int], bars: Mapping[str, float]
) -> list[Finding]:
    """Every method at every N, then what is compared; ``bars``: what may be missing → its bar."""
    rng, more = np.random.default_rng(0), dict[str, Any](seeds=tuple(seeds))
    found = []
    for name, method in methods.items():
        for n in method.labels:
            for column, words in (("same", "of the same robot"), ("cross", "of the other robot")):
                accuracy = _estimate(outcomes, name, n, seeds, column, rng)
                rho = float(np.mean(_values(outcomes, name, n, seeds, f"{column}_rho")))
                what = f"pairs of videos {words} ordered rightly, {name}, {n} rankings (ρ {rho:.3f})"
                found.append(at_least(f"{prefix}.{name}.{n}.{column}", what, accuracy, **more))
    return [*_compared(prefix, outcomes, seeds, bars, rng, more), *found]


def _compared(
    prefix: str, outcomes: Outcomes, seeds: Sequence[int], bars: Mapping[str, float], rng: np.random.Generator,
    more: Mapping[str, Any],
) -> list[Finding]:  # fmt: skip
    """A2 to A8 and A10, as far as their cells are there."""

    def values(name: str, n: int, column: str) -> np.ndarray:
        return _values(outcomes, name, n, seeds, column)

    def row(id: str, what: str, value: float | Estimate) -> Finding:
        return at_least(f"{prefix}.{id}", what, value, bars.get(id), **more)

    n, most = 150, 450
    rapl = {column: values("rapl", n, column) for column in ("same", "same_rho", "cross", "cross_rho")}
    over = paired_difference(rapl["cross"], values("rlhf_mlp", n, "cross"), rng=rng)
    target = float(values("rlhf_mlp", most, "cross").mean())
    counts = sorted({k for name, k, _ in outcomes if name == "rapl" and k})
    enough = [k for k in counts if values("rapl", k, "cross").mean() >= target]
    share = enough[0] / most if enough else float("inf")
    rising = [float(values("rapl", k, "same").mean()) for k in (15, 50, n)]
    late = rapl["same"].mean() - values("rapl_late", n, "same").mean()
    identity_late = values("identity", n, "same").mean() - values("identity_late", n, "same").mean()
    return [
        row("A2", f"RAPL, {n} rankings, same robot: accuracy", _bootstrap(rapl["same"], rng)),
        row("A2.rho", "the same: Spearman's ρ", _bootstrap(rapl["same_rho"], rng)),
        row("A3", f"RAPL, {n} rankings, other robot: accuracy", _bootstrap(rapl["cross"], rng)),
        row("A3.rho", "the same: Spearman's ρ", _bootstrap(rapl["cross_rho"], rng)),
        row("A4", f"RAPL minus RLHF (MLP), {n} rankings each, other robot", over),
        at_most(
            f"{prefix}.A5", f"rankings that RAPL needs for what RLHF has from {most} on the other robot, as a share",
            share, bars.get("A5"), **more,
        ),
        row("A6", f"accuracy from {n} rankings minus that from none, same robot",
            float(rapl["same"].mean() - outcomes["rapl", 0, 0].same)),
        row("A7", "least rise of accuracy from 15 to 50 to 150 rankings", float(np.diff(rising).min())),
        at_most(f"{prefix}.A8", "what 10 % wrong rankings cost in accuracy, same robot",
                float(rapl["same"].mean() - values("rapl_flipped", n, "same").mean()), bars.get("A8"), **more),
        at_most(f"{prefix}.A10", "what videos that begin late cost in accuracy", float(late), bars.get("A10"), **more),
        row("A10.identity", "how much more they cost without transport", float(identity_late - late)),
        at_most(f"{prefix}.seconds", f"processor seconds of the alignment with {n} rankings, the longest",
                float(values("rapl", n, "seconds").max()), bars.get("seconds"), **more),
    ]  # fmt: skip


def _values(outcomes: Outcomes, name: str, n: int, seeds: Sequence[int], column: str) -> np.ndarray:
    """(R,)."""
    return np.array([getattr(outcomes[name, n, seed], column) for seed in (seeds if n else (0,))])


def _estimate(
    outcomes: Outcomes, name: str, n: int, seeds: Sequence[int], column: str, rng: np.random.Generator
) -> float | Estimate:
    values = _values(outcomes, name, n, seeds, column)
    return _bootstrap(values, rng) if len(values) > 1 else float(values[0])


def _bootstrap(values: np.ndarray, rng: np.random.Generator) -> Estimate:
    """The mean of (R,) seeds, and its interval."""
    return stratified_bootstrap(values[:, None], mean, rng=rng)
