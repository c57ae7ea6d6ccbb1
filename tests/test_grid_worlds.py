"""Laws of the grid worlds: rewards to the last point, tables that are the environment, pictures."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.delivery import BOARD, TRUE_WEIGHTS
from envs.grid_world import ACTIONS, FEATURES, Cell, Outcome, read_board

HUMAN = Path(os.environ.get("PREFRL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "regret_human_prefs"
CONDITIONS = (
    "Privileged-Control", "Pr-Privileged", "Regret-Privileged", "Trained-Control", "Pr-Trained", "Regret-Trained",
    "Question-Control", "Pr-Question", "Regret-Question",
)  # fmt: skip
KINDS = ("deterministic", "risk", "teleport")
UP, DOWN, LEFT, RIGHT = range(4)
needs_people = pytest.mark.skipif(not HUMAN.is_dir(), reason=f"no human preferences at {HUMAN} (set PREFRL_TEST_DATA)")


def delivery(**options):
    return envs.make("prefrl/Delivery-v0", seed=0, **options).unwrapped


@functools.cache
def drawn(kind, seed):
    return envs.random_grid(np.random.default_rng(seed), kind)


def some_worlds():
    return [delivery(), *(drawn(kind, seed) for kind in KINDS for seed in range(8))]


def names(features):
    """Features as a dictionary of those that are not 0."""
    return {name: float(value) for name, value in zip(FEATURES, features, strict=True) if value}


def optimal_values(world, gamma, sweeps=400):
    """V* (S,) by value iteration from 0; exact after as many sweeps as the longest way, in a deterministic world."""
    t = world.tables()
    reward, values = (t.probability * (t.features @ world.true_weights)).sum(-1), np.zeros(len(t.start))
    for _ in range(sweeps):
        values = np.where(t.terminal, 0.0, (reward + gamma * (t.probability * values[t.next_state]).sum(-1)).max(1))
    return values


# ------------------------------------------------------------------------------------------------ the delivery task


def test_the_board_has_what_the_paper_counts():
    """10 x 10: roads, houses, sheep, coins, roadblocks, mud, a coin in mud and the goal in mud; 92 start states."""
    found = {Cell(cell).name: int(count) for cell, count in zip(*np.unique(BOARD, return_counts=True), strict=True)}
    assert found == {
        "ROAD": 67, "HOUSE": 3, "SHEEP": 4, "COIN": 5, "ROADBLOCK": 5, "MUD": 14, "MUD_COIN": 1, "MUD_GOAL": 1,
    }  # fmt: skip
    start = delivery().tables().start
    assert (start > 0).sum() == 92
    np.testing.assert_allclose(start[start > 0], 1 / 92)


@needs_people
def test_the_board_is_the_published_one():
    """Cell by cell."""
    np.testing.assert_array_equal(BOARD, json.loads((HUMAN / "delivery_mdp" / "board.json").read_text()))


@pytest.mark.parametrize(
    ("start", "action", "end", "reward"),
    [
        ((0, 0), RIGHT, (0, 1), -1.0),  # road
        ((0, 1), RIGHT, (0, 2), -2.0),  # a roadblock adds its cost
        ((0, 2), RIGHT, (0, 3), -1.0),  # what one leaves does not count
        ((0, 0), UP, (0, 0), -1.0),  # off the board
        ((0, 2), UP, (0, 2), -1.0),  # off the board, from a roadblock: the ground alone
        ((1, 4), RIGHT, (1, 5), -1.0),
        ((1, 3), RIGHT, (1, 4), 0.0),  # a coin
        ((3, 0), LEFT, (3, 0), -1.0),  # no second coin for staying
        ((3, 0), DOWN, (4, 0), -2.0),  # mud instead of a step
        ((4, 0), LEFT, (4, 0), -2.0),  # off the board, on mud
        ((6, 0), RIGHT, (6, 0), -2.0),  # a house, from mud
        ((3, 3), RIGHT, (3, 3), -1.0),  # a house, from road
        ((7, 6), RIGHT, (7, 7), -1.0),  # a coin in mud
        ((7, 7), UP, (6, 7), -1.0),
        ((9, 9), UP, (8, 9), 50.0),  # the goal, in mud: nothing but the goal
        ((8, 8), RIGHT, (8, 9), 50.0),
        ((2, 1), RIGHT, (2, 2), -50.0),  # sheep
    ],
)
def test_rewards_by_hand(start, action, end, reward):
    """What each event pays, and where it leads."""
    env = delivery()
    env.reset(options={"state": env.state_at(*start)})
    state, got, terminated, truncated, info = env.step(action)
    assert env.position(state) == end
    assert got == reward
    assert terminated == (abs(reward) == 50)
    assert info["success"] == (reward == 50)
    assert not truncated


def test_coins_persist():
    """Going away and coming back pays the coin again."""
    env = delivery()
    env.reset(options={"state": env.state_at(1, 3)})
    assert [env.step(action)[1] for action in (RIGHT, LEFT, RIGHT)] == [0.0, -1.0, 0.0]


def replay(tables, pairs):
    """Features (N, 2, F) and states (N, 2, T+1) of pairs (N, 2, T+1, 2) of a start and moves; (0, 0) is padding."""
    state = pairs[:, :, 0, 0] * BOARD.shape[1] + pairs[:, :, 0, 1]
    total, states = 0.0, [state]
    for t in range(1, pairs.shape[2]):
        found = (pairs[:, :, t, None, :] == np.array(ACTIONS)).all(-1)  # (N, 2, A)
        assert (found.any(-1) | tables.terminal[state]).all()  # padding is found after the end only
        action = found.argmax(-1)
        total = total + tables.features[state, action, 0]
        state = tables.next_state[state, action, 0]
        states.append(state)
    return total, np.stack(states, -1)


@needs_people
@pytest.mark.parametrize("condition", CONDITIONS)
def test_replayed_human_segments_have_the_published_statistics(condition):
    """Second minus first of partial return, V*(start) and V*(end): exactly those of the data, in every pair."""
    load = functools.partial(np.load, allow_pickle=False)
    pairs = load(HUMAN / "human_data" / f"{condition}_full_filtered_segment_pairs.npy")
    published = load(HUMAN / "human_data" / f"{condition}_full_filtered_X.npy")
    env = delivery()
    features, states = replay(env.tables(), pairs)
    values = optimal_values(env, gamma=1.0)
    statistics = np.stack([features @ env.true_weights, values[states[..., 0]], values[states[..., -1]]], -1)
    np.testing.assert_array_equal(statistics[:, 1] - statistics[:, 0], published)


@pytest.mark.parametrize(("gamma", "expected"), [(1.0, 41.533), (0.999, 41.208)])
def test_the_optimal_return_is_known(gamma, expected):
    """Mean of V* over the start states."""
    env = delivery()
    assert optimal_values(env, gamma) @ env.tables().start == pytest.approx(expected, abs=1e-3)


def test_the_return_of_random_actions_is_known():
    """Mean over the start states of the value of uniform actions, discount 0.999, by a linear system."""
    env = delivery()
    t = env.tables()
    move = np.zeros((100, 100))
    np.add.at(move, (np.arange(100)[:, None], t.next_state[..., 0]), 0.25)
    reward = (t.features @ env.true_weights).mean((1, 2))
    assert np.linalg.solve(np.eye(100) - 0.999 * move, reward) @ t.start == pytest.approx(-71.257, abs=1e-3)


# ----------------------------------------------------------------------------------------------- tables and the steps


@pytest.mark.parametrize("world", some_worlds(), ids=lambda world: f"{world.board.shape}")
def test_tables_are_a_markov_decision_process(world):
    """Shapes and types, distributions, absorbing ends without features; no way leads into a house."""
    t = world.tables()
    S, A, K, F = t.features.shape
    assert (world.board.size, 4, 6) == (S, A, F)
    assert t.next_state.shape == t.probability.shape == (S, A, K)
    assert [array.dtype for array in t] == [np.int64, np.float64, np.float64, bool, np.float64]
    np.testing.assert_allclose(t.probability.sum(-1), 1.0, atol=1e-12)
    assert t.start.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(t.start > 0, ~t.terminal)
    np.testing.assert_array_equal(
        t.next_state[t.terminal], np.flatnonzero(t.terminal)[:, None, None].repeat(A, 1).repeat(K, 2)
    )
    assert not t.features[t.terminal].any()
    moved = t.next_state[~t.terminal]
    assert not np.isin(world.board.ravel()[moved], [Cell.HOUSE, Cell.MUD_HOUSE]).any()


@pytest.mark.parametrize("world", [delivery(), drawn("deterministic", 3)], ids=["delivery", "random"])
def test_entering_a_terminal_state_carries_its_features(world):
    """Every way into a goal or a sheep counts exactly that, so that their weights can be learned."""
    t = world.tables()
    states, actions = np.nonzero(t.terminal[t.next_state[..., 0]] & ~t.terminal[:, None])
    assert len(states)
    for state, action in zip(states, actions, strict=True):
        cell = Cell(world.board.flat[t.next_state[state, action, 0]])
        assert names(t.features[state, action, 0]) == {cell.name.removeprefix("MUD_").lower(): 1.0}


@pytest.mark.parametrize("world", [delivery(), drawn("deterministic", 1)], ids=["delivery", "random"])
def test_steps_are_those_of_the_tables(world):
    """Every pair of state and action of a deterministic world leads where the tables say, for their reward."""
    t = world.tables()
    for state in np.flatnonzero(t.start):
        for action in range(4):
            world.reset(options={"state": int(state)})
            found, reward, terminated, _, _ = world.step(action)
            assert found == t.next_state[state, action, 0]
            assert reward == t.features[state, action, 0] @ world.true_weights
            assert terminated == t.terminal[found]


def test_steps_have_the_probabilities_of_the_tables():
    """Outcomes of a made-up pair come as often as they should (five standard deviations of 4000 draws)."""
    outcomes = [
        Outcome(0.6, 1, [1, 0, 0, 0, 0, 0]),
        Outcome(0.1, 0, [0, 0, 0, 2, 0, 0]),
        Outcome(0.3, 2, [0, 1, 0, 0, 0, 0]),
    ]
    world = envs.GridWorld(read_board("..G"), true_weights=(-1, 50, 0, 7, 0, 0), changes={(0, RIGHT): outcomes})
    world.reset(seed=5)
    seen = []
    for _ in range(4000):
        world.reset(options={"state": 0})
        seen.append(world.step(RIGHT)[:3])
    for outcome, expected in zip(outcomes, [(1, -1.0, False), (0, 14.0, False), (2, 50.0, True)], strict=True):
        p = outcome.probability
        assert seen.count(expected) / 4000 == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / 4000))
    assert {found for found in seen if found[0] == 2} == {(2, 50.0, True)}


def test_an_ended_episode_stays_where_it_is():
    """Steps on a goal change nothing, pay nothing and are still terminal."""
    env = delivery()
    env.reset(options={"state": env.state_at(8, 8)})
    goal = env.step(RIGHT)[0]
    assert [env.step(action)[:3] for action in range(4)] == [(goal, 0.0, True)] * 4


def test_equal_seeds_give_equal_episodes():
    """Starts and outcomes follow from reset's seed; starts are start states; resets without a seed differ."""
    world = drawn("teleport", 0)
    episodes = []
    for seed in (7, 7, 8):
        episodes.append([int(world.reset(seed=seed)[0])])
        episodes[-1] += [world.step(t % 4)[:2] for t in range(40)]
    assert episodes[0] == episodes[1] != episodes[2]
    starts = [int(world.reset()[0]) for _ in range(200)]
    assert len(set(starts)) > 10
    assert not world.tables().terminal[starts].any()


def test_tables_are_copies():
    """Who writes into them does not change the world."""
    env = delivery()
    env.tables().features[:] = 9.0
    assert env.tables().features.max() == 1.0


@pytest.mark.parametrize("world", [delivery(), drawn("teleport", 1)], ids=["delivery", "random"])
def test_gymnasium_checker_finds_nothing(world):
    """Gymnasium's own checker passes, its warnings being errors here."""
    check_env(world, skip_render_check=True)


def test_delivery_is_truncated_after_100_steps():
    """Who only bumps into the border is stopped."""
    env = envs.make("prefrl/Delivery-v0", seed=0)
    env.reset(options={"state": 0})
    flags = [env.step(UP)[2:4] for _ in range(100)]
    assert flags == [(False, False)] * 99 + [(False, True)]


# ------------------------------------------------------------------------------------------------------------ pictures


def test_frames_show_every_kind_of_cell_differently():
    """Twelve kinds, twelve pictures that differ in many pixels, at 32 px and at 16 px a cell."""
    for size in (32, 16):
        board = np.arange(12).reshape(3, 4)
        world = envs.GridWorld(board, true_weights=TRUE_WEIGHTS, render_mode="rgb_array", cell_size=size)
        world.reset(options={"state": 0})
        frame = world.draw_segment([0], [])
        assert frame.shape == (3 * size, 4 * size, 3)
        assert frame.dtype == np.uint8
        tiles = frame.reshape(3, size, 4, size, 3).swapaxes(1, 2).reshape(12, -1).astype(int)
        for one in range(12):
            for other in range(one):
                assert (np.abs(tiles[one] - tiles[other]) > 40).mean() > 0.05, (Cell(one), Cell(other))


def test_frames_follow_the_agent_and_nothing_else():
    """After a step to the right two cells look different; without a render_mode there is no frame."""
    env = delivery(render_mode="rgb_array")
    env.reset(options={"state": env.state_at(5, 4)})
    before = env.render()
    assert before.shape == (320, 320, 3)
    np.testing.assert_array_equal(before, env.render())
    env.step(RIGHT)
    changed = (before != env.render()).any(-1).reshape(10, 32, 10, 32).any((1, 3))
    assert np.argwhere(changed).tolist() == [[5, 4], [5, 5]]
    assert delivery().render() is None


def test_pictures_of_segments_tell_them_apart():
    """Order, direction, blocked moves and length can be seen; what follows the end cannot."""
    env = delivery()
    at = env.state_at
    square = [at(0, 0), at(0, 1), at(1, 1)]
    pictures = [
        env.draw_segment(square, [RIGHT, DOWN]),
        env.draw_segment(square[::-1], [UP, LEFT]),
        env.draw_segment(square[:2], [RIGHT]),
        env.draw_segment([at(0, 0), at(0, 0)], [UP]),
        env.draw_segment([at(0, 0), at(0, 0)], [LEFT]),
        env.draw_segment([at(0, 0), at(0, 0), at(0, 0)], [UP, UP]),
        env.draw_segment([at(0, 0), at(0, 0), at(0, 0)], [UP, LEFT]),
        env.draw_segment([at(0, 0), at(0, 0), at(0, 0)], [LEFT, UP]),
        env.draw_segment([at(0, 0), at(0, 1), at(0, 0)], [RIGHT, LEFT]),
    ]
    for one, first in enumerate(pictures):
        assert first.shape == (320, 320, 3)
        for second in pictures[:one]:
            assert (np.abs(first.astype(int) - second).max(-1) > 60).sum() >= 8
    goal = at(8, 9)
    ended = env.draw_segment([at(8, 8), goal], [RIGHT])
    np.testing.assert_array_equal(env.draw_segment([at(8, 8), goal, goal, goal], [RIGHT, 0, -1]), ended)


def test_long_segments_fit_the_picture_at_any_size():
    """Two digits, at the border, on small cells."""
    for size in (8, 32, 50):
        env = delivery(cell_size=size)
        frame = env.draw_segment([0] * 13, [UP, LEFT] * 6)
        assert frame.shape == (10 * size, 10 * size, 3)
        np.testing.assert_array_equal(frame[3 * size :], env.draw_segment([0], [])[3 * size :])


def chosen(env, *actions):
    """The policy that does these actions alike everywhere."""
    policy = np.zeros((env.board.size, len(ACTIONS)))
    policy[:, list(actions)] = 1 / len(actions)
    return policy


def changed_cells(env, frame, pixels):
    """(rows, columns) bool: cells in which at least so many pixels of ``frame`` are not the board's."""
    rows, columns = env.board.shape
    unlike = (frame != env._board_picture()).any(-1).reshape(rows, env.cell_size, columns, env.cell_size)
    return unlike.sum((1, 3)) >= pixels


@pytest.mark.parametrize("world", [delivery(), delivery(cell_size=16), drawn("deterministic", 0)], ids=str)
def test_a_policy_is_drawn_where_one_can_act(world):
    """An arrow in every cell but goals, sheep and houses, of which nothing reaches over into another cell."""
    for action in range(4):
        cells = changed_cells(world, world.draw_policy(chosen(world, action)), pixels=10)
        np.testing.assert_array_equal(cells.ravel(), ~world.tables().terminal)
        anything = changed_cells(world, world.draw_policy(chosen(world, action)), pixels=1)
        np.testing.assert_array_equal(anything, cells)


def test_arrows_point_where_the_action_goes():
    """Up is down turned over and left is right mirrored; arrow heads are on the side that one moves to."""
    env = world(board=read_board("...\n...\nG.."), cell_size=33)
    pictures = [env.draw_policy(chosen(env, a))[33:66, 33:66].astype(int) for a in range(4)]
    dark = [(picture.sum(-1) < 300) for picture in pictures]
    assert dark[UP][:16].any(0).sum() > 1.5 * dark[UP][17:].any(0).sum()
    assert dark[RIGHT][:, 17:].any(1).sum() > 1.5 * dark[RIGHT][:, :16].any(1).sum()
    assert (dark[UP] != dark[DOWN][::-1]).sum() <= 4
    assert (dark[LEFT] != dark[RIGHT][:, ::-1]).sum() <= 4


def test_equally_good_actions_are_shorter_arrows():
    """Two ways are both shown, each with less ink than an arrow of its own; an unlikely one is left out."""
    env = world(board=read_board(".G"))
    ink = {
        actions: int((env.draw_policy(chosen(env, *actions))[:, :32].sum(-1) < 300).sum())
        for actions in ((UP,), (RIGHT,), (UP, RIGHT))
    }
    assert max(ink[UP,], ink[RIGHT,]) < ink[UP, RIGHT] < ink[UP,] + ink[RIGHT,]
    nearly = chosen(env, UP) * 0.99 + chosen(env, RIGHT) * 0.01
    np.testing.assert_array_equal(env.draw_policy(nearly), env.draw_policy(chosen(env, UP)))


def test_features_are_named():
    """As many names as weights, those of the module."""
    assert delivery().feature_names == FEATURES


# ---------------------------------------------------------------------------------------------------------- bad input


def world(**options):
    return envs.GridWorld(**{"board": read_board(".G"), "true_weights": TRUE_WEIGHTS} | options)


STEP = (1, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: world(board=[[0, 12]]), "cells 0 to 11"),
        (lambda: world(board=[0, 1]), "board must be"),
        (lambda: world(board=[[1, 2, 3]]), "no cell to start from"),
        (lambda: world(true_weights=(1.0, 2.0)), "6 finite numbers"),
        (lambda: world(true_weights=(np.nan,) * 6), "6 finite numbers"),
        (lambda: world(cell_size=4), "cell_size must be at least 8 px, got 4"),
        (lambda: world(render_mode="human"), "rgb_array"),
        (lambda: world(changes={(0, 0): [Outcome(0.5, 0, STEP)]}), "sum to 1"),
        (lambda: world(changes={(0, 0): [Outcome(1.0, 5, STEP)]}), "goes to 5"),
        (lambda: world(changes={(0, 0): [Outcome(1.0, 0, (1, 0))]}), "6 finite numbers"),
        (lambda: world(changes={(1, 0): [Outcome(1.0, 0, STEP)]}), "terminal"),
        (lambda: world(changes={(0, 4): [Outcome(1.0, 0, STEP)]}), r"got \(0, 4\)"),
        (lambda: world().reset(options={"state": 1}), r"must not be terminal, got 1, which is goal at \(0, 1\)"),
        (lambda: world().reset(options={"state": 2}), r"\[0, 2\), got 2"),
        (lambda: world().reset(options={"stat": 0}), "the option 'state' only"),
        (lambda: world().step(4), r"\[0, 4\), got 4"),
        (lambda: world().step(0.5), "integer"),
        (lambda: world().state_at(1, 0), "not on a board"),
        (lambda: world().draw_segment([0, 1], [0, 0]), "T actions have T"),
        (lambda: world().draw_segment([0, 0], [4]), "before a terminal state"),
        (lambda: world().draw_policy(np.ones((2, 4))), r"\(2, 4\) probabilities that sum to 1"),
        (lambda: world().draw_policy(np.full((4, 2), 0.5)), r"got \(4, 2\)"),
        (lambda: read_board("..\n."), "lines of equal length"),
        (lambda: read_board("x."), "'x'"),
        (lambda: envs.random_grid(np.random.default_rng(0), "risky"), "did you mean 'risk'"),
        (lambda: envs.random_grid(np.random.default_rng(0), "teleport", win=3.0), "win has no effect"),
    ],
)
def test_bad_values_are_errors_that_name_them(attempt, message):
    """The message says which value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        attempt()
