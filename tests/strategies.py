"""Hypothesis strategies for the core types, shared by all tests (``from strategies import episodes``).

Shapes and special cases are drawn by hypothesis; the numbers come from a drawn seed, which keeps them fast.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from prefrl.core import AttributeComparisons, Comparisons, Rankings, Segment, SegmentBatch, SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([0.0, 1e-3, 1.0, 1e3])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)


def make_episodes(lengths: Any, *, seed: int = 0, D: int = 3, A: int = 2, scale: float = 1.0) -> Episodes:
    """Random episodes with these lengths: the fixed stand-in for tests that need no strategy."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    E, N = len(lengths), int(np.sum(lengths))
    return Episodes(
        observations=scale * rng.normal(size=(N + E, D)),
        actions=rng.uniform(-1, 1, size=(N, A)),
        true_reward=scale * rng.normal(size=N),
        success=rng.random(N) < 0.2,
        lengths=lengths,
        terminated=rng.random(E) < 0.5,
        behavior=tuple(rng.choice(["expert", "random"], size=E).tolist()),
        seeds=rng.integers(2**31, size=E),
        env={"id": "prefrl/Stand-In-v0", "kwargs": {"goal": [1, 2]}},
        fps=20.0,
    )


def random_preferences(data: Episodes, n: int, rng: np.random.Generator) -> Preferences:
    """n answers about segments of ``data``, of any length that fits."""
    return Preferences(
        first=random_refs(data, n, rng),
        second=random_refs(data, n, rng),
        p_first=rng.choice([0.0, 0.25, 0.5, 1.0], size=n),
        rater=rng.integers(3, size=n),
        teacher=tuple(json.dumps({"name": "oracle", "beta": beta}) for beta in rng.normal(size=n).tolist()),
        time=rng.uniform(0, 2e9, size=n),
    )


def random_refs(data: Episodes, n: int, rng: np.random.Generator) -> SegmentRefs:
    """n places of segments of any length that fits."""
    episode = rng.integers(len(data), size=n)
    length = 1 + rng.integers(data.lengths[episode])
    return SegmentRefs(episode, rng.integers(data.lengths[episode] - length + 1), length)


def _segment(rng: np.random.Generator, T: int, D: int, A: int, scale: float, rewarded: bool) -> Segment:
    def values(*shape: int) -> torch.Tensor:
        return torch.tensor(scale * rng.normal(size=shape), dtype=torch.float32)

    return Segment(values(T + 1, D), values(T, A), values(T) if rewarded else None, bool(rng.random() < 0.3))


@st.composite
def segment_lists(
    draw: st.DrawFn, *, count: int | None = None, D: int | None = None, A: int | None = None
) -> list[Segment]:
    """Segments of different lengths, equal sizes, with true rewards or all without."""
    B, D, A = count or draw(st.integers(1, 5)), D or draw(st.integers(1, 4)), A or draw(st.integers(1, 3))
    rng, scale, rewarded = np.random.default_rng(draw(SEEDS)), draw(SCALES), draw(st.booleans())
    lengths = draw(st.lists(st.integers(1, 6), min_size=B, max_size=B))
    return [_segment(rng, T, D, A, scale, rewarded) for T in lengths]


def segment_batches(**sizes: int) -> st.SearchStrategy[SegmentBatch]:
    """Padded batches; ``count``, ``D`` and ``A`` may be fixed."""
    return segment_lists(**sizes).map(SegmentBatch.from_segments)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparisons:
    """Answered comparisons with hard, soft and tied labels and several raters."""
    N, D, A = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    p_first = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=N, max_size=N))
    rater = draw(st.lists(st.integers(0, 3), min_size=N, max_size=N))
    first, second = (draw(segment_batches(count=N, D=D, A=A)) for _ in range(2))
    return Comparisons(first, second, torch.tensor(p_first), torch.tensor(rater))


@st.composite
def rankings(draw: st.DrawFn) -> Rankings:
    """Rankings of K segments with ties and unranked members."""
    N, K = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rank = draw(st.lists(st.integers(-1, K - 1), min_size=N * K, max_size=N * K))
    return Rankings(draw(segment_batches(count=N * K)), torch.tensor(rank).reshape(N, K))


@st.composite
def attribute_comparisons(draw: st.DrawFn) -> AttributeComparisons:
    """Comparisons on one to three attributes, some unanswered."""
    both, M = draw(comparisons()), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(SEEDS))
    p_first = torch.tensor(rng.choice([0.0, 0.5, 1.0], size=(len(both), M)))
    answered = torch.tensor(rng.random((len(both), M)) < 0.7)
    return AttributeComparisons(both.first, both.second, p_first, answered, ("speed", "height", "calm")[:M])


@st.composite
def episodes(draw: st.DrawFn, *, D: int | None = None, A: int | None = None) -> Episodes:
    """One to five episodes of one to eight steps."""
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    sizes = {"D": D or draw(st.integers(1, 4)), "A": A or draw(st.integers(1, 3))}
    return make_episodes(lengths, seed=draw(SEEDS), scale=draw(SCALES), **sizes)


@st.composite
def episodes_with_refs(draw: st.DrawFn) -> tuple[Episodes, SegmentRefs]:
    """Episodes and the places of one to six segments in them."""
    data = draw(episodes())
    return data, random_refs(data, draw(st.integers(1, 6)), np.random.default_rng(draw(SEEDS)))


@st.composite
def preferences(draw: st.DrawFn, data: Episodes) -> Preferences:
    """None to six answers about segments of ``data``."""
    return random_preferences(data, draw(st.integers(0, 6)), np.random.default_rng(draw(SEEDS)))


def tensors() -> st.SearchStrategy[torch.Tensor]:
    """Small tensors of several types and shapes, scalars and empty ones too."""

    def build(seed: int, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        return (100 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)

    dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8])
    return st.builds(build, SEEDS, st.lists(st.integers(0, 3), max_size=3), dtypes)


def states() -> st.SearchStrategy[Any]:
    """Nested states as modules and optimizers have them: dicts with text or integer keys, lists, leaves."""
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
    keys = TEXTS | st.sampled_from(["tensor", "value", "keys", "items", "integer_keys", "a", "b", "a/b", "~1", ""])

    def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        by_text = st.dictionaries(keys, inner, max_size=4)
        by_number = st.dictionaries(st.integers(0, 9), inner, max_size=4)
        return by_text | by_number | st.lists(inner, max_size=3)

    return st.recursive(plain | tensors(), nest, max_leaves=8)


def same(one: Any, two: Any) -> bool:
    """Equal nested states: types of keys, tensors to the bit, dtypes and shapes."""
    if torch.is_tensor(one) or torch.is_tensor(two):
        return torch.is_tensor(one) and torch.is_tensor(two) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return type(one) is type(two) and bool(one == two)


def same_episodes(one: Episodes, two: Episodes) -> bool:
    """Equal to the bit in every field."""
    arrays = ("observations", "actions", "true_reward", "success", "lengths", "terminated", "seeds")
    equal = all(
        getattr(one, name).dtype == getattr(two, name).dtype and np.array_equal(getattr(one, name), getattr(two, name))
        for name in arrays
    )
    return equal and (one.behavior, one.env, one.fps) == (two.behavior, two.env, two.fps)
