"""Laws of several environments side by side: whatever process steps them, each acts as it would alone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import envs
from agents.kept_env import env_seed
from agents.online_ppo import OnlinePPO
from agents.online_sac import OnlineSAC
from prefrl.data.dataset import Episodes
from prefrl.errors import ConfigError, DamagedFile, InvalidData, PrefrlError
from prefrl.files import flatten, load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "sac": partial(OnlineSAC, learning_starts=30, batch_size=16, buffer_size=100, hidden=(16,), train_every=4),
    "ppo": partial(OnlinePPO, rollout_steps=24, batch_size=12, epochs=2, hidden=(16,)),
}
HALF = 96  # steps: 32 of each of three environments, in the middle of their episodes
both = pytest.mark.parametrize("kind", SMALL)


def troubled(which, trouble):
    """A maker of noise in episodes of 10 steps, whose environment ``which`` of seed 0 will have trouble at step 15."""
    seed_of_it = env_seed(0, which)

    class Noise(gym.Env):  # in here, because so it can travel to a process that does not know this file
        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

        def __init__(self, trouble):
            self.trouble, self.count = trouble, 0

        def reset(self, *, seed=None, options=None):
            gym.Env.reset(self, seed=seed)
            return self.np_random.normal(size=1).astype(np.float32), {}

        def step(self, action):
            self.count += 1
            seen, now = self.np_random.normal(size=1).astype(np.float32), self.trouble if self.count == 15 else None
            if now == "NaN":
                seen[:] = np.nan
            elif now == "KeyError":
                raise KeyError("lost")
            elif now == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            return seen, 0.0, False, self.count % 10 == 0, {}

    def make_env(*, seed, render_mode=None):
        env = Noise(trouble if seed == seed_of_it else None)
        env.reset(seed=seed)
        return env

    return make_env


def reward(observations, actions):
    return -observations.square().sum(1)


def learner(kind, env="Pendulum-v1", seed=0, num_envs=3, **options):
    make_env = env if callable(env) else partial(envs.make, env, max_episode_steps=20)
    return SMALL[kind](make_env=make_env, seed=seed, num_envs=num_envs, **{"subprocesses": False, **options})


def assert_equal(one, two):
    (tensors, plain), (others, other_plain) = flatten(one), flatten(two)
    assert plain == other_plain
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


@pytest.mark.parametrize(
    ("kind", "env"),
    [
        ("sac", "Pendulum-v1"), ("ppo", "Hopper-v5"),
        pytest.param("sac", "Hopper-v5", marks=pytest.mark.slow),
        pytest.param("ppo", "Pendulum-v1", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_resumes_bitwise_in_the_middle_of_episodes(kind, env, tmp_path):
    """2k steps are k steps, a file, a new object and k more."""
    whole, first, second = (learner(kind, env) for _ in range(3))
    whole.collect(2 * HALF, reward=reward)
    first.collect(HALF, reward=reward)
    assert first.world.in_episode.any()
    save_checkpoint(tmp_path / "learner.safetensors", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "learner.safetensors"))
    second.collect(HALF, reward=reward)
    assert_equal(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize(
    ("kind", "env"), [("sac", "Pendulum-v1"), ("ppo", "Hopper-v5"),
                      pytest.param("sac", "Hopper-v5", marks=pytest.mark.slow)],
)  # fmt: skip
def test_processes_change_no_number(kind, env, tmp_path):
    """In processes, or half in processes, saved and loaded here and there: bitwise what one process gives."""
    here, apart, again = (learner(kind, env, subprocesses=there) for there in (False, True, False))
    try:
        here.collect(HALF, reward=reward)
        apart.collect(HALF, reward=reward)
        save_checkpoint(tmp_path / "learner.safetensors", apart.state_dict())
        assert_equal(here.state_dict(), apart.state_dict())
        again.load_state_dict(load_checkpoint(tmp_path / "learner.safetensors"))
        apart.collect(HALF, reward=reward)
        apart.load_state_dict(load_checkpoint(tmp_path / "learner.safetensors"))
        for each in (here, apart, again):
            each.collect(HALF, reward=reward)
        assert_equal(here.state_dict(), apart.state_dict())
        assert_equal(here.state_dict(), again.state_dict())
    finally:
        processes = apart.world.envs.processes
        apart.close()
    assert not any(process.is_alive() for process in processes)


def test_each_environment_is_seeded_of_its_own():
    """The first has the seed of the run, so that one environment is as before; no two of neighboring runs are alike."""
    assert [env_seed(seed, 0) for seed in range(3)] == [0, 1, 2]
    seeds = [env_seed(seed, which) for seed in range(50) for which in range(32)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    one, three = learner("sac", num_envs=1), learner("sac", num_envs=3)
    starts = three.world.observe()
    np.testing.assert_array_equal(one.world.observe()[0], starts[0])
    assert len(np.unique(starts, axis=0)) == 3


@both
def test_episodes_are_those_of_the_environments(kind):
    """Finished episodes are whole and in the order of their ends: played anew, each environment's actions lead to its
    observations, rewards and ends; and what was numbered stays so."""
    small = learner(kind, "Hopper-v5", seed=4)
    small.collect(2 * HALF, reward=reward)
    before = Episodes(**small.episodes()._asdict())
    small.collect(2 * HALF, reward=reward)
    found = Episodes(**small.episodes()._asdict())
    assert len(found) > len(before) > 4
    assert_equal(vars_of(found.select(range(len(before)))), vars_of(before))
    experience = small.world.experience
    ends = experience.first_step + 3 * (found.lengths - 1)
    assert (np.diff(ends) > 0).all()
    for which in range(3):
        env = envs.make("Hopper-v5", seed=env_seed(4, which), max_episode_steps=20)
        numbers = np.flatnonzero(experience.first_step % 3 == which)
        assert len(numbers) > 1
        for number in numbers:
            episode = found.select([number])
            observations, paid, ended = [env.reset()[0]], [], False
            for action in episode.actions:
                observation, reward_of_env, ended, over, _ = env.step(action)
                observations.append(observation)
                paid.append(reward_of_env)
            assert ended or over
            np.testing.assert_array_equal(episode.observations, np.array(observations, np.float32))
            np.testing.assert_array_equal(episode.true_reward, np.array(paid, np.float32))
            assert episode.terminated[0] == ended
    later = Episodes(**small.episodes(first=2)._asdict())
    np.testing.assert_array_equal(later.observations, found.select(range(2, len(found))).observations)


def vars_of(episodes):
    names = ("observations", "actions", "true_reward", "lengths", "terminated")
    return {name: torch.from_numpy(np.array(getattr(episodes, name))) for name in names}


def test_replay_never_crosses_episodes():
    """Of a point that goes where it is told: every sampled step leads from its state by its action to the next, from
    each environment, unfinished episodes too, and all latest rewards are written by relabelling."""
    small = learner("sac", partial(envs.make, "prefrl/PointReach-v0", max_episode_steps=20), learning_starts=1000)
    small.collect(3 * 45, reward=lambda s, a: torch.full((len(s),), 5.0))
    small.relabel(lambda s, a: 10 * s[:, 0] + a[:, 1], batch_size=7)
    assert small.replay.first == 35
    experience = small.world.experience
    latest = experience.at(np.arange(35, 135))
    np.testing.assert_allclose(latest.rewards, 10 * latest.observations[:, 0] + latest.actions[:, 1], rtol=1e-5)
    assert (experience.rewards[:35] == 5.0).all()
    batch = small.replay.sample(3000)
    moved = (batch.observations + 0.1 * batch.actions).clamp(-1, 1)
    torch.testing.assert_close(batch.next_observations, moved, atol=1e-6, rtol=0)
    drawn = {tuple(row) for row in batch.observations.tolist()}
    assert drawn == {tuple(row) for row in latest.observations.tolist()}


def test_states_hold_all_that_may_be_replayed():
    """The states that steps see and lead to, and the present ones; a view."""
    small = learner("sac", learning_starts=1000)
    small.collect(3 * 45)
    experience, states = small.world.experience, small.states()
    assert np.shares_memory(states.numpy(), experience.observations)
    steps = experience.at(np.arange(small.replay.first, experience.steps))
    seen = {tuple(row) for row in states.tolist()}
    for rows in (steps.observations, steps.next_observations, experience.present):
        assert {tuple(row) for row in rows.tolist()} <= seen
    assert len(states) <= 100 + 2 * 9  # a few more, of episodes that begin or end meanwhile


class Corridor(gym.Env):
    """A walk from its start that ends beyond ±1, without noise."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, start):
        self.start = start

    def reset(self, *, seed=None, options=None):
        self.at, self.time = self.start, 0
        return np.array([self.at], np.float32), {}

    def step(self, action):
        self.at, self.time = self.at + 0.3 * float(action[0]), self.time + 1
        over = abs(self.at) > 1
        return np.array([self.at], np.float32), self.at, over, not over and self.time >= 9, {}


def test_is_the_ppo_of_stable_baselines3_with_as_many_environments():
    """The same weights after three updates, but for the rounding of what follows a time limit; terminal states and
    episodes that run over from one rollout into the next included."""
    starts = {env_seed(0, which): 0.1 * which for which in range(3)}
    ours = learner("ppo", lambda seed: Corridor(starts[seed]))
    ours.collect(72, reward="env")
    theirs = PPO(
        "MlpPolicy", DummyVecEnv([partial(Corridor, start) for start in starts.values()]), n_steps=8, batch_size=12,
        n_epochs=2, policy_kwargs={"net_arch": [16]}, seed=0, device="cpu",
    ).learn(72)  # fmt: skip
    found = ours.model.policy.state_dict()
    for name, weights in theirs.policy.state_dict().items():
        torch.testing.assert_close(found[name], weights, atol=1e-6, rtol=1e-5)
    episodes = ours.episodes()
    assert episodes.terminated.any()
    assert not episodes.terminated.all()


@pytest.mark.parametrize(("options", "updates"), [({}, 30), ({"train_every": 4}, 8), ({"gradient_steps": 2}, 60)])
def test_updates_are_per_environment_step(options, updates):
    """As many as one environment would make: after 30 random steps, 30 more."""
    for num_envs in (1, 3, 5):
        small = learner("sac", num_envs=num_envs, **{"train_every": 1, **options})
        small.collect(45, reward="env")
        assert small.collect(15, reward="env")["n_updates"] == updates
        assert small.steps == 60


@pytest.mark.parametrize(
    ("kind", "trouble", "said"),
    [("sac", "NaN", r"gave NaN or infinity: the observation"), ("ppo", "KeyError", "failed: (?s:.*)KeyError: 'l")],
)
def test_the_environment_that_fails_is_named(kind, trouble, said):
    """By its number and its own step, here and in another process; and no process is left."""
    for subprocesses in (False, True):
        small = learner(kind, troubled(1, trouble), subprocesses=subprocesses)
        with pytest.raises(
            InvalidData, match=rf"Noise, environment 1 of 3: step 4 of episode 1 \(step 43 of all\) {said}"
        ):
            small.collect(HALF, reward=reward)
        assert small.world.envs.closed
        small.close()
        if subprocesses:
            assert not any(process.is_alive() for process in small.world.envs.processes)


def test_a_process_that_is_killed_is_named():
    """The memory of a machine may end; then all the others are ended too."""
    small = learner("ppo", troubled(2, "killed"), subprocesses=True)
    with pytest.raises(PrefrlError, match=r"the process of environment \[2\] of 3 ended with code \[-9\]"):
        small.collect(HALF, reward=reward)
    assert not any(process.is_alive() for process in small.world.envs.processes)


def test_no_process_outlives_a_killed_run():
    """After ``kill -9`` of what acts, its environments end."""
    script = (
        "import os, signal\n"
        "from functools import partial\n"
        "import envs\n"
        "from agents.kept_env import side_by_side\n"
        "make_env = partial(envs.make, 'prefrl/PointReach-v0', max_episode_steps=20)\n"
        "made = side_by_side(make_env, seed=0, num_envs=3, subprocesses=True)\n"
        "made.reset()\n"
        "print(*(process.pid for process in made.processes), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    left = [int(pid) for pid in done.stdout.split()]
    assert len(left) == 3
    end = time.monotonic() + 10
    while left and time.monotonic() < end:
        left = [pid for pid in left if is_running(pid)]
        time.sleep(0.05)
    assert left == []


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_auto_is_where_it_pays(monkeypatch):
    """One environment, one core, or a step that is faster than the way to another process: none of its own."""
    slow = {"seconds": 0.0}

    def make_env(*, seed, render_mode=None):
        env = Corridor(0.0)
        step = env.step
        env.step = lambda action: (time.sleep(slow["seconds"]), step(action))[1]
        return env

    def apart(num_envs, cores=4, seconds=0.002):
        slow["seconds"] = seconds
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        started = []
        monkeypatch.setattr("agents.kept_env.AsyncVectorEnv", lambda *_, **__: started.append(1) or 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            learner("ppo", make_env, num_envs=num_envs, subprocesses="auto").close()
        return bool(started)

    assert apart(3)
    assert not apart(1)
    assert not apart(3, cores=1)
    assert not apart(3, seconds=0.0)


@both
def test_refusals(kind):
    """Steps that are not of all environments, options out of range, a state of another number of environments."""
    with pytest.raises(ConfigError, match=r"multiple of .*; got 50"):
        learner(kind).collect(50)
    assert learner(kind).step_multiple == {"sac": 3, "ppo": 24}[kind]
    with pytest.raises(ConfigError, match="num_envs must be >= 1, but is 0"):
        learner(kind, num_envs=0)
    with pytest.raises(ConfigError, match="subprocesses must be true, false or auto, but is 'maybe'"):
        learner(kind, subprocesses="maybe")
    with pytest.raises(DamagedFile, match="of 3 environments side by side, but here are 2"):
        learner(kind, num_envs=2).load_state_dict(learner(kind).state_dict())


def test_rollouts_are_of_all_environments():
    """Each makes as many steps of one."""
    with pytest.raises(ConfigError, match="rollout_steps=24 must be a multiple of num_envs=5"):
        learner("ppo", num_envs=5)
