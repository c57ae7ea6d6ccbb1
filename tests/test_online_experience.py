"""Laws of agents.online_experience, against a plain list of steps; and of agents.online_randomness."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.online_experience import ROWS, Experience
from agents.online_randomness import OwnRandomness
from prefrl.data.dataset import Episodes
from prefrl.errors import DamagedFile
from prefrl.files import load_checkpoint, save_checkpoint


def walked(lengths, unfinished, rng):
    """An experience of such episodes, and the same as a list of steps."""
    experience, steps = Experience(2, 1, name="agent", env={"id": "toy"}, fps=10.0), []
    for number, length in enumerate([*lengths, unfinished]):
        if number == len(lengths) and not unfinished:
            break
        observation = rng.normal(size=2).astype(np.float32)
        experience.begin(observation)
        for t in range(length):
            action, after = rng.normal(size=1).astype(np.float32), rng.normal(size=2).astype(np.float32)
            terminated = t + 1 == length and number % 2 == 0 and number < len(lengths)
            experience.add(action, after, true_reward=float(t), success=t == 3, terminated=terminated)
            steps.append((observation, action, after, terminated))
            observation = after
        if number < len(lengths):
            experience.end()
    return experience, steps


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 4), st.integers(1, 5))
def test_steps_are_what_was_added(lengths, unfinished, batch_size):
    """Each step leads from its observation to the next, across episodes; rewards are those of the function, in
    whatever batches, and 0 before."""
    experience, steps = walked(lengths, unfinished, np.random.default_rng(0))
    assert experience.steps == len(steps)
    found = experience.at(np.arange(len(steps)))
    for i, (before, action, after, terminated) in enumerate(steps):
        np.testing.assert_array_equal(found.observations[i], before)
        np.testing.assert_array_equal(found.actions[i], action)
        np.testing.assert_array_equal(found.next_observations[i], after)
        assert found.terminated[i] == terminated
    assert not found.rewards.any()
    experience.reward_steps(0, lambda s, a: s[:, 0] + a[:, 0], batch_size=batch_size)
    np.testing.assert_array_equal(experience.rewards, [s[0] + a[0] for s, a, _, _ in steps])
    if lengths:
        episodes = Episodes(**experience.episodes()._asdict())
        assert episodes.lengths.tolist() == lengths
        assert episodes.terminated.tolist() == [number % 2 == 0 for number in range(len(lengths))]
        np.testing.assert_array_equal(episodes.success, experience.success[: sum(lengths)])
        np.testing.assert_array_equal(episodes.actions, [a for _, a, _, _ in steps[: sum(lengths)]])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 20))
def test_environments_side_by_side_are_told_apart(lengths, rounds):
    """Each step leads to the next of its own episode; finished episodes are whole, in the order of their ends, and
    keep their numbers; a file goes on. Episodes repeat these lengths; an observation is environment, episode, time."""
    n, E = len(lengths), [0] * len(lengths)
    experience, time, ended, told = Experience(3, 1, name="a", env={}, fps=1.0, num_envs=n), [0] * n, [], []
    for now in range(rounds):
        for which in range(n):
            if time[which] == 0:
                experience.begin(np.array([which, E[which], 0]), which)
        np.testing.assert_array_equal(experience.present, [[w, E[w], time[w]] for w in range(n)])
        assert [experience.so_far(which) for which in range(n)] == [(E[w], time[w]) for w in range(n)]
        after = np.array([[w, E[w], time[w] + 1] for w in range(n)])
        over = [time[w] + 1 == lengths[w][E[w] % len(lengths[w])] for w in range(n)]
        experience.add(np.full((n, 1), now), after, true_reward=after[:, 2], success=np.zeros(n), terminated=over)
        for which in range(n):
            time[which] += 1
            if over[which]:
                experience.end(which)
                ended.append((which, E[which], time[which]))
                time[which], E[which] = 0, E[which] + 1
        if now == rounds // 2:
            told = list(ended)
            loaded = Experience(3, 1, name="a", env={}, fps=1.0, num_envs=n)
            loaded.load_state_dict(experience.state_dict())
            experience = loaded
    steps = experience.at(np.arange(n * rounds))
    np.testing.assert_array_equal(steps.next_observations - steps.observations, [[0, 0, 1]] * (n * rounds))
    np.testing.assert_array_equal(steps.observations[:, 0], np.tile(np.arange(n), rounds))
    if ended:
        for first in range(len(ended)):
            found = Episodes(**experience.episodes(first)._asdict())
            assert found.lengths.tolist() == [length for _, _, length in ended[first:]]
            expected = [[which, number, t] for which, number, length in ended[first:] for t in range(length + 1)]
            np.testing.assert_array_equal(found.observations, expected)
            np.testing.assert_array_equal(found.true_reward, [t for *_, t in expected if t > 0])
            assert found.terminated.all()
        assert ended[: len(told)] == told


def test_views_stay_as_they_are():
    """Episodes that were given out do not change while their arrays grow, and a file keeps them all."""
    rng = np.random.default_rng(0)
    experience, _ = walked([5, 7], 0, rng)
    given_out = experience.episodes()
    kept = [np.array(array) for array in given_out[:6]]
    for _ in range(ROWS):
        experience.begin(rng.normal(size=2))
        experience.add(rng.normal(size=1), rng.normal(size=2), true_reward=0.0, success=False, terminated=False)
        experience.end()
    for array, before in zip(given_out[:6], kept, strict=True):
        np.testing.assert_array_equal(array, before)
    assert len(experience.episodes().lengths) == ROWS + 2
    np.testing.assert_array_equal(experience.episodes(first=ROWS).actions, experience.actions[-2:])


def test_survives_a_file(tmp_path):
    """Loaded, it goes on as the one that was saved; of another environment, it is refused."""
    one, _ = walked([5, 7], 3, np.random.default_rng(0))
    save_checkpoint(tmp_path / "experience.safetensors", one.state_dict())
    two = Experience(2, 1, name="agent", env={"id": "toy"}, fps=10.0)
    two.load_state_dict(load_checkpoint(tmp_path / "experience.safetensors"))
    for each in (one, two):
        each.add(np.ones(1), np.zeros(2), true_reward=0.0, success=False, terminated=True)
        each.end()
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor)
    assert two.lengths.tolist() == [5, 7, 4]
    with pytest.raises(DamagedFile, match="observations are rows of float32"):
        Experience(3, 1, name="agent", env={}, fps=1.0).load_state_dict(one.state_dict())


def draws():
    return torch.rand(2).tolist(), np.random.random(2).tolist(), random.random()  # noqa: NPY002


def test_own_randomness_is_that_of_the_seed():
    """In place it is as if torch, numpy and Python had been seeded; outside nothing is noticed; a file goes on."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    expected, after = draws(), draws()
    outside = draws()
    own, other = OwnRandomness(5), OwnRandomness(6)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    with own.in_place():
        assert draws() == expected
    with other.in_place():
        assert draws() != expected
    other.load_state_dict(own.state_dict())
    for each in (own, other):
        with each.in_place():
            assert draws() == after
    assert (draws(), draws(), draws()) == (expected, after, outside)


def test_own_randomness_is_put_away_after_an_error():
    """The global states are those of before, whatever happened inside."""
    own, before = OwnRandomness(0), torch.get_rng_state()

    def fail():
        with own.in_place():
            torch.rand(1)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
