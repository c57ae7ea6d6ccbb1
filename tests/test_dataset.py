"""Laws of episodes in memory: cutting, selecting, joining, validation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import episodes, episodes_with_refs, make_episodes, same_episodes

from prefrl.core import Segment, SegmentBatch, SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.errors import InvalidData


def sliced(data: Episodes, refs: SegmentRefs) -> SegmentBatch:
    """The oracle: cut one segment after the other with slices, and pad them as ``core`` does."""
    parts = []
    for episode, start, length in zip(refs.episode, refs.start, refs.length, strict=True):
        state, step = data.observation_offsets[episode] + start, data.step_offsets[episode] + start
        parts.append(
            Segment(
                torch.tensor(data.observations[state : state + length + 1]),
                torch.tensor(data.actions[step : step + length]),
                torch.tensor(data.true_reward[step : step + length]),
                bool(data.terminated[episode] and start + length == data.lengths[episode]),
            )
        )
    return SegmentBatch.from_segments(parts)


@given(episodes_with_refs())
def test_gathered_segments_are_the_slices(both):
    """The vectorised gather equals slicing one by one: all fields, padding included."""
    data, refs = both
    found, expected = data.segments(refs), sliced(data, refs)
    for name in ("observations", "actions", "mask", "true_reward", "terminal"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.refs is refs


@given(episodes())
def test_whole_episodes_have_their_returns(data):
    """The segment that is a whole episode sums to the episode's return."""
    whole = SegmentRefs(np.arange(len(data)), np.zeros(len(data)), data.lengths)
    sums = data.segments(whole).true_reward.double().sum(1).numpy()
    np.testing.assert_allclose(sums, data.returns(), rtol=1e-6, atol=1e-9)


@given(episodes())
def test_transitions_step_through_every_episode(data):
    """Step t goes from observation t to t + 1 of its own episode; only the last step can be terminal."""
    found, i = data.transitions(torch.arange(data.num_steps)), 0
    for e, T in enumerate(data.lengths):
        start, end = data.observation_offsets[e : e + 2]
        states = torch.tensor(data.observations[start:end])
        assert torch.equal(found.observations[i : i + T], states[:-1])
        assert torch.equal(found.next_observations[i : i + T], states[1:])
        assert found.terminated[i : i + T].tolist() == [0.0] * (T - 1) + [float(data.terminated[e])]
        i += T
    assert torch.equal(found.actions, torch.tensor(data.actions))
    assert found.rewards.tolist() == list(range(data.num_steps))


def test_transitions_need_one_finite_reward_a_step():
    """Rewards of another length, or with NaN, are refused by name."""
    data = make_episodes([2, 3])
    with pytest.raises(InvalidData, match=r"\(5,\).*\(4,\)"):
        data.transitions(torch.zeros(4))
    with pytest.raises(InvalidData, match="rewards"):
        data.transitions(torch.full((5,), float("nan")))


@given(episodes())
def test_success_is_success_at_any_step(data):
    """An episode succeeded if one of its steps did."""
    expected = [data.success[data.episode_of_step == e].any() for e in range(len(data))]
    assert data.succeeded().tolist() == expected


@given(episodes())
def test_selecting_every_episode_and_joining_them_is_the_identity(data):
    """``concat`` of single episodes, in order, is the whole; so is ``select`` of all."""
    assert same_episodes(Episodes.concat([data.select([e]) for e in range(len(data))]), data)
    assert same_episodes(data.select(np.ones(len(data), dtype=bool)), data)


@given(episodes(), st.data())
def test_selected_episodes_keep_their_content(data, draw):
    """``select`` takes whole episodes, in the order asked for, repeats included."""
    chosen = draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=6))
    part = data.select(chosen)
    assert part.lengths.tolist() == data.lengths[chosen].tolist()
    assert part.seeds.tolist() == data.seeds[chosen].tolist()
    np.testing.assert_array_equal(part.returns(), data.returns()[chosen])
    for row, e in enumerate(chosen):
        one = part.observations[part.observation_offsets[row] : part.observation_offsets[row + 1]]
        np.testing.assert_array_equal(
            one, data.observations[data.observation_offsets[e] : data.observation_offsets[e + 1]]
        )


@pytest.mark.parametrize("field", ["observations", "actions", "true_reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_and_its_episode_named(field, value):
    """A NaN in the second episode's second step is an error that names both."""
    data = make_episodes([3, 4, 2])
    array = getattr(data, field).copy()
    array[(data.observation_offsets if field == "observations" else data.step_offsets)[1] + 2] = value
    with pytest.raises(InvalidData, match=rf"{field} of episode 1 .* step 2"):
        replace(data, **{field: array})


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ((1, 0, 5), "steps 0 to 5 of episode 1, which has only 4"),
        ((0, 3, 1), "episode 0"),
        ((2, 0, 1), "only 2 episodes"),
    ],
)
def test_a_segment_past_its_episode_is_refused(place, named):
    """A segment past the episode's end, or of an unknown episode, is refused by place."""
    with pytest.raises(InvalidData, match=named):
        make_episodes([3, 4]).segments(SegmentRefs(*([value] for value in place)))


@pytest.mark.parametrize(
    "changes",
    [
        {"observations": np.zeros((5, 3))},
        {"observations": np.zeros(7)},
        {"actions": np.zeros((6, 2))},
        {"true_reward": np.zeros((5, 1))},
        {"success": np.zeros(4)},
        {"lengths": np.array([5, 0])},
        {"lengths": np.array([], dtype=int)},
        {"terminated": np.zeros(1)},
        {"behavior": ("one",)},
        {"fps": 0.0},
        {"env": {"id": object()}},
    ],
)
def test_episodes_of_wrong_shape_are_refused(changes):
    """N steps, N + E states, E episodes of at least one step, plain JSON: everything else is an error."""
    with pytest.raises(InvalidData):
        replace(make_episodes([2, 3]), **changes)


def test_episodes_of_another_environment_cannot_be_joined():
    """Different sizes, environment or frame rate: the message says which."""
    data = make_episodes([2])
    for other, named in (
        (make_episodes([2], D=4), "observation size 3 here, 4 there"),
        (make_episodes([2], A=1), "action size"),
        (replace(data, fps=10.0), "fps"),
        (replace(data, env={"id": "other"}), "env"),
    ):
        with pytest.raises(InvalidData, match=named):
            Episodes.concat([data, other])


def test_data_without_true_reward_say_so():
    """Imported data without reward give segments without reward, and no returns."""
    data = replace(make_episodes([3]), env={"id": "x", "has_true_reward": False})
    assert data.segments(SegmentRefs([0], [0], [2])).true_reward is None
    with pytest.raises(InvalidData, match="without a true reward"):
        data.returns()
