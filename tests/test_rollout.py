"""Laws of rollouts: every policy meets the same episodes, however many environments run side by side."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrl.errors import InvalidData
from prefrl.evaluation.rollout import (
    PolicyBehavior,
    act_in_rows,
    episode_seeds,
    rollout,
)


class Walk(gym.Env):
    """x += action; start and length depend on the reset seed; success while |x| < 0.1; reward −|x|."""

    def __init__(self, *, seed: int, render_mode: str | None = None, says_success: bool = True, bad: str = ""):
        self.observation_space = gym.spaces.Box(-10, 10, (2,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.says_success, self.bad = says_success, bad

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t, self.length = self.np_random.uniform(-1, 1), 0, int(self.np_random.integers(5, 30))
        return self._observe(), {}

    def _observe(self):
        return np.array([self.x, self.t / 30], dtype=np.float32)

    def step(self, action):
        self.x += float(action[0])
        self.t += 1
        info = {"success": abs(self.x) < 0.1} if self.says_success else {}
        reward = float("nan") if self.bad == "reward" and self.t == 3 else -abs(self.x)
        observation = self._observe() * (np.inf if self.bad == "observation" and self.t == 3 else 1)
        return observation, reward, self.t >= self.length, False, info


class Network:
    """An untrained network: its rounding is what differs between batch sizes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(shape, generator=generator) for shape in ((2, 64), (64, 64), (64, 1))]

    def act(self, observations):
        hidden = torch.relu(observations @ self.weights[0])
        return torch.tanh(torch.relu(hidden @ self.weights[1]) @ self.weights[2])


class Formula:
    def __init__(self, function):
        self.act = function


def go_home(observations):
    """A fifth of the way back to 0; past step 15 away again, so that success is not the last word."""
    x, t = observations[:, :1], observations[:, 1:] * 30
    return torch.where(t < 15, -0.2 * x, torch.ones_like(x))


def equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


@settings(max_examples=10)
@given(num_envs=st.integers(1, 40), episodes=st.integers(1, 24))
def test_results_do_not_depend_on_num_envs(num_envs, episodes):
    """One environment or forty: bitwise the same returns, lengths, success and end states."""
    one = rollout(Network(), Walk, episodes=episodes, seed=3, max_steps=20, num_envs=1)
    many = rollout(Network(), Walk, episodes=episodes, seed=3, max_steps=20, num_envs=num_envs)
    assert equal(one, many)


def test_equal_seeds_give_equal_results_and_other_seeds_others():
    """The seed decides everything."""
    a, b, c = (rollout(Network(), Walk, episodes=5, seed=seed, max_steps=20) for seed in (1, 1, 2))
    assert equal(a, b)
    assert not np.array_equal(a.returns, c.returns)


def test_more_episodes_begin_with_the_same_ones():
    """Episode i depends on the seed and on i only."""
    few, many = (rollout(Network(), Walk, episodes=n, seed=1, max_steps=20) for n in (4, 9))
    assert np.array_equal(few.returns, many.returns[:4])
    assert len(set(episode_seeds(1, 1000).tolist())) == 1000


def test_results_agree_with_a_plain_loop():
    """Returns, lengths, success and end states are those of one environment stepped by hand."""
    result = rollout(Formula(go_home), Walk, episodes=12, seed=5, max_steps=20)
    for i, seed in enumerate(result.seeds.tolist()):
        env, total, success, steps, done = Walk(seed=0), 0.0, False, 0, False
        observation, _ = env.reset(seed=seed)
        while not done and steps < 20:
            action = go_home(torch.tensor(observation)[None])[0].numpy()
            observation, reward, done, _, info = env.step(action)
            total, success, steps = total + reward, success or info["success"], steps + 1
        assert (result.returns[i], result.lengths[i], result.success[i]) == (total, steps, success)
        assert np.array_equal(result.end_observations[i], observation)


def test_success_counts_at_any_step():
    """A policy that reaches the goal and leaves it again has succeeded; one that never gets there has not."""
    left = rollout(Formula(go_home), Walk, episodes=30, seed=0, max_steps=30)
    long_enough = left.lengths > 15
    assert long_enough.sum() > 5
    assert left.success[long_enough].all()
    assert (np.abs(left.end_observations[long_enough, 0]) > 0.1).all()
    away = rollout(Formula(lambda o: torch.sign(o[:, :1])), Walk, episodes=10, seed=0, max_steps=30)
    assert not away.success.any()


def test_an_environment_without_success_has_none():
    """No ``success`` in info counts as no success."""
    result = rollout(Formula(go_home), lambda **k: Walk(says_success=False, **k), episodes=3, seed=0, max_steps=9)
    assert not result.success.any()


def test_episodes_stop_at_max_steps_or_at_their_end():
    """A length is the smaller of the environment's own and max_steps."""
    free = rollout(Network(), Walk, episodes=20, seed=0, max_steps=1000)
    cut = rollout(Network(), Walk, episodes=20, seed=0, max_steps=10)
    assert free.lengths.min() >= 5
    assert np.array_equal(cut.lengths, np.minimum(free.lengths, 10))


def test_nan_action_is_refused():
    """A policy that gives NaN stops the evaluation; the message names the episode, its seed and the step."""
    broken = Formula(lambda o: torch.where(o[:, 1:] * 30 > 3.5, torch.nan, 0.0))
    with pytest.raises(InvalidData, match=r"action in episode \d+ \(seed \d+\) at step 4"):
        rollout(broken, Walk, episodes=4, seed=0, max_steps=20)


@pytest.mark.parametrize("bad", ["reward", "observation"])
def test_nan_from_the_environment_is_refused(bad):
    """So does an environment that gives NaN or infinity."""
    with pytest.raises(InvalidData, match=f"environment's {bad} in episode"):
        rollout(Network(), lambda **k: Walk(bad=bad, **k), episodes=2, seed=0, max_steps=20)


def test_wrong_action_shape_is_refused():
    """(B,) actions would broadcast silently in some environments."""
    with pytest.raises(InvalidData, match=r"policy.act must give \(B, A\)"):
        rollout(Formula(lambda o: o[:, 0]), Walk, episodes=2, seed=0, max_steps=5)


@settings(max_examples=20)
@given(rows=st.integers(1, 40))
def test_actions_do_not_depend_on_the_neighbors(rows):
    """A row's action is bitwise the same alone and among others; all rows come back in order."""
    observations = np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32)
    together = act_in_rows(Network(), observations)
    alone = np.stack([PolicyBehavior(Network()).act(row) for row in observations])
    assert np.array_equal(together, alone)


def test_environments_are_closed_even_after_an_error():
    """No environment is left open."""
    made = []

    class Closing(Walk):
        open = True

        def close(self):
            self.open = False

    def make(**kwargs):
        made.append(Closing(**kwargs))
        return made[-1]

    with pytest.raises(InvalidData):
        rollout(Formula(lambda o: o[:, :1] * torch.nan), make, episodes=3, seed=0, max_steps=5, num_envs=3)
    assert len(made) == 3
    assert not any(env.open for env in made)
