"""The commands beside training, with the real parts: what they leave, and what they say when they cannot write."""

from pathlib import Path

import numpy as np
import pytest

from prefrl.cli import main
from prefrl.data import preferences
from prefrl.data.preferences import read_preferences
from prefrl.data.storage import read_dataset

COLLECT = ["collect", "env=point_reach", "data=point_conflict", "data.max_steps=5"]
LABEL = ["comparisons=10", "segment_length=3"]


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """The commands limit threads by the environment, which is set back."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def dataset(tmp_path):
    assert main([*COLLECT, f"out={tmp_path / 'data'}"]) == 0
    return tmp_path / "data"


@pytest.fixture
def archive(tmp_path):
    """Three comparisons of segments of 4 observations, as an .npz."""
    rng = np.random.default_rng(0)
    shapes = {"obs_1": (3, 4, 2), "obs_2": (3, 4, 2), "action_1": (3, 4, 1), "action_2": (3, 4, 1)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "pairs.npz", **arrays, label=np.array([0.0, 1.0, 0.5]))
    return tmp_path / "pairs.npz"


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def message(capsys) -> str:
    """What a failed command said: one line that starts with the program's name."""
    error = capsys.readouterr().err
    assert error.startswith("prefrl: ")
    assert "Traceback" not in error
    return error


def test_collect_and_label_make_a_dataset_with_answers(tmp_path, capsys):
    """`collect` stores the episodes of both behaviors, `label` answers beside them."""
    dataset = tmp_path / "new" / "data"
    assert main([*COLLECT, f"out={dataset}"]) == 0
    assert f"dataset: {dataset} (40 episodes, 200 steps)" in capsys.readouterr().out
    episodes = read_dataset(dataset)
    assert [episodes.behavior.count(name) for name in ("goes left", "goes right")] == [10, 30]
    assert main(["label", str(dataset), *LABEL]) == 0
    assert "10 answers added, 10 in all" in capsys.readouterr().out
    assert set(read_preferences(dataset).p_first.tolist()) <= {0.0, 0.5, 1.0}


def test_collecting_again_gives_the_same_episodes(dataset, tmp_path):
    """The seed decides: equal words, equal numbers; another seed, others."""
    for seed in (0, 1):
        assert main([*COLLECT, f"seed={seed}", f"out={tmp_path / str(seed)}"]) == 0
    equal = [np.array_equal(read_dataset(tmp_path / s).actions, read_dataset(dataset).actions) for s in ("0", "1")]
    assert equal == [True, False]


def test_import_makes_a_dataset_with_answers(archive, tmp_path, capsys):
    """`import` makes an episode of each segment and keeps the labels (1 = second preferred)."""
    assert main(["import", "preferences-npz", str(archive), f"out={tmp_path / 'data'}"]) == 0
    assert f"dataset: {tmp_path / 'data'}" in capsys.readouterr().out
    assert read_dataset(tmp_path / "data").lengths.tolist() == [3] * 6
    assert read_preferences(tmp_path / "data").p_first.tolist() == [1.0, 0.0, 0.5]


def test_list_shows_what_can_be_chosen(capsys):
    """`list` knows every group; losses, importers and arms are lists of their own."""
    assert main(["list"]) == 0
    assert "point_reach" in capsys.readouterr().out
    known = {
        "losses": "DPO, arXiv 2305.18290", "importers": "preferences-npz", "arms": "cpl_negated", "queries": "uniform",
    }  # fmt: skip
    for group, expected in known.items():
        assert main(["list", group]) == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell, capsys):
    """The script calls the program for its candidates, which are printed one a line."""
    assert main(["completion", shell]) == 0
    assert "prefrl completion --candidates" in capsys.readouterr().out
    assert main(["completion", "--candidates", "prefrl train env=po"]) == 0
    assert capsys.readouterr().out == "env=point_reach\n"


@pytest.mark.parametrize("out", ["taken", "taken/data", "taken/some/data"])
def test_collect_and_import_refuse_a_file_in_the_way(out, archive, tmp_path, capsys):
    """Below a regular file no folder can be made; that is said at once, and the file stays."""
    (tmp_path / "taken").write_text("mine")
    for words in (COLLECT, ["import", "preferences-npz", str(archive)]):
        assert main([*words, f"out={tmp_path / out}"]) == 1
        assert "out=PATH" in (said := message(capsys))
        assert "is already used" in said or f"{tmp_path / 'taken'} is a file" in said
    assert (tmp_path / "taken").read_text() == "mine"


def test_collect_and_import_refuse_a_read_only_folder(archive, tmp_path, capsys, monkeypatch):
    """Without the right to write, nothing is collected first."""
    monkeypatch.setattr("prefrl.commands.os.access", lambda path, mode: False)
    for words in (COLLECT, ["import", "preferences-npz", str(archive)]):
        assert main([*words, f"out={tmp_path / 'new'}"]) == 1
        assert f"{tmp_path} cannot be written to. Choose another place with out=PATH." in message(capsys)
    assert not (tmp_path / "new").exists()


def test_collect_and_import_leave_a_used_folder_as_it_is(dataset, archive, capsys):
    """A dataset is never written over."""
    before = contents(dataset)
    for words in (COLLECT, ["import", "preferences-npz", str(archive)]):
        capsys.readouterr()
        assert main([*words, f"out={dataset}"]) == 1
        assert "already used" in message(capsys)
    assert contents(dataset) == before


def test_label_says_what_is_no_dataset(tmp_path, capsys):
    """A path below a regular file, and an empty folder, are no datasets."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for path in ("file/data", "file", "empty", "nowhere"):
        assert main(["label", str(tmp_path / path)]) == 1
        assert str(tmp_path / path) in message(capsys)
    assert list((tmp_path / "empty").iterdir()) == []


def test_label_on_a_full_disk_keeps_the_answers_that_are_there(dataset, capsys, monkeypatch):
    """An answer table that cannot be written is one message, and the dataset stays as it was."""
    assert main(["label", str(dataset), *LABEL]) == 0
    before = contents(dataset)
    capsys.readouterr()

    def full(path, table):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(preferences, "write_table", full)
    assert main(["label", str(dataset), *LABEL]) == 1
    assert "preferences.parquet: No space left on device. Free some space" in message(capsys)
    assert contents(dataset) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["env=point_reach"], "data: Behavior 'opens the faucet' failed in prefrl/PointReach-v0"),
        (["data=point_conflict"], "data: Behavior 'goes left' failed in prefrl/MetaWorld-faucet-open-v0"),
        (["env=point_reach", "env.id=prefrl/PointRaech-v0"], "did you mean 'prefrl/PointReach-v0'"),
        (["env=point_reach", "env.target=up"], "unknown target 'up'"),
        (["env=metaworld", "env.goal_seed=3"], "goal_seed"),
    ],
)
@pytest.mark.parametrize("command", ["collect", "train"])
def test_parts_that_do_not_fit_are_one_message_and_leave_nothing(command, words, expected, tmp_path, capsys):
    """What environments and behaviors refuse is a message of ours, before anything is made."""
    assert main([command, *words, f"out={tmp_path / 'new'}"]) == 2
    assert expected in message(capsys)
    assert not (tmp_path / "new").exists()
