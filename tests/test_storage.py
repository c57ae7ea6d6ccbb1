"""Laws of datasets on disk: round trip, commit, damage, and LeRobot's shape."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from strategies import episodes, make_episodes, same_episodes

from prefrl.data import storage
from prefrl.data.dataset import Episodes
from prefrl.data.shards import EPISODES_PATH, shard_path
from prefrl.data.storage import append_episodes, read_dataset, read_lengths, write_dataset
from prefrl.errors import DamagedFile, InvalidData, PrefrlError

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def part(seed: int) -> Episodes:
    """The episodes of append number ``seed``."""
    return make_episodes([2, 3], seed=seed)


def info_of(path: Path) -> dict:
    return json.loads((path / "meta" / "info.json").read_text())


# --- round trip


@settings(max_examples=20, deadline=None)
@given(episodes(D=2, A=1), episodes(D=2, A=1))
def test_written_and_appended_episodes_come_back_to_the_bit(tmp_path_factory, one, two):
    """Reading gives what was written and appended, in order."""
    path = tmp_path_factory.mktemp("data") / "set"
    write_dataset(path, one)
    assert same_episodes(read_dataset(path), one)
    append_episodes(path, two)
    assert same_episodes(read_dataset(path), Episodes.concat([one, two]))
    assert read_lengths(path).tolist() == [*one.lengths, *two.lengths]


def test_statistics_and_totals_do_not_depend_on_how_episodes_were_appended(tmp_path):
    """Three appends describe the same data as one write: statistics, totals, tasks."""
    parts = [part(0), part(1), part(2)]
    write_dataset(tmp_path / "whole", Episodes.concat(parts))
    write_dataset(tmp_path / "grown", parts[0])
    for more in parts[1:]:
        append_episodes(tmp_path / "grown", more)
    whole, grown = (json.loads((tmp_path / name / "meta" / "stats.json").read_text()) for name in ("whole", "grown"))
    assert whole.keys() == grown.keys()
    for feature, values in whole.items():
        for key, value in values.items():
            np.testing.assert_allclose(grown[feature][key], value, rtol=1e-9, atol=1e-12, err_msg=f"{feature} {key}")
    one, two = info_of(tmp_path / "whole"), info_of(tmp_path / "grown")
    assert {**one, "prefrl": {**one["prefrl"], "shards": 3}} == two


def test_statistics_are_those_of_numpy(tmp_path):
    """stats.json holds min, max, mean, population std and count of each feature, over the steps."""
    data = part(0)
    write_dataset(tmp_path / "set", data)
    found = json.loads((tmp_path / "set" / "meta" / "stats.json").read_text())["action"]
    for key in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[key], getattr(data.actions.astype(float), key)(axis=0), rtol=1e-12)
    assert found["count"] == [data.num_steps]


def test_the_folder_has_the_shape_of_lerobot_v3(tmp_path):
    """Every feature of info.json is a column of its type; rows are numbered; tasks are the behaviors."""
    data = Episodes.concat([part(0), part(1)])
    write_dataset(tmp_path, part(0))
    append_episodes(tmp_path, part(1))
    info = info_of(tmp_path)
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (4, 10, 20)
    assert info["splits"] == {"train": "0:4"}
    files = [tmp_path / info["data_path"].format(chunk_index=0, file_index=i) for i in range(2)]
    table = pa.concat_tables([pq.ParquetFile(file).read(use_threads=False) for file in files])
    assert set(table.column_names) == set(info["features"])
    types = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
    for name, feature in info["features"].items():
        size, kind = feature["shape"][0], types[feature["dtype"]]
        vector = name in ("observation.state", "action")
        assert table.schema.field(name).type == (pa.list_(kind, size) if vector else kind)
    assert table.column("index").to_pylist() == list(range(10))
    assert table.column("frame_index").to_pylist() == [0, 1, 0, 1, 2] * 2
    assert table.column("next.done").to_pylist() == [False, True, False, False, True] * 2
    np.testing.assert_allclose(table.column("timestamp"), np.array([0, 1, 0, 1, 2] * 2) / 20)
    tasks = pq.ParquetFile(tmp_path / "meta" / "tasks.parquet").read(use_threads=False)
    names = dict(zip(tasks.column("task_index").to_pylist(), tasks.column("task").to_pylist(), strict=True))
    assert [names[t] for t in table.column("task_index").to_pylist()] == [
        data.behavior[e] for e in data.episode_of_step
    ]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_the_episodes_table_says_where_each_episode_is(tmp_path):
    """dataset_from_index, dataset_to_index and the file numbers lead to the episode's rows."""
    write_dataset(tmp_path, part(0))
    append_episodes(tmp_path, part(1))
    for shard in range(2):
        table = pq.ParquetFile(shard_path(tmp_path, EPISODES_PATH, shard)).read(use_threads=False).to_pylist()
        for row in table:
            file = tmp_path / info_of(tmp_path)["data_path"].format(
                chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
            )
            frames = pq.ParquetFile(file).read(use_threads=False).to_pylist()
            own = [frame["index"] for frame in frames if frame["episode_index"] == row["episode_index"]]
            assert own == list(range(row["dataset_from_index"], row["dataset_to_index"]))
            assert len(own) == row["length"]
            assert row["meta/episodes/file_index"] == shard


def test_the_environment_survives_as_json(tmp_path):
    """Any plain JSON that describes the environment comes back equal; tuples are lists from the start."""
    env = {"id": "prefrl/X-v0", "kwargs": {"goal": (0.1, 0.2), "fixed": True, "none": None}, "max_steps": 100}
    write_dataset(tmp_path / "set", replace(part(0), env=env))
    found = read_dataset(tmp_path / "set")
    assert found.env == {**env, "kwargs": {"goal": [0.1, 0.2], "fixed": True, "none": None}}
    append_episodes(tmp_path / "set", replace(part(1), env=env))


# --- commit


def fail_at(monkeypatch, k: int) -> None:
    """The k-th flush to the disk finds no space."""
    calls = []
    fsync = os.fsync

    def flush(handle):
        calls.append(handle)
        if len(calls) == k + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr("prefrl.files.os.fsync", flush)


@pytest.mark.parametrize("k", range(5))
def test_a_full_disk_at_any_write_leaves_the_last_complete_state(tmp_path, monkeypatch, k):
    """Data, episodes, tasks, statistics, info: whichever fails, the old state stays; a retry succeeds."""
    path = tmp_path / "set"
    write_dataset(path, part(0))
    with monkeypatch.context() as patch:
        fail_at(patch, k)
        with pytest.raises(PrefrlError, match=r"No space left.*free space"):
            append_episodes(path, part(1))
    assert same_episodes(read_dataset(path), part(0))
    append_episodes(path, part(2))
    assert same_episodes(read_dataset(path), Episodes.concat([part(0), part(2)]))
    assert json.loads((path / "meta" / "stats.json").read_text())["index"]["count"] == [10]


@pytest.mark.parametrize("k", range(5))
def test_a_first_write_that_failed_can_be_repeated(tmp_path, monkeypatch, k):
    """What a cut first write left is no dataset yet, and does not block the second try."""
    with monkeypatch.context() as patch:
        fail_at(patch, k)
        with pytest.raises(PrefrlError, match="No space left"):
            write_dataset(tmp_path / "set", part(0))
    with pytest.raises(DamagedFile, match=r"info\.json is missing"):
        read_dataset(tmp_path / "set")
    write_dataset(tmp_path / "set", part(1))
    assert same_episodes(read_dataset(tmp_path / "set"), part(1))


def test_a_writer_that_dies_before_the_commit_leaves_the_last_complete_state(tmp_path, monkeypatch):
    """Shards without their line in info.json do not exist: they are ignored, then overwritten."""
    path = tmp_path / "set"
    write_dataset(path, part(0))

    def die_at_commit(file, value):
        if file.name == "info.json":
            raise KeyboardInterrupt
        real(file, value)

    real = storage.write_json
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", die_at_commit)
        with pytest.raises(KeyboardInterrupt):
            append_episodes(path, replace(part(1), behavior=("never", "seen")))
    assert (path / "data/chunk-000/file-001.parquet").is_file()
    assert same_episodes(read_dataset(path), part(0))
    append_episodes(path, part(2))
    assert same_episodes(read_dataset(path), Episodes.concat([part(0), part(2)]))
    statistics = json.loads((path / "meta" / "stats.json").read_text())
    both = Episodes.concat([part(0), part(2)])
    np.testing.assert_allclose(statistics["action"]["mean"], both.actions.astype(float).mean(0))
    assert info_of(path)["total_tasks"] == len(set(both.behavior))


APPENDER = """
import sys
sys.path.insert(0, sys.argv[2])
from strategies import make_episodes
from prefrl.data.storage import append_episodes
for k in range(1, 100_000):
    append_episodes(sys.argv[1], make_episodes([2, 3], seed=k))
"""


def test_a_killed_writer_leaves_the_last_complete_state(tmp_path):
    """SIGKILL in a loop of appends: what is read is the first k appends, complete, and appending goes on."""
    path = tmp_path / "set"
    write_dataset(path, part(0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen([sys.executable, "-c", APPENDER, str(path), str(Path(__file__).parent)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while info_of(path)["prefrl"]["shards"] < 7 and time.monotonic() < deadline and writer.poll() is None:
            time.sleep(0.001)
    finally:
        writer.kill()
    assert writer.wait() == -signal.SIGKILL
    found = read_dataset(path)
    count = len(found) // 2
    assert count >= 7
    assert same_episodes(found, Episodes.concat([part(k) for k in range(count)]))
    append_episodes(path, part(count))
    assert same_episodes(read_dataset(path), Episodes.concat([part(k) for k in range(count + 1)]))


# --- bad folders and files


def test_a_used_folder_is_refused_and_left_as_it_is(tmp_path):
    """Neither a dataset nor a folder with other files is overwritten."""
    write_dataset(tmp_path / "set", part(0))
    with pytest.raises(PrefrlError, match="already used"):
        write_dataset(tmp_path / "set", part(1))
    assert same_episodes(read_dataset(tmp_path / "set"), part(0))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for place in (tmp_path / "other", tmp_path / "other" / "notes.txt"):
        with pytest.raises(PrefrlError, match=r"already used \(notes\.txt"):
            write_dataset(place, part(0))
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_an_unwritable_folder_is_a_named_error(tmp_path, monkeypatch):
    """Below a regular file, in /proc, or on a read-only disk: a named error; an old dataset stays."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "set", Path("/proc/prefrl")):
        with pytest.raises(PrefrlError, match="Cannot write"):
            write_dataset(place, part(0))
    write_dataset(tmp_path / "set", part(0))

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr("prefrl.files.tempfile.mkstemp", read_only)
        with pytest.raises(PrefrlError, match="Read-only file system"):
            append_episodes(tmp_path / "set", part(1))
    assert same_episodes(read_dataset(tmp_path / "set"), part(0))


@pytest.mark.parametrize("name", [DATA, EPISODES, "meta/info.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "one byte short"])
def test_missing_and_truncated_files_are_named(tmp_path, name, damage):
    """Whichever part is missing or cut short, the error names that file."""
    write_dataset(tmp_path / "set", part(0))
    file = tmp_path / "set" / name
    content = file.read_bytes()
    kept = {"missing": 0, "empty": 0, "half": len(content) // 2, "one byte short": len(content.rstrip()) - 1}[damage]
    file.write_bytes(content[:kept])
    if damage == "missing":
        file.unlink()
    with pytest.raises(DamagedFile, match=Path(name).name):
        read_dataset(tmp_path / "set")


@pytest.mark.parametrize("kept", range(0, 3000, 97))
def test_parquet_cut_anywhere_is_never_read(tmp_path, kept):
    """There is no length at which a truncated shard passes."""
    write_dataset(tmp_path / "set", part(0))
    file = tmp_path / "set" / DATA
    content = file.read_bytes()
    file.write_bytes(content[: min(kept, len(content) - 1)])
    with pytest.raises(DamagedFile, match=r"file-000\.parquet"):
        read_dataset(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"codebase_version": "v2.1"}, "'v2.1'"),
        ({"prefrl": {"format_version": 99}}, "99"),
        ({"prefrl": None}, "info.json"),
        ({"features": {}}, "complete info.json"),
        ({"total_episodes": "two"}, "complete info.json"),
        ({"total_frames": 0}, "complete info.json"),
        ({"total_frames": 6}, "promises 2 with 6"),
    ],
)
def test_other_versions_and_schemas_are_refused(tmp_path, change, named):
    """A foreign or future info.json is an error that says what was found and what was expected."""
    write_dataset(tmp_path / "set", part(0))
    file = tmp_path / "set" / "meta" / "info.json"
    file.write_text(json.dumps({**info_of(tmp_path / "set"), **change}))
    with pytest.raises(DamagedFile, match=named):
        read_dataset(tmp_path / "set")


def rewrite(file: Path, change) -> None:
    table = pq.ParquetFile(file).read(use_threads=False)
    pq.write_table(change(table), file)


def with_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda table: table.drop_columns(["action"]), "column 'action' is there 0 times"),
        (with_column("next.reward", ["a"] * 5), "column 'next.reward' is string, expected float"),
        (with_column("index", [0, 1, 2, 3, None]), "column 'index' has empty cells"),
        (with_column("index", [0, 1, 2, 4, 3]), "numbered in order"),
        (with_column("episode_index", [0, 0, 0, 1, 1]), "numbered in order"),
        (lambda table: table.slice(0, 4), "4 steps"),
    ],
)
def test_shards_with_another_content_are_refused(tmp_path, change, named):
    """Missing columns, other types, empty cells, missing or exchanged rows: the error says which."""
    write_dataset(tmp_path / "set", part(0))
    rewrite(tmp_path / "set" / DATA, change)
    with pytest.raises(DamagedFile, match=named):
        read_dataset(tmp_path / "set")


def test_nan_on_disk_is_refused_with_folder_and_episode(tmp_path):
    """A NaN that came into a file is found when it is read."""
    write_dataset(tmp_path / "set", part(0))
    rewrite(tmp_path / "set" / DATA, with_column("next.reward", np.array([0, 0, 0, np.nan, 0], dtype=np.float32)))
    with pytest.raises(InvalidData, match=r"set.*true_reward of episode 1"):
        read_dataset(tmp_path / "set")


def test_a_shard_of_another_dataset_is_refused(tmp_path):
    """A file exchanged for that of a longer dataset does not pass for the original."""
    write_dataset(tmp_path / "set", part(0))
    write_dataset(tmp_path / "other", make_episodes([2, 4]))
    shutil.copy(tmp_path / "other" / DATA, tmp_path / "set" / DATA)
    with pytest.raises(DamagedFile, match="6 steps"):
        read_dataset(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "named"),
    [({"fps": 10.0}, "fps 20"), ({"env": {"id": "other"}}, "env"), ({"D": 4}, "features")],
)
def test_episodes_of_another_kind_are_not_appended(tmp_path, change, named):
    """Another environment, size or frame rate needs a dataset of its own; nothing is written."""
    write_dataset(tmp_path / "set", part(0))
    other = make_episodes([2], D=4) if "D" in change else replace(part(1), **change)
    with pytest.raises(InvalidData, match=named):
        append_episodes(tmp_path / "set", other)
    assert same_episodes(read_dataset(tmp_path / "set"), part(0))


def test_reading_leaves_the_process_able_to_exit(tmp_path):
    """After reading, a process ends with its own exit status (reading from Python files made it abort)."""
    write_dataset(tmp_path / "set", part(0))
    program = "import sys\nfrom prefrl.data.storage import read_dataset\nread_dataset(sys.argv[1])\nsys.exit(3)"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "set")], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (3, b"")
