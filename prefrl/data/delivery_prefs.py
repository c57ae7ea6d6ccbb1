"""People's preferences over segments of the delivery task: Knox et al. 2022 and Hatgis-Kessell et al. 2025.

arXiv 2206.02231 (the task and the first study), arXiv 2501.06416 (the study of conditions: what people were shown,
taught or asked). The authors' files, of which those of ``human_data`` exist once for each condition:

    human_data/<CONDITION>_full_filtered_segment_pairs.npy   (n, 2, 4, 2) start (row, column), then three moves
    human_data/<CONDITION>_full_filtered_Y.npy               (n,) 0 = first preferred, 1 = second, 0.5 = same
    delivery_mdp/board.json                                  (rows, columns) what each cell holds, 0 … 11

The files do not hold the states between, so the moves are replayed on the board. Letters: n pairs, T = 3 steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np

from prefrl.data.dataset import Episodes
from prefrl.data.labels import from_second_probability
from prefrl.data.paired_segments import write_pairs
from prefrl.errors import ConfigError, DamagedFile, InvalidData
from prefrl.files import read_json

__all__ = ["Replay", "import_delivery_prefs", "read_board", "read_npy", "replay"]

PUBLISHED = (
    "The importer needs human_data/<CONDITION>_full_filtered_segment_pairs.npy and …_full_filtered_Y.npy, people's "
    "preferences of Knox et al. 2022 (arXiv 2206.02231) and Hatgis-Kessell et al. 2025 (arXiv 2501.06416), and "
    "delivery_mdp/board.json beside that folder. The authors publish them at Texas Data Repository, "
    "doi:10.18738/T8/S4WTWR, and at github.com/Stephanehk/InfluencingHumanPrefs, folder data/; the board is "
    "data/input/random_MDPs/2021-07-29_sparseboard2-notrap_board.json of github.com/Stephanehk/Learning-OA-From-Prefs."
)
SOURCE = "Knox et al. 2022, arXiv 2206.02231; Hatgis-Kessell et al. 2025, arXiv 2501.06416"
PAIRS, LABELS = "_full_filtered_segment_pairs.npy", "_full_filtered_Y.npy"
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # (rows, columns) of actions 0 up, 1 down, 2 left, 3 right
CELLS = 12  # kinds of cells; from 6 on the same things stand in mud
GOALS, HOUSES, SHEEP = (1, 7), (2, 8), (3, 9)
UNREADABLE = (ValueError, OSError, EOFError, MemoryError, OverflowError, RecursionError, TokenError)  # of a bad header
FPS = 4.0  # [1/s] the pace of the delivery environment's videos; the files know no time


class Replay(NamedTuple):
    """What the segments of n pairs do on a board; axis 1 is (first, second). After the end T is padding."""

    states: np.ndarray  # (n, 2, T+1) int64, row * columns + column; padding repeats the end
    actions: np.ndarray  # (n, 2, T) int64, index in MOVES
    mask: np.ndarray  # (n, 2, T) bool, True on steps before the end
    success: np.ndarray  # (n, 2, T) bool, on a goal after the step
    terminated: np.ndarray  # (n, 2) bool, the last state is a goal or a sheep
    cut: np.ndarray  # (n, 2) bool, the file has moves after the end, which are not counted


def import_delivery_prefs(file: Path | str, out: Path | str, *, conditions: list[str] | None = None) -> Episodes:
    """The folder ``file`` (or its human_data) becomes a dataset of states and actions; returns the episodes.

    conditions: names, in the order of their numbers as raters; None: all that are there, by name. Observations are
    states (N, 1), actions indices (N, 1). ``env`` tells the board, the conditions and how many segments were cut.
    """
    human, board = _locate(Path(file))
    grid, names = read_board(board), _chosen(human, conditions)
    pairs = [_read_pairs(human / f"{name}{PAIRS}") for name in names]
    labels = [_read_labels(human / f"{name}{LABELS}", len(of)) for name, of in zip(names, pairs, strict=True)]
    replays = [replay(grid, of, file=human / f"{name}{PAIRS}") for name, of in zip(names, pairs, strict=True)]
    found = Replay(*(np.concatenate(parts).swapaxes(0, 1) for parts in zip(*replays, strict=True)))  # (2, n, …)
    lengths = found.mask.sum(-1)  # (2, n)
    inside = np.arange(found.states.shape[-1]) <= lengths[..., None]  # (2, n, T+1)
    sizes = [len(of) for of in pairs]
    teachers = [json.dumps({"name": "people", "condition": name, "source": SOURCE}) for name in names]
    return write_pairs(
        out,
        observations=found.states[inside][:, None],
        actions=found.actions[found.mask][:, None],
        success=found.success[found.mask],
        lengths=lengths.ravel(),
        terminated=found.terminated.ravel(),
        p_first=np.concatenate(labels),
        rater=np.repeat(np.arange(len(names)), sizes),
        teacher=np.repeat(teachers, sizes).tolist(),
        env={
            "id": "prefrl/Delivery-v0",
            "imported_from": Path(file).resolve().name,
            "board": grid.tolist(),
            "conditions": list(names),
            "segments_cut": {name: int(one.cut.sum()) for name, one in zip(names, replays, strict=True)},
        },
        fps=FPS,
    )


def replay(board: np.ndarray, pairs: np.ndarray, *, file: Path | str = "pairs") -> Replay:
    """Follow the moves of pairs (n, 2, T+1, 2) on a board; ``InvalidData`` names ``file`` and the row of a bad one.

    A move goes to the next cell, or nowhere if that is a house or off the board. A goal or a sheep ends a segment;
    (0, 0) is padding, which may stand only after that.

    >>> found = replay(np.array([[0, 0, 1]]), np.array([[[[0, 0], [0, 1], [0, 1]], [[0, 1], [0, -1], [0, -1]]]]))
    >>> found.states.tolist(), found.terminated.tolist()
    ([[[0, 1, 2], [1, 0, 0]]], [[True, False]])
    """
    position, moves = pairs[:, :, 0], pairs[:, :, 1:]  # (n, 2, 2), (n, 2, T, 2)
    padding = (moves == 0).all(-1)  # (n, 2, T)
    is_action = (moves[..., None, :] == MOVES).all(-1)  # (n, 2, T, A)
    unknown = ~(padding | is_action.any(-1)).all(-1)
    _refuse(file, unknown, f"has a move that is none of {MOVES.tolist()} and no padding [0, 0]")
    begins = _cells(board, position)
    _refuse(file, np.isin(begins, HOUSES), "starts on a house or off the board")
    _refuse(file, np.isin(begins, (*GOALS, *SHEEP)), "starts on a goal or a sheep, which is terminal")
    going = np.ones(padding.shape[:2], dtype=bool)  # (n, 2)
    places, mask, success = [position], [], []
    for t in range(moves.shape[2]):
        _refuse(file, going & padding[..., t], f"has padding (0, 0) as move {t + 1} without a terminal state before it")
        target = position + moves[..., t, :]
        enters = going & ~np.isin(_cells(board, target), HOUSES)
        position = np.where(enters[..., None], target, position)
        cell = _cells(board, position)
        places.append(position)
        mask.append(going)
        success.append(np.isin(cell, GOALS))
        going = going & ~np.isin(cell, (*GOALS, *SHEEP))
    counted = np.stack(mask, axis=-1)
    return Replay(
        states=np.stack(places, axis=2) @ np.array([board.shape[1], 1]),
        actions=is_action.argmax(-1),
        mask=counted,
        success=np.stack(success, axis=-1),
        terminated=~going,
        cut=(~counted & ~padding).any(-1),
    )


def _cells(board: np.ndarray, position: np.ndarray) -> np.ndarray:
    """What is at positions (…, 2); off the board there are houses."""
    walled = np.pad(board, 1, constant_values=HOUSES[0])
    row, column = np.moveaxis(np.clip(position, -1, board.shape) + 1, -1, 0)
    return walled[row, column]


def _refuse(file: Path | str, bad: np.ndarray, what: str) -> None:
    """Raise ``InvalidData`` for the first of the segments (n, 2) that is bad."""
    if bad.any():
        row, side = np.argwhere(bad)[0]
        which = ("first", "second")[side]
        raise InvalidData(
            f"{file}: the {which} segment of row {row} {what} ({int(bad.sum())} such segment(s)). "
            "Is board.json that of the study, and is the file unchanged? Download both again."
        )


def _locate(folder: Path) -> tuple[Path, Path]:
    """human_data and board.json, from the folder that holds both or from human_data itself."""
    human, beside = folder / "human_data", folder
    if not human.is_dir():
        human, beside = folder, folder.resolve().parent
    board = beside / "delivery_mdp" / "board.json"
    if not any(human.glob(f"*{PAIRS}")):
        raise DamagedFile(f"{folder} holds no *{PAIRS}, nor does a human_data in it. {PUBLISHED}")
    if not board.is_file():
        raise DamagedFile(f"{board} is missing. {PUBLISHED}")
    return human, board


def _chosen(human: Path, conditions: list[str] | None) -> list[str]:
    """The conditions to read, each of which has its pairs."""
    there = sorted(file.name.removesuffix(PAIRS) for file in human.glob(f"*{PAIRS}"))
    names = there if conditions is None else conditions
    for name in names:
        if name not in there:
            raise ConfigError(f"conditions: {human} has no {name!r}. Valid: {', '.join(there)}.")
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"conditions must be one or more names, each once, but is {names}. Valid: {', '.join(there)}."
        )
    return names


def read_npy(file: Path | str) -> np.ndarray:
    """The array of an ``.npy`` file; raises ``DamagedFile`` if it is damaged, foreign, or holds Python objects."""
    path = Path(file)
    if not path.is_file():
        raise DamagedFile(f"{path} is missing. {PUBLISHED}")
    try:
        with path.open("rb") as stream:  # not numpy.load, which would also read archives
            return np.lib.format.read_array(stream, allow_pickle=False)
    except UNREADABLE as error:
        raise DamagedFile(
            f"{path} cannot be read ({error}). It must hold one plain numeric array, saved with numpy.save; "
            "is it whole? Download it again."
        ) from error


def _read_pairs(file: Path) -> np.ndarray:
    pairs = read_npy(file)
    if pairs.ndim != 4 or pairs.shape[1:] != (2, 4, 2) or len(pairs) == 0 or pairs.dtype.kind not in "iu":
        raise DamagedFile(
            f"{file} has shape {pairs.shape} and type {pairs.dtype}; expected whole numbers (n, 2, 4, 2) with n >= 1: "
            "of each pair's two segments the start (row, column) and three moves. Download it again."
        )
    return pairs.astype(np.int64)


def _read_labels(file: Path, n: int) -> np.ndarray:
    """(n,) p_first."""
    label = read_npy(file)
    if label.shape != (n,) or label.dtype.kind not in "iuf":
        raise DamagedFile(
            f"{file} has shape {label.shape} and type {label.dtype}; expected numbers ({n},), a label of each pair in "
            f"…{PAIRS}. Download both again."
        )
    unknown = ~np.isin(label, (0, 0.5, 1))
    if unknown.any():
        row = int(unknown.argmax())
        raise InvalidData(
            f"{file}: the label of row {row} is {label[row]}; expected 0 (first preferred), 1 (second) or 0.5 (same)."
        )
    return from_second_probability(label)


def read_board(file: Path | str) -> np.ndarray:
    """(rows, columns) int64 of cells 0 … 11, from JSON."""
    try:
        board = np.array(read_json(file))
    except DamagedFile as error:
        raise DamagedFile(f"{error} {PUBLISHED}") from error
    except ValueError:  # lines of unequal length
        board = np.array([])
    is_board = board.ndim == 2 and board.size > 0 and board.dtype.kind in "if"
    if not is_board or not np.isin(board, np.arange(CELLS)).all():
        raise DamagedFile(
            f"{file} is not a board: expected lists of equal length with whole numbers 0 to {CELLS - 1}. {PUBLISHED}"
        )
    return board.astype(np.int64)
