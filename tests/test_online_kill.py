"""Laws of a run that is killed: `kill -9` at any time, `prefrl resume`, and the end is that of a run that was not."""

import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_online import answers_of, assert_same_run, places, words

from prefrl.cli import main
from prefrl.files import load_checkpoint
from prefrl.recipes.online_answers import AnswerBook
from prefrl.runs import RunDirectory, read_metrics
from prefrl.teachers import SimulatedTeacher

pytestmark = pytest.mark.usefixtures("restored")

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # that a process may take before the test gives up
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def started(given):
    """The command line, in a process of its own; what it says goes nowhere, so that no pipe can fill up."""
    command = [sys.executable, "-m", "prefrl", *given]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)


def uninterrupted(given, path):
    """The same words in this process, in one go."""
    assert main(["train", *given, f"out={path}"]) == 0
    return RunDirectory.open(path)


def arm(path):
    return path / "arms/aligned"


def held(path):
    """The answers that are on the disk, after so many sessions; what a reader finds there at any time."""
    book = AnswerBook(arm(path) / "answers.safetensors")
    return len(book), book.answers(len(book))


def killed(given, path, *, rows, wait):
    """``kill -9``, so many seconds after so many rows of metrics; whether it was still running."""
    process, deadline = started(given), time.monotonic() + SECONDS
    while process.poll() is None and (not (path / "config.yaml").is_file() or len(read_metrics(arm(path))) < rows):
        assert time.monotonic() < deadline, f"not {rows} rows in {SECONDS} s"
        time.sleep(0.01)
    time.sleep(wait)
    process.kill()
    return process.wait() == -signal.SIGKILL


def assert_kept(before, path):
    """Answers that were on the disk at a kill stand at the end as they were, given at the very same times."""
    final = answers_of(RunDirectory.open(path))
    for _, answers in before:
        if answers is None:
            continue
        np.testing.assert_array_equal(final.time[: len(answers)], answers.time)
        np.testing.assert_array_equal(places(final[: len(answers)]), places(answers))
        np.testing.assert_array_equal(final.p_first[: len(answers)], answers.p_first)
    assert len(np.unique(places(final), axis=0)) == len(final)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Tiny runs in one go: one of each learner, when it is asked for."""
    return functools.cache(lambda kind: uninterrupted(words(kind), tmp_path_factory.mktemp("whole") / kind))


@pytest.mark.parametrize("kind", ["sac", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_one_that_was_not(kind, whole, tmp_path):
    """`kill -9` at a random time, `prefrl resume` in another process: bitwise equal in all that there is."""
    chance, path, given = random.Random(kind), tmp_path / "run", words(kind)
    assert killed(["train", *given, f"out={path}"], path, rows=chance.randint(1, 4), wait=chance.uniform(0, 0.05))
    before = held(path)
    assert main(["resume", str(path)]) == 0
    assert_same_run(RunDirectory.open(path), whole(kind))
    assert_kept([before], path)


HOPPER = {"env": "hopper", "env__terminate_when_unhealthy": "false"}  # all of MuJoCo's state is to be kept


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "env"), [("sac", HOPPER), ("ppo", {})], ids=["sac-hopper", "ppo-point"])
def test_a_run_that_is_killed_five_times_ends_as_one_that_was_not(kind, env, tmp_path):
    """At five random times, in whatever it was doing; each life takes up what the one before has left."""
    chance, path = random.Random(f"{kind}{env}"), tmp_path / "run"
    given = words(kind, recipe__steps=480, recipe__sessions=4, recipe__comparisons=28, **env)
    command, before = ["train", *given, f"out={path}"], []
    for rows in sorted(chance.randint(0, 9) for _ in range(5)):  # of 12
        assert killed(command, path, rows=rows, wait=chance.uniform(0, 0.5))
        command = ["resume", str(path)]
        before.append(held(path))
    assert started(command).wait(SECONDS) == 0
    assert_same_run(RunDirectory.open(path), uninterrupted(given, tmp_path / "whole"))
    assert_kept(before, path)


KILLED_AT_THE_ANSWERS = """
import os, signal, sys
from prefrl.cli import main
from prefrl.recipes.online_arm import OnlineArm
from prefrl.teachers import SimulatedTeacher

answer = SimulatedTeacher.answer

def counted(self, first, second, rng):
    with open(sys.argv[1], "a") as log:
        log.write(f"{len(first)} ")
    return answer(self, first, second, rng)

SimulatedTeacher.answer = counted
OnlineArm.explain = lambda self, episodes, session: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[2:])
"""


def test_an_answer_is_asked_once_although_the_run_is_killed_before_the_next_checkpoint(whole, tmp_path, monkeypatch):
    """Before anything was learned from them: 14 in both lives together, and the end is that of a run not killed."""
    path, log, answer = tmp_path / "run", tmp_path / "asked", SimulatedTeacher.answer
    expected = whole("ppo")
    script = [sys.executable, "-c", KILLED_AT_THE_ANSWERS, str(log), "train", *words("ppo"), f"out={path}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENVIRONMENT}
    assert subprocess.run(script, timeout=SECONDS, **quiet).returncode == -signal.SIGKILL
    sessions, answers = held(path)
    assert (sessions, len(answers)) == (1, 7)
    assert load_checkpoint(arm(path) / "checkpoint.safetensors")["sessions"] == []  # it knows of none of them
    asked = [int(number) for number in log.read_text().split()]
    monkeypatch.setattr(
        SimulatedTeacher, "answer", lambda self, one, two, rng: asked.append(len(one)) or answer(self, one, two, rng)
    )
    assert main(["resume", str(path)]) == 0
    assert asked == [7, 7]
    assert_kept([(sessions, answers)], path)
    assert_same_run(RunDirectory.open(path), expected)


def test_another_seed_is_another_run(whole, tmp_path):
    """It differs in weights and in questions, as runs of one seed do not."""
    other = uninterrupted(words("ppo", seed=4), tmp_path / "other")
    assert not np.array_equal(places(answers_of(whole("ppo"))), places(answers_of(other)))
    assert read_metrics(arm(whole("ppo").path)) != read_metrics(arm(other.path))
