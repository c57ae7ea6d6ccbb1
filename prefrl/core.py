"""Core data: what passes between teachers, scores, losses and policies.

Letters: B batch, T time, K list length, N number of comparisons, D observation, A action.

**Time index.** A segment of T steps has T + 1 observations: ``observations[t]`` is seen before ``actions[t]``, and
the last one is the *end state*, which regret needs (Knox et al. 2022, arXiv 2206.02231).

**Label.** ``p_first`` in [0, 1] is the probability that the *first* segment is preferred. A tie is 0.5; "cannot
compare" is dropped before it becomes data. Foreign conventions are converted in ``prefrl.data.labels``, nowhere else.

``true_reward`` is the environment's own reward. Teachers and metrics may read it; learners may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefrl.errors import InvalidData

__all__ = [
    "AttributeComparisons",
    "Comparisons",
    "Rankings",
    "Segment",
    "SegmentBatch",
    "SegmentRefs",
    "Transitions",
    "require_finite",
    "require_probability",
]


def require_finite(name: str, values: Tensor | np.ndarray | None) -> None:
    """Raise ``InvalidData`` naming the first NaN or infinite entry of ``values`` (None passes).

    >>> require_finite("rewards", torch.tensor([0.0, float("nan")]))
    Traceback (most recent call last):
    ...
    prefrl.errors.InvalidData: rewards holds 1 value(s) that are NaN or infinite, the first at index (1,); ...
    """
    if values is None:
        return
    finite = torch.isfinite(torch.as_tensor(values))
    if not bool(finite.all()):
        bad = (~finite).nonzero()
        raise InvalidData(
            f"{name} holds {len(bad)} value(s) that are NaN or infinite, the first at index "
            f"{tuple(bad[0].tolist())}; every value must be finite. Find out where it came from, or drop its episode."
        )


def require_probability(name: str, values: Tensor | np.ndarray) -> None:
    """Raise ``InvalidData`` unless every entry of ``values`` is in [0, 1]."""
    values = torch.as_tensor(values)
    require_finite(name, values)
    outside = (values < 0) | (values > 1)
    if bool(outside.any()):
        at = tuple(outside.nonzero()[0].tolist())
        raise InvalidData(
            f"{name} must be in [0, 1] (probability that the first is preferred; 0.5 is a tie), "
            f"but is {values[at].item():g} at index {at}."
        )


@dataclass(frozen=True)
class SegmentRefs:
    """Where B segments lie in a dataset: nothing is copied to be labelled.

    episode: (B,) int64 · start: (B,) int64, index of the first step in its episode · length: (B,) int64, steps T.
    """

    episode: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, np.asarray(getattr(self, field.name), dtype=np.int64))
        if not (self.episode.shape == self.start.shape == self.length.shape and self.episode.ndim == 1):
            raise InvalidData("SegmentRefs: episode, start and length must have one equal length, shape (B,).")
        if (self.start < 0).any() or (self.length < 1).any() or (self.episode < 0).any():
            raise InvalidData("SegmentRefs: episode and start must be >= 0, and length >= 1.")

    def __len__(self) -> int:
        return len(self.episode)

    def __getitem__(self, index: Any) -> SegmentRefs:
        return SegmentRefs(self.episode[index], self.start[index], self.length[index])


@dataclass(frozen=True)
class Segment:
    """One segment of T steps.

    observations: (T+1, D) float32, the last one is the end state · actions: (T, A) float32
    true_reward: (T,) float32 or None · terminal: the end state is terminal, so its value is 0.
    """

    observations: Tensor
    actions: Tensor
    true_reward: Tensor | None = None
    terminal: bool = False

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class SegmentBatch:
    """B segments of up to T steps, padded on the right.

    observations: (B, T+1, D) · actions: (B, T, A) · mask: (B, T) bool, True on real steps (a prefix)
    true_reward: (B, T) or None · terminal: (B,) bool, the end state is terminal · refs: their places, or None.
    Raises ``InvalidData`` on wrong shapes and on NaN.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor
    true_reward: Tensor | None = None
    terminal: Tensor | None = None
    refs: SegmentRefs | None = None

    def __post_init__(self) -> None:
        B, T = self.mask.shape
        if self.observations.shape[:2] != (B, T + 1) or self.actions.shape[:2] != (B, T):
            raise InvalidData(
                f"SegmentBatch: a mask of shape {(B, T)} needs observations ({B}, {T + 1}, ...) and actions "
                f"({B}, {T}, ...), but they are {tuple(self.observations.shape)} and {tuple(self.actions.shape)}."
            )
        if self.mask.dtype != torch.bool or bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any()):
            raise InvalidData(
                "SegmentBatch: mask must be bool and True on a prefix of each row (padding is on the right)."
            )
        if self.true_reward is not None and self.true_reward.shape != (B, T):
            raise InvalidData(f"SegmentBatch: true_reward must be {(B, T)}, but is {tuple(self.true_reward.shape)}.")
        if self.terminal is not None and self.terminal.shape != (B,):
            raise InvalidData(f"SegmentBatch: terminal must be {(B,)}, but is {tuple(self.terminal.shape)}.")
        for name in ("observations", "actions", "true_reward"):
            require_finite(name, getattr(self, name))

    @staticmethod
    def from_segments(segments: Sequence[Segment]) -> SegmentBatch:
        """Pad segments of different lengths into one batch (observations are padded with the end state)."""
        if not segments:
            raise InvalidData("SegmentBatch.from_segments: the list of segments is empty.")
        shapes = {tuple(s.observations.shape[1:]) for s in segments}
        if len(shapes) > 1:
            raise InvalidData(f"Segments with different observation sizes cannot be one batch: {sorted(shapes)}.")
        T = max(len(s) for s in segments)

        def pad(x: Tensor, length: int, last: bool) -> Tensor:
            filler = x[-1:] if last else torch.zeros_like(x[:1])
            return torch.cat([x, filler.expand(length - len(x), *x.shape[1:])])

        rewards = [s.true_reward for s in segments]
        return SegmentBatch(
            observations=torch.stack([pad(s.observations, T + 1, last=True) for s in segments]),
            actions=torch.stack([pad(s.actions, T, last=False) for s in segments]),
            mask=torch.arange(T) < torch.tensor([len(s) for s in segments])[:, None],
            true_reward=None
            if any(r is None for r in rewards)
            else torch.stack([pad(r, T, last=False) for r in rewards if r is not None]),
            terminal=torch.tensor([s.terminal for s in segments]),
        )

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: real steps per segment."""
        return self.mask.sum(1)

    @property
    def start_observations(self) -> Tensor:
        """(B, D): the start state of each segment."""
        return self.observations[:, 0]

    @property
    def end_observations(self) -> Tensor:
        """(B, D): the end state of each segment, after its last real step."""
        return self.observations[torch.arange(len(self)), self.lengths]

    def __getitem__(self, index: Any) -> SegmentBatch:
        """Rows by slice, index array or boolean mask."""
        rows = torch.arange(len(self))[index]
        if rows.ndim == 0:
            rows = rows[None]
        return SegmentBatch(
            self.observations[rows],
            self.actions[rows],
            self.mask[rows],
            None if self.true_reward is None else self.true_reward[rows],
            None if self.terminal is None else self.terminal[rows],
            None if self.refs is None else self.refs[rows.numpy()],
        )

    def without_true_reward(self) -> SegmentBatch:
        """The same segments as a learner may see them."""
        return replace(self, true_reward=None)

    def to(self, device: torch.device | str) -> SegmentBatch:
        moved = {
            f.name: getattr(self, f.name).to(device) for f in fields(self) if torch.is_tensor(getattr(self, f.name))
        }
        return replace(self, **moved)


def _require_comparable(name: str, first: SegmentBatch, second: SegmentBatch) -> None:
    """As many segments on both sides, of one observation and action size; ``name`` is whose they are."""
    if len(first) != len(second):
        raise InvalidData(f"{name}: there are {len(first)} first segments, but {len(second)} second ones.")
    for part in ("observations", "actions"):
        one, two = (tuple(getattr(segments, part).shape[2:]) for segments in (first, second))
        if one != two:
            raise InvalidData(f"{name}: the {part} of first and second differ in size: {one} and {two}.")


@dataclass(frozen=True)
class Comparisons:
    """N answered comparisons.

    first, second: N segments each · p_first: (N,) probability that the first is preferred, 0.5 is a tie
    rater: (N,) int64, who answered (0 if there is one rater).
    """

    first: SegmentBatch
    second: SegmentBatch
    p_first: Tensor
    rater: Tensor | None = None

    def __post_init__(self) -> None:
        N = len(self.first)
        _require_comparable("Comparisons", self.first, self.second)
        if self.p_first.shape != (N,):
            raise InvalidData(f"Comparisons: p_first must be {(N,)}, but is {tuple(self.p_first.shape)}.")
        require_probability("p_first", self.p_first)
        if self.rater is None:
            object.__setattr__(self, "rater", torch.zeros(N, dtype=torch.int64))
        elif self.rater.shape != (N,):
            raise InvalidData(f"Comparisons: rater must be {(N,)}, but is {tuple(self.rater.shape)}.")

    def __len__(self) -> int:
        return len(self.p_first)

    def __getitem__(self, index: Any) -> Comparisons:
        rows = torch.arange(len(self))[index]
        if rows.ndim == 0:
            rows = rows[None]
        assert self.rater is not None
        return Comparisons(self.first[rows], self.second[rows], self.p_first[rows], self.rater[rows])

    def swapped(self) -> Comparisons:
        """The same comparisons with first and second exchanged: every symmetric loss is equal on both."""
        return Comparisons(self.second, self.first, 1 - self.p_first, self.rater)

    def without_true_reward(self) -> Comparisons:
        return replace(self, first=self.first.without_true_reward(), second=self.second.without_true_reward())

    def to(self, device: torch.device | str) -> Comparisons:
        assert self.rater is not None
        return Comparisons(
            self.first.to(device), self.second.to(device), self.p_first.to(device), self.rater.to(device)
        )


@dataclass(frozen=True)
class Rankings:
    """N rankings of K segments each.

    segments: N·K segments, those of ranking n at rows n·K … n·K + K − 1
    rank: (N, K) int64; 0 is best, equal numbers are a tie, −1 is "not ranked".
    """

    segments: SegmentBatch
    rank: Tensor

    def __post_init__(self) -> None:
        if self.rank.ndim != 2 or self.rank.numel() != len(self.segments):
            raise InvalidData(
                f"Rankings: rank {tuple(self.rank.shape)} does not fit {len(self.segments)} segments (N*K)."
            )
        if bool((self.rank < -1).any()):
            raise InvalidData("Rankings: rank must be >= 0, or -1 for a segment that was not ranked.")

    def __len__(self) -> int:
        return len(self.rank)

    def to_comparisons(self) -> Comparisons:
        """Every pair of ranked segments within a ranking, as comparisons (equal ranks give a tie)."""
        K = self.rank.shape[1]
        i, j = torch.triu_indices(K, K, offset=1)
        n, pair = ((self.rank[:, i] >= 0) & (self.rank[:, j] >= 0)).nonzero(as_tuple=True)
        first, second = n * K + i[pair], n * K + j[pair]
        better = self.rank.flatten()
        p_first = 0.5 + 0.5 * torch.sign(better[second] - better[first]).to(torch.float32)
        return Comparisons(self.segments[first], self.segments[second], p_first)


@dataclass(frozen=True)
class AttributeComparisons:
    """N comparisons, each answered for M named attributes ("which one is faster? higher?").

    p_first: (N, M) · answered: (N, M) bool, False where the rater gave no answer (its p_first is ignored).
    """

    first: SegmentBatch
    second: SegmentBatch
    p_first: Tensor
    answered: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_comparable("AttributeComparisons", self.first, self.second)
        expected = (len(self.first), len(self.names))
        if self.p_first.shape != expected or self.answered.shape != expected:
            raise InvalidData(
                f"AttributeComparisons: p_first and answered must be (N, M) = {expected}, but are "
                f"{tuple(self.p_first.shape)} and {tuple(self.answered.shape)}."
            )
        require_probability("p_first", self.p_first[self.answered])

    def __len__(self) -> int:
        return len(self.p_first)

    def attribute(self, name: str) -> Comparisons:
        """The answered comparisons of one attribute."""
        if name not in self.names:
            raise InvalidData(f"Unknown attribute {name!r}; these are there: {', '.join(self.names)}.")
        column = self.names.index(name)
        rows = self.answered[:, column]
        return Comparisons(self.first[rows], self.second[rows], self.p_first[rows, column])


@dataclass(frozen=True)
class Transitions:
    """B transitions, as an offline learner sees them.

    observations, next_observations: (B, D) · actions: (B, A) · rewards: (B,), *learned* or chosen by the recipe
    terminated: (B,) float32, 1 where the next state is terminal (time limits do not count)
    steps: (B,) float32, environment steps between the two observations; 1 unless made by ``n_step_returns``, whose
    rewards are discounted sums over these steps.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor
    steps: Tensor | None = None

    def __post_init__(self) -> None:
        B = len(self.observations)
        if self.steps is None:
            object.__setattr__(self, "steps", torch.ones_like(self.terminated))
        for field in fields(self):
            if len(getattr(self, field.name)) != B:
                raise InvalidData(
                    f"Transitions: {field.name} has {len(getattr(self, field.name))} rows, but observations have {B}."
                )

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, rows: Tensor) -> Transitions:
        """Rows by index tensor."""
        return Transitions(*(getattr(self, f.name).index_select(0, rows) for f in fields(self)))

    def discounts(self, gamma: float) -> Tensor:
        """(B,): what multiplies the next state's value, γ^steps · (1 − terminated)."""
        assert self.steps is not None
        return gamma**self.steps * (1 - self.terminated)

    def require_finite(self) -> Transitions:
        """Self, after checking that nothing in it is NaN: done once, before training."""
        for field in fields(self):
            require_finite(field.name, getattr(self, field.name))
        return self
