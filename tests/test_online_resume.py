"""Laws of both online learners: a run that was killed goes on to the same numbers, and nothing leaks in or out."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Lock

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from agents.online_ppo import OnlinePPO
from agents.online_sac import OnlineSAC
from agents.sb3 import SB3Policy
from prefrl.data.dataset import Episodes
from prefrl.errors import ConfigError, DamagedFile, InvalidData
from prefrl.files import flatten, load_checkpoint, save_checkpoint
from prefrl.protocols import Policy

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "sac": partial(OnlineSAC, learning_starts=30, batch_size=16, buffer_size=70, hidden=(16,), train_every=3),
    "ppo": partial(OnlinePPO, rollout_steps=16, batch_size=8, epochs=2, hidden=(16,)),
}
HALF = 64  # steps: in the middle of an episode of each environment, SAC's buffer about to turn over
both = pytest.mark.parametrize("kind", SMALL)


class Box(gym.Env):
    """Noise to see, for whatever happens to an environment: its steps are given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, script=None, action_space=None):
        self.script, self.count = script or {}, 0
        self.action_space = action_space or self.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=1).astype(np.float32), {}

    def step(self, action):
        self.count += 1
        seen = (self.np_random.normal(size=1).astype(np.float32), 0.0, False, self.count % 10 == 0, {})
        return self.script.get(self.count, seen)


def made(script=None, **options):
    def make_env(*, seed, render_mode=None):
        env = Box(script, **options)
        env.reset(seed=seed)
        return env

    return make_env


def reward(observations, actions):
    """Some learned reward."""
    return torch.tanh(observations.sum(1)) - 0.1 * actions.square().sum(1)


def learner(kind, env="Pendulum-v1", seed=0, **options):
    """A small one; episodes of 50 steps."""
    make_env = env if callable(env) else partial(envs.make, env, max_episode_steps=50)
    return SMALL[kind](make_env=make_env, seed=seed, **options)


def assert_equal(one, two):
    """Two states, bitwise: weights, moments of optimizers, experience, random states, environment."""
    (tensors, plain), (others, other_plain) = flatten(one), flatten(two)
    assert plain == other_plain
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


REPEATED = [
    ("sac", "Pendulum-v1"),
    ("ppo", "Hopper-v5"),
    ("sac", "prefrl/PointReach-v0"),
    ("ppo", "prefrl/PointReach-v0"),
]


@pytest.mark.parametrize(
    ("kind", "env"),
    [("ppo", "Pendulum-v1"), ("sac", "Hopper-v5"), *(pytest.param(*some, marks=pytest.mark.slow) for some in REPEATED)],
)
def test_resumes_bitwise(kind, env, tmp_path):
    """2k steps are k steps, a file, a new object and k more: in every tensor, number and random state."""
    whole, first, second = (learner(kind, env) for _ in range(3))
    whole.collect(2 * HALF, reward=reward)
    first.collect(HALF, reward=reward)
    assert first.world.in_episode
    save_checkpoint(tmp_path / "learner.safetensors", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "learner.safetensors"))
    second.collect(HALF, reward=reward)
    assert_equal(whole.state_dict(), second.state_dict())
    start = learner(kind, env).state_dict()["policy"]
    assert any(not torch.equal(tensor, start[name]) for name, tensor in whole.state_dict()["policy"].items())


@pytest.mark.slow  # test_online_kill.py has both learners in two processes
def test_resumes_in_a_new_process(tmp_path):
    """The files are enough for a process that knows nothing else."""
    for kind in SMALL:
        first = learner(kind)
        first.collect(HALF, reward=reward)
        save_checkpoint(tmp_path / f"{kind}_first.safetensors", first.state_dict())
    script = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[2]))\n"
        "from test_online_resume import *\n"
        "for kind in SMALL:\n"
        "    again = learner(kind)\n"
        "    again.load_state_dict(load_checkpoint(f'{sys.argv[1]}/{kind}_first.safetensors'))\n"
        "    again.collect(HALF, reward=reward)\n"
        "    save_checkpoint(f'{sys.argv[1]}/{kind}_second.safetensors', again.state_dict())\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads())]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": path})
    for kind in SMALL:
        whole = learner(kind)
        whole.collect(2 * HALF, reward=reward)
        save_checkpoint(tmp_path / "whole.safetensors", whole.state_dict())
        names = ("whole.safetensors", f"{kind}_second.safetensors")
        assert_equal(*(load_checkpoint(tmp_path / name) for name in names))


@both
def test_files_hold_no_pickle(kind, tmp_path):
    """One safetensors file: eight bytes of length, then JSON."""
    small = learner(kind)
    small.collect(HALF, reward=reward)
    save_checkpoint(tmp_path / "learner.safetensors", small.state_dict())
    content = (tmp_path / "learner.safetensors").read_bytes()
    assert content[8:9] == b"{"
    assert b"pickle" not in content


@both
def test_states_are_copies(kind):
    """What was saved in memory stays as it was while the learner goes on."""
    one, two = learner(kind), learner(kind)
    one.collect(HALF, reward=reward)
    two.collect(HALF, reward=reward)
    kept = one.state_dict()
    one.collect(HALF, reward=reward)
    assert_equal(kept, two.state_dict())


@both
def test_numbers_depend_on_the_seed_alone(kind):
    """Equal seeds are equal however the steps are cut and whatever is drawn outside; other seeds differ; and global
    random states are left as they were."""
    one, two, other = learner(kind), learner(kind), learner(kind, seed=1)
    one.collect(2 * HALF, reward=reward)
    torch.manual_seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    two.collect(HALF, reward=reward)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    np.random.random(5)  # noqa: NPY002
    two.collect(HALF, reward=reward)
    assert_equal(one.state_dict(), two.state_dict())
    other.collect(HALF, reward=reward)
    weights = [next(iter(x.state_dict()["policy"].values())) for x in (one, other)]
    assert not torch.equal(*weights)


@both
def test_the_true_reward_does_not_reach_the_learner(kind):
    """Whatever the environment pays, weights and actions are the same; asked for, it is what is learned from."""

    def make_env(*, seed, render_mode=None, factor):
        env = envs.make("Pendulum-v1", seed=seed, max_episode_steps=50)
        return gym.wrappers.TransformReward(env, lambda reward: factor * reward)

    results = {}
    for how in (reward, None, "env"):
        for factor in (1.0, -50.0):
            small = learner(kind, partial(make_env, factor=factor))
            small.collect(HALF, reward=how)
            results[how, factor] = small
    for how in (reward, None):
        one, two = (results[how, factor] for factor in (1.0, -50.0))
        assert not np.array_equal(one.world.experience.true_reward, two.world.experience.true_reward)
        assert_equal(one.state_dict()["policy"], two.state_dict()["policy"])
        assert np.array_equal(one.world.experience.rewards, two.world.experience.rewards)
    one, two = (results["env", factor].world.experience for factor in (1.0, -50.0))
    assert np.array_equal(one.rewards, one.true_reward)
    assert np.array_equal(two.rewards, two.true_reward)
    assert not np.array_equal(one.actions, two.actions)


@both
def test_episodes_are_those_of_the_environment(kind):
    """Played anew, the actions of all finished episodes lead to the same observations, rewards and ends."""
    small = learner(kind, "Hopper-v5", seed=4)
    small.collect(2 * HALF, reward=reward)
    found = Episodes(**small.episodes()._asdict())
    assert len(found) > 2
    assert found.env == {"id": "Hopper-v5", "kwargs": {}, "max_steps": 50}
    env = envs.make("Hopper-v5", seed=4, max_episode_steps=50)
    observations, rewards, ends = [], [], []
    for begin, end in zip(found.step_offsets, found.step_offsets[1:], strict=False):
        observations.append(env.reset()[0])
        for action in found.actions[begin:end]:
            observation, paid, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            rewards.append(paid)
        assert terminated or truncated
        ends.append(terminated)
    np.testing.assert_array_equal(found.observations, np.array(observations, dtype=np.float32))
    np.testing.assert_array_equal(found.true_reward, np.array(rewards, dtype=np.float32))
    np.testing.assert_array_equal(found.terminated, ends)
    later = Episodes(**small.episodes(first=2)._asdict())
    np.testing.assert_array_equal(later.observations, found.select(range(2, len(found))).observations)
    np.testing.assert_array_equal(later.terminated, found.terminated[2:])


@both
def test_metrics_are_of_the_true_reward(kind):
    """The mean return of the episodes that ended in this call, beside counts and losses."""
    small = learner(kind)
    small.collect(HALF, reward=reward)
    metrics = small.collect(2 * HALF, reward=reward)
    recent = Episodes(**small.episodes(first=1)._asdict())
    assert metrics["true_return"] == pytest.approx(recent.returns().mean())
    assert metrics["steps"] == 3 * HALF
    assert metrics["episodes"] == 1 + len(recent)
    assert np.isfinite(list(metrics.values())).all()


@both
def test_acts_as_a_policy(kind):
    """``policy`` is of this project's protocol, and follows the learning."""
    small = learner(kind)
    observations = torch.randn(5, 3)
    before = small.policy.act(observations)
    small.collect(2 * HALF, reward=reward)
    assert isinstance(small.policy, SB3Policy)
    assert isinstance(small.policy, Policy)
    assert not torch.equal(small.policy.act(observations), before)


@both
@pytest.mark.parametrize(
    ("step", "said"),
    [((np.array([np.nan]), 0.0, False, False, {}), "the observation is"), ((np.zeros(1), np.inf, 0, 0, {}), "the rew")],
)
def test_bad_numbers_of_an_environment_are_named_at_once(kind, step, said):
    """NaN is an error with environment, step and episode, before anything learns from it."""
    small = learner(kind, made({27: step}))
    with pytest.raises(InvalidData, match=rf"Box: step 6 of episode 2 \(step 26 of all\) gave NaN.*{said}"):
        small.collect(HALF, reward=reward)
    assert small.steps == 26


@both
def test_bad_learned_rewards_are_refused(kind):
    """NaN, and the shape of an ensemble."""
    with pytest.raises(InvalidData, match="learned reward is NaN"):
        learner(kind).collect(HALF, reward=lambda s, a: s[:, 0] / 0)
    with pytest.raises(InvalidData, match=r"but is \(3, \d+\); of an ensemble"):
        learner(kind).collect(HALF, reward=lambda s, a: torch.zeros(3, len(s)))


@both
def test_what_cannot_be_kept_is_saved_between_episodes(kind):
    """An environment with something sealed inside: never in an episode; at its end, the resumed run is equal."""
    script = {"lock": Lock()}  # an attribute that nothing can write down
    whole, first, second = (learner(kind, made(script), seed=3) for _ in range(3))
    first.collect(16, reward=reward)
    assert not first.saveable
    with pytest.raises(ConfigError, match=r"Box cannot be kept in the middle of an episode \(Box\.script has"):
        first.state_dict()
    first.collect(64, reward=reward)
    assert first.saveable
    second.load_state_dict(first.state_dict())
    second.collect(80, reward=reward)
    whole.collect(160, reward=reward)
    assert_equal(whole.state_dict(), second.state_dict())


@both
def test_refusals(kind):
    """Spaces that do not fit, options out of range, and the states of others."""
    with pytest.raises(ConfigError, match=r"Box: action_space must be a Box of shape \(n,\), but is Discrete"):
        learner(kind, made(action_space=gym.spaces.Discrete(3)))
    with pytest.raises(ConfigError, match="must have finite bounds"):
        learner(kind, made(action_space=gym.spaces.Box(-np.inf, 1, (2,), np.float32)))
    for options in ({"batch_size": 0}, {"lr": 0.0}, {"gamma": 1.1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            learner(kind, **options)
    with pytest.raises(DamagedFile, match="not of an Online"):
        learner(kind).load_state_dict({"kind": "other"})
    with pytest.raises(InvalidData, match="no finished episode"):
        learner(kind).episodes()
    with pytest.raises(DamagedFile, match="observations are rows of float32"):
        learner(kind).load_state_dict(learner(kind, "prefrl/PointReach-v0", hidden=(16,)).state_dict())
