"""Run directories: what is kept, what is refused, what a resume may trust."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prefrl import files, runs
from prefrl.errors import DamagedFile, InvalidData, PrefrlError, RunDirectoryError
from prefrl.runs import MetricLogger, RunDirectory, read_metrics, versions


def test_a_new_run_keeps_its_configuration_and_versions(tmp_path):
    """What was asked for, and what ran it, is in the folder before the first step."""
    run = RunDirectory.create(tmp_path / "run", config="seed: 3\n")
    assert (run.path / "config.yaml").read_text() == "seed: 3\n"
    stored = json.loads((run.path / "versions.json").read_text())
    assert stored["packages"]["torch"] == versions()["packages"]["torch"]
    assert RunDirectory.open(tmp_path / "run").path == run.path


def test_an_empty_folder_may_become_a_run(tmp_path):
    """Only a folder with something in it is used."""
    (tmp_path / "run").mkdir()
    assert RunDirectory.create(tmp_path / "run", config="").path.is_dir()


@pytest.mark.parametrize("leftover", ["file", "folder", "run"])
def test_a_used_folder_is_refused_and_intact(leftover, tmp_path):
    """Nothing is overwritten: neither a file of that name, nor a folder with content, nor another run."""
    path = tmp_path / "run"
    if leftover == "file":
        path.write_text("mine")
    elif leftover == "folder":
        path.mkdir()
        (path / "note").write_text("mine")
    else:
        RunDirectory.create(path, config="mine")
    before = {f: f.read_bytes() for f in [path, *path.rglob("*")] if f.is_file()}
    with pytest.raises(RunDirectoryError, match="already used"):
        RunDirectory.create(path, config="other")
    assert {f: f.read_bytes() for f in [path, *path.rglob("*")] if f.is_file()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    """A read-only place is an error with its reason and a way out."""

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunDirectoryError, match=r"Read-only file system.*out=PATH"):
        RunDirectory.create(tmp_path / "run", config="")


def test_a_foreign_or_other_version_is_refused(tmp_path):
    """A folder that is no run, and a run of another version, are different errors, both named."""
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        RunDirectory.open(tmp_path)
    run = RunDirectory.create(tmp_path / "run", config="")
    (run.path / "versions.json").write_text('{"run_version": 99}')
    with pytest.raises(RunDirectoryError, match="run version 99"):
        RunDirectory.open(run.path)
    (run.path / "versions.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"versions\.json"):
        RunDirectory.open(run.path)


def test_a_stage_is_finished_when_its_result_is_there(tmp_path):
    """No result, no trust; the result comes back as it was."""
    run = RunDirectory.create(tmp_path / "run", config="")
    run.stage("arms/aligned")
    assert run.result("arms/aligned") is None
    run.finish("arms/aligned", {"success": [1, 0]})
    assert RunDirectory.open(run.path).result("arms/aligned") == {"success": [1, 0]}
    assert run.result("arms/other") is None


def test_a_full_disk_leaves_a_stage_unfinished(tmp_path, monkeypatch):
    """When the result cannot be written, the stage is not finished and no part of a file is left."""
    run = RunDirectory.create(tmp_path / "run", config="")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PrefrlError, match="No space left"):
        run.finish("score", {"accuracy": 1.0})
    assert run.result("score") is None
    assert not [f for f in run.path.rglob("*") if f.suffix == ".tmp"]


def test_metrics_come_back(tmp_path):
    """What is logged can be read, in order."""
    with MetricLogger(tmp_path, tensorboard=False) as log:
        log.log(1, loss=0.5)
        log.log(2, loss=0.25, accuracy=1)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "accuracy": 1.0}]


def test_a_resume_cuts_what_came_after_its_step(tmp_path):
    """Steps after the checkpoint are logged anew, so that no step stands twice."""
    with MetricLogger(tmp_path, tensorboard=False) as log:
        for step in (1, 2, 3):
            log.log(step, loss=step)
    with MetricLogger(tmp_path, resume_step=2, tensorboard=False) as log:
        log.log(3, loss=30)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_a_fresh_start_drops_old_metrics(tmp_path):
    """Without a step to resume from, a stage begins with an empty log."""
    with MetricLogger(tmp_path, tensorboard=False) as log:
        log.log(5, loss=1)
    MetricLogger(tmp_path, tensorboard=False).close()
    assert read_metrics(tmp_path) == []


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    """The rows before it are kept, and a resume can go on."""
    with MetricLogger(tmp_path, tensorboard=False) as log:
        log.log(1, loss=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    MetricLogger(tmp_path, resume_step=1, tensorboard=False).close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_is_refused_and_not_written(value, tmp_path):
    """The name and the step are said; the log stays readable."""
    with MetricLogger(tmp_path, tensorboard=False) as log:
        log.log(1, loss=1)
        with pytest.raises(InvalidData, match=r"critic_loss became .* at step 2"):
            log.log(2, loss=1, critic_loss=value)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_tensorboard_has_the_same_numbers(tmp_path):
    """The events hold what metrics.jsonl holds."""
    with MetricLogger(tmp_path) as log:
        log.log(1, loss=0.5)
        log.log(4, loss=0.25)
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.5), (4, 0.25)]


def test_a_run_killed_while_it_was_made_can_be_made_again(tmp_path):
    """A folder with nothing but versions.json and a temporary file is as good as new."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "versions.json").write_text("{}")
    (tmp_path / "run" / ".config.yaml.abc.tmp").write_text("half")
    run = RunDirectory.create(tmp_path / "run", config="seed: 0\n")
    assert RunDirectory.open(run.path).path == run.path


@pytest.mark.parametrize("written", ["versions.json", "config.yaml"])
def test_a_run_is_new_until_all_of_it_is_there(written, tmp_path, monkeypatch):
    """A kill at either of its two files leaves a folder that is no run yet, and may become one."""

    class Killed(BaseException):
        pass

    def killing(path, target, real=os.replace):
        if Path(target).name == written:
            raise Killed
        real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(Killed):
            RunDirectory.create(tmp_path / "run", config="")
    assert any(file.suffix == ".tmp" for file in (tmp_path / "run").iterdir())
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        RunDirectory.open(tmp_path / "run")
    assert RunDirectory.open(RunDirectory.create(tmp_path / "run", config="").path)


@pytest.mark.parametrize("name", ["notes.tmp", "versions.json/mine", ".hidden"])
def test_only_leftovers_of_a_run_count_as_new(name, tmp_path):
    """A file that somebody else may have put there makes the folder a used one."""
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(RunDirectoryError, match="already used"):
        RunDirectory.create(tmp_path / "run", config="")


def test_a_kill_before_the_first_checkpoint_leaves_no_point_twice(tmp_path):
    """A stage that starts anew purges the events of its first attempt, as it drops their lines."""
    with MetricLogger(tmp_path) as log:
        for step in (1, 2, 3):
            log.log(step, loss=step)
    (old,) = tmp_path.glob("events.out.*")
    old.rename(tmp_path / "events.out.tfevents.0000000001.first")  # files are read in the order of their time
    with MetricLogger(tmp_path) as log:
        log.log(1, loss=10)
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 10)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_named_while_logging(tmp_path):
    """The error says which file, and what to do; leaving the block says no other."""
    log = MetricLogger(tmp_path, tensorboard=False)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115 (the logger closes it)
    with pytest.raises(PrefrlError, match=r"metrics\.jsonl.*No space left.*prefrl resume"), log:
        log.log(1, loss=0.5)
    assert log._file.closed


def test_events_that_cannot_be_written_are_named(tmp_path):
    """TensorBoard's own writer on a full disk: the same error."""

    class Full:
        def add_scalar(self, *_):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    with MetricLogger(tmp_path, tensorboard=False) as log:
        log._events = Full()
        with pytest.raises(PrefrlError, match=r"metrics\.jsonl or the events.*No space left"):
            log.log(1, loss=0.5)


def test_the_git_state_is_that_of_our_own_source(tmp_path, monkeypatch):
    """Untracked files in another project's checkout, as of a wheel in its .venv, have none; tracked ones have."""
    source = tmp_path / ".venv" / "prefrl" / "runs.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    monkeypatch.setattr(runs, "__file__", str(source))

    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert versions()["git"] is None
    git("add", ".")
    git("commit", "-m", "ours")
    state = versions()["git"]
    assert len(state["commit"]) == 40
    assert state["dirty"] is False


def test_one_process_at_a_time(tmp_path):
    """While one works in a run, another is refused; afterwards it is not."""
    run = RunDirectory.create(tmp_path / "run", config="seed: 0\n")
    with run.lock(), pytest.raises(RunDirectoryError, match="in use"), RunDirectory.open(run.path).lock():
        pass
    with run.lock():
        pass
