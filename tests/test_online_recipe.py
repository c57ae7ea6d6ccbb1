"""Recipe online: what each arm learns from, that an interrupted run ends as one that was not, what is refused."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_online import AGENT, answers_of, assert_same_run, begun, rows, state, stopping, words

from prefrl.cli import main
from prefrl.config import compose
from prefrl.core import SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.query import UniformQuery
from prefrl.data.storage import read_dataset
from prefrl.errors import ConfigError, InvalidData
from prefrl.files import flatten
from prefrl.launch import make_recipe
from prefrl.recipes import online_arm
from prefrl.recipes.online_answers import AnswerBook, Recent
from prefrl.recipes.online_arm import OnlineArm, run_online_arm
from prefrl.runs import RunDirectory

pytestmark = pytest.mark.usefixtures("restored")

ARMS = {"recipe__arms": "[aligned,true_reward,untrained]", "recipe__checkpoint_every": 80}


def recipe(kind="sac", **changed):
    """A tiny one that saves itself at every other stop."""
    return make_recipe(compose("train", words(kind, **(ARMS | changed))))


@functools.cache
def tiny():
    """That of no other words."""
    return recipe()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("online") / "run"
    assert main(["train", *words(**ARMS), f"out={path}"]) == 0
    return RunDirectory.open(path)


PLACES = [
    (OnlineArm, "collect", 2, False),
    (OnlineArm, "save", 1, True),
    (OnlineArm, "hold", 1, True),
    (AnswerBook, "add", 2, True),
    (online_arm.MetricLogger, "log", 4, True),
    (online_arm, "judge", 1, False),
]  # fmt: skip  (what the disk holds differs from one to the next)


@pytest.mark.parametrize(("where", "name", "number", "after"), PLACES, ids=[f"{name}-{n}" for _, name, n, _ in PLACES])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(run, where, name, number, after, tmp_path):
    """Ctrl-C anywhere, then resumed: equal weights, moments, experience, answers, metrics and results, bitwise."""
    settings, again = tiny().settings, begun(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, stopping(getattr(where, name), number, after=after))
        with pytest.raises(KeyboardInterrupt):
            run_online_arm("aligned", path=again.path, settings=settings)
    run_online_arm("aligned", path=again.path, settings=settings)
    assert_same_run(again, run)


def test_all_arms_explore_alike(run):
    """Until the first session no reward is known, so equal seeds have done the same, whatever comes after."""
    seen = {
        arm: state(run, arm)["learner"]["world"]["experience"]["observations"] for arm in ("aligned", "true_reward")
    }
    explored = 80 + 80 // 20  # steps, and one more for each episode
    assert torch.equal(seen["aligned"][:explored], seen["true_reward"][:explored])
    assert not torch.equal(seen["aligned"], seen["true_reward"])


def test_the_true_reward_reaches_only_its_own_arm(run):
    """What an arm learned from: the environment's reward, or the mean of the ensemble, for every step there is."""
    kept = {arm: state(run, arm)["learner"]["world"]["experience"] for arm in ("aligned", "true_reward", "untrained")}
    assert torch.equal(kept["true_reward"]["rewards"], kept["true_reward"]["true_reward"])
    episodes = read_dataset(run.path / "arms/aligned/dataset")
    settings = tiny().settings
    at_work = OnlineArm("aligned", run.path / "arms/aligned", settings)
    with torch.no_grad():
        data = episodes.transitions(torch.zeros(episodes.num_steps))
        expected = at_work.score.reward(data.observations, data.actions).mean(0)
    at_work.learner.close()
    torch.testing.assert_close(kept["aligned"]["rewards"][: len(expected)], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(kept["untrained"]["rewards"], kept["aligned"]["rewards"])


def test_who_asks_nobody_has_no_answers(run):
    """Only the aligned arm asks; the others hold no answer, and no score that was trained."""
    assert [session.get("answered") for session in run.result("arms/aligned")["sessions"]] == [7, 14]
    for arm in ("true_reward", "untrained"):
        assert not (run.path / "arms" / arm / "answers.safetensors").exists()
        assert len(run.result(f"arms/{arm}")["sessions"]) == 1


def test_metrics_have_one_row_a_stop(run):
    """Steps are those of the log and of the sessions; a session's own numbers stand in its row."""
    found = rows(run, "aligned")
    assert list(found) == [40, 80, 120, 160, 200, 240]
    assert [step for step, row in found.items() if "answered" in row] == [80, 160]
    assert all("true_return" in row for row in found.values())


def test_the_report_shows_what_was_learned(run):
    """Arms, learning curves, and how the reward orders pairs."""
    text = (run.path / "report.html").read_text(encoding="utf-8")
    for said in ("aligned", "true_reward", "Learning curves", "From 14 answers", "held-out accuracy"):
        assert said in text


def test_a_finished_run_is_taken_up_without_learning(run):
    """Resuming changes nothing; an arm can be evaluated on other seeds; its data are a dataset with answers."""
    before = flatten(state(run))[0]
    assert main(["resume", str(run.path), "workers=1"]) == 0
    after = flatten(state(run))[0]
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []
    assert main(["evaluate", str(run.path), "arm=aligned", "episodes=2"]) == 0
    assert main(["label", str(run.path / "arms/aligned/dataset"), "comparisons=3", "segment_length=5"]) == 0


def test_an_active_query_gets_the_score_from_the_second_session_on(tmp_path, monkeypatch):
    """The first questions are uniform; then pairs are chosen by what the score has learned, and none comes twice."""
    told = []

    class Watched:
        def __call__(self, lengths, n, segment_length, rng, *, episodes=None, score=None, labelled=None):
            told.append((episodes is not None, score is not None))
            return uniform(lengths, n, segment_length, rng, labelled=labelled)

        def remaining(self, *args):
            return uniform.remaining(*args)

    settings = tiny().settings
    uniform = settings.query
    run = begun(tmp_path / "run")
    run_online_arm("aligned", path=run.path, settings=replace(settings, query=Watched()))
    assert told == [(False, False), (True, True)]
    answers = answers_of(run)
    sides = [list(zip(s.episode.tolist(), s.start.tolist(), strict=True)) for s in (answers.first, answers.second)]
    assert len({frozenset(pair) for pair in zip(*sides, strict=True)}) == 14


def test_questions_are_about_recent_episodes():
    """Only the last three episodes, numbered as all are; all different pairs once, then none is left."""
    lengths, rng = np.array([9, 9, 4, 5, 4]), np.random.default_rng(0)
    query = Recent(UniformQuery(), last=3)
    old = SegmentRefs([0, 2], [0, 0], [4, 4]), SegmentRefs([1, 3], [0, 1], [4, 4])  # one pair of recent ones
    assert query.remaining(lengths, 4, old) == 4 * 3 // 2 - 1
    first, second = query(lengths, 5, 4, rng, labelled=old)
    sides = [list(zip(refs.episode.tolist(), refs.start.tolist(), strict=True)) for refs in (first, second)]
    found = {frozenset(pair) for pair in zip(*sides, strict=True)}
    assert len(found) == 5
    assert frozenset([(2, 0), (3, 1)]) not in found
    assert set(first.episode) | set(second.episode) <= {2, 3, 4}
    with pytest.raises(InvalidData, match="not asked before"):
        query(lengths, 6, 4, rng, labelled=old)


def test_negated_learns_the_opposite(tmp_path):
    """It asks as aligned does, and its reward is the negative of what it has learned."""
    settings, run = recipe(recipe__arms="[negated]").settings, begun(tmp_path / "run")
    run_online_arm("negated", path=run.path, settings=settings)
    at_work = OnlineArm("negated", run.path / "arms/negated", settings)
    kept = state(run, "negated")["learner"]["world"]["experience"]
    episodes = Episodes(**at_work.learner.episodes()._asdict())
    at_work.learner.close()
    with torch.no_grad():
        data = episodes.transitions(torch.zeros(episodes.num_steps))
        expected = -at_work.score.reward(data.observations, data.actions).mean(0)
    torch.testing.assert_close(kept["rewards"][: len(expected)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": ["bc"]}, "unknown arm 'bc'"),
        ({"arms": ["aligned", "aligned"]}, "an arm twice"),
        ({"sessions": 0}, "recipe.sessions must be >= 1"),
        ({"steps": 160}, "recipe.steps=160 must be more than 160"),
        ({"first_share": 2}, "first_share must be in"),
        ({"schedule": "never"}, "schedule must be one of"),
    ],
)
def test_wrong_values_are_named(changed, message):
    """The key, its value, what is allowed, before there is a run."""
    with pytest.raises(ConfigError, match=message):
        replace(tiny(), **changed)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("sac", {"recipe__arms": "[true_reward]"}, "has no effect: recipe.arms has none of aligned, negated"),
        ("sac", {"recipe__schedule": "never"}, "recipe.schedule"),
        ("sac", {"data": "random"}, "data has no effect in recipe 'online'"),
        ("sac", {"env": "delivery"}, "env"),
        ("sac", {"online_agent__num_envs": 3}, "explore_steps=80 must be a multiple of online_agent.num_envs=3"),
        ("ppo", {"recipe__log_every": 50}, "recipe.log_every=50 must be a multiple of online_agent.rollout_steps=40"),
        ("ppo", dict.fromkeys(AGENT["ppo"]) | {"online_agent": "iql"}, "online_agent: this one learns from given data"),
    ],
)
def test_wrong_words_are_named(kind, changed, message):
    """Those that do not fit together too."""
    with pytest.raises(ConfigError, match=message):
        recipe(kind, **changed)
