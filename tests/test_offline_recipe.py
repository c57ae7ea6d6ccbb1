"""The offline recipe on a toy: preferences decide, a kill loses nothing, equal seeds give equal runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefrl.cli import main
from prefrl.config import compose
from prefrl.core import Comparisons, SegmentBatch
from prefrl.data.preferences import append_preferences, read_preferences
from prefrl.data.storage import read_dataset, write_dataset
from prefrl.errors import ConfigError
from prefrl.files import load_checkpoint
from prefrl.launch import make_recipe
from prefrl.recipes.arms import ARMS, DIRECT, FITTED, REWARDED, arm_comparisons, arm_rewards, resemblance
from prefrl.recipes.offline_report import SHORT
from prefrl.runs import RunDirectory, read_metrics

COMMON = ("experiment=point", "workers=1", "tensorboard=false", "recipe.video_arms=[]")
QUICK = (*COMMON, "recipe.arms=[bc,aligned,negated]")
# the same path with too few steps to learn anything: for laws about numbers being equal
TINY = (
    *COMMON, "recipe.arms=[bc,aligned,cpl,negated]", "recipe.updates=120", "recipe.baseline_updates=40",
    "recipe.direct_updates=40", "direct.bc_steps=10", "direct.hidden=[16]", "recipe.checkpoint_every=20",
    "recipe.evaluate_every=0", "recipe.episodes=4", "recipe.fit.epochs=4", "data.max_steps=20",
)  # fmt: skip


def train(out: Path, *words: str) -> RunDirectory:
    """A finished run of the toy."""
    assert main(["train", *words, f"out={out}"]) == 0
    return RunDirectory.open(out)


def numbers(run: RunDirectory) -> dict[str, object]:
    """All that a run measured."""
    arms = ("arms/bc", "arms/aligned", "arms/cpl", "arms/negated")
    return {name: run.result(name) for name in ("collect", "score", "rewards", *arms)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run, shared by the tests that only look."""
    return train(tmp_path_factory.mktemp("runs") / "whole", *QUICK)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """One uninterrupted tiny run, to compare with."""
    return train(tmp_path_factory.mktemp("runs") / "tiny", *TINY)


def success(run: RunDirectory, arm: str) -> float:
    return float(np.mean(run.result(f"arms/{arm}")["success"]))


def test_preferences_decide(finished):
    """Cloning follows the majority, the aligned policy the preferences, and negated preferences the other way."""
    assert success(finished, "aligned") >= 0.9
    assert success(finished, "bc") <= 0.2
    assert success(finished, "negated") == 0
    assert finished.result("arms/aligned")["resemblance"]["goes left"] >= 0.9
    assert finished.result("arms/negated")["resemblance"]["goes right"] >= 0.9


def test_equal_seeds_give_equal_runs(tiny, tmp_path):
    """Every number, every policy parameter and every logged metric of a second run is the same."""
    again = train(tmp_path / "again", *TINY)
    assert numbers(again) == numbers(tiny)
    for arm in ("bc", "aligned", "cpl", "negated"):
        assert read_metrics(again.path / "arms" / arm) == read_metrics(tiny.path / "arms" / arm)


def test_workers_do_not_change_the_numbers(tiny, tmp_path):
    """Arms trained in two worker processes are those trained in one."""
    run = tmp_path / "two"
    assert main(["train", *[w for w in TINY if w != "workers=1"], "workers=2", f"out={run}"]) == 0
    assert numbers(RunDirectory.open(run)) == numbers(tiny)


@pytest.mark.parametrize(
    "after", ["score/metrics.jsonl", *(f"arms/{a}/checkpoint.safetensors" for a in ("aligned", "cpl"))]
)
def test_a_killed_run_resumes_to_the_same_numbers(tiny, tmp_path, after):
    """Killed by SIGKILL in a stage, then resumed: every number equals the uninterrupted run's."""
    run = tmp_path / "killed"
    process = start(run)
    wait_for(run / after, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunDirectory.open(run).result("arms/negated") is None
    assert main(["resume", str(run), "workers=1"]) == 0
    assert numbers(RunDirectory.open(run)) == numbers(tiny)


def test_ctrl_c_says_how_to_go_on(tiny, tmp_path):
    """Ctrl-C while an agent trains: exit code 130, the command that continues, and equal numbers after it."""
    run = tmp_path / "stopped"
    process = start(run, stderr=subprocess.PIPE)
    wait_for(run / "arms/aligned/checkpoint.safetensors", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"prefrl resume {run}" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert main(["resume", str(run), "workers=1"]) == 0
    assert numbers(RunDirectory.open(run)) == numbers(tiny)


def start(run: Path, words=TINY, **kwargs) -> subprocess.Popen:
    """A run in a process group of its own, so that a signal to it does not reach the tests."""
    command = [sys.executable, "-m", "prefrl", "train", *words, f"out={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True, **kwargs)


def wait_for(file: Path, process: subprocess.Popen) -> None:
    for _ in range(9000):  # three minutes: it is there in seconds, but where the machine is busy
        if file.exists():
            return
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.02)
    raise AssertionError(f"{file} never appeared")


def test_the_report_is_complete(finished):
    """The report names every arm and holds the picture of each section, in one file."""
    page = (finished.path / "report.html").read_text()
    for words in (
        "behavior cloning",
        "aligned by preferences",
        "negated preferences",
        "Calibration",
        "Learning curves",
    ):
        assert words in page
    assert page.count("data:image/png") >= 4


def test_an_existing_dataset_with_its_labels(tiny, tmp_path):
    """``dataset=`` with ``comparisons=0`` trains on the labels that are there: the same numbers, nothing asked."""
    words = [word for word in TINY if not word.startswith("data.")]
    run = train(tmp_path / "reused", *words, f"dataset={tiny.path / 'dataset'}", "recipe.comparisons=0")
    assert run.result("score") == tiny.result("score")
    for arm in ("arms/aligned", "arms/cpl"):
        assert run.result(arm) == tiny.result(arm)


@pytest.mark.parametrize("arm", ["aligned", "cpl"])
def test_evaluate_is_on_other_seeds(tiny, capsys, arm):
    """``prefrl evaluate`` rolls the policy out anew and writes per-episode results."""
    assert main(["evaluate", str(tiny.path), f"arm={arm}", "episodes=8", "seed=99"]) == 0
    (file,) = (tiny.path / "evaluations").glob(f"*{arm}*.json")
    found = json.loads(file.read_text())
    assert len(found["success"]) == 8
    assert not set(found["seeds"]) & set(tiny.result(f"arms/{arm}")["seeds"])
    assert "success" in capsys.readouterr().out


def test_rewards_of_the_controls():
    """Each arm's reward is what its name says: zero is 0, negated is minus aligned, random is neither."""
    learned, true = torch.randn(60), torch.randn(60)
    common = {
        "learned": learned, "untrained": true, "true": true, "lengths": np.array([30, 30]), "normalization": "std",
        "scale": 1.0, "seed": 0,
    }  # fmt: skip
    rewards = {arm: arm_rewards(arm, **common) for arm in REWARDED}
    assert not rewards["zero"].any()
    torch.testing.assert_close(rewards["negated"], -rewards["aligned"])
    torch.testing.assert_close(rewards["aligned"], (learned - learned.mean()) / learned.std(correction=0))
    assert abs(float(torch.corrcoef(torch.stack([rewards["random"], rewards["aligned"]]))[0, 1])) < 0.5
    with pytest.raises(ConfigError, match="'cpl' learns from no rewards; these do: aligned"):
        arm_rewards("cpl", **common)


def test_answers_of_the_direct_arms():
    """CPL and SFT read the answers, one control their opposites and one fair coins, of the same segments."""
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(400, 2, dtype=torch.bool)
    observations, actions = torch.randn(2, 400, 3, 2, generator=g), torch.randn(2, 400, 2, 1, generator=g)
    sides = [SegmentBatch(observations[i], actions[i], mask) for i in range(2)]
    comparisons = Comparisons(*sides, torch.randint(3, (400,), generator=g) / 2)
    p = {arm: arm_comparisons(arm, comparisons, seed=0).p_first for arm in DIRECT}
    assert torch.equal(p["cpl"], comparisons.p_first)
    assert torch.equal(p["sft"], comparisons.p_first)
    torch.testing.assert_close(p["cpl_negated"], 1 - comparisons.p_first)
    assert set(p["cpl_random"].tolist()) == {0.0, 1.0}
    assert abs(float(p["cpl_random"].mean()) - 0.5) < 0.1
    assert abs(float(torch.corrcoef(torch.stack([p["cpl_random"], p["cpl"]]))[0, 1])) < 0.15
    assert torch.equal(p["cpl_random"], arm_comparisons("cpl_random", comparisons, seed=0).p_first)
    with pytest.raises(ConfigError, match="'bc' learns from no comparisons; these do: sft"):
        arm_comparisons("bc", comparisons, seed=0)


def test_resemblance_recognizes_the_data(finished):
    """The change that each behavior's own episodes make resembles that behavior."""
    episodes = read_dataset(finished.path / "dataset")
    offsets = episodes.observation_offsets
    change = episodes.observations[offsets[1:] - 1] - episodes.observations[offsets[:-1]]
    for name in set(episodes.behavior):
        own = change[np.asarray(episodes.behavior) == name]
        assert resemblance(episodes, own)[name] == 1


def test_no_learner_reads_the_true_reward(tiny, tmp_path):
    """With the true reward of the data replaced after labelling, score and policies stay the same to the last bit."""
    import pyarrow.parquet as pq

    source = tmp_path / "dataset"
    subprocess.run(["cp", "-r", str(tiny.path / "dataset"), str(source)], check=True)
    for shard in (source / "data").rglob("*.parquet"):
        table = pq.ParquetFile(shard).read(use_threads=False)
        column = table.schema.get_field_index("next.reward")
        wrong = np.linspace(-5, 5, len(table)).astype(np.float32)
        field = table.schema.field(column)
        table = table.set_column(column, field, [wrong])
        pq.write_table(table, shard)
    words = [word for word in TINY if not word.startswith("data.")]
    run = train(tmp_path / "run", *words, f"dataset={source}", "recipe.comparisons=0")
    assert run.result("score") == tiny.result("score")
    for arm in ("arms/aligned", "arms/cpl"):
        assert run.result(arm) == tiny.result(arm)
    one, two = (load_checkpoint(r.path / "rewards" / "aligned.safetensors")["rewards"] for r in (run, tiny))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "stage",
    [
        "prefrl.recipes.stages.write_dataset",
        "prefrl.recipes.stages.append_preferences",
        "prefrl.train.fit_score._train_epoch",
        "prefrl.recipes.offline.save_rewards",
        "prefrl.recipes.arms.rollout",
        "prefrl.recipes.offline.videos_offline",
        "prefrl.recipes.offline.report_offline",
    ],
)
def test_ctrl_c_in_every_stage(tiny, tmp_path, monkeypatch, capsys, stage):
    """Ctrl-C as a stage writes what it made: exit code 130, and a resumed run with the same numbers."""

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    run = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(stage, stop)
        assert main(["train", *TINY, f"out={run}"]) == 130
    assert f"prefrl resume {run}" in capsys.readouterr().err
    assert main(["resume", str(run), "workers=1"]) == 0
    assert numbers(RunDirectory.open(run)) == numbers(tiny)


def test_ctrl_c_with_workers(tmp_path):
    """Ctrl-C reaches every worker: exit code 130 at once, and no traceback."""
    run = tmp_path / "stopped"
    words = [w for w in TINY if w != "workers=1" and "updates" not in w]
    process = start(run, [*words, "workers=2", "recipe.updates=120000"], stderr=subprocess.PIPE)
    wait_for(run / "arms/aligned/checkpoint.safetensors", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors.decode()


def test_workers_end_with_their_parent(tmp_path):
    """After SIGKILL of the run, no worker goes on training."""
    run = tmp_path / "killed"
    words = [w for w in TINY if w != "workers=1" and "updates" not in w]
    process = start(run, [*words, "workers=2", "recipe.updates=120000"])
    wait_for(run / "arms/aligned/checkpoint.safetensors", process)
    process.kill()
    process.wait()
    time.sleep(2)
    before = (run / "arms/aligned/checkpoint.safetensors").stat().st_mtime
    time.sleep(1)
    assert (run / "arms/aligned/checkpoint.safetensors").stat().st_mtime == before


def test_the_report_of_an_unfinished_run_says_what_is_missing(tmp_path):
    """A run that was stopped before anything was done has a report that says so."""
    run = tmp_path / "begun"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prefrl.recipes.stages.write_dataset", interrupt)
        assert main(["train", *TINY, f"out={run}"]) == 130
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "&#x27;collect&#x27; is not finished" in page
    assert "No policy was evaluated" in page


def interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_data_of_another_environment_are_refused(tiny, tmp_path, capsys):
    """Data whose sizes do not fit the environment are an error before anything is learned."""
    out = tmp_path / "run"
    words = ["recipe.comparisons=0", "recipe.arms=[bc]", "recipe.video_arms=[]"]
    assert main(["train", f"dataset={tiny.path / 'dataset'}", *words, f"out={out}"]) == 1
    assert "do not fit the environment" in capsys.readouterr().err
    assert not (out / "score").exists()


@pytest.mark.parametrize(
    "word", ["recipe.episodes=0", "recipe.comparisons=-1", "recipe.arms=[bc,bc]", "recipe.arms=[best]"]
)
def test_impossible_numbers_are_refused_at_once(tmp_path, capsys, word):
    """A value that cannot work is an error that names its key, and no run directory is made."""
    assert main(["train", *TINY[:3], word, f"out={tmp_path / 'run'}"]) == 2
    assert word.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_agent_that_learns_from_comparisons_is_refused(tmp_path, capsys):
    """The offline recipe trains on relabeled transitions: another kind of learner is an error before any work."""
    assert main(["train", "env=point_reach", "data=point_conflict", "agent=cpl", f"out={tmp_path / 'run'}"]) == 2
    assert "agent: this one learns from comparisons" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("direct=bc", "direct: this one learns from transitions"),
        ("recipe.direct_updates=0", "recipe.direct_updates must be >= 1"),
        ("recipe.direct_batch_size=0", "recipe.direct_batch_size must be >= 1"),
        (
            "recipe.direct_updates=1500",
            "recipe.direct_updates=1500 never reaches the comparisons, because direct.bc_steps=1500",
        ),
        ("direct=cpl", "direct.bc_steps=200000 updates"),
        ("recipe.comparisons=0", "recipe.comparisons=0 uses the answers of a dataset: give dataset=…"),
    ],
)
def test_a_direct_learner_that_cannot_work_is_refused(tmp_path, capsys, word, said):
    """What learns from transitions, or not at all, is an error before any work."""
    assert main(["train", *COMMON, "recipe.arms=[cpl]", word, f"out={tmp_path / 'run'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["recipe.direct_updates=2000", "direct.decay_steps=400"],
            "500 updates are on comparisons .* is 1 % for the last 100",
        ),
        (["recipe.direct_updates=2000", "direct.decay_steps=501"], "so lr does not fall to 1 %"),
        (["recipe.direct_updates=2000", "direct.decay_steps=500"], "^$"),
        ([], "^$"),
    ],
)
def test_a_learning_rate_that_does_not_fall_with_the_updates_is_told(capsys, words, said):
    """The decay of the direct arms ends with their updates, as by default; else a note says what the rate does."""
    make_recipe(compose("train", [*COMMON, "recipe.arms=[cpl]", *words]))._note_learning_rate()
    assert re.search(said, capsys.readouterr().out.strip())


def test_grid_worlds_are_refused_at_once(tmp_path, capsys):
    """Learners that need continuous actions are told the recipe for grid worlds, before anything is collected."""
    words = ["recipe=cpl", "env=delivery", "data=delivery_random", "teacher=regret_tabular"]
    assert main(["train", *words, f"out={tmp_path / 'run'}"]) == 2
    assert re.search("Box action space, but .*Discrete.* recipe=regret is for grid worlds", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


FAST = ("recipe.arms=[bc]", "recipe.baseline_updates=2", "recipe.episodes=2", "recipe.evaluate_every=0")


def test_answers_that_are_replaced_are_told(tiny, tmp_path, capsys):
    """A dataset's own answers give way to the teacher's with a note of how many they are and whose."""
    train(tmp_path / "run", *COMMON, *FAST, f"dataset={tiny.path / 'dataset'}", "recipe.comparisons=7")
    said = capsys.readouterr().out
    assert re.search(r"note: 100 answers of the dataset \(100 by teacher simulated.*\) are not used", said)
    assert "recipe.comparisons=7 asks the teacher; recipe.comparisons=0 uses them" in said


def test_several_teachers_of_a_dataset_are_told(tiny, tmp_path, capsys):
    """With comparisons=0 the run says who answered and how often; with one teacher it does not."""
    source = tmp_path / "dataset"
    shutil.copytree(tiny.path / "dataset", source)
    words = [*COMMON, *FAST, f"dataset={source}", "recipe.comparisons=0"]
    train(tmp_path / "one", *words)
    assert "several teachers" not in capsys.readouterr().out
    answers = read_preferences(source)[:3]
    append_preferences(source, replace(answers, teacher=('{"name": "people"}',) * 3, rater=np.ones(3)))
    train(tmp_path / "two", *words)
    assert re.search("several teachers: 100 by teacher simulated.*; 3 by name people", capsys.readouterr().out)


def test_unknown_success_is_not_claimed(tiny, tmp_path, capsys):
    """Of data without the true reward neither success nor return is stored, shown or reported."""
    source, known = tmp_path / "dataset", read_dataset(tiny.path / "dataset")
    write_dataset(source, replace(known, env={**known.env, "has_true_reward": False}))
    append_preferences(source, read_preferences(tiny.path / "dataset"))
    run = train(tmp_path / "run", *COMMON, *FAST, f"dataset={source}", "recipe.comparisons=0")
    collected = run.result("collect")
    assert [collected["success"], collected["returns"]] == [None, None]
    assert collected["behaviors"]["goes left"] == {"episodes": 10, "success": None, "return": None}
    page = (run.path / "report.html").read_text()
    assert "10 × goes left; 30 × goes right." in page
    assert "behavior data" not in page + capsys.readouterr().out
    assert "behavior data" in (tiny.path / "report.html").read_text()


def test_the_teacher_who_answered_is_recorded(tiny, tmp_path):
    """With the labels of a dataset, the run names the teacher who made them, whatever teacher is configured."""
    words = [word for word in TINY if not word.startswith("data.")]
    run = train(tmp_path / "run", *words, f"dataset={tiny.path / 'dataset'}", "recipe.comparisons=0")
    (teacher,) = run.result("label")["teachers"]
    assert json.loads(teacher)["reward_per_step"] == pytest.approx(
        json.loads(*tiny.result("label")["teachers"])["reward_per_step"]
    )


@pytest.mark.parametrize(
    "words",
    [
        ["recipe.comparisons=0", "teacher=mistake", "dataset=given"],
        ["recipe.comparisons=0", "recipe.segment_length=5", "dataset=given"],
        ["recipe.arms=[aligned]", "baseline.lr=0.1"],
        ["recipe.arms=[bc]", "agent.lr=0.1"],
        ["recipe.evaluate_every=0", "recipe.curve_episodes=2"],
        ["recipe.arms=[bc,aligned]", "direct.lr=0.1"],
        ["recipe.arms=[bc,aligned]", "recipe.direct_updates=7"],
        ["recipe.arms=[bc,cpl]", "agent.lr=0.1"],
        ["recipe.arms=[bc,cpl]", "score.members=7"],
        ["recipe.arms=[bc,cpl]", "recipe.fit.epochs=7"],
        ["recipe.arms=[cpl,random]", "recipe.baseline_updates=7"],
        ["recipe.arms=[sft]", "recipe.batch_size=7"],
        ["recipe.arms=[sft]", "direct.loss.alpha=0.7"],
    ],
)
def test_keys_without_effect_are_refused(tmp_path, capsys, words):
    """A key that cannot change anything in this run is an error that says why."""
    assert main(["train", "experiment=point", *words, f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert f"{words[1].partition('=')[0]} has no effect" in error
    assert not (tmp_path / "run").exists()


def test_a_signal_to_the_parent_alone_stops_the_workers(tmp_path):
    """SIGINT that reaches only the run's own process: exit code 130, no worker trains on."""
    run = tmp_path / "stopped"
    words = [w for w in TINY if w != "workers=1" and "updates" not in w]
    process = start(run, [*words, "workers=2", "recipe.updates=120000"], stderr=subprocess.PIPE)
    wait_for(run / "arms/aligned/checkpoint.safetensors", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 130
    assert "Traceback" not in errors.decode()
    before = (run / "arms/aligned/checkpoint.safetensors").stat().st_mtime
    time.sleep(1)
    assert (run / "arms/aligned/checkpoint.safetensors").stat().st_mtime == before


def test_every_arm_has_a_short_name_and_one_source():
    """The report has a name for each arm; each learns from rewards, from comparisons, or is behavior cloning."""
    assert set(SHORT) == set(ARMS)
    assert sorted(["bc", *REWARDED, *DIRECT]) == sorted(ARMS)
    assert set(FITTED) <= set(REWARDED)


DIRECT_ONLY = (
    *COMMON, "recipe.comparisons=200", "recipe.arms=[cpl,cpl_negated]", "recipe.direct_updates=800",
    "recipe.direct_batch_size=24", "direct.bc_steps=250", "direct.warmup_steps=50", "direct.lr=3e-3",
    "direct.bc_lr=3e-3", "direct.hidden=[64,64]", "recipe.evaluate_every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def contrasted(tmp_path_factory):
    """A run of contrastive learning only, with a teacher who compares regret, not returns."""
    config = compose("train", DIRECT_ONLY)
    script = {"_target_": "envs.PointBehavior", "target": "left"}
    oracle = {"_target_": "prefrl.value_oracles.ScriptedOracle", "env": config.components["env"], "behavior": script}
    teacher = {"_target_": "prefrl.teachers.PreferenceTeacher", "oracle": oracle, "model": "regret"}
    recipe = make_recipe(replace(config, components={**config.components, "teacher": teacher}))
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "contrasted", config=config.text)
    recipe.train(run)
    return run


def test_answers_decide_what_contrastive_learning_does(contrasted):
    """Without any reward: answers by regret lead to the rare site, their opposites to the other one."""
    assert success(contrasted, "cpl") >= 0.8
    assert contrasted.result("arms/cpl_negated")["resemblance"]["goes right"] >= 0.9


def test_what_no_arm_needs_is_not_done(contrasted):
    """Arms that learn from comparisons need no reward model, and the report misses none."""
    assert [contrasted.result(stage) for stage in ("score", "rewards")] == [None, None]
    assert not (contrasted.path / "score").exists()
    page = (contrasted.path / "report.html").read_text()
    assert "is not finished" not in page
    assert "learned no reward model" in page


def test_the_report_tells_pair_accuracy_from_success(contrasted):
    """How well the answers are explained is shown, with the words that it is not success."""
    page = (contrasted.path / "report.html").read_text()
    assert "It is not success" in page
    for arm in ("cpl", "cpl_negated"):
        assert f"Log-probs of {SHORT[arm]}" in page
        assert read_metrics(contrasted.path / "arms" / arm)[-1]["accuracy"] > 0.6


def test_rewards_without_a_reward_model(tmp_path):
    """Controls on rewards that were not learned need no reward model; cloning in two stages runs beside them."""
    words = [word for word in TINY if not word.startswith(("recipe.arms", "recipe.baseline", "recipe.fit"))]
    run = train(tmp_path / "run", *words, "recipe.arms=[sft,zero]")
    assert run.result("score") is None
    assert run.result("rewards") == {"true_returns": None, "learned_returns": None, "correlation": None}
    assert not load_checkpoint(run.path / "rewards" / "zero.safetensors")["rewards"].any()
    assert run.result("arms/sft") is not None


def test_a_key_of_the_direct_learner_changes_its_numbers(tiny, tmp_path):
    """Its answers, batches and updates matter to it, and to no other arm."""
    words = [word for word in TINY if not word.startswith(("recipe.arms", "data."))]
    common = [*words, f"dataset={tiny.path / 'dataset'}", "recipe.comparisons=0", "recipe.direct_batch_size=8"]
    words = [w for w in common if not w.startswith(("recipe.baseline", "recipe.fit", "recipe.updates"))]
    run = train(tmp_path / "run", *words, "recipe.arms=[cpl,cpl_random]")
    assert run.result("arms/cpl")["returns"] != tiny.result("arms/cpl")["returns"]
    assert run.result("arms/cpl_random")["returns"] != run.result("arms/cpl")["returns"]
