"""Recipe rapl: videos are ranked, a metric is aligned, and an agent learns from it; interrupted or not."""

import functools

import numpy as np
import pytest
import torch
from tiny_online import begun, rows, state, stopping

from agents.online_sac import OnlineSAC
from prefrl.cli import main
from prefrl.config import compose
from prefrl.data.preferences import read_preferences
from prefrl.data.storage import read_dataset
from prefrl.data.videos import every_kth, read_videos
from prefrl.errors import ConfigError, DamagedFile
from prefrl.files import flatten
from prefrl.launch import make_recipe
from prefrl.recipes.rapl_arm import RaplArm, run_rapl_arm
from prefrl.recipes.rapl_rewards import load_rewards, thinned
from prefrl.recipes.rapl_stages import choose_demos
from prefrl.representation import OTReward, VideoFeatures
from prefrl.runs import MetricLogger, RunDirectory

pytestmark = pytest.mark.usefixtures("restored")

WORDS = {
    "recipe": "rapl", "recipe.arms": "[aligned,rlhf,task_reward]", "recipe.video_arms": "[]",
    "data.episodes": "[4,4,6,3,3,3]", "recipe.comparisons": 36, "recipe.demos": 2, "recipe.frames": 12,
    "recipe.every": 6, "recipe.backbone.components": 8, "recipe.encoder.size": 4, "recipe.align.max_epochs": 3,
    "recipe.rlhf.epochs": 3, "recipe.steps": 240, "recipe.log_every": 60, "recipe.checkpoint_every": 120,
    "recipe.episodes": 2, "online_agent.learning_starts": 60, "online_agent.batch_size": 8,
    "online_agent.hidden": "[16]", "online_agent.train_every": 4, "workers": 1, "tensorboard": "false",
}  # fmt: skip


def words(**changed):
    given = WORDS | {key.replace("__", "."): value for key, value in changed.items()}
    return [f"{key}={value}" for key, value in given.items()]


def recipe(**changed):
    return make_recipe(compose("train", words(**changed)))


@functools.cache
def tiny():
    return recipe()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("rapl") / "run"
    assert main(["train", *words(), f"out={path}"]) == 0
    return RunDirectory.open(path)


@pytest.mark.parametrize(
    ("name", "number", "after"), [("collect", 3, False), ("save", 1, True), ("log", 3, False), ("log", 3, True)]
)
def test_an_interrupted_arm_ends_as_an_uninterrupted_one(run, name, number, after, tmp_path):
    """Ctrl-C, then resumed: equal weights, experience, rewards and results, bitwise."""
    again = begun(tmp_path / "run")
    (again.path / "rewards").symlink_to(run.path / "rewards")
    where = {"save": RaplArm, "collect": OnlineSAC, "log": MetricLogger}[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, stopping(getattr(where, name), number, after=after))
        with pytest.raises(KeyboardInterrupt):
            run_rapl_arm("aligned", path=again.path, settings=tiny().settings)
    run_rapl_arm("aligned", path=again.path, settings=tiny().settings)
    (tensors, plain), (others, other_plain) = (flatten(state(one)) for one in (again, run))
    assert plain == other_plain
    assert [key for key, tensor in tensors.items() if not torch.equal(tensor, others[key])] == []
    assert again.result("arms/aligned") == run.result("arms/aligned")
    assert rows(again) == rows(run)


def test_what_is_learned_from_is_the_reward_of_the_video(run, tmp_path):
    """Rewards in the experience are those of each episode's frames; they sum to scale times the video's score."""
    again, seen = begun(tmp_path / "run"), []
    (again.path / "rewards").symlink_to(run.path / "rewards")
    rewarded = OTReward.reward

    def watched(self, frames):
        rewards = rewarded(self, frames)
        score = self.scores(self.backbone(every_kth(frames[1:], self.every))[None])
        assert rewards.sum() == pytest.approx(self.options.scale * score.item(), rel=1e-4)
        seen.append(rewards)
        return rewards

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OTReward, "reward", watched)
        run_rapl_arm("aligned", path=again.path, settings=tiny().settings)
    assert len(seen) == 4
    np.testing.assert_array_equal(state(again)["learner"]["world"]["experience"]["rewards"], np.concatenate(seen))


def test_arms_differ_in_the_reward_alone(run):
    """Until the agent acts by itself, equal seeds have done the same in every arm."""
    seen = {
        arm: state(run, arm)["learner"]["world"]["experience"]["actions"][:60] for arm in ("aligned", "task_reward")
    }
    assert torch.equal(seen["aligned"], seen["task_reward"])


def test_answers_are_counted_in_one_currency(run):
    """36 answers are 36 judgements, however many of them are rankings of three."""
    found = run.result("align")
    assert len(read_preferences(run.path / "dataset")) == found["judgements"] == 36
    assert found["triplets"] <= 12


def test_a_video_goes_with_each_episode(run):
    """Frames are those after the steps, so a video is as long as its episode."""
    assert np.array_equal(read_videos(run.path / "dataset").lengths, read_dataset(run.path / "dataset").lengths)


def test_demonstrations_are_at_no_distance_from_themselves(run):
    """Read back, and with exact plans: the demonstrations score 0, which is the most, and other videos less."""
    rewards = load_rewards(run.path / "rewards", reward=functools.partial(OTReward, plan="exact"), every=6)
    videos = thinned(read_videos(run.path / "dataset"), 6)
    scores = rewards.scores("unaligned", VideoFeatures.compute(rewards.backbone, videos))
    shown = run.result("align")["demos"]
    np.testing.assert_allclose(scores[shown], 0, atol=1e-4)
    assert (np.delete(scores, shown) < -1e-3).all()


def test_missing_rewards_are_named(tmp_path):
    """A folder without a backbone is an error that says which file, and what to do."""
    with pytest.raises(DamagedFile, match=r"backbone\.safetensors"):
        load_rewards(tmp_path, reward=tiny().reward, every=6)


def test_a_dataset_with_videos_and_answers_is_enough(run, tmp_path):
    """Another run takes both over, asks nobody, and learns the same rewards."""
    path = tmp_path / "again"
    given = [
        word
        for word in words(recipe__comparisons=0, recipe__arms="[aligned]", recipe__steps=60)
        if not word.startswith(("data.", "recipe.rlhf."))
    ]
    assert main(["train", *given, f"dataset={run.path / 'dataset'}", f"out={path}"]) == 0
    found, before = RunDirectory.open(path).result("align"), run.result("align")
    assert found["align"] == before["align"]


def test_demonstrations_may_be_named(run):
    """Numbers are taken as they are; a number that is no episode's is an error."""
    episodes = read_dataset(run.path / "dataset")
    assert choose_demos(episodes, [3, 1]) == [3, 1]
    with pytest.raises(ConfigError, match="different numbers"):
        choose_demos(episodes, [0, 99])


def test_the_highest_returns_are_shown(run):
    """So many demonstrations are the episodes of the highest true return."""
    episodes = read_dataset(run.path / "dataset")
    returns = np.array([episodes.true_reward[i * 60 : (i + 1) * 60].sum() for i in range(len(episodes))])
    assert sorted(returns[choose_demos(episodes, 2)]) == sorted(returns)[-2:]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recipe__arms": "[aligned,best]"}, "unknown arm 'best'"),
        ({"recipe__comparisons": 0}, "give dataset"),
        ({"recipe__every": 0}, "recipe.every must be >= 1"),
        ({"recipe__arms": "[task_reward]", "recipe__align__epsilon": 0.2}, "has no effect"),
        ({"env": "halfcheetah", "data": "random"}, "task_reward cannot act"),
        ({"online_agent": "iql"}, "one that acts"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_collected(changed, said):
    """The error names the key and what to do."""
    given = WORDS | {key.replace("__", "."): value for key, value in changed.items()}
    if "env" in changed or changed.get("online_agent") == "iql":
        given = {k: v for k, v in given.items() if not k.startswith(("data.", "online_agent."))}
    with pytest.raises(ConfigError, match=said):
        make_recipe(compose("train", [f"{key}={value}" for key, value in given.items()]))
