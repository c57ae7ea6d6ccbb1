"""Laws of the core types: shapes, padding, labels."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import attribute_comparisons, comparisons, rankings, segment_batches, segment_lists

from prefrl.core import (
    AttributeComparisons,
    Comparisons,
    Rankings,
    Segment,
    SegmentBatch,
    SegmentRefs,
    Transitions,
    require_probability,
)
from prefrl.errors import InvalidData


def same_batch(one: SegmentBatch, two: SegmentBatch) -> bool:
    pairs = [(getattr(one, n), getattr(two, n)) for n in ("observations", "actions", "mask", "true_reward", "terminal")]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@given(segment_lists())
def test_padding_keeps_every_segment(segments):
    """A padded row, cut to its length, is its segment; lengths, start and end states are its own."""
    batch = SegmentBatch.from_segments(segments)
    assert batch.lengths.tolist() == [len(s) for s in segments]
    for row, segment in enumerate(segments):
        T = len(segment)
        assert torch.equal(batch.observations[row, : T + 1], segment.observations)
        assert torch.equal(batch.actions[row, :T], segment.actions)
        assert torch.equal(batch.start_observations[row], segment.observations[0])
        assert torch.equal(batch.end_observations[row], segment.observations[-1])
        assert bool(batch.terminal[row]) == segment.terminal


@given(segment_batches())
def test_padding_repeats_the_end_state_and_holds_zero_actions(batch):
    """After its end a row repeats its end state, and its actions are zero."""
    for row, T in enumerate(batch.lengths.tolist()):
        assert (batch.observations[row, T:] == batch.end_observations[row]).all()
        assert not batch.actions[row, T:].any()


@given(comparisons())
def test_swapping_twice_changes_nothing(data):
    """``swapped`` is its own inverse."""
    back = data.swapped().swapped()
    assert same_batch(back.first, data.first)
    assert same_batch(back.second, data.second)
    assert torch.equal(back.p_first, data.p_first)
    assert torch.equal(back.rater, data.rater)


@given(comparisons())
def test_swapping_exchanges_segments_and_complements_the_label(data):
    """The swapped comparison says the same of the same two segments."""
    swapped = data.swapped()
    assert same_batch(swapped.first, data.second)
    assert same_batch(swapped.second, data.first)
    assert torch.equal(swapped.p_first + data.p_first, torch.ones(len(data)))


@given(comparisons(), st.data())
def test_rows_travel_together(data, draw):
    """Indexing takes the same rows of segments, labels and raters."""
    rows = torch.tensor(draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=4)))
    part = data[rows]
    assert same_batch(part.first, data.first[rows])
    assert torch.equal(part.p_first, data.p_first[rows])
    assert torch.equal(part.rater, data.rater[rows])
    assert len(data[0]) == 1


@given(comparisons())
def test_learners_see_no_true_reward(data):
    """``without_true_reward`` removes it on both sides, and nothing else."""
    blind = data.without_true_reward()
    assert blind.first.true_reward is None
    assert blind.second.true_reward is None
    assert torch.equal(blind.first.observations, data.first.observations)
    assert torch.equal(blind.p_first, data.p_first)


@given(rankings())
def test_rankings_give_every_ranked_pair_once(data):
    """``to_comparisons`` is the enumeration of all pairs i < j of ranked segments, better rank preferred."""
    K = data.rank.shape[1]
    expected = []
    for n, i, j in product(range(len(data)), range(K), range(K)):
        a, b = data.rank[n, i].item(), data.rank[n, j].item()
        if i < j and a >= 0 and b >= 0:
            expected.append((n * K + i, n * K + j, 1.0 if a < b else 0.0 if a > b else 0.5))
    found = data.to_comparisons()
    assert len(found) == len(expected)
    for row, (first, second, p_first) in enumerate(expected):
        assert torch.equal(found.first.observations[row], data.segments.observations[first])
        assert torch.equal(found.second.observations[row], data.segments.observations[second])
        assert found.p_first[row] == p_first


@given(attribute_comparisons())
def test_attributes_keep_answered_rows_only(data):
    """The comparisons of an attribute are its answered rows; an unknown name is refused."""
    for column, name in enumerate(data.names):
        assert torch.equal(data.attribute(name).p_first, data.p_first[data.answered[:, column], column])
    with pytest.raises(InvalidData, match="speed"):
        data.attribute("nonsense")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["observations", "actions", "true_reward"])
def test_nan_is_refused_where_it_enters(field, value):
    """A batch with a NaN or infinite entry is an error at once, which names the field."""
    fields = {
        "observations": torch.zeros(1, 3, 2),
        "actions": torch.zeros(1, 2, 1),
        "true_reward": torch.zeros(1, 2),
    }
    fields[field].view(-1)[1] = value
    with pytest.raises(InvalidData, match=field):
        SegmentBatch(mask=torch.ones(1, 2, dtype=torch.bool), **fields)


@pytest.mark.parametrize("label", [-0.01, 1.01, float("nan")])
def test_labels_outside_the_unit_interval_are_refused(label):
    """p_first is in [0, 1]; anything else is an error that names it."""
    batch = SegmentBatch.from_segments([Segment(torch.zeros(2, 1), torch.zeros(1, 1))])
    with pytest.raises(InvalidData, match="p_first"):
        Comparisons(batch, batch, torch.tensor([label]))


@given(st.floats(0, 1))
def test_labels_inside_the_unit_interval_pass(label):
    """Every number in [0, 1] is a label, the ends included."""
    require_probability("p_first", torch.tensor([label], dtype=torch.float64))


def test_comparisons_need_one_observation_size():
    """Two environments cannot be compared: the message names both sizes."""
    small, large = (SegmentBatch.from_segments([Segment(torch.zeros(3, D), torch.zeros(2, 1))]) for D in (4, 5))
    with pytest.raises(InvalidData, match=r"observations.*\(4,\).*\(5,\)"):
        Comparisons(small, large, torch.tensor([1.0]))
    with pytest.raises(InvalidData, match="observation sizes"):
        SegmentBatch.from_segments([Segment(torch.zeros(3, D), torch.zeros(2, 1)) for D in (4, 5)])


def segments(*, count=1, D=4, A=1):
    return SegmentBatch(torch.zeros(count, 3, D), torch.zeros(count, 2, A), torch.ones(count, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"count": 2}, r"1 first segments, but 2 second"),
        ({"D": 5}, r"observations.*\(5,\)"),
        ({"A": 2}, r"actions.*\(2,\)"),
    ],
)
def test_both_sides_of_any_comparison_fit(second, message):
    """As many segments, of one observation and one action size, for plain and for attribute comparisons."""
    sides = segments(), segments(**second)
    with pytest.raises(InvalidData, match=f"^Comparisons: .*{message}"):
        Comparisons(*sides, torch.ones(1))
    with pytest.raises(InvalidData, match=f"^AttributeComparisons: .*{message}"):
        AttributeComparisons(*sides, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), ("speed",))


@pytest.mark.parametrize(
    "changes",
    [
        {"observations": torch.zeros(1, 2, 2)},
        {"actions": torch.zeros(1, 3, 1)},
        {"mask": torch.tensor([[False, True]])},
        {"mask": torch.ones(1, 2)},
        {"true_reward": torch.zeros(1, 3)},
        {"terminal": torch.zeros(2)},
    ],
)
def test_batches_of_wrong_shape_are_refused(changes):
    """T + 1 observations, T actions, a mask that is a prefix: everything else is an error."""
    fields = {
        "observations": torch.zeros(1, 3, 2),
        "actions": torch.zeros(1, 2, 1),
        "mask": torch.ones(1, 2) > 0,
    }
    with pytest.raises(InvalidData):
        SegmentBatch(**{**fields, **changes})


@pytest.mark.parametrize("place", [(-1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_impossible_places_are_refused(place):
    """A segment has an episode, a start and at least one step."""
    with pytest.raises(InvalidData):
        SegmentRefs(*([value] for value in place))


def test_rankings_refuse_ranks_below_minus_one():
    """Ranks are >= 0, or -1 for "not ranked"."""
    batch = SegmentBatch.from_segments([Segment(torch.zeros(2, 1), torch.zeros(1, 1))] * 2)
    with pytest.raises(InvalidData, match="-1"):
        Rankings(batch, torch.tensor([[0, -2]]))


def test_transitions_need_equal_rows_and_finite_values():
    """Every field has B rows, and ``require_finite`` names the one with a NaN."""
    rows = [torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 3), torch.zeros(2)]
    with pytest.raises(InvalidData, match="rewards"):
        Transitions(rows[0], rows[1], torch.zeros(3), rows[3], rows[4])
    with pytest.raises(InvalidData, match="rewards"):
        Transitions(rows[0], rows[1], torch.tensor([0.0, float("nan")]), rows[3], rows[4]).require_finite()
