"""The offline benchmark: cells are kept, continued and never mislabeled; its table says what its cells say."""

import numpy as np
import pytest

from prefrl.benchmarks import cells
from prefrl.benchmarks.cells import Cell, run_cells
from prefrl.benchmarks.offline import ARMS, run
from prefrl.errors import ConfigError
from prefrl.files import read_json, write_json

SUCCESS = {"aligned": 0.9, "true_reward": 1.0, "bc": 0.1, "random": 0.3, "untrained": 0.5, "zero": 0.1, "negated": 0.0}
USUAL = {"labels": {"few": ["recipe.comparisons=50"]}, "sensitivity": {}, "studied": "one", "seeds": [3, 4]}


@pytest.fixture
def trained(monkeypatch):
    """The cells that were trained; instead of training, they leave results with the success rates above."""
    done = []

    def train(cell, run):
        done.append(cell)
        for arm, rate in SUCCESS.items():
            outcomes = np.arange(10) < round(10 * rate)
            write_json(run / "stages" / f"arms.{arm}.json", {"success": outcomes.tolist()})
        write_json(run / "stages" / "score.json", {"heldout_accuracy": 0.8})

    monkeypatch.setattr(cells, "_train", train)
    return done


def table(tmp_path, **changes):
    rows = run(**{"tasks": ["one", "two"], **USUAL, "folder": str(tmp_path), "workers": 1, **changes})
    return {row["id"]: row for row in rows}


def test_the_table_says_what_the_cells_say(tmp_path, trained):
    """Means over seeds and episodes, intervals around them, and the bars of the two-task and ratio rows."""
    rows = table(tmp_path)
    assert len(trained) == 6
    for arm in ARMS:
        assert rows[f"one.{arm}"]["value"] == pytest.approx(SUCCESS[arm])
        assert rows[f"one.{arm}"]["low"] <= SUCCESS[arm] <= rows[f"one.{arm}"]["high"]
    assert rows["one.aligned-bc"]["value"] == pytest.approx(80)
    least = rows["two_tasks.aligned-bc-and-random"]
    assert (least["value"], least["bar"], least["holds"]) == (pytest.approx(60), 20.0, True)
    assert rows["all_tasks.aligned/true_reward"]["value"] == pytest.approx(0.9)
    assert rows["one.seeds"]["value"] == 1
    assert rows["few.aligned"]["seeds"] == [3, 4]


def test_a_bar_that_is_missed_does_not_hold(tmp_path, trained, monkeypatch):
    """With aligned as bad as random, the row says so."""
    monkeypatch.setitem(SUCCESS, "aligned", 0.3)
    rows = table(tmp_path)
    assert rows["two_tasks.aligned-bc-and-random"]["holds"] is False
    assert rows["one.seeds"]["holds"] is False


def test_finished_cells_are_kept(tmp_path, trained):
    """A second benchmark trains nothing, gives the same table, and ``fresh`` trains all again."""
    first = table(tmp_path)
    assert table(tmp_path) == first
    assert len(trained) == 6
    table(tmp_path, fresh=True)
    assert len(trained) == 12


def test_other_overrides_are_another_cell(tmp_path, trained):
    """A finished cell does not stand for other overrides, and its file names those that made it."""
    table(tmp_path)
    table(tmp_path, labels={"few": ["recipe.comparisons=70"]})
    assert len(trained) == 8
    assert "recipe.comparisons=70" in read_json(tmp_path / "one-few-seed3" / "cell.json")["overrides"]


@pytest.mark.parametrize("wrong", [{"overrides": ["old"]}, {"code": "old"}, {}])
def test_an_unfinished_cell_of_other_code_starts_anew(tmp_path, trained, wrong):
    """What other code or other overrides began is not continued under a new name; what these began is."""
    cell = Cell("one", 0, ("recipe.comparisons=50",))
    leftover = tmp_path / cell.folder / "run" / "stages" / "collect.json"
    write_json(leftover, {})
    origin = {"overrides": list(cell.overrides), "code": cells.code_version()}
    write_json(tmp_path / cell.folder / "started.json", origin | wrong)
    run_cells([cell], folder=tmp_path, workers=1, fresh=False, show=lambda done, total: None)
    assert leftover.exists() == (wrong == {})


def test_unknown_rows_and_no_seeds_are_errors(tmp_path, trained):
    """A misspelt group of rows, or an empty list of seeds, is an error before anything runs."""
    with pytest.raises(ConfigError, match="'task'"):
        table(tmp_path, rows=["task"])
    with pytest.raises(ConfigError, match="seeds"):
        table(tmp_path, seeds=0)
    assert trained == []


def test_equal_code_has_equal_versions():
    """The code version is a fact of the files: the same twice, 12 hexadecimal digits."""
    version = cells.code_version()
    assert version == cells.code_version()
    assert len(version) == 12
    assert int(version, 16) >= 0
