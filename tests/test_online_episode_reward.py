"""Laws of rewards that need whole episodes: each is of its own frames, and nothing is learned from before it is known.

The environments show (seed, episode, step, what the step paid), so that an episode's frames say where they belong, and
a reward can be read from them.
"""

from functools import partial
from threading import Lock

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from agents.kept_env import env_seed
from agents.online_critic import next_critic_update
from agents.online_ppo import OnlinePPO
from agents.online_sac import OnlineSAC
from prefrl.errors import ConfigError, InvalidData
from prefrl.files import flatten, load_checkpoint, save_checkpoint

SMALL = {
    "sac": partial(OnlineSAC, learning_starts=4, batch_size=16, hidden=(8,), train_every=2),
    "ppo": partial(OnlinePPO, rollout_steps=24, batch_size=12, epochs=2, hidden=(8,)),
}
VARIED = (3, 7, 1, 4)
both = pytest.mark.parametrize("kind", SMALL)
places = pytest.mark.parametrize(("num_envs", "subprocesses"), [(1, False), (2, False), (2, True)])


def shown(lengths=(6,), missing=lambda episode, step: False, sealed=False):
    """A maker of noise in episodes of these lengths, in turn, that end by their limit, or where it is told."""

    class Shown(gym.Env):  # in here, because so it can travel to a process that does not know this file
        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

        def __init__(self, seed):
            self.number, self.episode, self.time = seed, -1, 0
            self.lock = Lock() if sealed else None
            gym.Env.reset(self, seed=seed)

        def reset(self, *, seed=None, options=None):
            self.episode, self.time = self.episode + 1, 0
            return self.np_random.normal(size=1).astype(np.float32), self.info(0.0)

        def step(self, action):
            self.time += 1
            paid = 1.0 + float(np.float32(abs(self.np_random.normal()) + action[0] ** 2))
            over, terminal = self.time == lengths[self.episode % len(lengths)], self.episode % 2 == 1
            seen = self.np_random.normal(size=1).astype(np.float32)
            return seen, paid, over and terminal, over and not terminal, self.info(paid)

        def info(self, paid):
            frame = {"frame": np.array([self.number, self.episode, self.time, paid])}
            return {} if missing(self.episode, self.time) else frame

    return lambda *, seed, render_mode=None: Shown(seed)


def paid(frames):
    """What the steps paid, as the frames say."""
    return frames[1:, 3]


def ones(frames):
    return np.ones(len(frames) - 1)


def learner(kind, make_env, num_envs=1, subprocesses=False, **options):
    return SMALL[kind](make_env=make_env, seed=0, num_envs=num_envs, subprocesses=subprocesses, **options)


def assert_equal(one, two):
    (tensors, plain), (others, other_plain) = flatten(one), flatten(two)
    assert plain == other_plain
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


def ended_steps(num_envs, steps, lengths=VARIED, began=0):
    """Steps (of all) of the episodes that ended after step ``began``, as they ended: told by the lengths alone."""
    found, ends = [], np.cumsum(np.resize(lengths, steps))
    for end, length in zip(ends, np.resize(lengths, steps), strict=True):
        if began < num_envs * end <= steps:
            for which in range(num_envs):
                found += [num_envs * t + which for t in range(end - length, end)]
    return found


@places
@both
def test_an_episode_is_rewarded_by_its_own_frames(kind, num_envs, subprocesses):
    """One call an episode, of one environment's frames from reset to end; steps get what their frames say, which is
    what they paid; those of open episodes have nothing yet."""
    calls, small = [], learner(kind, shown((4, 2, 6) if kind == "ppo" else VARIED), num_envs, subprocesses)
    small.collect(48, episode_reward=lambda frames: (calls.append(frames), paid(frames))[1])
    small.close()
    experience = small.world.experience
    assert [len(frames) - 1 for frames in calls] == experience.lengths.tolist()
    for frames in calls:
        np.testing.assert_array_equal(frames[:, 2], np.arange(len(frames)))
        assert len(np.unique(frames[:, :2], axis=0)) == 1
    numbers = [(env_seed(0, which), episode) for episode in range(48) for which in range(num_envs)]
    assert [(frames[0, 0], frames[0, 1]) for frames in calls] == numbers[: len(calls)]
    done = ended_steps(num_envs, 48, (4, 2, 6) if kind == "ppo" else VARIED)
    assert experience.rewarded.tolist() == done
    np.testing.assert_array_equal(experience.rewards[done], experience.true_reward[done])
    assert not np.delete(experience.rewards, done).any()
    assert len(done) == (48 if kind == "ppo" else {1: 48, 2: 36}[num_envs])


@places
def test_only_finished_episodes_are_replayed(num_envs, subprocesses, monkeypatch):
    """Every drawn step has its reward, here 1, while open ones have 0; the first update follows the first end."""
    drawn, small = [], learner("sac", shown(VARIED), num_envs, subprocesses, train_every=1)
    sample = small.replay.sample
    monkeypatch.setattr(
        small.replay, "sample", lambda n, **_: (drawn.append((small.steps, sample(n))), drawn[-1][1])[1]
    )
    small.collect(42, episode_reward=ones)
    small.close()
    assert drawn[0][0] == max(3 * num_envs, 4 + num_envs)  # the first episode, or the first step that is learned from
    assert all((batch.rewards == 1).all() for _, batch in drawn)
    assert not small.world.experience.rewards.all()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_buffer_holds_the_episodes_that_ended_last(num_envs):
    """Of a buffer of 20, the 20 steps that were rewarded last, each with equal frequency."""
    small = learner("sac", shown(VARIED), num_envs, buffer_size=20, learning_starts=1000)
    small.collect(80, episode_reward=paid)
    held = small.world.experience.at(np.array(ended_steps(num_envs, 80)[-20:]))
    batch = small.replay.sample(4000)
    which = batch.observations.numpy() == held.observations.T
    assert (which.sum(1) == 1).all()
    assert (abs(which.sum(0) - 200) < 5 * 200**0.5).all()
    np.testing.assert_array_equal(batch.rewards[:, 0], held.rewards[which.argmax(1)])


@pytest.mark.parametrize("num_envs", [1, 2])
def test_what_was_explored_is_not_replayed(num_envs):
    """Episodes that ended before the first episode reward have none; the one that was open has, from its reset on."""
    small = learner("sac", shown(VARIED), num_envs, learning_starts=1000)
    small.collect(12 * num_envs, batch_reward=lambda s, a: s[:, 0])  # in the fourth episode
    small.collect(12 * num_envs, episode_reward=ones)
    done = ended_steps(num_envs, 24 * num_envs, began=12 * num_envs)
    assert done[0] == 11 * num_envs
    assert small.world.experience.rewarded.tolist() == done
    assert (small.replay.sample(500).rewards == 1).all()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_rollout_has_its_rewards_before_it_is_learned_from(num_envs):
    """An episode reward that is the environment's own gives bitwise what the environment's own gives."""
    one, two, other = (learner("ppo", shown((4, 2, 6)), num_envs) for _ in range(3))
    one.collect(48, episode_reward=paid)
    two.collect(48, reward="env")
    other.collect(48, episode_reward=ones)
    weights = [flatten(each.model.policy.state_dict())[0] for each in (one, two, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert any(not torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())
    np.testing.assert_array_equal(one.model.rollout_buffer.rewards, two.model.rollout_buffer.rewards)


class Framed(gym.Wrapper):
    """Hopper, which shows the first of what it observes."""

    def reset(self, **options):
        observation, info = super().reset(**options)
        return observation, {**info, "frame": observation[:3].astype(np.float32)}

    def step(self, action):
        observation, *rest, info = super().step(action)
        return observation, *rest, {**info, "frame": observation[:3].astype(np.float32)}


def hopper(*, seed, render_mode=None):
    return Framed(envs.make("Hopper-v5", seed=seed, max_episode_steps=9))


@pytest.mark.parametrize(
    ("kind", "make_env", "num_envs", "half"),
    [
        ("sac", hopper, 1, 23), ("sac", shown(VARIED), 2, 24), ("sac", shown(sealed=True), 2, 24),
        ("ppo", shown((4, 2, 6)), 2, 24),
    ],
)  # fmt: skip
def test_resumes_bitwise(kind, make_env, num_envs, half, tmp_path):
    """2k steps are k steps, a file, a new object and k more, in the middle of episodes too where it can be saved."""
    whole, first, second = (learner(kind, make_env, num_envs) for _ in range(3))
    reward = paid if make_env is not hopper else lambda frames: frames[1:, 0] - frames[0, 0]
    whole.collect(2 * half, episode_reward=reward)
    first.collect(half, episode_reward=reward)
    save_checkpoint(tmp_path / "learner.safetensors", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "learner.safetensors"))
    assert_equal(first.state_dict(), second.state_dict())
    second.collect(half, episode_reward=reward)
    assert_equal(whole.state_dict(), second.state_dict())
    assert whole.model._n_updates > first.model._n_updates > 0


def test_what_is_replayed_is_saved():
    """A resumed learner's new critics, too, learn from finished episodes only."""
    first, second = (learner("sac", shown(VARIED), reset_updates=3) for _ in range(2))
    first.collect(13, episode_reward=ones)
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        assert (each.replay.sample(500).rewards == 1).all()
        each.reset_critic()
    assert_equal(first.state_dict(), second.state_dict())


@both
def test_frames_are_kept_as_long_as_their_episodes(kind):
    """All of an open episode, with whatever reward; between two episodes none, and nothing of them in a state."""
    small = learner(kind, shown((9,)), 2)
    for steps, reward in ((24, {"reward": "env"}), (48, {"reward": None})):  # 12 and 36 steps of each, 3 and 0 open
        small.collect(steps, **reward)
        held = small.state_dict()["world"].get("frames", [torch.empty(0)] * 2)
        assert [len(frames) for frames in held] == [len(frames) for frames in small.world.frames]
        assert [len(frames) for frames in held] == ([4, 4] if steps == 24 else [0, 0])


def test_states_without_episode_rewards_are_as_before():
    """Nothing new is in the world's, and one that was saved without the rest goes on."""
    one, two = (learner("sac", partial(envs.make, "prefrl/PointReach-v0", max_episode_steps=9)) for _ in range(2))
    one.collect(12, reward="env")
    state = one.state_dict()
    assert set(state["world"]) == {"envs", "in_episode", "experience"}
    assert "rewarded" not in state["world"]["experience"]
    del state["by_episode"]
    two.load_state_dict(state)
    for each in (one, two):
        each.collect(12, reward="env")
    assert_equal(one.state_dict(), two.state_dict())


def test_without_a_finished_episode_there_is_no_update():
    """Of collecting, of new critics, and of a reward that is judged by one."""
    small = learner("sac", shown((50,)), learning_starts=0)
    assert "n_updates" not in small.collect(20, episode_reward=ones)
    small.reset_critic()
    assert small.model._n_updates == 0
    assert next_critic_update(small) == {}
    small.collect(32, episode_reward=ones)
    assert small.model._n_updates > 0
    assert next_critic_update(small, batch_size=8)["batch"].rewards.tolist() == [1] * 8


@both
@pytest.mark.parametrize("other", ["reward", "batch_reward"])
def test_stands_alone(kind, other):
    """Nothing else rewards the same steps."""
    with pytest.raises(ConfigError, match=rf"episode_reward cannot be combined with {other}:"):
        learner(kind, shown()).collect(24, episode_reward=ones, **{other: lambda s, a: s[:, 0]})


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    ("missing", "step"),
    [
        (lambda episode, step: True, "after 0 steps, episode 0"),
        (lambda episode, step: step == 0 and episode == 1, "after 0 steps, episode 1"),
        (lambda episode, step: step == 3, "after 3 steps, episode 0"),
        (lambda episode, step: step == 6 and episode == 1, "after 6 steps, episode 1"),
    ],
)
def test_frames_that_are_missing_are_told(missing, step, num_envs):
    """At the first step that would need them, at reset, within an episode and at its end."""
    with pytest.raises(ConfigError, match=rf"{step} lacks frames\. episode_reward needs info\['frame'\]"):
        learner("sac", shown(missing=missing), num_envs).collect(60, episode_reward=ones)


@both
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda frames: np.full(len(frames) - 1, np.nan), r"of episode 0 is NaN or infinite at 6 of 6 steps"),
        (lambda frames: np.full(len(frames) - 1, 1e300), r"of episode 0 is NaN or infinite at 6 of 6 steps"),
        (lambda frames: np.ones(len(frames)), r"of 6 steps, which have 7 frames, must be \(6,\), but is \(7,\)"),
        (lambda frames: 1.0, r"must be \(6,\), but is \(\)"),
    ],
)
def test_rewards_that_are_wrong_are_told(kind, reward, said):
    """Before anything is learned from them."""
    with pytest.raises(InvalidData, match=said):
        learner(kind, shown()).collect(24, episode_reward=reward)


@pytest.mark.parametrize(
    ("lengths", "num_envs", "said"),
    [
        ((9,), 1, r"made 6 steps and goes on; choose rollout_steps=36 or another multiple of 36, for episodes of 9"),
        ((9,), 2, r"made 3 steps and goes on; choose rollout_steps=36 or another multiple of 36, for episodes of 9"),
        ((5,), 2, r"made 2 steps and goes on; choose rollout_steps=60 or another multiple of 60, for episodes of 5"),
        ((50,), 1, r"made 24 steps and goes on; choose a multiple of num_envs=1 times the steps of an episode"),
        (VARIED, 1, r"made 6 steps and goes on; choose a multiple .*; if these differ, no number is right"),
    ],
)
def test_rollouts_are_of_whole_episodes(lengths, num_envs, said):
    """If not, the right number is named, and it is right."""
    with pytest.raises(ConfigError, match=said):
        learner("ppo", shown(lengths), num_envs).collect(24, episode_reward=ones)
    if "rollout_steps=" in said:
        steps = int(said.split("rollout_steps=")[1].split()[0])
        learner("ppo", shown(lengths), num_envs, rollout_steps=steps).collect(2 * steps, episode_reward=ones)


def test_the_time_limit_names_the_rollout_where_no_episode_has_ended():
    """Of an environment with a limit, as those of ``envs.make`` have."""
    make_env = partial(envs.make, "prefrl/PointReach-v0", max_episode_steps=50)
    with pytest.raises(ConfigError, match="choose rollout_steps=300 or another multiple of 300"):
        learner("ppo", lambda *, seed, render_mode=None: Framed(make_env(seed=seed))).collect(24, episode_reward=ones)
