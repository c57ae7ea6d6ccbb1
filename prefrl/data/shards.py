"""What stands in the files of a dataset folder: columns, schemas and ``info.json``, as in LeRobot's v3.

Read from github.com/huggingface/lerobot (datasets "v3.0"). Ours beyond it: the end state, termination and
seed of each episode, in columns ``prefrl/...`` of the episodes table, and the object ``"prefrl"`` of
``info.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefrl.data.dataset import Episodes
from prefrl.data.tables import vectors
from prefrl.errors import DamagedFile
from prefrl.files import read_json

__all__ = [
    "DATASET_VERSION", "DATA_PATH", "EPISODES_PATH", "INFO_PATH", "STATS_PATH", "TASKS_PATH", "TASK_SCHEMA",
    "episode_schema", "episode_table", "frame_columns", "frame_schema", "frame_table", "new_info",
    "read_info", "shard_path", "task_table",
]  # fmt: skip

DATASET_VERSION = 1
CODEBASE_VERSION = "v3.0"
CHUNKS_SIZE = 1000  # files per chunk folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
_SCALARS = {
    "next.reward": "float32",
    "next.done": "bool",
    "next.success": "bool",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_ARROW = {"float32": pa.float32(), "bool": pa.bool_(), "int64": pa.int64()}
_INT_COLUMNS = (
    "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index",
    "meta/episodes/chunk_index", "meta/episodes/file_index", "prefrl/seed",
)  # fmt: skip
# pandas reads the task texts as the index of the table: LeRobot looks tasks up by it
_PANDAS = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}
        for name, kind, numpy_type in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
    "pandas_version": "2.0.0",
}
TASK_SCHEMA = pa.schema([("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(_PANDAS)})


def shard_path(root: Path, pattern: str, shard: int) -> Path:
    """The file of one shard.

    >>> shard_path(Path("set"), DATA_PATH, 1001).as_posix()
    'set/data/chunk-001/file-001.parquet'
    """
    return root / pattern.format(chunk_index=shard // CHUNKS_SIZE, file_index=shard % CHUNKS_SIZE)


def new_info(episodes: Episodes) -> dict[str, Any]:
    """``info.json`` of a dataset of this kind, while it is still empty."""
    sizes = {"observation.state": episodes.observations.shape[1], "action": episodes.actions.shape[1]}
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [size], "names": None} for name, size in sizes.items()
    }
    features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _SCALARS.items()}
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": None,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(episodes.fps) if float(episodes.fps).is_integer() else float(episodes.fps),
        "splits": {},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features,
        "prefrl": {"format_version": DATASET_VERSION, "shards": 0, "env": episodes.env},
    }


def read_info(root: Path) -> dict[str, Any]:
    """``info.json``, checked; raises ``DamagedFile`` if it is missing, damaged or of another version."""
    path = root / INFO_PATH
    if not path.is_file():
        raise DamagedFile(
            f"{path} is missing: {root} is not a dataset, or its first write was cut short. Make it anew."
        )
    info = read_json(path)
    try:
        found, version = info["codebase_version"], info.get("prefrl", {}).get("format_version")
        if (found, version) != (CODEBASE_VERSION, DATASET_VERSION):
            raise DamagedFile(
                f"{path} has codebase_version {found!r} and prefrl format_version {version!r}, expected "
                f"{CODEBASE_VERSION!r} and {DATASET_VERSION}. Read it with the program that wrote it."
            )
        numbers = [
            info["total_episodes"],
            info["total_frames"],
            info["total_tasks"],
            info["prefrl"]["shards"],
            info["fps"],
        ]
        sizes = [info["features"][name]["shape"] for name in ("observation.state", "action")]
        if not (all(number > 0 for number in numbers) and all(len(size) == 1 for size in sizes)):
            raise ValueError(f"totals {numbers} and sizes {sizes}")
        dict(info["prefrl"]["env"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if type(error) is DamagedFile:
            raise
        raise DamagedFile(
            f"{path} is not a complete info.json ({error!r}). Restore it, or make the dataset anew."
        ) from error
    return info


def frame_columns(episodes: Episodes, info: dict[str, Any], tasks: list[str]) -> dict[str, np.ndarray]:
    """The columns of the data table, one row a step, numbered on from what ``info`` holds already."""
    frame = np.arange(episodes.num_steps) - np.repeat(episodes.step_offsets[:-1], episodes.lengths)
    numbers = {name: number for number, name in enumerate(tasks)}
    task = np.array([numbers[name] for name in episodes.behavior], dtype=np.int64)
    done = np.zeros(episodes.num_steps, dtype=bool)
    done[episodes.step_offsets[1:] - 1] = True
    return {
        "observation.state": episodes.observations[np.arange(episodes.num_steps) + episodes.episode_of_step],
        "action": episodes.actions,
        "next.reward": episodes.true_reward,
        "next.done": done,
        "next.success": episodes.success,
        "timestamp": (frame / episodes.fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": episodes.episode_of_step + info["total_episodes"],
        "index": np.arange(episodes.num_steps) + info["total_frames"],
        "task_index": task[episodes.episode_of_step],
    }


def frame_schema(info: dict[str, Any]) -> pa.Schema:
    """The columns of the data table."""
    sizes = {name: info["features"][name]["shape"][0] for name in ("observation.state", "action")}
    return pa.schema(
        [(name, pa.list_(pa.float32(), size)) for name, size in sizes.items()]
        + [(name, _ARROW[dtype]) for name, dtype in _SCALARS.items()]
    )


def frame_table(columns: dict[str, np.ndarray], info: dict[str, Any]) -> pa.Table:
    """The data table of ``frame_columns``."""
    schema = frame_schema(info)
    arrays = [
        vectors(columns[f.name]) if columns[f.name].ndim == 2 else pa.array(columns[f.name], f.type) for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def episode_schema(info: dict[str, Any]) -> pa.Schema:
    """The columns of the episodes table."""
    size = info["features"]["observation.state"]["shape"][0]
    return pa.schema(
        [("episode_index", pa.int64()), ("tasks", pa.list_(pa.string())), ("length", pa.int64())]
        + [(name, pa.int64()) for name in _INT_COLUMNS]
        + [("prefrl/terminated", pa.bool_()), ("prefrl/final_observation", pa.list_(pa.float32(), size))]
    )


def episode_table(episodes: Episodes, info: dict[str, Any], shard: int) -> pa.Table:
    """The episodes table of one shard: one row an episode."""
    schema = episode_schema(info)
    place = {"chunk_index": shard // CHUNKS_SIZE, "file_index": shard % CHUNKS_SIZE}
    columns: dict[str, Any] = {
        "episode_index": np.arange(len(episodes)) + info["total_episodes"],
        "tasks": [[name] for name in episodes.behavior],
        "length": episodes.lengths,
        "dataset_from_index": episodes.step_offsets[:-1] + info["total_frames"],
        "dataset_to_index": episodes.step_offsets[1:] + info["total_frames"],
        "prefrl/seed": episodes.seeds,
        "prefrl/terminated": episodes.terminated,
    }
    columns |= {
        f"{table}/{key}": np.full(len(episodes), n) for table in ("data", "meta/episodes") for key, n in place.items()
    }
    end_states = vectors(episodes.observations[episodes.observation_offsets[1:] - 1])
    arrays = [pa.array(columns[field.name], field.type) for field in list(schema)[:-1]]
    return pa.Table.from_arrays([*arrays, end_states], schema=schema)


def task_table(tasks: list[str]) -> pa.Table:
    """The names of the behaviors, which are LeRobot's tasks."""
    return pa.Table.from_arrays([pa.array(range(len(tasks)), pa.int64()), pa.array(tasks)], schema=TASK_SCHEMA)
