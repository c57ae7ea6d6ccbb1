"""Laws of rankings of three videos: what is refused, what they say of pairs, and how a simulated user makes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrl.data.triplets import Triplets, VideoPairs, human_judgements, simulated_triplets
from prefrl.errors import ConfigError, InvalidData


def triplets(*rows, kind="contrastive"):
    return Triplets(*np.array(rows).T, [kind] * len(rows))


@pytest.mark.parametrize(
    ("row", "roles"),
    [((1, 1, 2), "positive and neutral"), ((1, 2, 1), "positive and negative"), ((2, 1, 1), "neutral and negative")],
)
def test_a_video_in_two_roles_is_refused(row, roles):
    """The error names the triplet, the video and both roles."""
    with pytest.raises(InvalidData, match=rf"triplet 1, video 1 is both {roles}"):
        triplets((0, 1, 2), row)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([0], [1], [2, 3], ["equal"]), "one equal length"),
        (([0], [1], [2], ["similar"]), "similar"),
        (([0.5], [1], [2], ["equal"]), "positive must be"),
    ],
)
def test_malformed_triplets_are_refused(arguments, named):
    """Different lengths, an unknown kind, a number that is no index."""
    with pytest.raises(InvalidData, match=named):
        Triplets(*arguments)


@pytest.mark.parametrize("video", [-1, 3])
def test_labels_of_unknown_videos_are_refused(video):
    """Of three videos, 0, 1 and 2 can be named, by a triplet and by a pair."""
    with pytest.raises(InvalidData, match=rf"Triplet 0 names video {video}, but of 3 the last is 2"):
        triplets((0, 1, video)).require_videos(3)
    with pytest.raises(InvalidData, match=rf"Pair 0 names video {video}"):
        VideoPairs([0], [video], [1.0]).require_videos(3)
    triplets((0, 1, 2)).require_videos(3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(([0], [0], [1.0]), "itself"), (([0], [1], [1.5]), r"in \[0, 1\]"), (([0], [1, 2], [1.0]), "equal length")],
)
def test_malformed_pairs_are_refused(arguments, named):
    """A video beside itself, a label outside [0, 1], different lengths."""
    with pytest.raises(InvalidData, match=named):
        VideoPairs(*arguments)


def test_a_ranking_says_three_comparisons():
    """positive over neutral, positive over negative, neutral over negative; all ties where they are equal."""
    pairs = triplets((7, 3, 5), (0, 1, 2)).pairs()
    assert [*zip(pairs.first, pairs.second, strict=True)] == [(7, 3), (7, 5), (3, 5), (0, 1), (0, 2), (1, 2)]
    assert (pairs.p_first == 1).all()
    assert (triplets((7, 3, 5), kind="equal").pairs().p_first == 0.5).all()


@given(n=st.integers(1, 30), equal=st.booleans())
def test_labels_are_counted_in_one_currency(n, equal):
    """A triplet is worth as many judgements as the pairs that it is turned into."""
    found = triplets(*[(0, 1, 2)] * n, kind="equal" if equal else "contrastive")
    assert human_judgements(found) == human_judgements(found.pairs()) == 3 * n


@given(seed=st.integers(0, 1000), margin=st.sampled_from([0.0, 0.3, 2.0]), levels=st.sampled_from([3, 1000]))
def test_simulated_triplets_are_sorted_by_the_score(seed, margin, levels):
    """Contrastive ones descend by more than the margin at each step; equal ones lie within it; no video comes twice."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=40) / levels
    found = simulated_triplets(scores, 50, rng, margin=margin)
    values = scores[found.videos]
    steps = -np.diff(values, axis=1)
    assert (steps[~found.is_equal] > margin).all()
    assert (np.ptp(values[found.is_equal], axis=1) <= margin).all()
    assert len(found) == 50
    if margin == 2:
        assert found.is_equal.all()


def test_flipped_triplets_are_no_longer_sorted():
    """With flip = 0.3 about 30 % are wrong, none with 0, all with 1; each of three exchanges is as frequent."""
    scores = np.arange(30.0)
    for flip in (0.0, 0.3, 1.0):
        found = simulated_triplets(scores, 3000, np.random.default_rng(0), flip=flip)
        wrong = (np.diff(scores[found.videos], axis=1) > 0).any(1)
        assert abs(wrong.mean() - flip) < 0.03
    order = np.argsort(-scores[found.videos], axis=1)
    orders, counts = np.unique(order, axis=0, return_counts=True)
    assert orders.tolist() == [[0, 2, 1], [1, 0, 2], [2, 1, 0]]
    assert (np.abs(counts / 3000 - 1 / 3) < 0.03).all()


def test_every_video_is_drawn_equally_often():
    """Without ties, each of 10 videos is in a tenth of the places."""
    found = simulated_triplets(np.arange(10.0), 3000, np.random.default_rng(1))
    assert np.abs(np.bincount(found.videos.ravel()) / 9000 - 0.1).max() < 0.01


def test_equal_generators_give_equal_triplets():
    """The generator decides everything."""
    one, two, other = (simulated_triplets(np.arange(9.0), 20, np.random.default_rng(s), flip=0.5) for s in (3, 3, 4))
    assert np.array_equal(one.videos, two.videos)
    assert not np.array_equal(one.videos, other.videos)


@pytest.mark.parametrize(
    ("scores", "options", "named", "error"),
    [
        ([1.0, 2.0], {}, "at least 3", InvalidData),
        ([1.0, 2.0, np.nan], {}, "scores", InvalidData),
        ([1.0, 2.0, 2.0], {}, "Only 0 of 5", InvalidData),
        ([1.0, 2.0, 3.0], {"flip": 1.5}, "flip", ConfigError),
        ([1.0, 2.0, 3.0], {"margin": -1.0}, "margin", ConfigError),
    ],
)
def test_impossible_requests_are_refused(scores, options, named, error):
    """Too few videos, NaN, scores that cannot be ranked, options out of range."""
    with pytest.raises(error, match=named):
        simulated_triplets(scores, 5, np.random.default_rng(0), **options)
