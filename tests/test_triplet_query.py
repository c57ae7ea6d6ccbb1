"""Laws of the query that asks for rankings of three (RAPL, arXiv 2310.07932)."""

import numpy as np
import pytest

from prefrl.errors import InvalidData
from prefrl.queries.triplets import TripletQuery

LENGTHS = np.array([5, 9, 7, 8, 6, 9, 9])


def ask(n, *, seed=0, segment_length=7, lengths=LENGTHS):
    return TripletQuery()(lengths, n, segment_length, np.random.default_rng(seed))


@pytest.mark.parametrize("n", [3, 6, 30])
def test_every_three_pairs_are_all_pairs_of_three_episodes(n):
    """Pairs come as whole triplets: three different episodes, each in two of the pairs."""
    first, second = ask(n)
    pairs = np.stack([first.episode, second.episode], 1).reshape(-1, 6)
    counts = [sorted(np.unique(triplet, return_counts=True)[1].tolist()) for triplet in pairs]
    assert counts == [[2, 2, 2]] * (n // 3)


def test_a_round_asks_about_every_episode_but_the_rest_once():
    """With 7 episodes, the first two triplets share none."""
    first, second = ask(6)
    triplets = np.stack([first.episode, second.episode], 1).reshape(2, 6)
    assert not set(triplets[0].tolist()) & set(triplets[1].tolist())


def test_segments_are_whole_episodes_cut_at_the_length():
    """Each begins at 0 and has min(length of the episode, segment_length) steps."""
    for side in ask(30):
        assert (side.start == 0).all()
        assert np.array_equal(side.length, np.minimum(LENGTHS[side.episode], 7))


def test_equal_generators_ask_equal_questions():
    """The draw depends on the generator alone."""
    assert np.array_equal(ask(12, seed=3)[0].episode, ask(12, seed=3)[0].episode)
    assert not np.array_equal(ask(12, seed=3)[0].episode, ask(12, seed=4)[0].episode)


def test_no_pair_is_asked_twice():
    """What was asked before comes in no triplet; where too little is left, that is an error."""
    before = ask(9)
    first, second = TripletQuery()(LENGTHS, 3, 7, np.random.default_rng(5), labelled=before)
    known = {frozenset(pair) for pair in zip(before[0].episode.tolist(), before[1].episode.tolist(), strict=True)}
    assert not known & {frozenset(pair) for pair in zip(first.episode.tolist(), second.episode.tolist(), strict=True)}
    with pytest.raises(InvalidData, match="asked before"):
        TripletQuery()(LENGTHS[:3], 3, 7, np.random.default_rng(5), labelled=ask(3, lengths=LENGTHS[:3]))


def test_two_episodes_are_an_error():
    """A ranking of three needs three."""
    with pytest.raises(InvalidData, match="3 episodes"):
        ask(3, lengths=np.array([5, 5]))
