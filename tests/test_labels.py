"""Laws of the label converters: hand-made tables, round trips, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrl.data import labels
from prefrl.errors import InvalidData

HARD = st.lists(st.sampled_from([0.0, 1.0]), max_size=5)
TIED = st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=5)
SOFT = st.lists(st.floats(0, 1), max_size=5)

# first preferred, second preferred, tie, as each convention writes them
TABLE = {
    "first_probability": [1.0, 0.0, 0.5],
    "second_probability": [0.0, 1.0, 0.5],
    "index": [0, 1, -1],
    "one_hot": [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]],
}


@pytest.mark.parametrize("name", TABLE)
def test_each_convention_reads_and_writes_its_own_table(name):
    """First, second, tie: the three answers mean the same in every convention that has them."""
    assert getattr(labels, f"from_{name}")(TABLE[name]).tolist() == [1.0, 0.0, 0.5]
    assert getattr(labels, f"to_{name}")([1.0, 0.0, 0.5]).tolist() == TABLE[name]


@given(SOFT)
def test_probability_conventions_keep_soft_labels(p_first):
    """To a probability convention and back is the identity."""
    for name in ("first_probability", "second_probability", "one_hot"):
        back = getattr(labels, f"from_{name}")(getattr(labels, f"to_{name}")(p_first))
        np.testing.assert_allclose(back, p_first, atol=1e-15)


@given(TIED)
def test_the_index_convention_keeps_hard_labels_and_ties(p_first):
    """To an index and back is the identity on 0, 0.5 and 1."""
    assert labels.from_index(labels.to_index(p_first)).tolist() == p_first


@given(HARD)
def test_ordered_pairs_have_the_chosen_one_first(p_first):
    """After the exchange that ``to_ordered`` asks for, every p_first is 1, which is ``from_ordered``."""
    exchanged = labels.to_ordered(p_first)
    after = np.where(exchanged, 1 - np.array(p_first), p_first)
    assert after.tolist() == labels.from_ordered(len(p_first)).tolist()


@given(SOFT)
def test_swapping_a_pair_complements_its_label_in_every_convention(p_first):
    """first ↔ second is p ↔ 1 − p, whichever way the label is written."""
    swapped = labels.from_first_probability(1 - np.array(p_first))
    np.testing.assert_allclose(labels.to_second_probability(swapped), labels.to_first_probability(p_first), atol=1e-15)
    np.testing.assert_allclose(labels.to_one_hot(swapped), labels.to_one_hot(p_first)[:, ::-1], atol=1e-15)


@pytest.mark.parametrize(
    ("convert", "label"),
    [
        (labels.from_first_probability, [1.2]),
        (labels.from_first_probability, [np.nan]),
        (labels.from_first_probability, [[0.5]]),
        (labels.from_second_probability, [-0.1]),
        (labels.from_index, [2]),
        (labels.from_index, [0.5]),
        (labels.from_index, [np.nan]),
        (labels.from_one_hot, [[1.0, 1.0]]),
        (labels.from_one_hot, [[2.0, -1.0]]),
        (labels.from_one_hot, [1.0, 0.0]),
        (labels.to_index, [0.7]),
        (labels.to_ordered, [0.5]),
        (labels.to_ordered, [0.9]),
    ],
)
def test_labels_that_a_convention_cannot_hold_are_refused(convert, label):
    """A label of another convention is an error, not a silently wrong preference."""
    with pytest.raises(InvalidData):
        convert(label)
