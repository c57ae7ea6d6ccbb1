"""Laws of online runs that meet bad input: one named error, and a run directory that can be taken up again."""

import functools
import re
import shutil

import numpy as np
import pytest
from tiny_online import POSITIVE, PositivePoint, answers_of, assert_same_run, places, words

from prefrl.cli import main
from prefrl.errors import DamagedFile
from prefrl.files import load_checkpoint
from prefrl.recipes.online_answers import AnswerBook
from prefrl.recipes.online_arm import OnlineArm
from prefrl.runs import RunDirectory

pytestmark = pytest.mark.usefixtures("restored")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that met nothing: one of each learner, when it is asked for."""

    @functools.cache
    def made(kind):
        path = tmp_path_factory.mktemp("whole") / kind
        assert main(["train", *words(kind, env__id=POSITIVE), f"out={path}"]) == 0
        return RunDirectory.open(path)

    return made


@pytest.fixture
def cli(capsys):
    """The command line: its exit code and what it says on stderr, which is one message without a traceback."""

    def call(*given):
        code = main([str(word) for word in given])
        said = capsys.readouterr().err
        if code:
            assert [line for line in said.splitlines() if line.startswith("prefrl: ")], said
            assert "Traceback" not in said
        return code, said

    return call


def arm(path):
    return path / "arms/aligned"


def spoiled(monkeypatch, change):
    """The environment gives what ``change(step, given)`` makes of its step."""
    monkeypatch.setattr(PositivePoint, "spoil", staticmethod(change))


def steps_in(path):
    """How many steps the last checkpoint holds."""
    return len(load_checkpoint(arm(path) / "checkpoint.safetensors")["learner"]["world"]["experience"]["actions"])


BROKEN = {
    "sac": (lambda given: (given[0], np.nan, *given[2:]), r"the reward is \[?nan"),
    "ppo": (lambda given: (np.array([np.nan, -np.inf]), *given[1:]), r"the observation is \[+ *nan -inf\]"),
}


@pytest.mark.parametrize("kind", ["ppo", pytest.param("sac", marks=pytest.mark.slow)])
def test_numbers_that_are_none_stop_the_run_and_it_goes_on_when_they_are_gone(kind, whole, cli, tmp_path):
    """Environment, step and episode are named; nothing has learned from it: mended, the run ends as one without."""
    change, said = BROKEN[kind]
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        spoiled(patch, lambda step, given: change(given) if step == 151 else given)
        for command in (["train", *words(kind, env__id=POSITIVE), f"out={path}"], ["resume", path]):
            code, found = cli(*command)
            assert code == 1
            assert re.search(
                rf"{POSITIVE}: step 10 of episode 7 \(step 150 of all\) gave NaN or infinity: {said}", found
            )
            assert steps_in(path) == 120
    assert cli("resume", path)[0] == 0
    assert_same_run(RunDirectory.open(path), whole(kind))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_reward_too_large_for_its_type_is_one_too(cli, tmp_path, monkeypatch):
    """1e39 is infinite as float32, in which everything is kept."""
    spoiled(monkeypatch, lambda step, given: (given[0], 1e39, *given[2:]) if step == 50 else given)
    code, said = cli("train", *words("ppo", env__id=POSITIVE), f"out={tmp_path / 'run'}")
    assert code == 1
    assert "gave NaN or infinity: the reward is" in said


def test_episodes_of_variable_length_are_refused_with_the_reason_and_may_be_allowed(cli, tmp_path, monkeypatch):
    """Before anything is asked; the reason and both ways out are told; allowed in the config, the run goes on."""
    spoiled(monkeypatch, lambda step, given: (*given[:2], step % 27 == 0, *given[3:]))  # some end early
    path = tmp_path / "run"
    for command in (["train", *words("sac", env__id=POSITIVE), f"out={path}"], ["resume", path]):
        code, said = cli(*command)
        assert code == 2
        assert re.search(r"came to a terminal state.*do not say what going on is worth.*2211\.11972", said)
        assert "recipe.allow_variable_horizon=true" in said
        assert not (arm(path) / "answers.safetensors").exists()
        assert steps_in(path) == 80
    edit(path, "allow_variable_horizon: false", "allow_variable_horizon: true")
    assert cli("resume", path)[0] == 0
    assert len(answers_of(RunDirectory.open(path))) == 14


def edit(path, old, new):
    """Change one place of the saved configuration, as its owner would."""
    file = path / "config.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(("budget", "code"), [("answers", 1), ("queries", 2)])
def test_a_teacher_that_skips_everything_is_told_and_may_be_mended(budget, code, cli, tmp_path):
    """Nothing is invented in place of answers; what to lower is named; lowered, the run goes on from there."""
    path = tmp_path / "run"
    given = words("ppo", env__id=POSITIVE, teacher="skip", teacher__skip=1000, recipe__budget=budget)
    for command in (["train", *given, f"out={path}"], ["resume", path]):
        found, said = cli(*command)
        assert found == code
        assert "skipped" in said
        assert "Lower teacher.skip" in said
        assert steps_in(path) == 80
    assert cli("report", path)[0] == 0
    edit(path, "skip: 1000", "skip: 0.1")
    code, said = cli("resume", path)
    if budget == "answers":
        assert code == 0
        assert len(answers_of(RunDirectory.open(path))) == 14
    else:  # the questions of the first session are spent
        assert "skipped all of the 7 questions" in said


def test_thresholds_need_rewards_above_zero(cli, tmp_path):
    """A teacher that skips by shares of a mean return that is below 0 is an error that says how to go on."""
    code, said = cli("train", *words("ppo", teacher="skip"), f"out={tmp_path / 'run'}")
    assert code == 1
    assert "must be > 0" in said
    assert "Shift the environment's reward above 0, or set skip and equal to 0" in said
    RunDirectory.open(tmp_path / "run")
    edit(tmp_path / "run", "skip: 0.1", "skip: 0.0")
    assert cli("resume", tmp_path / "run")[0] == 0


def test_segments_longer_than_episodes_are_refused_before_the_run(cli, tmp_path):
    """Where the limit of an episode is known, there is no run at all."""
    code, said = cli("train", *words("sac", recipe__segment_length=21), f"out={tmp_path / 'run'}")
    assert code == 2
    assert "recipe.segment_length=21 is longer than an episode of at most 20 steps" in said
    assert not (tmp_path / "run").exists()


def test_segments_longer_than_the_episodes_that_came_are_refused_before_anyone_is_asked(cli, tmp_path, monkeypatch):
    """Episodes that are cut short by the environment: lengths and remedies are named, now and when resumed."""
    spoiled(monkeypatch, lambda step, given: (*given[:3], step % 4 == 0, *given[4:]))
    path = tmp_path / "run"
    for command in (["train", *words("ppo", env__id=POSITIVE), f"out={path}"], ["resume", path]):
        code, said = cli(*command)
        assert code == 2
        assert (
            "recipe.segment_length=5: the last 20 episodes, of at most 4 steps, do not hold two such segments" in said
        )
        assert not (arm(path) / "answers.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"teacher__beta": -1.0}, r"teacher: .*beta must be in \[0, inf\], but is -1"),
        ({"teacher__beta": "often"}, "teacher.beta.*often"),
        ({"teacher__bta": 1.0}, "Unknown key 'teacher.bta'. Did you mean 'teacher.beta'"),
        ({"teacher": "orcle"}, "teacher=orcle: there is no such teacher.*oracle"),
        ({"teacher": "fatigue", "teacher__drift__answers": 0}, r"answers must be in \(0, inf\), but is 0"),
        ({"teacher": "population", "teacher__groups__frugal__spread": -1}, r"spread .* \[0, inf\), but is -1"),
        ({"teacher__fidelity": "bpref", "teacher__beta": 1.0}, "teacher.fidelity has no effect"),
        ({"teacher__session": 3}, "teacher.session"),
    ],
    ids=str,
)
def test_wrong_parameters_of_a_teacher_are_named_and_leave_no_run(given, said, cli, tmp_path):
    """The key, its value and what is allowed, before anything is made."""
    code, found = cli("train", *words("ppo", **given), f"out={tmp_path / 'run'}")
    assert code == 2
    assert re.search(said, found)
    assert not (tmp_path / "run").exists()


def test_a_saved_teacher_that_was_made_wrong_is_named_and_mended(whole, cli, tmp_path):
    """In the run's own configuration too: the error names the key, and set right, the run can be used again."""
    path = copied(whole("ppo"), tmp_path)
    edit(path, "mistake: 0.0", "mistake: 7.0")
    code, said = cli("resume", path)
    assert code == 2
    assert re.search(r"teacher: .*mistake must be in \[0, 1\], but is 7.0", said)
    edit(path, "mistake: 7.0", "mistake: 0.0")
    assert cli("resume", path)[0] == 0


def copied(run, place):
    """Another copy of a finished run."""
    return shutil.copytree(run.path, place / "copy")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """Makes a copy of a run as a kill leaves it after its first session, before the second."""

    @functools.cache
    def made():
        path, hold = tmp_path_factory.mktemp("unfinished") / "run", OnlineArm.hold

        def until_the_second(self, session):
            if session:
                raise KeyboardInterrupt
            return hold(self, session)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OnlineArm, "hold", until_the_second)
            assert main(["train", *words("ppo", env__id=POSITIVE), f"out={path}"]) == 130
        return path

    return lambda place: shutil.copytree(made(), place / "run")


CUTS = {"empty": lambda size: 0, "in its first bytes": lambda size: 5, "in its header": lambda size: 300,
        "in its numbers": lambda size: size // 2, "by a byte": lambda size: size - 1}  # fmt: skip


def test_a_file_that_was_cut_is_named(unfinished, whole, cli, tmp_path):
    """Wherever it was cut: its name, and what to do; put back, the run ends as if nothing had been."""
    path = unfinished(tmp_path)
    for name, read in (("checkpoint.safetensors", load_checkpoint), ("answers.safetensors", AnswerBook)):
        damaged = arm(path) / name
        content = damaged.read_bytes()
        for cut in CUTS.values():
            damaged.write_bytes(content[: cut(len(content))])
            with pytest.raises(DamagedFile, match=f"{damaged} is not a readable safetensors file"):
                read(damaged)
        code, said = cli("resume", path)
        assert code == 1
        assert f"{damaged} is not a readable safetensors file" in said
        assert "Restore it, or make it anew." in said
        damaged.write_bytes(content)
    assert cli("resume", path)[0] == 0
    assert_same_run(RunDirectory.open(path), whole("ppo"))


def test_a_lost_checkpoint_is_made_anew_from_the_answers(unfinished, whole, cli, tmp_path):
    """Without it the run begins again, to the same numbers; what was answered is kept, and not asked again."""
    path = unfinished(tmp_path)
    before = AnswerBook(arm(path) / "answers.safetensors").answers(1)
    (arm(path) / "checkpoint.safetensors").unlink()
    assert cli("resume", path)[0] == 0
    assert_same_run(RunDirectory.open(path), whole("ppo"))
    kept = answers_of(RunDirectory.open(path))[: len(before)]
    np.testing.assert_array_equal(kept.time, before.time)
    np.testing.assert_array_equal(places(kept), places(before))


def test_lost_answers_are_named_and_the_arm_can_begin_anew(unfinished, whole, cli, tmp_path):
    """A checkpoint that has learned from answers that are gone, or are of another run, is not gone on with."""
    path = unfinished(tmp_path)
    answers, checkpoint = (arm(path) / name for name in ("answers.safetensors", "checkpoint.safetensors"))
    answers.unlink()
    code, said = cli("resume", path)
    assert code == 1
    assert f"{answers} holds 0 sessions, but the checkpoint beside it has learned from 1" in said
    shutil.copyfile(checkpoint, answers)
    code, said = cli("resume", path)
    assert code == 1
    assert f"{answers} does not hold the questions and answers of an online run" in said
    assert f"delete all that is in {arm(path)}" in said
    shutil.rmtree(arm(path))  # as it says
    assert cli("resume", path)[0] == 0
    assert_same_run(RunDirectory.open(path), whole("ppo"))
