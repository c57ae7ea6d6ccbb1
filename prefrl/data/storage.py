"""Datasets on disk: folders in the shape of LeRobot's v3 datasets (see ``prefrl.data.shards``).

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  meta/preferences.parquet (see ``prefrl.data.preferences``)

An append writes new shard files and replaces ``meta/info.json`` last: that is the moment of the commit. What
a killed writer left is not named there, so it is ignored, and overwritten by the next append. One writer at a
time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefrl.data import shards
from prefrl.data.dataset import Episodes
from prefrl.data.feature_stats import feature_statistics, merge_statistics
from prefrl.data.tables import matrix, read_table, vector, write_table
from prefrl.errors import DamagedFile, InvalidData, PrefrlError
from prefrl.files import read_json, write_json

__all__ = ["append_episodes", "read_dataset", "read_lengths", "write_dataset"]


def write_dataset(path: Path | str, episodes: Episodes) -> None:
    """Make a new dataset folder; one that holds anything but what a killed first write left is refused."""
    path = Path(path)
    first_shard = {shards.shard_path(path, pattern, 0) for pattern in (shards.DATA_PATH, shards.EPISODES_PATH)}
    leftovers = first_shard | {path / shards.STATS_PATH, path / shards.TASKS_PATH}
    files = path.rglob("*") if path.is_dir() else iter([path] if path.exists() else [])
    used = [
        file
        for file in files
        if (file == path or not file.is_dir()) and file not in leftovers and file.suffix != ".tmp"
    ]
    if used:
        raise PrefrlError(f"{path} is already used ({used[0].name} is there). Choose another folder for the dataset.")
    _write_shard(path, episodes, shards.new_info(episodes), tasks=[], statistics=None)


def append_episodes(path: Path | str, episodes: Episodes) -> None:
    """Add episodes to a dataset; they must be of the same environment, sizes and frame rate."""
    path = Path(path)
    info, new = shards.read_info(path), shards.new_info(episodes)
    for name, one, two in (
        ("features", info["features"], new["features"]),
        ("fps", info["fps"], new["fps"]),
        ("env", info["prefrl"]["env"], new["prefrl"]["env"]),
    ):
        if one != two:
            raise InvalidData(
                f"{path} holds episodes of another kind: {name} {one}, but the new episodes have {two}. "
                "Write them to a dataset of their own."
            )
    tasks = read_table(path / shards.TASKS_PATH, shards.TASK_SCHEMA).column("task").to_pylist()[: info["total_tasks"]]
    _write_shard(path, episodes, info, tasks=tasks, statistics=_statistics(path, info, tasks))


def read_dataset(path: Path | str) -> Episodes:
    """The last complete state of a dataset; raises ``DamagedFile`` if a part is missing, cut or foreign."""
    path = Path(path)
    info = shards.read_info(path)
    frames = _read_shards(path, info, shards.DATA_PATH, shards.frame_schema(info))
    table = _read_shards(path, info, shards.EPISODES_PATH, shards.episode_schema(info))
    lengths = vector(table, "length")
    _check_numbering(path, info, frames, table, lengths)
    is_end = np.zeros(lengths.sum() + len(lengths), dtype=bool)
    is_end[np.cumsum(lengths + 1) - 1] = True
    observations = np.empty((len(is_end), info["features"]["observation.state"]["shape"][0]), dtype=np.float32)
    observations[~is_end] = matrix(frames, "observation.state")
    observations[is_end] = matrix(table, "prefrl/final_observation")
    try:
        return Episodes(
            observations=observations,
            actions=matrix(frames, "action"),
            true_reward=vector(frames, "next.reward"),
            success=vector(frames, "next.success"),
            lengths=lengths,
            terminated=vector(table, "prefrl/terminated"),
            behavior=tuple(" ".join(tasks) for tasks in table.column("tasks").to_pylist()),
            seeds=vector(table, "prefrl/seed"),
            env=info["prefrl"]["env"],
            fps=info["fps"],
        )
    except InvalidData as error:
        raise InvalidData(f"{path}: {error}") from error


def read_lengths(path: Path | str) -> np.ndarray:
    """(E,) int64: the lengths of all episodes [steps], without reading their steps."""
    path = Path(path)
    info = shards.read_info(path)
    table = _read_shards(path, info, shards.EPISODES_PATH, pa.schema([("length", pa.int64())]))
    return vector(table, "length")


def _read_shards(path: Path, info: dict[str, Any], pattern: str, schema: pa.Schema) -> pa.Table:
    files = [shards.shard_path(path, pattern, shard) for shard in range(info["prefrl"]["shards"])]
    return pa.concat_tables([read_table(file, schema) for file in files])


def _check_numbering(path: Path, info: dict[str, Any], frames: pa.Table, table: pa.Table, lengths: np.ndarray) -> None:
    """The tables must hold what ``info.json`` promises, in order: this tells a swapped or an older shard."""
    E, N = info["total_episodes"], info["total_frames"]
    complete = (
        len(lengths) == E
        and (lengths > 0).all()
        and lengths.sum() == N == len(frames)
        and np.array_equal(table.column("episode_index"), np.arange(E))
        and np.array_equal(frames.column("index"), np.arange(N))
        and np.array_equal(frames.column("episode_index"), np.repeat(np.arange(E), lengths))
    )
    if not complete:
        raise DamagedFile(
            f"{path}: its parquet files hold {len(table)} episodes with {len(frames)} steps, but "
            f"{shards.INFO_PATH} promises {E} with {N}, numbered in order. Restore the missing or changed "
            "file, or make the dataset anew."
        )


def _statistics(path: Path, info: dict[str, Any], tasks: list[str]) -> Any:
    """What ``stats.json`` says of the committed steps; computed anew if a killed writer had been further."""
    file = path / shards.STATS_PATH
    statistics = read_json(file) if file.is_file() else {}
    if statistics.get("index", {}).get("count") == [info["total_frames"]]:
        return statistics
    episodes = read_dataset(path)
    return feature_statistics(shards.frame_columns(episodes, shards.new_info(episodes), tasks))


def _write_shard(path: Path, episodes: Episodes, info: dict[str, Any], *, tasks: list[str], statistics: Any) -> None:
    """Write one more shard and all that describes it; ``info.json`` last."""
    shard = info["prefrl"]["shards"]
    tasks = list(dict.fromkeys([*tasks, *episodes.behavior]))
    columns = shards.frame_columns(episodes, info, tasks)
    new = feature_statistics(columns)
    write_table(shards.shard_path(path, shards.DATA_PATH, shard), shards.frame_table(columns, info))
    write_table(shards.shard_path(path, shards.EPISODES_PATH, shard), shards.episode_table(episodes, info, shard))
    write_table(path / shards.TASKS_PATH, shards.task_table(tasks))
    write_json(path / shards.STATS_PATH, new if statistics is None else merge_statistics(statistics, new))
    total = info["total_episodes"] + len(episodes)
    committed = {
        "total_episodes": total,
        "total_frames": info["total_frames"] + episodes.num_steps,
        "total_tasks": len(tasks),
        "splits": {"train": f"0:{total}"},
        "prefrl": {**info["prefrl"], "shards": shard + 1},
    }
    write_json(path / shards.INFO_PATH, {**info, **committed})
