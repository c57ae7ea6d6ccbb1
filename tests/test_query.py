"""Laws of uniform queries."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from prefrl.data.query import UniformQuery, WholeEpisodes, num_segments, segment_at
from prefrl.errors import InvalidData

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(np.array)


def places(lengths: np.ndarray, segment_length: int) -> list[tuple[int, int]]:
    """The oracle: every (episode, start) where a segment fits, by enumeration."""
    return [(e, s) for e, T in enumerate(lengths) for s in range(T) if s + segment_length <= T]


@given(LENGTHS, st.integers(1, 6))
def test_numbers_and_places_are_one_to_one(lengths, segment_length):
    """The numbers 0 … total - 1 are exactly the places where a segment fits."""
    total = num_segments(lengths, segment_length).sum()
    refs = segment_at(np.arange(total), lengths, segment_length)
    assert list(zip(refs.episode.tolist(), refs.start.tolist(), strict=True)) == places(lengths, segment_length)


@given(LENGTHS, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_pairs_fit_and_differ(lengths, segment_length, seed):
    """No segment passes its episode's end, no pair is one segment twice; too few segments is an error."""
    if len(places(lengths, segment_length)) < 2:
        with pytest.raises(InvalidData, match="needs two"):
            UniformQuery()(lengths, 1, segment_length, np.random.default_rng(seed))
        return
    first, second = UniformQuery()(lengths, 50, segment_length, np.random.default_rng(seed))
    for refs in (first, second):
        assert len(refs) == 50
        assert (refs.start + refs.length <= lengths[refs.episode]).all()
        assert (refs.length == segment_length).all()
    assert not ((first.episode == second.episode) & (first.start == second.start)).any()


def test_every_pair_is_drawn_and_all_alike_often():
    """All ordered pairs of different places come up equally often, last starts of episodes too."""
    lengths, segment_length = np.array([4, 2, 6, 3]), 3
    number = {place: i for i, place in enumerate(places(lengths, segment_length))}
    pair = UniformQuery()(lengths, 60_000, segment_length, np.random.default_rng(0))
    first, second = ([number[p] for p in zip(r.episode.tolist(), r.start.tolist(), strict=True)] for r in pair)
    counts = np.zeros((len(number), len(number)))
    np.add.at(counts, (first, second), 1)
    assert (np.diag(counts) == 0).all()
    off_diagonal = counts[~np.eye(len(number), dtype=bool)]
    assert (off_diagonal > 0).all()
    assert chisquare(off_diagonal).pvalue > 0.01
    assert chisquare(counts.sum(0)).pvalue > 0.01
    assert chisquare(counts.sum(1)).pvalue > 0.01


def test_equal_seeds_give_equal_pairs_and_other_seeds_others():
    """The generator decides everything."""
    lengths = np.array([30, 40])
    one, two, other = (UniformQuery()(lengths, 20, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for a, b, c in zip(one, two, other, strict=True):
        assert np.array_equal(a.start, b.start)
        assert np.array_equal(a.episode, b.episode)
        assert not np.array_equal(a.start, c.start)


@pytest.mark.parametrize(("n", "segment_length"), [(-1, 2), (1, 0)])
def test_impossible_requests_are_refused(n, segment_length):
    """Fewer than zero pairs, or segments of no steps, are an error."""
    with pytest.raises(InvalidData, match="segment_length"):
        UniformQuery()(np.array([5, 5]), n, segment_length, np.random.default_rng(0))


def test_a_million_pairs_take_about_a_second():
    """Index arithmetic only: at least a million pairs a second (imitation: about 17 thousand)."""
    lengths, seconds = np.random.default_rng(0).integers(100, 500, size=200), []
    for _ in range(5):
        start = time.perf_counter()
        UniformQuery()(lengths, 200_000, 50, np.random.default_rng(0))
        seconds.append(time.perf_counter() - start)
    assert 200_000 / min(seconds) > 1_000_000


@given(LENGTHS, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_whole_episodes_begin_at_the_beginning_and_keep_early_ends(lengths, segment_length, seed):
    """Two different episodes, from step 0, as long as they are but no longer than asked; one episode is an error."""
    if len(lengths) < 2:
        with pytest.raises(InvalidData, match="there must be 2 episodes"):
            WholeEpisodes()(lengths, 1, segment_length, np.random.default_rng(seed))
        return
    first, second = WholeEpisodes()(lengths, 50, segment_length, np.random.default_rng(seed))
    for refs in (first, second):
        assert (refs.start == 0).all()
        assert (refs.length == np.minimum(lengths[refs.episode], segment_length)).all()
    assert (first.episode != second.episode).all()
