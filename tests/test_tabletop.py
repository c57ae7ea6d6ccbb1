"""Laws of the tabletop: spaces, seeds, physics, rewards by an independent count, pictures, state between episodes."""

from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from agents.env_state import load_env_state, save_env_state, why_not_kept
from envs.names import UnknownName
from envs.rasterizer import Rasterizer
from envs.tabletop import COLORS
from envs.tabletop_tasks import ARENA, GOAL, TASKS, ZONE, Avoid, Group, touches_zone
from envs.tabletop_world import BODIES, World
from prefrl.files import load_checkpoint, save_checkpoint

FAMILY = list(product(TASKS, BODIES))
INFO = {"task_reward", "preference_reward", "is_preferred", "success"}


def make(task, body="medium", seed=0, **kwargs):
    return envs.make(f"prefrl/Tabletop-{task}-{body}-v0", seed=seed, **kwargs)


def play(env, seed, steps=60):
    """Observations (T+1, D), rewards (T,) and infos of one episode; actions of the seed are held for 4 steps."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    observations, rewards, infos = [observation], [], [info]
    for t in range(steps):
        if t % 4 == 0:
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        assert truncated == (t == 59)
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
    return np.array(observations), np.array(rewards), infos


def blocks_of(observations):
    """(T, N, 2) positions [u] that state observations (T, D) tell."""
    return observations[:, 5:].reshape(len(observations), -1, 6)[:, :, :2] * ARENA


def test_every_task_and_body_is_registered():
    """16 ids, made by their names alone."""
    assert len(FAMILY) == 16
    for task, body in FAMILY:
        env = make(task, body).unwrapped
        assert (env.task, env.body) == (task, body)


@pytest.mark.parametrize(("task", "body"), FAMILY)
def test_gymnasium_checker_finds_nothing(task, body):
    """Gymnasium's own checker passes, its warnings being errors here."""
    check_env(make(task, body, render_mode="rgb_array", size=16).unwrapped)


def test_gymnasium_checker_finds_nothing_in_pixels():
    """As above with pictures as observations."""
    check_env(make("group", obs="pixels", size=16).unwrapped)


@pytest.mark.parametrize(("task", "body"), FAMILY)
def test_equal_seeds_give_equal_bytes(task, body):
    """An episode depends on reset's seed alone, to the last bit of every observation, reward and frame."""
    fresh, used = make(task, body, seed=0, frames=32), make(task, body, seed=1, frames=32)
    play(used, seed=5, steps=30)
    first, second = play(fresh, seed=7), play(used, seed=7)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()
    frames = [np.stack([info["frame"] for info in infos]) for _, _, infos in (first, second)]
    assert frames[0].tobytes() == frames[1].tobytes()


def test_starts_differ_between_seeds():
    """Robot and blocks start elsewhere, and resets without a seed continue the stream."""
    env = make("group")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(5)] + [env.reset()[0] for _ in range(5)])
    assert len(np.unique(starts[:-5], axis=0)) == 5
    assert len(np.unique(starts[-5:], axis=0)) == 5
    assert (np.ptp(starts[:5], axis=0)[[0, 5, 6, 11, 12]] > 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_all_bodies_of_a_task_see_alike(task):
    """Equal spaces and, at equal seeds, equal first observations, but for the gripper's fingers."""
    starts = []
    for body in BODIES:
        env = make(task, body)
        start = env.reset(seed=3)[0]
        assert env.observation_space == make(task, "short").observation_space
        assert start[4] == (1.0 if body == "gripper" else 0.0)
        starts.append(np.delete(start, 4))
    np.testing.assert_allclose(starts, [starts[0]] * 4, atol=1e-6)


@pytest.mark.parametrize(("task", "body"), FAMILY)
def test_everything_stays_on_the_table(task, body):
    """Under random actions observations stay in the space, and centers of robot and blocks off the walls."""
    env = make(task, body)
    for seed in range(2):
        observations, _, _ = play(env, seed)
        assert all(env.observation_space.contains(o) for o in observations)
        assert np.abs(blocks_of(observations)).max() < ARENA - 0.05
        assert np.abs(observations[:, :2] * ARENA).max() < ARENA - 0.02


def test_the_robot_moves_as_told():
    """0.1 u a step at full speed in any direction, along both axes together no faster, and it stops at once."""
    for action in ([1, 0], [0, -1], [1, 1], [-0.3, 0.4]):
        world = World("medium", (0.0, 0.0), [(0.9, 0.9, 0.0)], turns=False)
        env = make("avoid")
        env.unwrapped._world = world
        ways = [tuple(world.robot.position)]
        for command in (action, action, action, [0, 0], [0, 0]):
            env.step(np.array(command, dtype=np.float32))
            ways.append(tuple(world.robot.position))
        moved = np.diff(ways, axis=0)
        expected = np.array(action) / max(1.0, np.linalg.norm(action)) * 0.1
        np.testing.assert_allclose(moved[2], expected, atol=1e-3)
        assert np.linalg.norm(moved[4]) < 1e-3


def test_a_pushed_block_stays_on_the_face():
    """Pushed at 45 degrees it neither slips aside nor turns, off the middle of a stick too; left alone it stops."""
    world = World("long", (0.0, -0.16), [(0.3, 0.0, 0.0)], turns=False)
    for _ in range(2):
        world.step(0.0, 0.3, 0.0, 0.0)
    held = world.block_poses()[0][0] - world.robot.position.x
    for _ in range(10):
        world.step(-0.3, 0.3, 0.0, 0.0)
    (x, y, angle) = world.block_poses()[0]
    assert y > 0.25
    assert abs(x - world.robot.position.x - held) < 0.02
    assert abs(angle) < 0.05
    for _ in range(3):
        world.step(0.0, -0.5, 0.0, 0.0)
    still = world.block_poses()
    world.step(0.0, -0.5, 0.0, 0.0)
    np.testing.assert_allclose(world.block_poses(), still, atol=1e-4)


def test_the_grippers_fingers_hold_a_block():
    """Closed around a block they drag it backwards; open they let it go."""
    for finger, drags in ((-0.7, True), (1.0, False)):
        world = World("gripper", (0.0, 0.0), [(0.0, 0.16, 0.0)], turns=False)
        for _ in range(5):
            world.step(0.0, 0.0, 0.0, finger)
        for _ in range(5):
            world.step(0.0, -0.5, 0.0, finger)
        assert (world.block_poses()[0][1] < 0.0) == drags


def test_left_and_right_mirror_each_other():
    """Of avoid: mirrored starts and pushes end mirrored."""
    ends = []
    for sign in (1, -1):
        world = World("short", (0.03 * sign, -0.7), [(0.0, -0.4, 0.0)], turns=False)
        for _ in range(12):
            world.step(0.3 * sign, 0.5, 0.0, 0.0)
        (x, y, angle) = world.block_poses()[0]
        ends.append((sign * x, y, sign * angle, sign * world.robot.position.x))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-3)
    assert ends[0][1] > -0.35


def overlaps(x, y, points=200):
    """Whether a disc of 0.1 u meets the zone, by points on its edge and inside."""
    angle = np.linspace(0, 2 * np.pi, points)[:, None]
    radius = np.linspace(0, 0.1, 21)[None, :-1]
    px, py = x + radius * np.cos(angle), y + radius * np.sin(angle)
    return bool(((px > ZONE[0]) & (px < ZONE[2]) & (py > ZONE[1]) & (py < ZONE[3])).any())


def test_the_zone_is_touched_where_a_disc_meets_it():
    """By counting points, away from the edge by a little."""
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(-0.6, 0.8, (300, 2)):
        if touches_zone(x, y) != overlaps(x, y):
            assert any(
                touches_zone(x + dx, y + dy) != touches_zone(x, y) for dx in (-0.01, 0.01) for dy in (-0.01, 0.01)
            )


def expected_rewards(task, blocks):
    """Task and preference reward (T,) of positions (T, N, 2), written by arrays."""
    distance = np.clip(GOAL - blocks[:, :, 1], 0, None)
    if task in ("sweep", "avoid"):
        first = -0.5 * distance.mean(axis=1)
        return first, first - 3.0 * (np.array([overlaps(*b[0]) for b in blocks]) if task == "avoid" else 0.0)
    if task == "group":
        first = -0.5 * distance.mean(axis=1)
        return first, first - np.ptp(distance, axis=1)
    between = np.linalg.norm(blocks[:, :, None] - blocks[:, None], axis=-1) + 9.0 * np.eye(4)
    return -0.5 * between.min(axis=2).mean(axis=1), -0.5 * between[:, [0, 1, 2, 3], [1, 0, 3, 2]].mean(axis=1)


@pytest.mark.parametrize("task", TASKS)
def test_rewards_are_those_of_the_table(task):
    """Recounted from the observations; ``reward`` chooses which one ``step`` gives, of the same episode."""
    script = envs.TabletopBehavior(kind={"avoid": "through", "group": "one_by_one"}.get(task, task), noise=0.1)
    said = {}
    for reward in ("task", "preference"):
        env = make(task, reward=reward)
        observation, info = env.reset(seed=2)
        script.reset(env, np.random.default_rng(0))
        observations, infos, rewards = [observation], [info], []
        for _ in range(60):
            observation, value, _, _, info = env.step(script.act(observation))
            observations.append(observation)
            infos.append(info)
            rewards.append(value)
        expected = expected_rewards(task, blocks_of(np.array(observations)))
        for name, values in zip(("task", "preference"), expected, strict=True):
            np.testing.assert_allclose([i[f"{name}_reward"] for i in infos], values, atol=1e-5)
        assert rewards == [i[f"{reward}_reward"] for i in infos[1:]]
        said[reward] = np.array(rewards)
    assert (said["preference"] <= said["task"] + 1e-9).all()
    assert (said["preference"] < said["task"] - 0.05).any() == (task in ("avoid", "group"))


def test_info_tells_the_same_at_reset_and_step():
    """The four facts, and of avoid the side."""
    for task in TASKS:
        env = make(task)
        infos = [env.reset(seed=0)[1], env.step(env.action_space.high)[-1]]
        assert [set(info) for info in infos] == [INFO | ({"side"} if task == "avoid" else set())] * 2
        assert all(type(info[name]) is bool for info in infos for name in ("success", "is_preferred"))


def judge(task, way):
    """The last judgement of a way, a list of (x, y) per step, of one block."""
    task.draw(np.random.default_rng(0))
    for x, y in way:
        said = task.judge([(x, y, 0.0)])
    return said


def round_the_zone(x):
    return [(x, y) for y in np.linspace(-0.4, 0.8, 40)]


@pytest.mark.parametrize("preferred", [None, "left", "right"])
@pytest.mark.parametrize(("x", "side"), [(-0.5, "left"), (0.0, "through"), (0.5, "right")])
def test_the_way_round_the_zone_is_remembered(preferred, x, side):
    """Each way succeeds; preferred is one round the zone and, where a side is, on that side."""
    said = judge(Avoid(preferred), round_the_zone(x))
    assert said.success
    assert said.side == {"left": -1, "through": 0, "right": 1}[side]
    assert said.is_preferred == (side != "through" and preferred in (None, side))


def test_a_touch_of_the_zone_is_not_forgotten():
    """Out again and round it, the success is not the preferred one; a new episode begins anew."""
    task = Avoid()
    way = [(0.0, 0.0), (0.0, 0.05), (0.0, -0.1), *round_the_zone(0.5)]
    assert judge(task, way).is_preferred is False
    assert judge(task, round_the_zone(0.5)).is_preferred is True


def test_the_unwanted_side_costs_as_the_zone_does():
    """With a preferred side, -3 beside the zone on the other one, and no more inside it; the task's is the same."""
    for x, costs in ((-0.5, 0.0), (0.5, 3.0), (0.0, 3.0)):
        said = judge(Avoid("left"), [(x, 0.3)])
        assert said.preference_reward == pytest.approx(said.task_reward - costs)
        assert said.task_reward == judge(Avoid(), [(x, 0.3)]).task_reward
    above = judge(Avoid("left"), [(0.5, 0.3), (0.5, 0.6)])
    assert above.preference_reward == above.task_reward


def test_blocks_that_were_apart_did_not_go_together():
    """The largest difference of the way counts, not that at the end."""
    together, apart = ([(-0.2, y, 0.0), (0.2, z, 0.0)] for y, z in ((0.1, 0.3), (0.1, 0.4)))
    for middle, preferred in ((together, True), (apart, False)):
        task = Group()
        task.draw(np.random.default_rng(0))
        assert not task.judge(middle).success
        said = task.judge([(-0.2, 0.8, 0.0), (0.2, 0.75, 0.0)])
        assert (said.success, said.is_preferred) == (True, preferred)


@pytest.mark.parametrize(
    ("blocks", "success", "preferred"),
    [
        ([(-0.4, 0), (-0.4, 0.2), (0.4, 0), (0.4, 0.2)], True, True),
        ([(-0.4, 0), (0.4, 0.2), (0.4, 0), (-0.4, 0.2)], True, False),
        ([(-0.4, 0), (-0.4, 0.2), (-0.2, 0), (-0.2, 0.2)], True, False),  # one pile of all
        ([(-0.4, 0), (-0.4, 0.2), (0.4, 0), (0.4, 0.5)], False, False),
    ],
)
def test_piles(blocks, success, preferred):
    """Two of one color each are preferred; two mixed ones and one of all succeed; a block alone does not."""
    said = TASKS["cluster"]().judge([(x, y, 0.0) for x, y in blocks])
    assert (said.success, said.is_preferred) == (success, preferred)


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize(("task", "body"), [("avoid", "gripper"), ("cluster", "long"), ("sweep", "short")])
def test_pictures_show_the_state(task, body, size):
    """A frame is the same when drawn again; the middle of every block, robot, zone and goal has its color."""
    env = make(task, body, render_mode="rgb_array", size=size)
    play(env, seed=1, steps=20)
    frame = env.render()
    assert frame.shape == (size, size, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, env.render())
    world = env.unwrapped.world
    places = [((x, y), color) for (x, y, _), color in zip(world.block_poses(), env.unwrapped.colors, strict=True)]
    places += [((0.0, 0.3), "zone"), ((0.0, 0.9), "goal")] if task == "avoid" else []
    if size >= 64:  # the robot is 0.1 u thick: less than two small pixels
        places.append((tuple(world.robot.position), "robot"))
    for (x, y), color in places:
        row, column = (int((ARENA + v) / (2 * ARENA) * size) for v in (-y, x))
        assert tuple(frame[row, column]) == COLORS[color]


def test_an_edge_is_smooth_and_covers_what_it_should():
    """A square's mean is its area, wherever it lies, to a hundredth of the picture."""
    for shift in np.linspace(0, 0.1, 7):
        corners = [(x + shift, y - shift) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
        frame = Rasterizer(64, 1.0, (0, 0, 0)).draw([(corners, (255, 255, 255))])
        assert abs(frame.mean() / 255 - 0.25) < 0.01


def test_observations_in_pixels_are_the_pictures():
    """``obs="pixels"`` shows what ``render`` does; its size does not depend on that of frames for learners."""
    env = make("group", obs="pixels", size=48, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, env.render())
    env = make("group", obs="pixels", frames=16)
    observation, info = env.reset(seed=0)
    assert observation.shape == (64, 64, 3)
    assert info["frame"].shape == (16, 16, 3)


@pytest.mark.parametrize(("task", "body"), [("avoid", "gripper"), ("cluster", "long")])
def test_a_run_goes_on_between_episodes(task, body, tmp_path):
    """In the middle of an episode the world cannot be written down; between two, the next one is equal."""
    env, new = make(task, body, seed=3), make(task, body, seed=9)
    play(env, seed=4)
    play(new, seed=8, steps=20)
    assert save_env_state(env) is None
    assert why_not_kept(env).endswith("Tabletop._world has a envs.tabletop_world.World")
    save_checkpoint(tmp_path / "env.safetensors", save_env_state(env, between_episodes=True))
    load_env_state(new, load_checkpoint(tmp_path / "env.safetensors"))
    rng = np.random.default_rng(0)
    for expected, found in ((env.reset(), new.reset()),):
        np.testing.assert_array_equal(expected[0], found[0])
        assert expected[1] == found[1]
    for _ in range(60):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        expected, found = env.step(action), new.step(action)
        np.testing.assert_array_equal(expected[0], found[0])
        assert expected[1:] == found[1:]


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"obs": "pixel"}, UnknownName, "did you mean 'pixels'"),
        ({"reward": "pref"}, UnknownName, "unknown reward 'pref'"),
        ({"preferred_side": "up"}, UnknownName, "'left', 'right'"),
        ({"task": "group", "preferred_side": "left"}, ValueError, "for the task 'avoid', not for 'group'"),
        ({"size": 4}, ValueError, r"\[8, 2048\] px, got 4"),
        ({"task": "grop"}, UnknownName, "did you mean 'group'"),
        ({"body": "tall"}, UnknownName, "unknown body 'tall'"),
    ],
)
def test_wrong_arguments_are_named(kwargs, error, words):
    """With the value and what is allowed."""
    with pytest.raises(error, match=words):
        envs.Tabletop(**{"task": "avoid", **kwargs})


def test_wrong_actions_are_refused():
    """Not finite, or too few."""
    env = make("avoid").unwrapped
    for action in ([np.nan, 0.0], [0.0]):
        with pytest.raises(ValueError, match="finite numbers"):
            env.step(np.array(action))
    with pytest.raises(RuntimeError, match="reset the environment first"):
        gym.make("prefrl/Tabletop-avoid-short-v0").unwrapped.step(np.zeros(2))
