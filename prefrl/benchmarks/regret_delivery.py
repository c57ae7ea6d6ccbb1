"""``prefrl bench regret``, rows B1 to B7 and B11: people's preferences on the delivery board, and what is learned.

Knox et al. 2022 (arXiv 2206.02231) asked people for preferences between segments of three steps; the conditions in
which they were shown partial returns or regrets are of Hatgis-Kessell et al. 2025 (arXiv 2501.06416). The folder
``regret_human_prefs`` holds, of nine conditions, the segments, the labels, the statistics that the authors computed and
their noiseless labels (``human_data``), and successor features of 69 policies (``delivery_mdp``); plain ``.npy`` all.

Both learners are the paper's. The values of the regret learner are those of the 69 policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefrl.benchmarks.findings import Finding, Progress, at_least, at_most, same
from prefrl.data.delivery_prefs import read_board, read_npy, replay
from prefrl.errors import DamagedFile
from prefrl.evaluation.intervals import Estimate, paired_difference, success_interval
from prefrl.preference_models import SegmentStatistics, label, segment_score
from prefrl.protocols import TabularEnv
from prefrl.solvers import (
    SegmentPairs,
    TabularMDP,
    Trace,
    fit_linear_reward,
    generalized_policy_improvement,
    greedy_policy,
    mean_start_value,
    partition_pairs,
    policy_values,
    rewards,
    scale_cross_entropy,
    scaled_return,
    segment_pairs,
    successor_feature_values,
    successor_features,
    trace_segments,
    trace_statistics,
    uniform_policy,
    value_iteration,
)

__all__ = [
    "CONDITIONS",
    "Delivery",
    "measure_b1",
    "measure_b2",
    "measure_b3",
    "measure_b4",
    "measure_b5",
    "measure_b6",
    "measure_b7",
    "measure_b11",
]

# conditions of human_data; people of "Pr-…" were shown partial returns or taught to use them, of "Regret-…" regrets
CONDITIONS = tuple(
    f"{nudge}-{group}" if nudge != "Control" else f"{group}-Control"
    for group in ("Privileged", "Trained", "Question")
    for nudge in ("Control", "Pr", "Regret")
)
MAIN = "Privileged-Control"
MODELS = ("regret_deterministic", "partial_return")
Fits = Mapping[str, Mapping[str, Any]]  # options of fit_linear_reward by model
PAPER_ITERATIONS = 30_000  # of the partial-return learner, arXiv 2206.02231's release of 2024
GAMMA = 0.999  # of values and of returns, arXiv 2206.02231; labels and statistics are without discount


class Condition(NamedTuple):
    """Of n pairs: what the segments did, first − second of their statistics, labels, and what is stored of them.

    stored: (n, 3), second − first of partial return and values of start and end · noiseless: (n,) p_first by model.
    """

    first: Trace
    second: Trace
    difference: SegmentStatistics
    p_first: Tensor
    stored: Tensor
    noiseless: dict[str, Tensor]


class Delivery:
    """The board, and people's segments on it; read when they are first needed.

    env: the delivery task · folder: ``regret_human_prefs``, or None where it is absent.
    """

    def __init__(self, env: TabularEnv, folder: Path | None) -> None:
        self.mdp = TabularMDP.from_arrays(*env.tables())
        self.weights = torch.as_tensor(env.true_weights, dtype=torch.float64)
        self._folder = folder
        self._conditions: dict[str, Condition] = {}

    @property
    def folder(self) -> Path:
        assert self._folder is not None  # rows that need it are skipped where it is absent
        return self._folder

    @cached_property
    def optimal(self) -> tuple[Tensor, Tensor]:
        """V* and Q* without discount."""
        return value_iteration(self.mdp, rewards(self.mdp, self.weights), gamma=1.0)

    @cached_property
    def pool(self) -> Tensor:
        """(69, S, F): successor features of the authors' policies, without the optimal one."""
        stored = _load(self.folder / "delivery_mdp" / "succ_feats_no_gt.npy", (None, 10, 10, 6))
        return stored.flatten(1, 2).to(torch.float64)

    def condition(self, name: str) -> Condition:
        if name not in self._conditions:
            self._conditions[name] = self._read(name)
        return self._conditions[name]

    def _read(self, name: str) -> Condition:
        """Moves after a terminal state, which some files hold, are not counted."""
        stem = self.folder / "human_data" / name
        file = Path(f"{stem}_full_filtered_segment_pairs.npy")
        segments = _load(file, (None, 2, 4, 2), whole=True).numpy()
        n = len(segments)
        found = replay(read_board(self.folder / "delivery_mdp" / "board.json"), segments, file=file)
        states, actions, mask = (torch.from_numpy(array) for array in (found.states, found.actions, found.mask))
        first, second = (
            trace_segments(self.mdp, states[:, side, 0], actions[:, side], mask=mask[:, side]) for side in (0, 1)
        )
        sides = (trace_statistics(trace, self.weights, *self.optimal)[:3] for trace in (first, second))
        noiseless = zip(MODELS, ("regret", "pr"), strict=True)
        return Condition(
            first,
            second,
            SegmentStatistics(*(a - b for a, b in zip(*sides, strict=True))),
            1 - _load(Path(f"{stem}_full_filtered_Y.npy"), (n,)),
            _load(Path(f"{stem}_full_filtered_X.npy"), (n, 3)),
            {model: 1 - _load(Path(f"{stem}_gt_det_{word}_prefs_Y.npy"), (n,)) for model, word in noiseless},
        )

    def pairs(self, model: str | None) -> SegmentPairs:
        """Those of the main condition: noiseless labels of a model, or people's."""
        found = self.condition(MAIN)
        return segment_pairs(found.first, found.second, found.p_first if model is None else _answers(found, model))

    def judge(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled return of learned weights (…, F), and whether it is near-optimal; (…)."""
        return scaled_return(self.mdp, weights, self.weights, gamma=GAMMA)

    def learn(self, pairs: SegmentPairs, model: str, **fit: Any) -> tuple[Tensor, Tensor]:
        """Weights that explain the pairs under the model, by ``fit_linear_reward(**fit)``, and how good they are."""
        values = successor_feature_values(self.pool) if model != "partial_return" else None
        return self.judge(fit_linear_reward(pairs, model=model, values=values, **fit).weights)


def _answers(found: Condition, model: str) -> Tensor:
    score = segment_score(found.difference, model)
    return label(score, torch.zeros_like(score))


def _load(file: Path, shape: tuple[int | None, ...], *, whole: bool = False) -> Tensor:
    """An array of numbers of that shape; None stands for any size."""
    array = read_npy(file)
    fits = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits or array.dtype.kind not in ("iu" if whole else "iuf") or not np.isfinite(array).all():
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        raise DamagedFile(
            f"{file} must hold {'whole' if whole else 'finite'} numbers of shape ({wanted}), but has shape "
            f"{array.shape} and type {array.dtype}. Download it again."
        )
    return torch.from_numpy(array)


def measure_b1(board: Delivery, show: Progress) -> list[Finding]:
    """Statistics and noiseless labels, against the stored ones."""
    errors, agreed, total = [], 0, 0
    for done, name in enumerate(CONDITIONS):
        found = board.condition(name)
        ours = -torch.stack(found.difference[:3], -1)  # (n, 3)
        errors.append((ours - found.stored).abs().max().item())
        agreed += sum(int((_answers(found, model) == found.noiseless[model]).sum()) for model in MODELS)
        total += len(MODELS) * len(found.p_first)
        show(done + 1, len(CONDITIONS))
    return [
        at_most("B1", "max |Δ| of partial return, V*(start), V*(end) against nine stored files", max(errors), 0.0),
        at_least("B1.labels", f"share of {total} stored noiseless labels that ours equal", agreed / total, 1.0),
    ]


def measure_b2(board: Delivery, show: Progress) -> list[Finding]:
    """Returns of the optimal and of the uniform policy, mean of start states."""
    truth = rewards(board.mdp, board.weights)
    random = policy_values(board.mdp, uniform_policy(board.mdp), truth, gamma=GAMMA)
    best, _ = value_iteration(board.mdp, truth, gamma=GAMMA)
    numbers = [mean_start_value(board.mdp, values).item() for values in (best, random, board.optimal[0])]
    starts = int((board.mdp.start > 0).sum())
    show(1, 1)
    return [
        same(
            "B2.optimal", f"return of the optimal policy, gamma .999, {starts} starts", numbers[0], 41.208, within=0.01
        ),
        same("B2.random", "return of the uniform policy, gamma .999", numbers[1], -71.257, within=0.01),
        same("B2.undiscounted", "return of the optimal policy, gamma 1", numbers[2], 41.533, within=0.01),
    ]


def _cross_entropies(board: Delivery, name: str) -> dict[str, float]:
    found = board.condition(name)
    return {
        model: scale_cross_entropy(segment_score(found.difference, model), found.p_first).cross_entropy
        for model in MODELS
    }


def measure_b3(board: Delivery, show: Progress) -> list[Finding]:
    """How well either model describes people: held-out cross-entropy with one scale."""
    found = _cross_entropies(board, MAIN)
    n = len(board.condition(MAIN).p_first)
    show(1, 1)
    what = f"10-fold cross-entropy of {n} human labels ({MAIN}), one scale: "
    return [
        same("B3.partial_return", what + "partial return", found["partial_return"], 0.620, within=0.003),
        same("B3.regret", what + "regret", found["regret_deterministic"], 0.573, within=0.003),
    ]


def measure_b4(board: Delivery, show: Progress) -> list[Finding]:
    """Which model describes whom better: partial return where people were nudged to it, else regret."""
    found, rows = 0, []
    for done, name in enumerate(CONDITIONS):
        entropy = _cross_entropies(board, name)
        gap = entropy["partial_return"] - entropy["regret_deterministic"]
        found += (gap < 0) == name.startswith("Pr-")
        what = "10-fold cross-entropy of human labels, partial return − regret (> 0: regret is better)"
        rows.append(at_least(f"B4.{name}", what, gap))
        show(done + 1, len(CONDITIONS))
    what = "conditions with the expected winner: partial return where people were nudged to it, else regret"
    return [at_least("B4", what, found, len(CONDITIONS)), *rows]


def measure_b5(board: Delivery, show: Progress, *, iterations: int) -> list[Finding]:
    """The partial return is not identified: its own noiseless labels do not give a near-optimal policy.

    What they do not fix depends on when learning stops, so the value is shown at the paper's number of iterations too.
    """
    pairs = board.pairs("partial_return")
    scaled, near_optimal = board.learn(pairs, "partial_return", iterations=iterations)
    show(1, 2)
    longer, _ = board.learn(pairs, "partial_return", iterations=PAPER_ITERATIONS)
    show(2, 2)
    what = "noiseless partial-return labels, partial-return learner, {} iterations{}: "
    found = what.format(iterations, "")
    return [
        same("B5", found + "scaled return", scaled.item(), 0.702, within=0.01),
        at_most("B5.near_optimal", found + "share near-optimal (> .9)", near_optimal.double().item(), 0.0),
        at_least("B5.paper", what.format(PAPER_ITERATIONS, " as in the paper") + "scaled return", longer.item()),
    ]


def measure_b6(
    board: Delivery, show: Progress, *, parts: Sequence[Sequence[int]], fits: Fits, seed: int
) -> list[Finding]:
    """The regret is identified, from few labels; parts: (number, shuffles)."""
    pairs, model, found = board.pairs("regret_deterministic"), "regret_deterministic", []
    for done, (count, shuffles) in enumerate(parts):
        scaled, near_optimal = board.learn(_partitions(pairs, count, shuffles, seed), model, **fits[model])
        size = len(pairs.p_first) // count
        who = f"noiseless regret labels, regret learner, {size} pairs: "
        if count == 1:
            found.append(at_least("B6", who + "least scaled return", scaled.min().item(), 0.99, seeds=(seed,)))
        what = who + f"near-optimal share of {len(scaled)} fits"
        found.append(at_least(f"B6.{size}", what, near_optimal.double().mean().item(), 1.0, seeds=(seed,)))
        show(done + 1, len(parts))
    return found


def measure_b7(
    board: Delivery, show: Progress, *, parts: Sequence[Sequence[Any]], fits: Fits, seed: int
) -> list[Finding]:
    """People's labels: near-optimal share of fits, regret − partial return; parts: (number, shuffles, bar)."""
    pairs, found, rng = board.pairs(None), [], np.random.default_rng(0)
    for done, (count, shuffles, bar) in enumerate(parts):
        split = _partitions(pairs, count, shuffles, seed)
        near = {}
        for number, model in enumerate(MODELS):
            near[model] = board.learn(split, model, **fits[model])[1].double().numpy()
            show(len(MODELS) * done + number + 1, len(MODELS) * len(parts))
        size = len(pairs.p_first) // count
        who = f"{size} human labels, near-optimal share of {count * shuffles} fits"
        if shuffles > 1:
            who += f" ({shuffles} shuffles of the same labels; the interval is that of one, their mean)"
        who += ": "
        gap = over_shuffles(paired_difference, *near.values(), shuffles=shuffles, rng=rng)
        found.append(at_least(f"B7.{size}", who + "regret − partial return", gap, bar, seeds=(seed,)))
        for model, name in zip(MODELS, ("regret", "partial_return"), strict=True):
            what = f"{who}{name.replace('_', ' ')}, {fits[model]['iterations']} iterations"
            share = over_shuffles(success_interval, near[model], shuffles=shuffles, rng=rng)
            found.append(at_least(f"B7.{size}.{name}", what, share, seeds=(seed,)))
    return found


def over_shuffles(
    interval: Callable[..., Estimate], *found: np.ndarray, shuffles: int, rng: np.random.Generator
) -> Estimate:
    """Mean over shuffles of the interval over the parts of each; found: (shuffles · parts,) arrays.

    Parts of one shuffle have no label in common. Those of different shuffles are made of the same labels: taken for
    independent, they would give an interval that is too narrow.
    """
    of_each = [interval(*parts, rng=rng) for parts in zip(*(np.split(x, shuffles) for x in found), strict=True)]
    return Estimate(*(float(np.mean([getattr(one, name) for one in of_each])) for name in ("value", "low", "high")))


def _partitions(pairs: SegmentPairs, count: int, shuffles: int, seed: int) -> SegmentPairs:
    """``count`` parts of every shuffle, (count · shuffles, n')."""
    generator = torch.Generator().manual_seed(seed)
    parts = [partition_pairs(pairs, count, generator=generator) for _ in range(shuffles)]
    return SegmentPairs(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def measure_b11(board: Delivery, show: Progress) -> list[Finding]:
    """What the pool of policies lacks of the optimal values, at the true weights."""
    values, action_values = value_iteration(board.mdp, rewards(board.mdp, board.weights), gamma=GAMMA)
    best, _ = successor_features(board.mdp, greedy_policy(action_values), gamma=GAMMA)
    pools = {"B11": board.pool, "B11.with_optimal": torch.cat([board.pool, best[None]])}
    what = "max V* − V~ over start states, temperature .001, pool of {} policies{}"
    found: list[Finding] = []
    for id, psi in pools.items():
        gap = (values - generalized_policy_improvement(psi, board.weights))[board.mdp.start > 0]
        named = what.format(len(psi), ", the optimal one among them" if len(found) else " without the optimal one")
        found.append(at_most(id, named, gap.max().item(), 1e-4))
    show(1, 1)
    return found
