"""Laws of agents.online_ppo: Stable-Baselines3's PPO, with the learned reward in place of the environment's."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import envs
from agents.online_ppo import OnlinePPO
from prefrl.errors import ConfigError


class Corridor(gym.Env):
    """A walk from 0 that ends at ±1, without noise: episodes end by their limit and by terminal states."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.time = 0.0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at, self.time = self.at + 0.3 * float(action[0]), self.time + 1
        over = abs(self.at) > 1
        return np.array([self.at], np.float32), self.at, over, not over and self.time >= 9, {}


def corridor(*, seed, render_mode=None):
    env = Corridor()
    env.reset(seed=seed)
    return env


def small(env=corridor, **options):
    return OnlinePPO(make_env=env, seed=0, rollout_steps=64, batch_size=16, epochs=3, hidden=(16,), **options)


def test_is_the_ppo_of_stable_baselines3():
    """With the environment's own reward: the same weights after three updates, but for rounding; terminal states, time
    limits and an episode that runs over from one rollout into the next included."""
    ours = small()
    ours.collect(192, reward="env")
    theirs = PPO(
        "MlpPolicy", Corridor(), n_steps=64, batch_size=16, n_epochs=3, policy_kwargs={"net_arch": [16]}, seed=0,
        device="cpu",
    ).learn(192)  # fmt: skip
    torch.testing.assert_close(ours.model.policy.state_dict(), theirs.policy.state_dict(), atol=1e-6, rtol=1e-5)
    episodes = ours.episodes()
    assert episodes.terminated.any()
    assert not episodes.terminated.all()


def test_a_learned_reward_takes_the_place_of_the_environments():
    """A learned reward that is equal to the true one gives what the true one gives; it is asked once a rollout, with
    the actions that were executed."""
    asked = []

    def equal(states, actions):
        asked.append(len(states))
        assert actions.abs().max() <= 1
        return states[:, 0] + 0.3 * actions[:, 0]

    learned, true = small(), small()
    learned.collect(64, reward=equal)
    true.collect(64, reward="env")
    assert asked == [64]
    np.testing.assert_allclose(learned.world.experience.rewards, true.world.experience.rewards, atol=1e-6)
    for name, weights in true.model.policy.state_dict().items():
        torch.testing.assert_close(learned.model.policy.state_dict()[name], weights, atol=1e-4, rtol=1e-3)


def test_rewards_of_a_rollout_replace_those_that_are_written():
    """``batch_reward`` is learned from and leaves no trace."""
    one, two, three = small(), small(), small()
    one.collect(64, reward=None, batch_reward=lambda s, a: s[:, 0])
    two.collect(64, reward=lambda s, a: s[:, 0])
    three.collect(64, reward=None)
    assert not one.world.experience.rewards.any()
    weights = [x.model.policy.state_dict()["action_net.weight"] for x in (one, two, three)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_relabelling_does_nothing():
    """A rollout is learned from once: no reward and no weight changes afterwards."""
    learner = small()
    learner.collect(64, reward="env")
    before = learner.world.experience.rewards.copy()
    learner.relabel(lambda s, a: s[:, 0] * 0)
    np.testing.assert_array_equal(learner.world.experience.rewards, before)


def test_reset_critic_makes_v_new_and_nothing_else():
    """Every weight of V is other than before and forgotten by Adam; policy and the rest of Adam stay; it goes on."""
    learner = small()
    learner.collect(64, reward="env")
    before = learner.state_dict()
    learner.reset_critic()
    after = learner.state_dict()
    names = [name for name, _ in learner.model.policy.named_parameters()]
    for index, name in enumerate(names):
        is_of_v = "value_net" in name
        assert (index in after["optimizer"]["state"]) == (not is_of_v)
        assert torch.equal(after["policy"][name], before["policy"][name]) == (not is_of_v)
    again = small()
    again.load_state_dict(after)
    for each in (learner, again):
        each.collect(64, reward="env")
    assert torch.equal(*(x.model.policy.value_net.weight for x in (learner, again)))


def test_steps_are_whole_rollouts():
    """Anything else could not be learned from."""
    with pytest.raises(ConfigError, match=r"multiple of 64, a rollout; got 100"):
        small().collect(100)
    with pytest.raises(ConfigError, match="rollout_steps must be a multiple of batch_size=48, but is 64"):
        OnlinePPO(make_env=corridor, seed=0, rollout_steps=64, batch_size=48)


def test_learns_to_walk_to_the_right():
    """In the corridor, with the position as learned reward: episodes end on the right, where a step pays most."""
    learner = small(lr=3e-3)
    learner.collect(64 * 60, reward=lambda states, actions: states[:, 0] + 0.3 * actions[:, 0])
    last = learner.episodes(len(learner.world.experience.lengths) - 20)
    ends = last.observations[np.cumsum(last.lengths + 1) - 1, 0]
    assert ends.mean() > 0.5
    first = small()
    first.collect(64 * 5, reward=None)
    assert abs(first.episodes().observations[:, 0].mean()) < 0.2


def test_states_are_all_so_far():
    """A view, for rewards of novelty."""
    learner = small(partial(envs.make, "prefrl/PointReach-v0"))
    learner.collect(64)
    assert len(learner.states()) == 64 + 1 + 1  # one episode has ended, one goes on
    assert np.shares_memory(learner.states().numpy(), learner.world.experience.observations)


def test_linear_schedules_are_those_of_stable_baselines3():
    """Clip range and learning rate fall to 0: the same weights but for rounding, in one call or in three."""
    ours = small(clip=0.4, clip_schedule="linear", lr_schedule="linear", schedule_steps=192)
    for _ in range(3):
        ours.collect(64, reward="env")
    theirs = PPO(
        "MlpPolicy", Corridor(), n_steps=64, batch_size=16, n_epochs=3, policy_kwargs={"net_arch": [16]}, seed=0,
        device="cpu", clip_range=lambda left: 0.4 * left, learning_rate=lambda left: 3e-4 * left,
    ).learn(192)  # fmt: skip
    torch.testing.assert_close(ours.model.policy.state_dict(), theirs.policy.state_dict(), atol=1e-6, rtol=1e-5)


def test_beyond_its_steps_a_schedule_stays_at_0():
    """A learning rate of 0 changes nothing more."""
    learner = small(lr_schedule="linear", schedule_steps=64)
    before = learner.model.policy.action_net.weight.clone()
    learner.collect(128, reward="env")
    assert torch.equal(learner.model.policy.action_net.weight, before)


def test_exploration_may_have_more_passes():
    """explore_epochs while only a batch reward is given; epochs once there is a reward."""
    learner = small(explore_epochs=7)
    learner.collect(64, reward=None, batch_reward=lambda s, a: s[:, 0])
    assert learner.model._n_updates == 7
    learner.collect(64, reward=lambda s, a: s[:, 0], batch_reward=lambda s, a: s[:, 0])
    assert learner.model._n_updates == 7 + 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip_schedule": "cosine"}, "clip_schedule must be one of constant, linear"),
        ({"lr_schedule": "linear"}, "lr_schedule=linear needs schedule_steps"),
        ({"schedule_steps": 0}, "schedule_steps must be >= 1 or null, but is 0"),
        ({"explore_epochs": 0}, "explore_epochs must be >= 1 or null, but is 0"),
    ],
)
def test_wrong_schedules_are_named(wrong, message):
    """The key and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        small(**wrong)
