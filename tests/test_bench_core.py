"""Laws of ``prefrl bench core``: its rows, and what it does without side environments."""

import sys
from pathlib import Path

import numpy as np
import pytest

from prefrl.benchmarks import core, side_env
from prefrl.errors import ConfigError, PrefrlError
from prefrl.files import write_json


class Still:
    """A learner that counts."""

    def __init__(self, *, data, action_low, action_high, seed):
        self.updates = 0

    def update(self, batch):
        self.updates += len(batch) > 0
        return {}


def test_a_row_without_its_side_environment_is_skipped(tmp_path):
    """It says why, and never that its bar holds."""
    rows = core.run(iql=Still, seeds=1, sides=str(tmp_path))
    assert [row["id"] for row in rows] == ["reward_32", "reward_256", "relabel", "pairs", "pairs_cut", "iql"]
    assert [row["bar"] for row in rows] == [7.0, 2.0, 1.5, 50.0, None, 1.5]
    for row in rows:
        assert "make_sides=true" in row["holds"]
        assert row["value"] is None


def test_a_side_made_from_other_requirements_is_not_used(tmp_path):
    """A changed pin asks for a new environment."""
    write_json(tmp_path / "imitation" / "side.json", {"requirements": "imitation==0.1"})
    assert "other requirements" in side_env.missing_side("imitation", tmp_path)


def fake_side(tmp_path, monkeypatch, speeds):
    """Every side environment is this Python, and every peer a script that prints the next speed."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    queue = tmp_path / "speeds"
    queue.write_text("\n".join(map(str, speeds)))
    script = f"from pathlib import Path\nq = Path({str(queue)!r})\nspeed, *rest = q.read_text().split()\n"
    script += "q.write_text(' '.join(rest))\nprint('noise')\n"
    script += 'print(\'{"per_s": \' + speed + \', "updates_per_cpu_s": \' + speed + "}")\n'
    for name, file in (("imitation", "imitation_rewards.py"), ("d3rlpy", "d3rlpy_iql.py")):
        (scripts / f"requirements-{name}.txt").write_text("none\n")
        (scripts / file).write_text(script)
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(Path(sys.executable))
        write_json(tmp_path / name / "side.json", {"requirements": "none\n"})
    monkeypatch.setattr(side_env, "SCRIPTS", scripts)


def test_a_row_is_the_median_ratio_with_its_extremes(tmp_path, monkeypatch):
    """Value, interval and verdict follow from the speeds of both."""
    fake_side(tmp_path, monkeypatch, [2.0, 1.0, 4.0])
    monkeypatch.setattr(core, "_iql", lambda make, updates, seed: 4.0)
    (row,) = core.run(iql=Still, seeds=[3, 5, 8], rows=["iql"], sides=str(tmp_path))
    assert (row["value"], row["low"], row["high"]) == (2.0, 1.0, 4.0)
    assert row["holds"] is True
    assert row["seeds"] == [3, 5, 8]


def test_a_row_below_its_bar_does_not_hold(tmp_path, monkeypatch):
    """A peer of infinite speed wins every race; our side really runs."""
    fake_side(tmp_path, monkeypatch, [1e12] * 2)
    monkeypatch.setattr(core, "_fit", lambda hidden, pairs, epochs, seed: FIT((8,), 4, 1, seed))
    rows = core.run(iql=Still, seeds=1, rows=["reward_32", "pairs"], sides=str(tmp_path))
    assert [row["holds"] for row in rows] == [False, False]
    assert all(0 < row["value"] < 1 for row in rows)


FIT = core._fit


def test_our_speeds_are_measured():
    """Every kind of work of ours runs and has a finite, positive speed."""
    speeds = [FIT((8,), 8, 1, 0), core._relabel((8,), 10_000, 0), core._iql(Still, 300, 0, transitions=64)]
    speeds += [core._pairs(20, 0, cut=True), core._pairs(20, 0, cut=False)]
    assert np.isfinite(speeds).all()
    assert min(speeds) > 0


def test_a_failing_peer_is_an_error_with_its_reason(tmp_path, monkeypatch):
    """Its last words are shown."""
    fake_side(tmp_path, monkeypatch, [])
    with pytest.raises(PrefrlError, match="not enough values to unpack"):
        core.run(iql=Still, seeds=1, rows=["iql"], sides=str(tmp_path))


def test_unknown_rows_and_no_seeds_are_errors():
    """Nothing is measured silently."""
    with pytest.raises(ConfigError, match="rows must be of reward_32"):
        core.run(iql=Still, rows=["speed"])
    with pytest.raises(ConfigError, match="at least one"):
        core.run(iql=Still, seeds=0)
