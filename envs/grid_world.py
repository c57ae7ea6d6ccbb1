"""Grid worlds with rewards that are linear in features of transitions, as in Knox et al. 2022 (arXiv 2206.02231).

Letters: S states, A actions, K outcomes of a state and an action, F features. A state is the index of a cell, row by
row: ``row * columns + column``. A reward is ``features @ true_weights``, so that it can be learned as weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

from envs.grid_drawing import draw_agent, draw_board, draw_choices, draw_path
from envs.names import UnknownName, check_name

__all__ = ["ACTIONS", "FEATURES", "Cell", "GridWorld", "Outcome", "Tables", "read_board"]


class Cell(IntEnum):
    """What a cell holds; from 6 on the same things stand in mud (the numbers of the paper's published boards)."""

    ROAD = 0
    GOAL = 1
    HOUSE = 2
    SHEEP = 3
    COIN = 4
    ROADBLOCK = 5
    MUD = 6
    MUD_GOAL = 7
    MUD_HOUSE = 8
    MUD_SHEEP = 9
    MUD_COIN = 10
    MUD_ROADBLOCK = 11


FEATURES = ("step", "goal", "sheep", "coin", "roadblock", "mud")
"""Names of the F = 6 features of a transition."""

ACTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""(rows, columns) that each of the A = 4 actions moves by: up, down, left, right."""

_SYMBOLS = ".GHSCRmghscr"  # of each Cell in a drawn board
_STEP, _MUD = FEATURES.index("step"), FEATURES.index("mud")
_GOALS, _BLOCKED = (Cell.GOAL, Cell.MUD_GOAL), (Cell.HOUSE, Cell.MUD_HOUSE)
_ENDS = (*_GOALS, Cell.SHEEP, Cell.MUD_SHEEP)


class Outcome(NamedTuple):
    """One of the things that may happen after an action: with which probability, where to, with which features."""

    probability: float
    next_state: int
    features: Sequence[float] | np.ndarray  # (F,)


class Tables(NamedTuple):
    """A Markov decision process as arrays; outcomes beyond the last of a pair (s, a) have probability 0."""

    next_state: np.ndarray  # (S, A, K) int64
    probability: np.ndarray  # (S, A, K) float64, sums to 1 over K
    features: np.ndarray  # (S, A, K, F) float64 of the transition, also of those that enter a terminal state
    terminal: np.ndarray  # (S,) bool; absorbing: a self-loop with zero features, value 0
    start: np.ndarray  # (S,) float64, probability of each start state


def read_board(text: str) -> np.ndarray:
    """(rows, columns) int64 of :class:`Cell` from a drawing, one line per row.

    Symbols: ``.`` road, ``m`` mud; G goal, H house, S sheep, C coin, R roadblock, in lower case when in mud.

    >>> read_board("..S\\nmcG")
    array([[ 0,  0,  3],
           [ 6, 10,  1]])
    """
    lines = text.split()
    unknown = sorted(set("".join(lines)) - set(_SYMBOLS))
    if unknown or len({len(line) for line in lines}) != 1:
        raise ValueError(f"a board is lines of equal length of the symbols {_SYMBOLS}, got {unknown or lines}")
    return np.array([[_SYMBOLS.index(symbol) for symbol in line] for line in lines])


def _entering_features() -> np.ndarray:
    """(cells, F): features of a move onto each kind of cell.

    The ground counts a step, or mud in place of it; a coin or a roadblock is added to that; goal and sheep stand alone.
    """
    table = np.zeros((len(Cell), len(FEATURES)))
    for cell in Cell:
        item = Cell(cell % Cell.MUD)
        if item not in _ENDS:
            table[cell, _MUD if cell >= Cell.MUD else _STEP] = 1.0
        if item.name.lower() in FEATURES:
            table[cell, FEATURES.index(item.name.lower())] = 1.0
    return table


_ENTERING = _entering_features()


class GridWorld(gym.Env[np.int64, np.int64]):
    """A board of cells on which one moves up, down, left or right until a goal or a sheep is entered.

    Actions, ``Discrete(4)``: 0 up, 1 down, 2 left, 3 right. Observations, ``Discrete(rows * columns)``: the state.

    Dynamics: a move to the neighboring cell, of which a coin or roadblock stays; off the board or into a house one
    stays where one is. ``changes`` says which pairs of state and action have other outcomes. An episode starts
    uniformly on any cell that is neither house, goal nor sheep.

    Reward: ``features @ true_weights`` of the transition. A move onto road counts 1 of the feature ``step``, onto mud 1
    of ``mud`` instead; a ``coin`` or ``roadblock`` there is added. Entering ``goal`` or ``sheep`` counts that alone.
    Who is blocked pays the ground of the own cell, but not what lies on it.
    ``info``: ``success`` (bool, on a goal).

    Termination: on a goal or a sheep, which are absorbing. Houses are states that nothing enters, listed as terminal.

    Args:
        board: (rows, columns) of :class:`Cell`, see :func:`read_board`.
        true_weights: (F,) of the true reward.
        changes: (state, action) → outcomes in place of the deterministic one.
        render_mode: None or "rgb_array", drawn by numpy alone.
        cell_size: of a cell in frames, at least 8 [px].
    """

    feature_names: ClassVar[tuple[str, ...]] = FEATURES
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(
        self,
        board: np.ndarray | Sequence[Sequence[int]],
        *,
        true_weights: Sequence[float] | np.ndarray,
        changes: Mapping[tuple[int, int], Sequence[Outcome]] | None = None,
        render_mode: str | None = None,
        cell_size: int = 32,
    ) -> None:
        check_name("render_mode", render_mode or "rgb_array", self.metadata["render_modes"])
        if cell_size < 8:
            raise ValueError(f"cell_size must be at least 8 px, got {cell_size}")
        self.board = _checked_board(board)
        self.true_weights = _checked_weights(true_weights)
        self.changes = {pair: tuple(outcomes) for pair, outcomes in (changes or {}).items()}
        self.render_mode, self.cell_size = render_mode, cell_size
        self._tables = _make_tables(self.board, self.changes)
        self._reward = self._tables.features @ self.true_weights  # (S, A, K)
        self._chance = self._tables.probability.cumsum(axis=2)  # (S, A, K)
        self._picture: np.ndarray | None = None
        self._state = int(self._tables.start.argmax())
        self.observation_space = Discrete(self.board.size)
        self.action_space = Discrete(len(ACTIONS))

    def tables(self) -> Tables:
        """The Markov decision process as arrays of the caller's own."""
        return Tables(*(array.copy() for array in self._tables))

    def state_at(self, row: int, column: int) -> int:
        """The state of a cell."""
        rows, columns = self.board.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"(row, column) = ({row}, {column}) is not on a board of {rows} x {columns} cells")
        return row * columns + column

    def position(self, state: int) -> tuple[int, int]:
        """(row, column) of a state."""
        if not 0 <= state < self.board.size:
            raise ValueError(f"state must be in [0, {self.board.size}), got {state}")
        row, column = divmod(int(state), self.board.shape[1])
        return row, column

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Begin an episode at a random start state, or at ``options={"state": s}``."""
        super().reset(seed=seed)
        unknown = sorted(set(options or {}) - {"state"})
        if unknown:
            raise UnknownName(f"GridWorld.reset takes the option 'state' only, got {unknown}")
        drawn = self.np_random.choice(self.board.size, p=self._tables.start)
        state = int((options or {}).get("state", drawn))
        if self._tables.terminal[self.state_at(*self.position(state))]:
            raise ValueError(f"the state to start from must not be terminal, got {state}, which is {self._name(state)}")
        self._state = state
        return np.int64(state), {}

    def step(self, action: np.int64 | int) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Move; on a terminal state nothing changes any more."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an integer in [0, {len(ACTIONS)}), got {action!r}")
        pair = self._state, int(action)
        chance = self._chance[pair]
        outcome = 0 if chance[0] >= 1.0 else int(np.searchsorted(chance[:-1], self.np_random.random(), side="right"))
        self._state = int(self._tables.next_state[pair][outcome])
        return (
            np.int64(self._state),
            float(self._reward[pair][outcome]),
            bool(self._tables.terminal[self._state]),
            False,
            {"success": bool(self.board.flat[self._state] in _GOALS)},
        )

    def render(self) -> np.ndarray | None:
        """(rows * cell_size, columns * cell_size, 3) uint8: the board and who moves on it."""
        if self.render_mode is None:
            return None
        frame = self._board_picture()
        draw_agent(frame, self.position(self._state), cell_size=self.cell_size)
        return frame

    def draw_segment(self, states: Sequence[int] | np.ndarray, actions: Sequence[int] | np.ndarray) -> np.ndarray:
        """A frame with the numbered steps of a segment as arrows, for a person who compares two of them.

        ``states`` (T+1,) and ``actions`` (T,). A blocked step is a stub against the wall; what follows a terminal
        state is padding, and not drawn. Needs no ``render_mode``.
        """
        if len(states) != len(actions) + 1:
            raise ValueError(f"T actions have T + 1 states, got {len(actions)} actions and {len(states)} states")
        positions = [self.position(int(state)) for state in states]
        ends = np.flatnonzero(self._tables.terminal[np.asarray(states, dtype=int)])
        steps = min([len(actions), *ends.tolist()])
        if not all(self.action_space.contains(int(action)) for action in actions[:steps]):
            raise ValueError(f"actions must be in [0, {len(ACTIONS)}) before a terminal state, got {list(actions)}")
        frame = self._board_picture()
        draw_agent(frame, positions[0], cell_size=self.cell_size)
        moves = [ACTIONS[int(action)] for action in actions[:steps]]
        return draw_path(frame, positions[: steps + 1], moves, cell_size=self.cell_size)

    def draw_policy(self, policy: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """A frame with the actions of a policy (S, A) of probabilities as arrows, in every cell that one can act in.

        Actions that are equally good are shorter arrows from the middle of a cell. Needs no ``render_mode``.
        """
        chosen = np.asarray(policy, dtype=np.float64)
        shape = (self.board.size, len(ACTIONS))
        if chosen.shape != shape or not ((chosen >= 0).all() and np.allclose(chosen.sum(1), 1)):
            raise ValueError(f"policy must be {shape} probabilities that sum to 1 in each row, got {chosen.shape}")
        frame = self._board_picture()
        for state in np.flatnonzero(~self._tables.terminal):
            choices = list(zip(ACTIONS, chosen[state].tolist(), strict=True))
            draw_choices(frame, self.position(int(state)), choices, cell_size=self.cell_size)
        return frame

    def _board_picture(self) -> np.ndarray:
        if self._picture is None:
            self._picture = draw_board(self.board, cell_size=self.cell_size)
        return self._picture.copy()

    def _name(self, state: int) -> str:
        return f"{Cell(self.board.flat[state]).name.lower()} at {self.position(state)}"


def _checked_board(board: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
    array = np.asarray(board)
    if array.ndim != 2 or not np.isin(array, list(Cell)).all():
        raise ValueError(f"board must be (rows, columns) of cells 0 to {len(Cell) - 1}, got {array.tolist()}")
    if np.isin(array, [*_ENDS, *_BLOCKED]).all():
        raise ValueError(f"board has no cell to start from: all are goals, sheep or houses: {array.tolist()}")
    return array.astype(np.int64)


def _checked_weights(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.array(weights, dtype=np.float64)
    if array.shape != (len(FEATURES),) or not np.isfinite(array).all():
        raise ValueError(f"true_weights must be {len(FEATURES)} finite numbers, for {FEATURES}, got {array.tolist()}")
    return array


def _make_tables(board: np.ndarray, changes: Mapping[tuple[int, int], Sequence[Outcome]]) -> Tables:
    """The deterministic moves, with ``changes`` put in their places."""
    terminal = np.isin(board, [*_ENDS, *_BLOCKED]).ravel()
    S, A, F = board.size, len(ACTIONS), len(FEATURES)
    K = max([1, *(len(outcomes) for outcomes in changes.values())])
    next_state = np.zeros((S, A, K), dtype=np.int64)
    probability = np.zeros((S, A, K))
    features = np.zeros((S, A, K, F))
    for state in range(S):
        for action in range(A):
            pair = state, action
            outcomes: Sequence[Outcome] = [Outcome(1.0, state, np.zeros(F)) if terminal[state] else _move(board, *pair)]
            if pair in changes:
                outcomes = _checked_outcomes(board, pair, changes[pair], terminal)
            for k in range(K):  # unused places repeat the last outcome, with probability 0
                outcome = outcomes[min(k, len(outcomes) - 1)]
                next_state[state, action, k], features[state, action, k] = outcome.next_state, outcome.features
                probability[state, action, k] = outcome.probability if k < len(outcomes) else 0.0
    unknown = [pair for pair in changes if not (0 <= pair[0] < S and 0 <= pair[1] < A)]
    if unknown:
        raise ValueError(f"changes are of pairs (state < {S}, action < {A}), got {unknown[0]}")
    return Tables(next_state, probability, features, terminal, (~terminal) / (~terminal).sum())


def _move(board: np.ndarray, state: int, action: int) -> Outcome:
    """The deterministic outcome: to the neighbor, or blocked with the ground of the own cell."""
    row, column = divmod(state, board.shape[1])
    to_row, to_column = row + ACTIONS[action][0], column + ACTIONS[action][1]
    on_board = 0 <= to_row < board.shape[0] and 0 <= to_column < board.shape[1]
    if not on_board or board[to_row, to_column] in _BLOCKED:
        ground = Cell.MUD if board[row, column] >= Cell.MUD else Cell.ROAD
        return Outcome(1.0, state, _ENTERING[ground])
    return Outcome(1.0, to_row * board.shape[1] + to_column, _ENTERING[board[to_row, to_column]])


def _checked_outcomes(
    board: np.ndarray, pair: tuple[int, int], outcomes: Sequence[Outcome], terminal: np.ndarray
) -> Sequence[Outcome]:
    """Outcomes that a change may have: a distribution over cells that can be entered."""
    chances = np.array([outcome.probability for outcome in outcomes])
    if not (len(chances) and (chances > 0).all() and abs(chances.sum() - 1.0) < 1e-9):
        raise ValueError(f"changes[{pair}] needs probabilities > 0 that sum to 1, got {chances.tolist()}")
    if terminal[pair[0]]:
        raise ValueError(f"changes[{pair}] would leave a terminal state; only others can be changed")
    for outcome in outcomes:
        if not 0 <= outcome.next_state < board.size or board.flat[outcome.next_state] in _BLOCKED:
            raise ValueError(f"changes[{pair}] goes to {outcome.next_state}, which is a house or not on the board")
        _checked_weights(outcome.features)
    return outcomes
