"""Laws of the tabletop's scripts: the wanted ones do what is preferred, the others do not, each in its own way."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import yaml

import envs
from envs.names import UnknownName
from envs.tabletop_behaviors import KINDS, SPEEDS
from envs.tabletop_tasks import GOAL, TASKS
from envs.tabletop_world import BODIES
from prefrl.catalog import config_root
from prefrl.data.collect import BehaviorGroup, collect_episodes

WANTED = {"sweep": ("sweep",), "avoid": ("left", "right"), "group": ("together",), "cluster": ("cluster",)}
DONE = {"avoid": ("through",), "group": ("one_by_one",), "cluster": ("mixed",)}  # the task is, not as wanted
EPISODES = 6


def make(task, body="medium", **kwargs):
    return envs.make(f"prefrl/Tabletop-{task}-{body}-v0", seed=0, **kwargs)


def episode(env, behavior, seed):
    """Actions (60, A), infos of reset and steps, and positions (61, N, 2) of the blocks."""
    observation, info = env.reset(seed=seed)
    behavior.reset(env, np.random.default_rng(seed))
    actions, infos, places = [], [info], [env.unwrapped.world.block_poses()]
    for _ in range(60):
        actions.append(behavior.act(observation))
        observation, _, _, _, info = env.step(actions[-1])
        infos.append(info)
        places.append(env.unwrapped.world.block_poses())
    return np.array(actions), infos, np.array(places)[:, :, :2]


def last_infos(task, body, kind, episodes=EPISODES, **kwargs):
    env, behavior = make(task, body), envs.TabletopBehavior(kind=kind, **kwargs)
    return [episode(env, behavior, seed)[1] for seed in range(episodes)]


@pytest.mark.parametrize(
    ("task", "body", "kind"), [(task, body, kind) for task, body in product(TASKS, BODIES) for kind in WANTED[task]]
)
def test_the_wanted_way_is_preferred(task, body, kind):
    """With every body, in every one of a few episodes; it is done by then, and not before most of them is over."""
    infos = last_infos(task, body, kind)
    assert all(info[-1]["is_preferred"] for info in infos)
    if task in ("avoid", "group"):
        steps = [next(t for t, fact in enumerate(info) if fact["success"]) for info in infos]
        assert min(steps) >= 33
        assert max(steps) <= 57
    if task == "avoid":
        assert {info[-1]["side"] for info in infos} == {-1 if kind == "left" else 1}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "body"), list(product(("avoid", "group"), BODIES)))
def test_the_wanted_way_nearly_always_succeeds(task, body):
    """As above over a hundred episodes: at least 95, with the gripper 90."""
    for kind in WANTED[task]:
        infos = last_infos(task, body, kind, episodes=100)
        assert sum(info[-1]["is_preferred"] for info in infos) >= (90 if body == "gripper" else 95)


@pytest.mark.parametrize(
    ("task", "body", "kind"), [(task, body, kind) for task, body in product(DONE, BODIES) for kind in DONE[task]]
)
def test_the_other_way_does_the_task_and_is_not_preferred(task, body, kind):
    """Nearly always the first, never the second."""
    infos = last_infos(task, body, kind)
    assert sum(info[-1]["success"] for info in infos) >= EPISODES - 1
    assert not any(fact["is_preferred"] for info in infos for fact in info)


@pytest.mark.parametrize(
    ("task", "kind"), [("avoid", "fail"), ("avoid", "stuck"), ("group", "fail"), ("sweep", "partial")]
)
@pytest.mark.parametrize("body", ["gripper", "long"])
def test_failures_fail(task, kind, body):
    """And a script that leaves blocks leaves them: "partial" one, "fail" of group one, "stuck" all."""
    env, behavior = make(task, body), envs.TabletopBehavior(kind=kind)
    for seed in range(3):
        _, infos, places = episode(env, behavior, seed)
        assert not any(info["success"] for info in infos)
        moved = np.linalg.norm(places[-1] - places[0], axis=1) > 0.02
        assert moved.sum() == {"stuck": 0, "fail": 1, "partial": 2}[kind]
        assert (places[-1, :, 1] >= GOAL).sum() == (2 if kind == "partial" else 0)


def test_a_behavior_varies_with_its_generator_alone():
    """Equal generators give equal actions, others different ones; so does "random"."""
    env = make("avoid")
    for kind, noise in (("left", 0.0), ("left", [0.1, 0.3]), ("random", 0.0)):
        behavior = envs.TabletopBehavior(kind=kind, noise=noise)
        runs = []
        for seed in (0, 0, 1):
            observation, _ = env.reset(seed=5)
            behavior.reset(env, np.random.default_rng(seed))
            actions = []
            for _ in range(20):
                actions.append(behavior.act(observation))
                assert env.action_space.contains(actions[-1])
                observation = env.step(actions[-1])[0]
            runs.append(np.array(actions))
        np.testing.assert_array_equal(runs[0], runs[1])
        assert np.abs(runs[0] - runs[2]).max() > 0.01


def test_speed_clearance_and_delay_are_as_told():
    """The fastest command, the block's distance beside the zone, and the steps before anything moves."""
    env = make("avoid", "short")
    behavior = envs.TabletopBehavior(kind="right", speed=(0.5, 0.5), clearance=(0.3, 0.3), delay=(4, 4))
    actions, infos, places = episode(env, behavior, 0)
    assert np.linalg.norm(actions, axis=1).max() == pytest.approx(0.5, abs=1e-4)
    assert (np.linalg.norm(actions, axis=1) < 1e-6).argmin() == 4
    beside = places[np.abs(places[:, 0, 1] - 0.3) < 0.15, 0, 0]
    np.testing.assert_allclose(beside, 0.25 + 0.1 + 0.3, atol=0.04)
    assert infos[-1]["side"] == 1


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"kind": "lefft"}, "did you mean 'left'"),
        ({"kind": "left", "speed": (0.5, 1.5)}, r"speed must be a range in \[0.01, 1.0\], got \(0.5, 1.5\)"),
        ({"kind": "left", "delay": (5, 2)}, "delay must be a range"),
        ({"kind": "left", "noise": -1.0}, "noise must be a number >= 0"),
    ],
)
def test_wrong_arguments_are_named(kwargs, words):
    """With the value and what is allowed."""
    with pytest.raises(ValueError, match=words):
        envs.TabletopBehavior(**kwargs)


def test_a_kind_of_another_task_is_refused():
    """And an environment of another family."""
    behavior = envs.TabletopBehavior(kind="left")
    with pytest.raises(UnknownName, match=r"unknown kind of behavior of group 'left'.*'together'"):
        behavior.reset(make("group"), np.random.default_rng(0))
    with pytest.raises(ValueError, match="TabletopBehavior acts in prefrl/Tabletop"):
        behavior.reset(envs.make("prefrl/PointReach-v0", seed=0), np.random.default_rng(0))


def test_every_task_has_speeds_for_every_body():
    """The tables of kinds and speeds are complete."""
    assert set(KINDS) == set(SPEEDS) == set(TASKS)
    assert all(set(speeds) == set(BODIES) for speeds in SPEEDS.values())


def test_the_avoid_mix_has_its_shares():
    """35 % round the zone, as many left as right, 32 % through it, 16 % that stop."""
    data = yaml.safe_load((config_root() / "data/tabletop_avoid.yaml").read_text())
    numbers = {group["policy"]["kind"]: group["episodes"] for group in data["behaviors"]}
    total = sum(numbers.values())
    assert numbers["left"] == numbers["right"]
    assert (numbers["left"] + numbers["right"], numbers["through"], numbers["fail"]) == (
        0.35 * total, 0.32 * total, 0.16 * total,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["tabletop_avoid", "tabletop_avoid_two_modes", "tabletop_group", "tabletop_sweep", "tabletop_cluster"]
)
def test_mixes_fit_their_task(name):
    """Every behavior of a mix begins in its environment; collected twice, episodes are equal to the last bit."""
    data = yaml.safe_load((config_root() / f"data/{name}.yaml").read_text())
    groups = []
    for group in data["behaviors"]:
        arguments = {key: value for key, value in group["policy"].items() if key != "_target_"}
        groups.append(BehaviorGroup(group["name"], 1, envs.TabletopBehavior(**arguments)))
    make_env = partial(envs.make, f"prefrl/Tabletop-{name.split('_')[1]}-short-v0", reward="preference")
    first, second = (collect_episodes(make_env, groups, max_steps=data["max_steps"], seed=1) for _ in range(2))
    assert first.observations.tobytes() == second.observations.tobytes()
    assert first.true_reward.tobytes() == second.true_reward.tobytes()
    assert first.lengths.tolist() == [60] * len(groups)
