"""Laws of spaces as vectors."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from envs import RandomBehavior
from prefrl.data.collect import BehaviorGroup, collect_episodes
from prefrl.errors import InvalidData
from prefrl.spaces import action_bounds, as_vector, space_size, to_env

SPACES = [Discrete(4), Discrete(3, start=-5), Box(-1, 2, (2,))]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_is_sampled_goes_to_a_vector_and_back(space):
    """Each element has the space's size as a vector, lies within the bounds, and comes back as it was."""
    space.seed(0)
    low, high = action_bounds(space)
    for _ in range(20):
        element = space.sample()
        vector = as_vector(element)
        assert vector.dtype == np.float32
        assert vector.shape == low.shape == space_size(space)
        assert (low <= vector).all()
        assert (vector <= high).all()
        assert np.array_equal(to_env(space, vector), element)
        assert space.contains(to_env(space, vector))


@pytest.mark.parametrize("action", [0.5, 4.0, -1.0, np.nan])
def test_what_is_no_element_is_refused(action):
    """Fractions, NaN and numbers outside of a discrete space are errors, not rounded."""
    with pytest.raises(InvalidData, match="must be an integer"):
        to_env(Discrete(4), np.array([action], dtype=np.float32))


@pytest.mark.parametrize("space", [Box(-1, 1, (2, 2)), Dict({}), Discrete(2**25)], ids=str)
def test_other_action_spaces_are_refused(space):
    """Matrices, dictionaries, and integers that float32 cannot tell apart."""
    with pytest.raises(InvalidData, match="one-dimensional Box or a Discrete"):
        action_bounds(space)


def test_grid_worlds_are_collected_like_robots():
    """Episodes of a discrete environment replay to the same states and rewards, and all actions occur equally often."""
    groups = [BehaviorGroup("random", 300, RandomBehavior())]
    make_env = lambda *, seed, render_mode=None: gym.make("prefrl/Delivery-v0")  # noqa: E731
    episodes = collect_episodes(make_env, groups, max_steps=3, seed=0)
    assert episodes.observations.shape[1] == episodes.actions.shape[1] == 1
    env = make_env(seed=0)
    for e in range(20):
        begin, row = episodes.step_offsets[e], episodes.observation_offsets[e]
        env.reset(seed=0, options={"state": int(episodes.observations[row, 0])})
        for t in range(episodes.lengths[e]):
            state, reward, terminated, *_ = env.step(int(episodes.actions[begin + t, 0]))
            assert state == episodes.observations[row + t + 1, 0]
            assert reward == episodes.true_reward[begin + t]
        assert terminated == episodes.terminated[e]
    counts = np.bincount(episodes.actions[:, 0].astype(int), minlength=4)
    assert counts.min() > 0.8 * counts.max()
