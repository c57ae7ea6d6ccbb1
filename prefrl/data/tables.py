"""Parquet tables: written atomically, read with a check of version and schema, never unpickled.

Vectors are fixed-size lists of float32, as in LeRobot's v3 datasets (github.com/huggingface/lerobot).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefrl.errors import DamagedFile
from prefrl.files import atomic_path

__all__ = ["matrix", "read_table", "vector", "vectors", "write_table"]


def write_table(path: Path, table: pa.Table) -> None:
    """Write one parquet file atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="snappy")


def read_table(path: Path, schema: pa.Schema, *, version: tuple[str, str] | None = None) -> pa.Table:
    """The columns of ``schema`` (others are ignored); ``version`` is a (key, value) that the file must carry.

    Raises ``DamagedFile`` if the file is missing, truncated, foreign, or of another version or schema.
    """
    if not path.is_file():
        raise DamagedFile(f"{path} is missing. Is the folder complete, and the path right?")
    try:
        # by path and in one thread: reading from a Python file beside torch aborts the process at its exit
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(
            f"{path} is not a readable parquet file ({error}): truncated or foreign. Restore it, or make it anew."
        ) from error
    if version is not None:
        key, expected = version
        found = (table.schema.metadata or {}).get(key.encode(), b"none").decode(errors="replace")
        if found != expected:
            raise DamagedFile(f"{path} has {key} {found}, expected {expected}. Read it with the prefrl that wrote it.")
    return _checked_columns(path, table, schema)


def _checked_columns(path: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in schema:
        count = table.column_names.count(field.name)
        found = table.schema.field(field.name).type if count == 1 else f"there {count} times"
        if count != 1 or found != field.type:
            raise DamagedFile(f"{path}: column {field.name!r} is {found}, expected {field.type}. Is it another format?")
        if table.column(field.name).null_count:
            raise DamagedFile(
                f"{path}: column {field.name!r} has empty cells, expected none. Restore it, or make it anew."
            )
    return table.select(schema.names)


def vectors(array: np.ndarray) -> pa.Array:
    """(rows, size) float32 -> a column of fixed-size lists."""
    rows = np.ascontiguousarray(array, dtype=np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def vector(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers -> (rows,), writable: torch warns of arrays that are not."""
    return table.column(name).to_numpy().copy()


def matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column of fixed-size lists -> (rows, size) float32."""
    column = table.column(name)
    size = column.type.list_size
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.array(values, dtype=np.float32).reshape(len(column), size)
