"""Laws of k-fold accuracy: every comparison is judged once, by a score that has not seen it."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_mdps import DATA

from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError, InvalidData
from prefrl.scores import PreferenceTransformer, ReturnEnsemble
from prefrl.train.cross_validation import cross_validated_accuracy, segment_groups
from prefrl.train.fit_score import fit_score

MAKE = partial(ReturnEnsemble.for_data, members=1, hidden=(16,), output="linear")
TRANSFORMER = partial(PreferenceTransformer.for_data, members=1, embedding=16, heads=2)
HOPPER = DATA.parent / "human_control_prefs" / "hopper-medium-expert-v2_num100_script_train.npz"
FIT = partial(fit_score, epochs=10, batch_size=16, learning_rate=1e-2, weight_decay=0.1)


def linear_comparisons(n=120, T=6, seed=0):
    """Answered without noise by a linear reward, on segments that have places of their own."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(n, T, dtype=torch.bool)

    def steps(T, size):
        return 2 * torch.randn(n, 1, size, generator=g) + torch.randn(n, T, size, generator=g)

    def draw():
        segments = SegmentBatch(steps(T + 1, 3), steps(T, 2), mask)
        return segments, (segments.observations[:, :-1, 0] + 2 * segments.actions[:, :, 1]).sum(1)

    (first, a), (second, b) = draw(), draw()
    return Comparisons(first, second, (a > b).float())


def coins(n, seed=3):
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


@pytest.mark.parametrize("make", [MAKE, TRANSFORMER], ids=["return", "transformer"])
def test_a_linear_reward_is_predicted(make):
    """Labels that are a function of a linear reward are predicted in more than 90 % of the cases."""
    assert cross_validated_accuracy(make, linear_comparisons(), seed=0, fit=FIT).accuracy > 0.9


def test_random_labels_are_predicted_by_chance():
    """Nothing leaks from a held-out fold: 300 coins are predicted in half of the cases (3 standard errors)."""
    data = replace(linear_comparisons(300), p_first=coins(300))
    assert cross_validated_accuracy(MAKE, data, folds=3, seed=0, fit=FIT).accuracy == pytest.approx(0.5, abs=0.087)


class Recorder:
    """Stands for score and fit: remembers what it was made of and trained on; scores the first observation."""

    def __init__(self):
        self.steps, self.trained, self.judged = [], [], []

    def make(self, *, observations, actions, seed):
        self.steps.append((observations, actions))
        return self.score

    def fit(self, score, train, *, seed, holdout):
        assert holdout == 0.0
        self.trained.append(train)

    def score(self, segments):
        self.judged.append(segments)
        return segments.observations[:, 0, 0][None]


def test_each_comparison_is_judged_once_by_a_score_that_has_not_seen_it():
    """Training and held-out folds are disjoint, and the held-out ones together are all."""
    seen, data = Recorder(), linear_comparisons(23)
    result = cross_validated_accuracy(seen.make, data, folds=5, seed=0, fit=seen.fit)
    judged = [set(segments.observations[:, 0, 0].tolist()) for segments in seen.judged[::2]]
    for held, train in zip(judged, seen.trained, strict=True):
        assert held.isdisjoint(train.first.observations[:, 0, 0].tolist())
        assert len(held) + len(train) == 23
    assert set.union(*judged) == set(data.first.observations[:, 0, 0].tolist())
    assert sum(map(len, judged)) == 23
    assert sorted(torch.bincount(result.fold).tolist()) == [4, 4, 5, 5, 5]


def chained(groups, seed=0):
    """Comparisons with a group each; those of a group form a chain: the second of one is the first of the next."""
    data, last = linear_comparisons(len(groups), seed=seed), {}
    for row, group in enumerate(groups):
        if group in last:
            for name in ("observations", "actions"):
                getattr(data.first, name)[row] = getattr(data.second, name)[last[group]]
        last[group] = row
    return data


def test_groups_are_those_that_share_segments():
    """Chains of shared segments, on either side, are groups; what stands behind the end of a segment does not count."""
    chosen = [0, 1, 0, 2, 1, 0, 3, 0]
    data = chained(chosen)
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[1, 4:], mask[4, 4:] = False, False
    first, second = (replace(segments, mask=mask) for segments in (data.first, data.second))
    first.actions[4, 4:] += 1
    for found in (segment_groups(Comparisons(*sides, data.p_first)) for sides in ((first, second), (second, first))):
        assert (found.group.tolist(), found.shared) == (chosen, 4)
    data.first.actions[4, 0] += 1
    apart = segment_groups(data)
    assert (int(apart.group.max()) + 1, apart.shared) == (5, 3)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4] * 8, [0] * 25 + [*range(1, 16)]], ids=["even", "one is large"])
def test_no_segment_is_on_both_sides_of_a_split(chosen):
    """Shared segments stay in one fold, and so does a group that is larger than a fold; every fold is judged."""
    seen, data = Recorder(), chained(chosen)
    result = cross_validated_accuracy(seen.make, data, folds=5, seed=0, fit=seen.fit)
    for one, two, train in zip(seen.judged[::2], seen.judged[1::2], seen.trained, strict=True):
        judged, known = (
            {tuple(row) for side in sides for row in side.observations.flatten(1).tolist()}
            for sides in ((one, two), (train.first, train.second))
        )
        assert judged.isdisjoint(known)
    sizes = sorted(torch.bincount(result.fold, minlength=5).tolist())
    assert sizes == ([8] * 5 if chosen[1] == 1 else [3, 4, 4, 4, 25])


def test_comparisons_that_all_hang_together_cannot_be_split():
    """Fewer groups than folds are an error that counts them."""
    seen = Recorder()
    for chosen, says in (([0, 1] * 6, "are 2 .10 segments.*fewer folds"), ([0] * 6, "are 1 .5 segments.*No split")):
        with pytest.raises(InvalidData, match=says):
            cross_validated_accuracy(seen.make, chained(chosen), folds=3, seed=0, fit=seen.fit)
    assert not seen.trained


def test_statistics_are_of_the_real_training_steps():
    """A score is made from the unpadded steps of its training folds, and from nothing else."""
    seen, data = Recorder(), linear_comparisons(20)
    mask = torch.arange(6) < torch.arange(20)[:, None] % 6 + 1
    data = Comparisons(replace(data.first, mask=mask), replace(data.second, mask=mask.flip(0)), data.p_first)
    cross_validated_accuracy(seen.make, data, folds=4, seed=0, fit=seen.fit)
    for (observations, actions), train in zip(seen.steps, seen.trained, strict=True):
        both = train.first, train.second
        expected = [s.observations[i, :length] for s in both for i, length in enumerate(s.lengths)]
        assert torch.equal(observations, torch.cat(expected))
        assert len(actions) == len(observations)


def test_hits_by_hand():
    """1 where the preferred side scores higher, 0 where it does not, 0.5 where both score the same; their mean."""
    data, seen = linear_comparisons(40), Recorder()
    data.second.observations[:10] = data.first.observations[:10]
    result = cross_validated_accuracy(seen.make, data, seed=0, fit=seen.fit)
    higher = data.first.observations[:, 0, 0] > data.second.observations[:, 0, 0]
    expected = (higher == (data.p_first == 1)).double()
    expected[:10] = 0.5
    assert torch.equal(result.correct, expected)
    assert result.accuracy == expected.mean().item()


def test_ties_are_left_out():
    """With ties among them, the decided comparisons are judged as if the ties were not there; rows say which."""
    data = linear_comparisons(60)
    tied = torch.arange(60) % 3 == 0
    some = replace(data, p_first=torch.where(tied, 0.5, data.p_first))
    one, two = (cross_validated_accuracy(MAKE, d, seed=0, fit=FIT) for d in (some, data[~tied]))
    assert torch.equal(one.correct, two.correct)
    assert torch.equal(one.rows, (~tied).nonzero().squeeze(1))


def test_swapping_all_sides_changes_nothing():
    """What is predicted of (first, second, p) is predicted of (second, first, 1 − p)."""
    data = linear_comparisons()
    one, two = (cross_validated_accuracy(MAKE, d, seed=0, fit=FIT) for d in (data, data.swapped()))
    assert torch.equal(one.fold, two.fold)
    assert (one.correct != two.correct).sum() <= 1  # rounding, where both sides score nearly the same


def test_equal_seeds_give_equal_folds():
    """The seed decides; other seeds shuffle otherwise."""
    data = linear_comparisons(40)
    first, again, other = (
        cross_validated_accuracy(Recorder().make, data, seed=seed, fit=Recorder().fit) for seed in (0, 0, 1)
    )
    assert torch.equal(first.fold, again.fold)
    assert not torch.equal(first.fold, other.fold)


def test_what_cannot_be_folded_is_an_error():
    """Fewer than two decided comparisons, and a number of folds that they do not fill."""
    data, seen = linear_comparisons(6), Recorder()
    ties = replace(data, p_first=torch.full((6,), 0.5))
    with pytest.raises(InvalidData, match="at least 2 comparisons that are no ties, but there are 0"):
        cross_validated_accuracy(seen.make, ties, seed=0, fit=seen.fit)
    for folds in (1, 7):
        with pytest.raises(ConfigError, match=rf"folds must be in \[2, 6\].*but is {folds}"):
            cross_validated_accuracy(seen.make, data, folds=folds, seed=0, fit=seen.fit)


@pytest.mark.skipif(not HOPPER.is_file(), reason=f"no human control preferences at {HOPPER} (set PREFRL_TEST_DATA)")
def test_the_labels_of_a_task_reward_are_predicted():
    """Hopper's script labels, which follow the forward velocity, are predicted in more than 90 % of the cases."""
    with np.load(HOPPER, allow_pickle=False) as file:
        arrays = {name: torch.as_tensor(file[name], dtype=torch.float32) for name in file}
    mask = torch.ones(arrays["action_1"].shape[0], arrays["action_1"].shape[1] - 1, dtype=torch.bool)
    first, second = (SegmentBatch(arrays[f"obs_{i}"], arrays[f"action_{i}"][:, :-1], mask) for i in (1, 2))
    data = Comparisons(first, second, 1 - arrays["label"])
    assert cross_validated_accuracy(MAKE, data, seed=0, fit=FIT).accuracy > 0.9
