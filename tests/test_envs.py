"""Laws of ``envs``: seeding, spaces, scripted behaviors, names."""

import functools
import pickle
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from metaworld import MT1
from metaworld.policies import ENV_POLICY_MAP

import envs

FAUCET = "prefrl/MetaWorld-faucet-open-v0"
FEW_TASKS = ("faucet-open", "push", "plate-slide-back", "peg-insert-side", "window-close")


def run(env, behavior, *, seed, steps=10_000):
    """One episode: (observations, rewards, any-step success)."""
    observation, _ = env.reset(seed=seed)
    behavior.reset(env, np.random.default_rng(seed))
    observations, rewards, success = [observation], [], False
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(behavior.act(observation))
        observations.append(observation)
        rewards.append(reward)
        success |= info.get("success", False)
        if terminated or truncated:
            break
    return np.array(observations), np.array(rewards), success


def successes(task, env, *, noise=0.0, episodes=5):
    script = envs.ScriptedExpert(task=task, noise=noise)
    return sum(run(env, script, seed=seed)[2] for seed in range(episodes))


@pytest.mark.parametrize(
    ("id", "kwargs"),
    [
        (FAUCET, {"goal": "random"}),
        (FAUCET, {"goal": "fixed", "goal_seed": 3}),
        ("prefrl/MetaWorld-push-v0", {"goal": "random"}),
        ("prefrl/PointReach-v0", {}),
        ("Hopper-v5", {}),
    ],
)
def test_equal_seeds_give_equal_episodes(id, kwargs):
    """An episode depends on reset's seed alone: not on the environment's seed nor on what it did before."""
    fresh = envs.make(id, seed=0, **kwargs)
    used = envs.make(id, seed=1, **kwargs)
    for _ in range(60):
        used.step(used.action_space.high)
    used.reset()
    used.step(used.action_space.low)
    script = envs.RandomBehavior(hold=3)
    first, second = (run(env, script, seed=7, steps=60) for env in (fresh, used))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_equal_constructor_seeds_give_equal_goal_sequences():
    """Resets without a seed continue the stream that make's seed began."""
    goals = []
    for seed in (5, 5, 6):
        env = envs.make("prefrl/MetaWorld-push-v0", seed=seed)
        goals.append(np.array([env.reset()[0][36:] for _ in range(3)]))
    np.testing.assert_array_equal(goals[0], goals[1])
    assert np.abs(goals[0] - goals[2]).max() > 0.01
    assert len(np.unique(goals[0], axis=0)) == 3


@pytest.mark.parametrize("task", ["faucet-open", "push", "hammer"])
def test_random_starts_differ_between_seeds_and_fixed_ones_do_not(task):
    """ "random": the start differs per seed; "fixed": it is chosen by goal_seed alone."""
    id = f"prefrl/MetaWorld-{task}-v0"
    random = envs.make(id, seed=0, goal="random")
    starts = np.array([random.reset(seed=s)[0] for s in range(4)])
    assert len(np.unique(starts, axis=0)) == 4
    fixed = envs.make(id, seed=0, goal="fixed", goal_seed=1)
    np.testing.assert_array_equal(fixed.reset(seed=1)[0], fixed.reset(seed=2)[0])
    other = envs.make(id, seed=0, goal="fixed", goal_seed=2)
    assert np.abs(fixed.reset()[0] - other.reset()[0]).max() > 1e-3


@pytest.mark.parametrize("task", ["faucet-open", "push"])
@pytest.mark.filterwarnings("ignore:Constant:UserWarning")
def test_episodes_equal_the_librarys_at_equal_positions(task):
    """Given the drawn positions, observations, rewards and success are those of Meta-World's own MT1."""
    ours = envs.make(f"prefrl/MetaWorld-{task}-v0", seed=0)
    observation, _ = ours.reset(seed=4)
    benchmark = MT1(f"{task}-v3", seed=0)
    library = benchmark.train_classes[f"{task}-v3"]()
    library.set_task(benchmark.train_tasks[0])
    library._last_rand_vec = ours.unwrapped._simulator._last_rand_vec
    expected, _ = library.reset()
    script = ENV_POLICY_MAP[f"{task}-v3"]()
    for _ in range(80):
        np.testing.assert_array_equal(observation, expected.astype(np.float32))
        action = np.clip(script.get_action(expected), -1, 1).astype(np.float32)
        observation, reward, _, _, info = ours.step(action)
        expected, true_reward, _, _, facts = library.step(action)
        assert reward == true_reward
        assert info["success"] == bool(facts["success"])


def check_task(task):
    env = envs.make(f"prefrl/MetaWorld-{task}-v0", seed=0, max_episode_steps=30)
    assert env.observation_space.dtype == np.float32
    assert (env.observation_space.low < env.observation_space.high).all()
    assert np.isfinite(env.observation_space.high).all()
    for behavior in (envs.ScriptedExpert(task=task, noise=0.5), envs.RandomBehavior(hold=10)):
        observations, rewards, _ = run(env, behavior, seed=3)
        assert len(rewards) == 30
        assert observations.dtype == np.float32
        # the space holds what the simulator shows: nothing is changed by the clip to its bounds
        raw = env.unwrapped._simulator._last_stable_obs
        np.testing.assert_array_equal(observations[-1], raw.astype(np.float32))
        assert all(env.observation_space.contains(o) for o in observations)
        assert (rewards >= 0).all()
        assert (rewards <= 10).all()
    env.close()


@pytest.mark.parametrize("task", FEW_TASKS)
def test_observations_lie_in_the_space(task):
    """Every observation, under the script and under random actions, is inside a finite float32 Box."""
    check_task(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", envs.TASKS)
def test_every_task_constructs_and_steps(task):
    """All 50 tasks: as above."""
    check_task(task)


def test_all_fifty_tasks_are_registered():
    """The ids are the library's 50 tasks."""
    assert len(envs.TASKS) == 50
    assert all(f"prefrl/MetaWorld-{task}-v0" in gym.registry for task in envs.TASKS)


@pytest.mark.parametrize("id", [FAUCET, "prefrl/PointReach-v0"])
def test_gymnasium_checker_finds_nothing(id):
    """Gymnasium's own checker passes, its warnings being errors here."""
    check_env(envs.make(id, seed=0).unwrapped, skip_render_check=True)


def test_actions_outside_the_bounds_are_clipped():
    """An action beyond ±1 does what ±1 does; one that is not finite is an error."""
    for id in (FAUCET, "prefrl/PointReach-v0"):
        a, b = envs.make(id, seed=0), envs.make(id, seed=0)
        ones = np.ones(a.action_space.shape, np.float32)
        np.testing.assert_array_equal(a.step(5 * ones)[0], b.step(ones)[0])
        with pytest.raises(ValueError, match="not finite"):
            a.unwrapped.step(np.nan * ones)


@pytest.mark.parametrize("steps", [20, 520])
def test_truncation_is_at_max_episode_steps(steps):
    """Episodes truncate after max_episode_steps, also beyond the library's 500, and never terminate."""
    env = envs.make(FAUCET, seed=0, max_episode_steps=steps)
    flags = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(steps)]
    assert flags == [(False, False)] * (steps - 1) + [(False, True)]


def test_the_script_solves_its_task_and_the_opposite_script_does_not():
    """faucet-open's script opens (>= 4 of 5); faucet-close's, in the same one, turns the other way."""
    env = envs.make(FAUCET, seed=0, max_episode_steps=150)
    assert successes("faucet-open", env) >= 4
    assert successes("faucet-close", env) == 0
    moved = {}
    for task in ("faucet-open", "faucet-close"):
        observations, _, _ = run(env, envs.ScriptedExpert(task=task), seed=0)
        moved[task] = observations[-1, 4] - observations[0, 4]
    assert moved["faucet-open"] > 0.05
    assert moved["faucet-close"] < -0.05


def test_scripts_tolerate_moderate_noise_and_noise_changes_actions():
    """With levels of noise the script still solves most episodes; each episode draws one of the levels."""
    env = envs.make(FAUCET, seed=0, max_episode_steps=150)
    script = envs.ScriptedExpert(task="faucet-open", noise=[0.1, 0.6])
    assert successes("faucet-open", env, noise=[0.1, 0.6]) >= 4
    drawn = set()
    for seed in range(20):
        script.reset(env, np.random.default_rng(seed))
        drawn.add(script._add_noise.level)
    assert drawn == {0.1, 0.6}


@pytest.mark.parametrize(
    ("id", "behavior"),
    [
        (FAUCET, envs.ScriptedExpert(task="faucet-open", noise=2.0)),
        (FAUCET, envs.RandomBehavior()),
        ("prefrl/PointReach-v0", envs.PointBehavior(target="left", noise=[0.0, 2.0])),
        ("HalfCheetah-v5", envs.RandomBehavior(hold=2)),
    ],
)
def test_behaviors_act_inside_the_space_and_repeat_under_a_seed(id, behavior):
    """Every action is a float32 in the action space; equal generators give equal actions."""
    env = envs.make(id, seed=0)
    observation, _ = env.reset(seed=0)
    runs = []
    for _ in range(2):
        behavior.reset(env, np.random.default_rng(11))
        runs.append(np.array([behavior.act(observation) for _ in range(30)]))
        assert all(env.action_space.contains(action) for action in runs[-1])
    np.testing.assert_array_equal(runs[0], runs[1])


def test_random_behavior_holds_its_actions():
    """hold=k repeats each action k times, then draws another."""
    env = envs.make("prefrl/PointReach-v0", seed=0)
    behavior = envs.RandomBehavior(hold=4)
    behavior.reset(env, np.random.default_rng(0))
    actions = np.array([behavior.act(np.zeros(2)) for _ in range(12)])
    assert len(np.unique(actions, axis=0)) == 3
    np.testing.assert_array_equal(actions[:4], np.repeat(actions[:1], 4, axis=0))


def test_point_reach_is_a_conflict():
    """Each site's behavior solves its own environment and fails in the other, with a lower return."""
    returns = {}
    for target in ("left", "right"):
        env = envs.make("prefrl/PointReach-v0", seed=0, target=target)
        for goes in ("left", "right"):
            _, rewards, success = run(env, envs.PointBehavior(target=goes, noise=0.3), seed=1)
            assert success == (goes == target)
            returns[target, goes] = rewards.sum()
    assert returns["left", "left"] > returns["left", "right"] + 10
    assert returns["right", "right"] > returns["right", "left"] + 10


def test_point_reach_reward_is_minus_the_distance():
    """One step by hand: from (0, -0.7), action (1, 1) gives (0.1, -0.6), at 0.6 and 1.2 m of (0.7, 0.6)."""
    env = envs.make("prefrl/PointReach-v0", seed=0, start_noise=0.0)
    observation, reward, _, _, info = env.step(np.array([1, 1], np.float32))
    np.testing.assert_allclose(observation, [0.1, -0.6], rtol=1e-6)
    assert reward == pytest.approx(-np.sqrt(0.6**2 + 1.2**2))
    assert info["success"] is False


def test_point_reach_makes_50k_steps_a_second():
    """Fast enough to train on in seconds, with Gymnasium's wrappers."""
    env = envs.make("prefrl/PointReach-v0", seed=0, max_episode_steps=10**9)
    action = np.array([0.1, 0.2], np.float32)
    start = time.process_time()
    for _ in range(5000):
        env.step(action)
    assert 5000 / (time.process_time() - start) > 50_000


def test_a_bound_constructor_pickles():
    """functools.partial(envs.make, ...) survives pickling and builds the same environment."""
    build = functools.partial(envs.make, id="prefrl/PointReach-v0", target="left")
    again = pickle.loads(pickle.dumps(build))(seed=3)
    np.testing.assert_array_equal(again.reset()[0], build(seed=3).reset()[0])
    assert again.unwrapped.target == "left"


@pytest.mark.parametrize(
    ("attempt", "nearest"),
    [
        (lambda: envs.make("prefrl/MetaWorld-faucet-opn-v0", seed=0), "'prefrl/MetaWorld-faucet-open-v0'"),
        (lambda: envs.make("HalfCheeta-v5", seed=0), "'HalfCheetah-v5'"),
        (lambda: envs.make("prefrl/PointReach-v0", seed=0, tagret="left"), "'target'"),
        (lambda: envs.make(FAUCET, seed=0, max_episode_step=5), "'max_episode_steps'"),
        (lambda: envs.make(FAUCET, seed=0, camera="corner22"), "'corner2'"),
        (lambda: envs.make(FAUCET, seed=0, goal="randm"), "'random'"),
        (lambda: envs.make("prefrl/PointReach-v0", seed=0, target="rigth"), "'right'"),
        (lambda: envs.ScriptedExpert(task="faucet-opne"), "'faucet-open'"),
        (lambda: envs.PointBehavior(target="lefft"), "'left'"),
    ],
)
def test_misspelt_names_are_errors_with_the_nearest(attempt, nearest):
    """An unknown id, task, argument or value names the valid one that is nearest."""
    with pytest.raises(envs.UnknownName, match="unknown") as caught:
        attempt()
    assert f"did you mean {nearest}" in str(caught.value)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: envs.make(FAUCET, seed=0, goal_seed=3), "no effect"),
        (lambda: envs.make("prefrl/PointReach-v0", seed=0, start_noise=0.5), "start_noise"),
        (lambda: envs.RandomBehavior(hold=0), "hold"),
        (lambda: envs.ScriptedExpert(task="push", noise=-0.1), "noise"),
        (lambda: envs.ScriptedExpert(task="push", noise=[]), "noise"),
        (lambda: envs.ScriptedExpert(task="push", noise=float("nan")), "noise"),
    ],
)
def test_values_out_of_range_or_without_effect_are_errors(attempt, message):
    """The message names the argument."""
    with pytest.raises(ValueError, match=message):
        attempt()


def test_an_expert_refuses_a_foreign_environment():
    """A Meta-World script in an environment with other observations is an error at reset."""
    env = envs.make("prefrl/PointReach-v0", seed=0)
    with pytest.raises(ValueError, match="39"):
        envs.ScriptedExpert(task="push").reset(env, np.random.default_rng(0))


def test_a_script_without_a_task_is_the_environments_own():
    """``task=None`` acts as the script of the task that it finds itself in, anew in each."""
    expert = envs.ScriptedExpert(task=None)
    for task in ("faucet-open", "faucet-close"):
        env = envs.make(f"prefrl/MetaWorld-{task}-v0", seed=0)
        observation, _ = env.reset(seed=1)
        named = envs.ScriptedExpert(task=task)
        for script in (expert, named):
            script.reset(env, np.random.default_rng(0))
        assert np.array_equal(expert.act(observation), named.act(observation))
