"""Recipe rapl_diffusion: a policy is cloned, its rollouts are ranked, and it is aligned; interrupted or not."""

import functools
import shutil
import signal
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from tiny_online import begun, rows, state

from agents.diffusion.bc import DiffusionBC
from agents.diffusion.preference import DiffusionPreference
from prefrl.cli import main
from prefrl.config import compose
from prefrl.data.preferences import preferences_path, read_preferences
from prefrl.data.storage import read_dataset
from prefrl.data.videos import read_videos
from prefrl.errors import ConfigError, InvalidData, RunDirectoryError
from prefrl.files import flatten, load_checkpoint
from prefrl.launch import make_recipe
from prefrl.recipes.rapl_diffusion_arm import better_half, clone, orders_pairs, ranked_pairs, run_diffusion_arm
from prefrl.recipes.rapl_diffusion_report import collapses, report_rapl_diffusion
from prefrl.recipes.rapl_rewards import load_rewards, thinned
from prefrl.representation.features import VideoFeatures
from prefrl.runs import RunDirectory

pytestmark = pytest.mark.usefixtures("restored")

WORDS = {
    "recipe": "rapl_diffusion", "recipe.arms": "[base,true_reward,aligned,random]", "recipe.video_arms": "[]",
    "data.episodes": "[5,4]", "recipe.clone_updates": 6, "recipe.clone_batch_size": 8, "recipe.rollouts": 5,
    "recipe.pairs": 12, "recipe.updates": 6, "recipe.batch_size": 4, "recipe.checkpoint_every": 2,
    "recipe.episodes": 2, "recipe.comparisons": 6, "recipe.demos": 2, "recipe.frames": 12, "recipe.every": 6,
    "recipe.backbone.components": 8, "recipe.encoder.size": 4, "recipe.align.max_epochs": 2,
    "agent.policy.train_steps": 10, "agent.policy.sampling_steps": 2, "agent.warmup_steps": 2,
    "direct.monitor_every": 2, "direct.demo_chunks": 16, "direct.draws": 2, "workers": 1, "tensorboard": "false",
}  # fmt: skip


def words(**changed):
    given = WORDS | {key.replace("__", "."): value for key, value in changed.items()}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def recipe(**changed):
    return make_recipe(compose("train", words(**changed)))


@functools.cache
def tiny():
    return recipe()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("rapl_diffusion") / "run"
    assert main(["train", *words(), f"out={path}"]) == 0
    return RunDirectory.open(path)


def quiet(*_):
    """No bars."""


def copied(run, path):
    """A run up to its cloned policy and scores, without the arms that are tuned."""
    again = begun(path)
    for folder in ("dataset", "rollouts", "arms/base"):
        shutil.copytree(run.path / folder, again.path / folder)
    for stage in ("collect", "rollouts", "arms/base", "scores"):
        again.finish(stage, run.result(stage))
    return again


def pressing(call, number):
    """``call``, with Ctrl-C during its so-manieth time."""
    calls = []

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return call(*args, **kwargs)

    return pressed


def assert_same_arm(one, two, arm):
    (tensors, plain), (others, other_plain) = (flatten(state(each, arm)) for each in (one, two))
    assert plain == other_plain
    assert [key for key, tensor in tensors.items() if not torch.equal(tensor, others[key])] == []
    assert one.result(f"arms/{arm}") == two.result(f"arms/{arm}") is not None
    assert rows(one, arm) == rows(two, arm)


# resume


def test_an_interrupted_clone_ends_as_an_uninterrupted_one(run, tmp_path):
    """Ctrl-C in behavior cloning, then resumed: equal weights, metrics and results, bitwise."""
    again = begun(tmp_path / "run")
    (again.path / "dataset").symlink_to(run.path / "dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBC, "update", pressing(DiffusionBC.update, 3))
        with pytest.raises(KeyboardInterrupt):
            clone(again, tiny().settings, show=quiet)
    assert again.result("arms/base") is None
    clone(again, tiny().settings, show=quiet)
    assert_same_arm(again, run, "base")


def test_an_interrupted_arm_ends_as_an_uninterrupted_one(run, tmp_path):
    """The same of preference learning."""
    again = copied(run, tmp_path / "run")
    work = functools.partial(run_diffusion_arm, "true_reward", path=again.path, settings=tiny().settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionPreference, "update", pressing(DiffusionPreference.update, 3))
        with pytest.raises(KeyboardInterrupt):
            work()
    work()
    assert_same_arm(again, run, "true_reward")


def test_settings_travel_to_workers():
    """What a process of its own receives can be sent."""
    assert len(ForkingPickler.dumps(tiny().settings)) > 100


# what is learned from


def test_the_higher_score_is_first():
    """Pairs are of different rollouts and follow the scores; equal scores are ties."""
    scores = np.array([3.0, 1.0, 1.0, 2.0, -5.0])
    pairs = ranked_pairs(scores, 200, np.random.default_rng(0))
    gap = scores[pairs.first] - scores[pairs.second]
    assert (gap >= 0).all()
    assert np.array_equal(pairs.p_first, np.where(gap > 0, 1.0, 0.5))
    assert (gap == 0).any()
    assert (pairs.first != pairs.second).all()
    assert set(pairs.first) | set(pairs.second) == set(range(5))


def test_soft_labels_are_logistic_in_standard_deviations():
    """σ(gap / (temperature · std)), whatever the unit of the scores; hard ones are the limit of temperature 0."""
    scores = np.array([0.0, 1.0, 4.0])
    one, scaled, sharp = (
        ranked_pairs(unit * scores, 50, np.random.default_rng(1), temperature=temperature)
        for unit, temperature in ((1.0, 0.5), (100.0, 0.5), (1.0, 1e-3))
    )
    gap = (scores[one.first] - scores[one.second]) / scores.std()
    np.testing.assert_allclose(one.p_first, 1 / (1 + np.exp(-2 * gap)))
    np.testing.assert_allclose(scaled.p_first, one.p_first)
    np.testing.assert_allclose(sharp.p_first, 1.0)


def test_arms_see_the_same_pairs_in_their_own_order():
    """With equal seeds only the order differs; equal scores of all give nothing but ties, soft or hard."""
    one, other = (ranked_pairs(s, 60, np.random.default_rng(0)) for s in ([0.0, 1.0, 2.0], [1.0, 2.0, 0.0]))
    both = [np.sort(np.stack([pairs.first, pairs.second]), axis=0) for pairs in (one, other)]
    assert np.array_equal(*both)
    assert not np.array_equal(one.first, other.first)
    for temperature in (0.0, 1.0):
        assert (ranked_pairs(np.zeros(4), 9, np.random.default_rng(0), temperature=temperature).p_first == 0.5).all()


def test_one_rollout_makes_no_pair():
    """Nor do no pairs make a dataset."""
    for scores, n in (([1.0], 3), ([1.0, 2.0], 0)):
        with pytest.raises(InvalidData, match="need 2 rollouts and n >= 1"):
            ranked_pairs(scores, n, np.random.default_rng(0))


def test_scores_are_those_of_the_arm(run):
    """The environment's return with the preference, the transport distance, or chance."""
    scores, rewards = run.result("scores"), load_rewards(run.path / "rewards", reward=tiny().reward, every=6)
    for folder in ("dataset", "rollouts"):
        episodes, videos = read_dataset(run.path / folder), read_videos(run.path / folder)
        assert scores["true_reward"][folder] == episodes.returns().tolist()
        features = VideoFeatures.compute(rewards.backbone, thinned(videos, 6))
        np.testing.assert_allclose(scores["aligned"][folder], rewards.scores("aligned", features), rtol=1e-5)
    assert scores["true_reward"]["orders_pairs"] == 1
    chance = np.array(scores["random"]["rollouts"])
    assert ((chance >= 0) & (chance < 1)).all()
    assert np.argsort(chance).tolist() != np.argsort(scores["true_reward"]["rollouts"]).tolist()


def test_chance_orders_half_of_the_pairs():
    """Of many episodes; the opposite order has none right."""
    rng = np.random.default_rng(0)
    true = rng.random(300)
    assert orders_pairs(rng.random(300), true) == pytest.approx(0.5, abs=0.05)
    assert orders_pairs(-true, true) == 0
    assert orders_pairs(true, np.zeros(300)) is None


def test_the_person_prefers_a_side(run):
    """Demonstrations to the left get less of the reward than those to the right, though all of them arrive."""
    episodes = read_dataset(run.path / "dataset")
    right = np.array([name == "goes right" for name in episodes.behavior])
    assert episodes.succeeded().all()
    assert episodes.returns()[right].min() > episodes.returns()[~right].max()
    kept = better_half(episodes.returns())  # 5 of 9: the 4 to the right, and the best of the others
    assert set(np.flatnonzero(right)) < set(kept.tolist())
    assert len(kept) == 5


def test_rollouts_may_be_ranked(run, tmp_path):
    """Then the teacher is asked about them, and they show what is wanted."""
    again = copied(run, tmp_path / "run")
    (again.path / "stages" / "scores.json").unlink()
    preferences_path(again.path / "dataset").unlink()
    recipe(recipe__ranked="rollouts").score(again, quiet)
    answers = read_preferences(again.path / "rollouts")
    assert len(answers) == again.result("align")["judgements"] == 6
    assert not preferences_path(again.path / "dataset").exists()
    best = np.argsort(-read_dataset(again.path / "rollouts").returns(), kind="stable")[:2]
    assert again.result("align")["demos"] == best.tolist()


def test_a_dataset_with_videos_and_answers_is_enough(run, tmp_path):
    """Another run takes both over, asks nobody, and ends with the same arms."""
    path = tmp_path / "again"
    given = words(recipe__comparisons=0, recipe__arms="[aligned]", data__episodes=None)
    assert main(["train", *given, f"dataset={run.path / 'dataset'}", f"out={path}"]) == 0
    again = RunDirectory.open(path)
    for stage in ("arms/base", "arms/aligned", "align"):
        assert again.result(stage) == run.result(stage)


def test_a_dataset_of_another_preference_is_refused(run):
    """Its rewards would be wrong, and nobody would notice."""
    other = recipe(recipe__preference__preferred_side="left")
    with pytest.raises(ConfigError, match=r"preferred_side='right', but recipe.preference.preferred_side is 'left'"):
        other.check_data(read_dataset(run.path / "dataset"))


def test_demonstrations_that_are_not_there_are_named_before_cloning(run, tmp_path):
    """More than there are episodes: found as soon as these are collected."""
    again = copied(run, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"recipe.demos=99 must be from 1 to the number of episodes, 9"):
        recipe(recipe__demos=99).collect(again, quiet)


# collapse


def test_a_collapse_ends_the_arm_with_its_best_weights(run, tmp_path):
    """It is said in the result and in the report, and the policy is judged all the same."""
    again = copied(run, tmp_path / "run")
    reckless = functools.partial(tiny().direct, lr=0.3, anchor=0.0, collapse_limit=1e-3, monitor_every=1)
    settings = replace(tiny().settings, direct=reckless, updates=200)
    run_diffusion_arm("true_reward", path=again.path, settings=settings)
    result = again.result("arms/true_reward")
    assert "demonstrations" in result["collapse"]
    assert result["updates"] < 200
    assert result["demo_error_ratio"] > 1.001
    assert len(result["preferred"]) == 2
    base, kept = (
        load_checkpoint(again.path / "arms" / arm / "policy.safetensors")["policy"] for arm in ("base", "true_reward")
    )
    if "of update 0 again" in result["collapse"]:
        assert all(torch.equal(base[key], kept[key]) for key in base)
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())
    assert collapses(again, ["true_reward"])
    assert "collapsed, and was judged by its best weights" in report_rapl_diffusion(again, ["true_reward"]).read_text()


def test_no_other_error_is_taken_for_a_collapse(run, tmp_path):
    """A checkpoint of other settings is an error, not a result."""
    again = copied(run, tmp_path / "run")
    shutil.copytree(run.path / "arms" / "true_reward", again.path / "arms" / "true_reward")
    with pytest.raises(RunDirectoryError, match="batch_size"):
        run_diffusion_arm("true_reward", path=again.path, settings=replace(tiny().settings, batch_size=3))
    assert again.result("arms/true_reward") is None


# what is shown, and what is refused


def test_the_report_shows_base_and_every_arm(run):
    """And the error on demonstrations, which begins at 1."""
    page = (run.path / "report.html").read_text()
    assert all(f'<th scope="row">{arm}' in page for arm in ("base", "true_reward", "aligned", "random"))
    assert "Collapse monitor" in page
    assert run.result("arms/base")["demo_error_ratio"] == 1
    assert run.result("arms/true_reward")["collapse"] is None


def test_base_can_be_evaluated_anew(run, capsys):
    """As every arm."""
    assert main(["evaluate", str(run.path), "arm=base", "episodes=1", "seed=5"]) == 0
    assert "base: 1 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recipe__arms": "[base,best]"}, "unknown arm 'best'"),
        ({"recipe__arms": "[base]"}, "tunes nothing"),
        ({"recipe__arms": "[random,random]"}, "an arm twice"),
        ({"recipe__pairs": 0}, "recipe.pairs must be >= 1"),
        ({"recipe__rollouts": 1}, "recipe.rollouts must be >= 2"),
        ({"recipe__temperature": -1.0}, "recipe.temperature must be >= 0"),
        ({"recipe__comparisons": 0}, "give dataset"),
        ({"recipe__ranked": "videos"}, "recipe.ranked must be one of"),
        ({"recipe__preference__preferred_side": "up"}, "do not fit this environment"),
        ({"env.preferred_side": "left"}, "recipe.preference says it"),
        ({"direct__draws": 0}, "draws must be >= 1"),
        ({"agent": "bc_deterministic"}, "does not denoise"),
        ({"agent": "cpl_small"}, "agent: this one learns from comparisons"),
        ({"direct": "cpl_small"}, "direct: this one takes no demonstrations"),
        ({"recipe__arms": "[true_reward]", "recipe__align__epsilon": 0.2}, "has no effect"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_collected(changed, said):
    """The error names the key and what to do."""
    replaced = tuple(f"{slot}." for slot in ("agent", "direct") if slot in changed)
    unset = dict.fromkeys(key for key in WORDS if replaced and key.startswith(replaced))
    with pytest.raises(ConfigError, match=said):
        recipe(**unset, **changed)
