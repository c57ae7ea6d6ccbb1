"""Recipe pearl, end to end on a toy: which labels reach which arm, and what a run leaves and says."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefrl.cli import main
from prefrl.config import compose
from prefrl.data.preferences import preferences_path, read_preferences, write_preferences
from prefrl.data.storage import read_dataset
from prefrl.evaluation.pair_accuracy import pair_accuracy
from prefrl.evaluation.transport_plots import binned_plan, plan_map
from prefrl.launch import make_recipe
from prefrl.runs import RunDirectory
from prefrl.transfer.datasets import TRANSFERRED

pytestmark = pytest.mark.usefixtures("restored")

WORDS = [
    "recipe=pearl", "env=point_reach", "data=point_conflict", "source_env=point_reach", "source_data=point_conflict",
    "features=motion", "recipe.comparisons=60", "recipe.oracle_comparisons=20", "recipe.segment_length=6",
    "recipe.reward_updates=20", "recipe.updates=20", "recipe.baseline_updates=20", "recipe.evaluate_every=0",
    "recipe.episodes=3", "recipe.max_steps=10", "recipe.video_arms=[]",
    "recipe.arms=[bc,aligned,negated,oracle,few_10,spread_10,source_reward,zero]",
    "recipe.transfer.windows=40", "recipe.transfer.comparisons=50", "workers=1",
    "tensorboard=false", "score.hidden=[16]", "score.members=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("pearl") / "run"
    assert main(["train", *WORDS, f"out={path}"]) == 0
    return RunDirectory.open(path)


def rewards(run, arm):
    from prefrl.files import load_checkpoint

    return load_checkpoint(run.path / "rewards" / f"{arm}.safetensors")["rewards"]


def test_only_transferred_answers_stand_in_the_target(run):
    """The teacher answers about the source; the target holds what was carried, and says so."""
    target, source = read_preferences(run.path / "dataset"), read_preferences(run.path / "source")
    assert {json.loads(text)["name"] for text in target.teacher} == {TRANSFERRED}
    assert TRANSFERRED not in {json.loads(text).get("name") for text in source.teacher}
    assert (len(target), len(source)) == (50, 60)


def test_the_two_tasks_have_other_episodes(run):
    """Source and target are collected from different seeds."""
    assert not set(read_dataset(run.path / "source").seeds) & set(read_dataset(run.path / "dataset").seeds)


def test_each_arm_learns_from_its_own_labels(run):
    """aligned from all transferred ones, few_10 from 10 of the target's, oracle from all of those."""
    assert {name: run.result(f"scores/{name}")["labels"] for name in ("aligned", "oracle", "few_10")} == {
        "aligned": 50, "oracle": 20, "few_10": 10,
    }  # fmt: skip
    assert torch.allclose(rewards(run, "negated"), -rewards(run, "aligned"), atol=1e-5)
    assert not torch.allclose(rewards(run, "few_10"), rewards(run, "oracle"))
    assert rewards(run, "zero").abs().max() == 0


def test_few_labels_get_as_many_updates(run):
    """Every reward is trained for reward_updates, up to a whole pass."""
    assert run.result("scores/few_10")["epochs"] == 20
    assert run.result("scores/aligned")["epochs"] == 20


def test_the_report_says_what_was_carried(run, capsys):
    """The verdict in words, the plan, the accuracy of labels, and what the transfer is worth."""
    text = (run.path / "report.html").read_text(encoding="utf-8")
    for said in ("verdict: ", "Transport plan", "Accuracy and confidence", "Transferred labels: success"):
        assert said in text
    moved = run.result("transfer")
    assert moved["accuracy"][0] > 0.6
    assert np.isclose(np.sum(moved["plan"]), 1, atol=1e-3)


def test_a_finished_run_is_taken_up_without_learning(run, capsys):
    """Resuming changes no result; an arm can be evaluated on other seeds."""
    before = rewards(run, "aligned")
    assert main(["resume", str(run.path), "workers=1"]) == 0
    assert torch.equal(rewards(run, "aligned"), before)
    assert main(["evaluate", str(run.path), "arm=few_10", "episodes=2"]) == 0


def test_a_refused_transfer_ends_the_run(tmp_path, capsys):
    """A plan that says nothing: the reasons are printed, no answer is written, no arm is trained."""
    words = [word for word in WORDS if "video" not in word]
    path = tmp_path / "run"
    assert main(["train", *words, "recipe.video_arms=[]", "recipe.transfer.epsilon=100.0", f"out={path}"]) == 1
    said = capsys.readouterr()
    assert "verdict: refuse" in said.out
    assert "refused" in said.err
    assert not preferences_path(path / "dataset").exists()
    assert not (path / "arms").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.arms=[bc,cpl]"], "unknown arm 'cpl'.*few_N"),
        (["recipe.arms=[few_0]"], "unknown arm 'few_0'"),
        (["recipe.arms=[bc,bc]"], "an arm twice"),
        (["recipe.arms=[few_50]"], "few_50 needs recipe.oracle_comparisons >= 50: 20"),
        (["recipe.video_arms=[few_10]"], "recipe.video_arms: unknown arm 'few_10'"),
        (["recipe.updates=0"], "recipe.updates must be >= 1"),
        (["recipe.transfer.methood=gromov"], "recipe.transfer.methood"),
        (["recipe.transfer.method=magic"], "recipe.transfer.method"),
        (["recipe.arms=[bc,aligned]"], "recipe.oracle_comparisons has no effect"),
        (["agent.no_such=1"], "Unknown key 'agent.no_such'"),
    ],
)
def test_wrong_keys_are_named(words, message):
    """The key, its value, what is allowed, before anything is collected."""
    given = {word.partition("=")[0]: word for word in [*WORDS, *words]}
    with pytest.raises(Exception, match=message):
        make_recipe(compose("train", list(given.values())))


def test_other_recipes_take_no_source():
    """A source would have no effect in a recipe that carries nothing."""
    with pytest.raises(Exception, match="source_env has no effect in recipe 'offline'"):
        make_recipe(compose("train", ["source_env=point_reach"]))


def test_the_true_reward_orders_every_pair(run):
    """Its accuracy is 1, that of its negative 0."""
    target = read_dataset(run.path / "dataset")
    true = torch.as_tensor(target.true_reward)
    assert pair_accuracy(true, target, 6, seed=0) == 1
    assert pair_accuracy(-true, target, 6, seed=0) == 0


def test_a_binned_plan_keeps_its_mass():
    """Whatever the order and the number of bins; fewer items than bins stay as they are."""
    rng = np.random.default_rng(0)
    plan = rng.uniform(size=(7, 50))
    binned = binned_plan(plan, rng.normal(size=7), rng.normal(size=50), bins=20)
    assert binned.shape == (7, 20)
    np.testing.assert_allclose(binned.sum(), plan.sum())
    assert plan_map(binned, source="a", target="b")[1:4] == b"PNG"


def test_labels_of_the_target_join_the_transferred(tmp_path):
    """target_comparisons=10: the teacher's ten answers about the target stand beside those that were carried."""
    words = [word for word in WORDS if not any(name in word for name in ("arms=", "oracle", "baseline"))]
    path = tmp_path / "run"
    assert main(["train", *words, "recipe.arms=[aligned]", "recipe.target_comparisons=10", f"out={path}"]) == 0
    names = [json.loads(text).get("name") for text in read_preferences(path / "dataset").teacher]
    assert names.count(TRANSFERRED) == len(names) - 10


def test_labelled_data_are_taken_as_they_are(run, tmp_path):
    """source_dataset and dataset: nothing is collected, and the source's own answers are carried."""
    replaced = ("data=", "source_data=", "recipe.comparisons", "recipe.arms", "recipe.oracle", "recipe.baseline")
    words = [word for word in WORDS if not word.startswith(replaced)]
    given = [f"dataset={run.path / 'dataset'}", f"source_dataset={run.path / 'source'}", "recipe.comparisons=0"]
    path = tmp_path / "again"
    assert main(["train", *words, *given, "recipe.arms=[aligned]", f"out={path}"]) == 0
    assert RunDirectory.open(path).result("label")["comparisons"] == 60
    again, before = read_preferences(path / "dataset"), read_preferences(run.path / "dataset")
    assert (len(again), set(again.rater)) == (len(before), {0, 1, 2, 3})


def test_answers_of_a_dataset_need_one(tmp_path, capsys):
    """comparisons=0 without a labelled source is an error that names the key."""
    words = [word for word in WORDS if "recipe.comparisons" not in word]
    assert main(["train", *words, "recipe.comparisons=0", f"out={tmp_path / 'run'}"]) == 2
    assert "give source_dataset" in capsys.readouterr().err


def test_spread_labels_join_the_labels_themselves(run):
    """spread_10 learns from more answers than few_10, of the same target."""
    assert run.result("scores/few_10")["labels"] == 10
    assert run.result("scores/spread_10")["labels"] > 10


def test_a_kill_while_labels_join_loses_none(run, tmp_path):
    """Killed after the answers were written, and before the stage was finished: resumed, nothing is lost or doubled."""
    given = tmp_path / "target"
    shutil.copytree(run.path / "dataset", given)
    held = read_preferences(given)
    write_preferences(given, replace(held[:15], teacher=('{"name": "people"}',) * 15))
    replaced = ("data=", "source_data=", "recipe.comparisons", "recipe.arms", "recipe.oracle", "recipe.baseline")
    words = [word for word in WORDS if not word.startswith(replaced)]
    words += [f"dataset={given}", f"source_dataset={run.path / 'source'}", "recipe.comparisons=0"]
    path = tmp_path / "again"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prefrl.recipes.pearl.transfer_summary", interrupt)
        assert main(["train", *words, "recipe.arms=[aligned]", f"out={path}"]) == 130
    assert main(["resume", str(path), "workers=1"]) == 0
    names = [json.loads(text).get("name") for text in read_preferences(path / "dataset").teacher]
    assert (names.count("people"), names.count(TRANSFERRED)) == (15, 50)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe.arms=[bc,random]", "recipe.transfer.share=0.3"], "recipe.transfer.share has no effect"),
        (["recipe.arms=[bc,oracle]", "recipe.target_comparisons=5"], "recipe.target_comparisons has no effect"),
        (["recipe.arms=[aligned]", "recipe.baseline_updates=7"], "recipe.baseline_updates has no effect"),
        (["source_env.target=up"], "source_env: "),
        (["recipe.transfer.share=7"], "recipe.transfer: share must be in"),
        (["recipe.arms=[source_reward]", "source_env=hopper", "source_data=hopper_gaits"], "needs equal sizes"),
        (["features=metaworld"], "features are made for 39 observations"),
        (["source_dataset=nowhere", "source_data=point_conflict"], "no effect when source_dataset is given"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_done(words, said, tmp_path, capsys):
    """Keys without effect, and parts that do not fit, are named; there is no run directory then."""
    parts = ["env=point_reach", "data=point_conflict", "source_env=point_reach", "source_data=point_conflict",
             "features=motion"]  # fmt: skip
    given = {word.partition("=")[0] for word in words}
    unread = ("source", "features") if "recipe.arms=[b" in words[0] else ()
    few = [word for word in parts if word.partition("=")[0] not in given and not word.startswith(unread)]
    assert main(["train", "recipe=pearl", *few, *words, f"out={tmp_path / 'run'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_source_reward_learns_from_the_source_alone(run):
    """source_reward: as many labels as the teacher gave about the source, and another reward than the transferred."""
    assert run.result("scores/source_reward")["labels"] == 60
    assert not torch.equal(rewards(run, "source_reward"), rewards(run, "aligned"))
