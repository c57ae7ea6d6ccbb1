"""Laws of the arm tasks: bodies, pushing by contact, rewards, preferences, seeds, scripts and mixes."""

import itertools

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from agents.env_state import load_env_state, save_env_state
from envs.arms import BODIES, STRIP, TASKS, Arm
from envs.arms_model import BODIES as MODELS
from envs.arms_model import hand_position, joint_targets
from envs.arms_scripts import KINDS, ArmBehavior
from prefrl.config import build, compose
from prefrl.files import load_checkpoint, save_checkpoint

ALL = list(itertools.product(TASKS, BODIES))


def play(env, behavior, *, seed):
    """One episode: (observations (51, D), infos)."""
    observation, info = env.reset(seed=seed)
    behavior.reset(env, np.random.default_rng(seed))
    observations, infos = [observation], [info]
    for _ in range(50):
        observation, _, _, _, info = env.step(behavior.act(observation))
        observations.append(observation)
        infos.append(info)
    return np.array(observations), infos


def shares(env, behavior, *, episodes):
    """(share of success, share of preferred) at the end of episodes."""
    last = [play(env, behavior, seed=seed)[1][-1] for seed in range(episodes)]
    return np.mean([info["success"] for info in last]), np.mean([info["is_preferred"] for info in last])


@pytest.mark.parametrize(("task", "body"), ALL)
def test_gymnasium_checker_finds_nothing(task, body):
    """Gymnasium's own checker passes, and the id makes it with 50 steps."""
    check_env(Arm(task=task, body=body), skip_render_check=True)
    assert gym.spec(f"prefrl/Arm-{task}-{body}-v0").max_episode_steps == 50


@pytest.mark.parametrize("task", TASKS)
def test_bodies_share_spaces(task):
    """Observations and actions are laid out alike, so that a policy of one body acts in the other."""
    slim, wide = (Arm(task=task, body=body) for body in BODIES)
    assert slim.observation_space == wide.observation_space
    assert slim.action_space == wide.action_space
    assert slim._model.njnt == wide._model.njnt + 1
    a, b = (env.reset(seed=5)[0] for env in (slim, wide))
    np.testing.assert_allclose(a, b, atol=1e-6)  # also the same start


@pytest.mark.parametrize("body", BODIES)
def test_kinematics_are_mujocos(body):
    """The hand is where the simulated links put it, and the targets of the joints put it where it should be."""
    rng, env = np.random.default_rng(0), Arm(body=body)
    angles = np.array(MODELS[body].rest)
    for _ in range(10):
        goal = rng.uniform((-0.25, -0.02), (0.25, 0.38))
        angles = joint_targets(MODELS[body], angles, goal, iterations=50)
        env._data.qpos[: env._joints] = [*angles, -angles.sum()]
        mujoco.mj_kinematics(env._model, env._data)
        np.testing.assert_allclose(env._data.xpos[env._hand, :2], goal, atol=1e-5)
        np.testing.assert_allclose(hand_position(MODELS[body], angles), goal, atol=1e-5)
        np.testing.assert_allclose(env._data.xmat[env._hand], np.eye(3).ravel(), atol=1e-9)  # parallel to x


@pytest.mark.parametrize("body", BODIES)
def test_the_hand_moves_at_the_speed_of_the_action(body):
    """0.5 m/s times the action, in the direction of the action, seen in positions and velocities."""
    env = Arm(body=body)
    start, _ = env.reset(seed=0)
    for _ in range(6):
        observation, *_ = env.step(np.array([-0.5, 0.0], np.float32))
    np.testing.assert_allclose(observation[:2] - start[:2], [-0.15, 0.0], atol=0.02)
    np.testing.assert_allclose(observation[2:4], [-0.25, 0.0], atol=0.03)


@pytest.mark.parametrize("body", BODIES)
def test_blocks_move_by_contact_alone(body):
    """A hand that stays away moves none; one that drives through them pushes them ahead, and they stop with it."""
    env = Arm(body=body)
    start, _ = env.reset(seed=0)
    for _ in range(10):
        observation, *_ = env.step(np.array([1.0, 0.0], np.float32))
    np.testing.assert_allclose(observation[4:8], start[4:8], atol=1e-6)
    observations, _ = play(env, ArmBehavior(kind="together"), seed=0)
    pushed = observations[-1, [5, 7]]
    assert (pushed > STRIP - 0.05).all()
    assert (pushed > observations[-1, 1] + 0.03).all()  # ahead of the hand
    assert np.abs(observations[-1, 8:12]).max() < 0.01


@pytest.mark.parametrize(("task", "body"), ALL)
def test_rewards_follow_their_formulas(task, body):
    """Both rewards, success and preference are those computed from the observations alone."""
    env = Arm(task=task, body=body)
    kinds = KINDS[task]
    for kind in (kinds[1], "random"):
        observations, infos = play(env, ArmBehavior(kind=kind, noise=0.2), seed=1)
        broken = False
        for observation, info in zip(observations.astype(float), infos, strict=True):
            blocks = observation[4 : 4 + (len(observation) - 5) // 2].reshape(-1, 2)
            errors = [abs(y - STRIP) for _, y in blocks[:2]]
            reach = 0.5 * np.mean([np.linalg.norm(block - observation[:2]) for block in blocks[:2]])
            apart = np.linalg.norm(blocks[0] - blocks[1])
            dirty = any(abs(y - STRIP) <= 0.04 for _, y in blocks[2:])
            broken |= apart > 0.15 if task == "group" else dirty
            cost = apart if task == "group" else dirty
            assert info["task_reward"] == pytest.approx(-3 * np.mean(errors) - reach, abs=1e-5)
            assert info["preference_reward"] == pytest.approx(-3 * max(errors) - reach - 3 * cost, abs=1e-5)
            assert info["success"] == (max(errors) <= 0.05)
            assert info["is_preferred"] == (info["success"] and not broken)


def test_the_keyword_chooses_the_reward():
    """What step gives is the one of its info that was asked for."""
    for reward in ("task", "preference"):
        env = Arm(reward=reward)
        env.reset(seed=0)
        _, given, _, _, info = env.step(np.zeros(2, np.float32))
        assert given == info[f"{reward}_reward"]


@pytest.mark.parametrize(("task", "body"), ALL)
def test_equal_seeds_give_equal_episodes(task, body):
    """Bit for bit, whatever the environment did before; other seeds give other starts."""
    fresh, used = Arm(task=task, body=body), Arm(task=task, body=body)
    play(used, ArmBehavior(kind="random"), seed=9)
    script = ArmBehavior(kind=KINDS[task][1], noise=0.2, delay=(0, 5), pace=(0.5, 1.0))
    (a, info_a), (b, info_b) = (play(env, script, seed=3) for env in (fresh, used))
    assert a.tobytes() == b.tobytes()
    assert info_a == info_b
    assert not np.array_equal(a[0], fresh.reset(seed=4)[0])


@pytest.mark.parametrize(("task", "body"), ALL)
def test_goes_on_in_the_middle_of_an_episode(task, body, tmp_path):
    """Saved to a file in the middle of a push and put into another environment, the rest of the episode is the same."""
    env, new = (envs.make(f"prefrl/Arm-{task}-{body}-v0", seed=seed) for seed in (0, 1))
    for made in (env, new):
        made.reset()
    forward, rest = np.array([0.1, 1.0], np.float32), np.random.default_rng(0).uniform(-1, 1, (60, 2))
    for _ in range(7):
        env.step(forward)
    save_checkpoint(tmp_path / "env.safetensors", save_env_state(env))
    load_env_state(new, load_checkpoint(tmp_path / "env.safetensors"))
    for action in rest:
        (a, *said), (b, *expected) = new.step(action), env.step(action)
        assert (a.tobytes(), said) == (b.tobytes(), expected)
        if said[2]:
            assert new.reset()[0].tobytes() == env.reset()[0].tobytes()


@pytest.mark.parametrize("kwargs", [{"task": "grup"}, {"body": "slimm"}, {"reward": "both"}, {"obs": "pixels"}])
def test_wrong_names_are_errors(kwargs):
    """With the valid names."""
    with pytest.raises(envs.UnknownName, match=r"did you mean|use one of"):
        Arm(**kwargs)


def test_actions_are_clipped_and_finite():
    """An action beyond ±1 does what ±1 does; one that is not finite is an error."""
    a, b = Arm(), Arm()
    for env in (a, b):
        env.reset(seed=0)
    np.testing.assert_array_equal(a.step(np.array([5.0, -5.0]))[0], b.step(np.array([1.0, -1.0]))[0])
    with pytest.raises(ValueError, match="not finite"):
        a.step(np.array([np.nan, 0.0]))


@pytest.mark.parametrize(("task", "body"), ALL)
def test_scripts_do_what_they_are_named_for(task, body):
    """The preferred one is preferred, the other succeeds without, the failure fails; with noise."""
    env = Arm(task=task, body=body)
    preferred, other, fail, _ = (ArmBehavior(kind=kind, noise=[0.0, 0.2]) for kind in KINDS[task])
    assert shares(env, preferred, episodes=6)[1] >= 5 / 6
    success, wanted = shares(env, other, episodes=6)
    assert success >= 5 / 6
    assert wanted <= 1 / 6
    assert shares(env, fail, episodes=6)[0] <= 1 / 6


@pytest.mark.slow
@pytest.mark.parametrize(("task", "body"), ALL)
def test_mixes_have_the_behaviors_they_are_named_for(task, body):
    """Over 100 episodes of the mix's own settings: >= 90 % preferred, >= 90 % successes with < 10 % preferred."""
    groups = compose("collect", [f"data=arm_{task}", "out=x"]).components["data"]["behaviors"]
    assert [group["episodes"] for group in groups] == [35, 30, 15, 20]
    env = Arm(task=task, body=body)
    preferred, other, fail, random = (
        shares(env, build(group["policy"], key="policy"), episodes=100) for group in groups
    )
    assert preferred[1] >= 0.9
    assert other[0] >= 0.9
    assert other[1] < 0.1
    assert fail[0] < 0.1
    assert random[0] < 0.2


def test_a_delay_waits_and_a_pace_limits():
    """Nothing moves for as many steps as were drawn; then no action is beyond the pace."""
    env = Arm()
    observation, _ = env.reset(seed=0)
    script = ArmBehavior(kind="together", delay=(3, 3), pace=(0.4, 0.4))
    script.reset(env, np.random.default_rng(0))
    actions = []
    for _ in range(12):
        actions.append(script.act(observation))
        observation, *_ = env.step(actions[-1])
    assert not np.any(actions[:3])
    assert np.abs(actions[3:]).max() == pytest.approx(0.4)


@pytest.mark.parametrize("wrong", [{"delay": (3, 1)}, {"delay": (-1, 2)}, {"pace": (0.0, 1.0)}, {"pace": (0.5, 1.5)}])
def test_wrong_settings_of_scripts_are_errors(wrong):
    """Each names the argument."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ArmBehavior(kind="together", **wrong)


def test_scripts_know_their_task():
    """A script of another task, or in another environment, is an error."""
    with pytest.raises(ValueError, match="kind of arm behavior in task 'group'"):
        ArmBehavior(kind="clean").reset(Arm(task="group"), np.random.default_rng(0))
    with pytest.raises(ValueError, match="ArmBehavior acts in"):
        ArmBehavior(kind="clean").reset(envs.make("Pendulum-v1", seed=0), np.random.default_rng(0))


@pytest.mark.parametrize("task", TASKS)
def test_frames_show_the_body_and_the_blocks(task):
    """Two bodies look different in the same state; a frame shows the strip, and blocks when they were pushed."""
    frames = {}
    for body in BODIES:
        env = envs.make(f"prefrl/Arm-{task}-{body}-v0", seed=0, frames=64)
        observation, info = env.reset(seed=0)
        frames[body] = info["frame"].astype(int)
        red, _, blue = np.moveaxis(frames[body], 2, 0)
        assert 0.05 < np.mean((blue > 150) & (red < 100)) < 0.2  # the strip
        script = ArmBehavior(kind=KINDS[task][0])
        script.reset(env, np.random.default_rng(0))
        for _ in range(15):
            observation, _, _, _, info = env.step(script.act(observation))
        assert np.mean(np.abs(info["frame"] - frames[body]).max(axis=2) > 50) > 0.02
        env.close()
    assert np.mean(np.abs(frames["slim"] - frames["wide"]).max(axis=2) > 50) > 0.05
