"""Rankings found again in answers about pairs, and a return that is written down (RAPL, arXiv 2310.07932)."""

import numpy as np
import pytest
import torch

from prefrl.core import SegmentRefs
from prefrl.data.preferences import Preferences
from prefrl.data.triplet_answers import triplets_of
from prefrl.queries.triplets import TripletQuery
from prefrl.scores import ReturnEnsemble
from prefrl.train.align_rlhf import load_return, return_state


def answers(pairs, p_first):
    first, second = np.array(pairs).reshape(-1, 2).T
    ones = np.ones(len(first))
    return Preferences(
        first=SegmentRefs(first, 0 * ones, 5 * ones),
        second=SegmentRefs(second, 0 * ones, 5 * ones),
        p_first=p_first,
        rater=0 * ones,
        teacher=("{}",) * len(first),
        time=0 * ones,
    )


@pytest.mark.parametrize("seed", range(5))
def test_consistent_answers_give_the_ranking_of_each_three(seed):
    """Whoever answers by a number for each video is understood: every triplet is in the order of the numbers."""
    rng = np.random.default_rng(seed)
    value = rng.permutation(12)
    first, second = TripletQuery()(np.full(12, 5), 12, 5, rng)
    asked = np.stack([first.episode, second.episode], 1)
    found, pairs = triplets_of(answers(asked, (value[asked[:, 0]] > value[asked[:, 1]]).astype(float)))
    assert (len(found), len(pairs)) == (4, 0)
    assert (np.diff(value[found.videos], axis=1) < 0).all()


def test_three_ties_are_an_equal_triplet():
    """Nothing is said about an order."""
    found, pairs = triplets_of(answers([(4, 7), (4, 2), (7, 2)], [0.5, 0.5, 0.5]))
    assert found.kind.tolist() == ["equal"]
    assert set(found.videos[0].tolist()) == {2, 4, 7}
    assert len(pairs) == 0


@pytest.mark.parametrize("p_first", [[1, 0, 1], [1, 0.5, 1]], ids=["a circle", "one tie"])
def test_answers_without_one_order_stay_pairs(p_first):
    """A beats B, B beats C, C beats A: no answer is lost, and none is made up."""
    found, pairs = triplets_of(answers([(0, 1), (0, 2), (1, 2)], p_first))
    assert (len(found), len(pairs)) == (0, 3)
    assert pairs.p_first.tolist() == p_first


def test_other_answers_beside_a_triplet_stay_pairs():
    """A triplet is found wherever three answers in a row are about three videos."""
    found, pairs = triplets_of(answers([(8, 9), (0, 1), (0, 2), (1, 2), (3, 4)], [1, 1, 1, 1, 0]))
    assert found.videos.tolist() == [[0, 1, 2]]
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(8, 9), (3, 4)]


def test_a_return_is_made_again_from_what_was_written():
    """Equal rewards, whatever its sizes."""
    score = ReturnEnsemble(observation_size=5, action_size=0, members=2, hidden=(7, 3), output="linear", seed=1)
    again = load_return(return_state(score))
    frames = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(score.reward(frames, frames[:, :0]), again.reward(frames, frames[:, :0]))
