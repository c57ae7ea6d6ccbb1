"""Recipe online: what each arm learns from, that an interrupted run ends as one that was not, what is refused."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import envs
from prefrl.cli import main
from prefrl.config import compose
from prefrl.core import SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.preferences import read_preferences
from prefrl.data.query import UniformQuery
from prefrl.data.storage import read_dataset
from prefrl.errors import ConfigError, InvalidData
from prefrl.files import flatten, load_checkpoint
from prefrl.launch import make_recipe
from prefrl.recipes import online_arm
from prefrl.recipes.online_answers import AnswerBook, Recent
from prefrl.recipes.online_arm import OnlineArm, run_online_arm
from prefrl.runs import RunDirectory, read_metrics
from prefrl.teachers import SimulatedTeacher

WORDS = [
    "recipe=online", "env=point_reach", "env.max_episode_steps=20", "recipe.arms=[aligned,true_reward,untrained]",
    "recipe.video_arms=[]", "recipe.steps=240", "recipe.explore_steps=80", "recipe.sessions=2",
    "recipe.session_interval=80", "recipe.comparisons=14", "recipe.segment_length=5", "recipe.log_every=40",
    "recipe.episodes=3", "recipe.max_steps=20", "recipe.checkpoint_every=80", "recipe.fit.epochs=3",
    "score.hidden=[16]", "workers=1", "tensorboard=false",
]  # fmt: skip
AGENT = {
    "sac": ["online_agent.learning_starts=40", "online_agent.batch_size=16", "online_agent.hidden=[16]",
            "online_agent.train_every=3", "online_agent.reset_updates=5"],
    "ppo": ["online_agent=ppo_online", "online_agent.rollout_steps=40", "online_agent.batch_size=8",
            "online_agent.hidden=[16]", "online_agent.epochs=2"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What preparing a run sets globally is set back."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "1")
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def recipe(kind="sac", *words):
    """A tiny one; later words win."""
    given = {word.partition("=")[0]: word for word in [*WORDS, *AGENT[kind], *words]}
    return make_recipe(compose("train", list(given.values())))


def begun(path):
    return RunDirectory.create(path, config="")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("online") / "run"
    assert main(["train", *WORDS, *AGENT["sac"], f"out={path}"]) == 0
    return RunDirectory.open(path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The aligned arm in one go: a function of which learner, to its settings and its run."""

    @functools.cache
    def made(kind):
        settings = recipe(kind).settings
        run = begun(tmp_path_factory.mktemp("whole") / kind)
        run_online_arm("aligned", path=run.path, settings=settings)
        return settings, run

    return made


def state(run, arm="aligned"):
    return load_checkpoint(run.path / "arms" / arm / "checkpoint.safetensors")


def rows(run, arm):
    return {int(row["step"]): row for row in read_metrics(run.path / "arms" / arm)}


def stopping(call, number, *, after):
    """``call``, with Ctrl-C at its so-manieth time, before it has begun or when it is done."""
    calls = []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and not after:
            raise KeyboardInterrupt
        result = call(*args, **kwargs)
        if len(calls) == number:
            raise KeyboardInterrupt
        return result

    return stopped


PLACES = [
    ("sac", OnlineArm, "collect", 2, False), ("sac", OnlineArm, "save", 1, True), ("sac", online_arm, "label", 1, True),
    ("sac", AnswerBook, "add", 2, True), ("sac", OnlineArm, "explain", 2, True), ("sac", OnlineArm, "hold", 1, True),
    ("sac", online_arm.MetricLogger, "log", 4, True), ("sac", online_arm, "judge", 1, False),
    ("ppo", OnlineArm, "collect", 2, True), ("ppo", OnlineArm, "explain", 2, False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "where", "name", "number", "after"), PLACES, ids=str)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(uninterrupted, kind, where, name, number, after, tmp_path):
    """Ctrl-C anywhere, then resumed: equal weights, moments, experience, answers, metrics and results, bitwise."""
    settings, whole = uninterrupted(kind)
    run = begun(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, stopping(getattr(where, name), number, after=after))
        with pytest.raises(KeyboardInterrupt):
            run_online_arm("aligned", path=run.path, settings=settings)
    run_online_arm("aligned", path=run.path, settings=settings)
    (tensors, plain), (expected, expected_plain) = flatten(state(run)), flatten(state(whole))
    assert plain == expected_plain
    assert [key for key, tensor in expected.items() if not torch.equal(tensors[key], tensor)] == []
    assert read_metrics(run.path / "arms/aligned") == read_metrics(whole.path / "arms/aligned")
    assert run.result("arms/aligned") == whole.result("arms/aligned")
    given, whole_given = (read_preferences(r.path / "arms/aligned/dataset") for r in (run, whole))
    assert np.array_equal(given.first.start, whole_given.first.start)
    assert np.array_equal(given.p_first, whole_given.p_first)


def test_an_answer_that_was_given_is_not_asked_for_again(uninterrupted, tmp_path, monkeypatch):
    """A session that was answered before the kill asks nobody; only the next does."""
    settings, _ = uninterrupted("sac")
    run, asked = begun(tmp_path / "run"), []
    monkeypatch.setattr(OnlineArm, "explain", stopping(OnlineArm.explain, 1, after=False))
    with pytest.raises(KeyboardInterrupt):
        run_online_arm("aligned", path=run.path, settings=settings)
    held = AnswerBook(run.path / "arms/aligned/answers.safetensors")
    assert (len(held), held.asked(1), held.answered(1)) == (1, 7, 7)

    def answer(*args, **kwargs):
        asked.append(kwargs["session"])
        return label(*args, **kwargs)

    label = online_arm.label
    monkeypatch.setattr(online_arm, "label", answer)
    run_online_arm("aligned", path=run.path, settings=settings)
    assert asked == [1]
    kept = read_preferences(run.path / "arms/aligned/dataset")[:7]
    assert np.array_equal(kept.time, held.answers(1).time)  # they are those, not equal ones


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
    settings = recipe().settings
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

    settings = recipe().settings
    uniform = settings.query
    run = begun(tmp_path / "run")
    run_online_arm("aligned", path=run.path, settings=replace(settings, query=Watched()))
    assert told == [(False, False), (True, True)]
    answers = read_preferences(run.path / "arms/aligned/dataset")
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
    run = begun(tmp_path / "run")
    run_online_arm("negated", path=run.path, settings=recipe("sac", "recipe.arms=[negated]").settings)
    at_work = OnlineArm("negated", run.path / "arms/negated", recipe().settings)
    kept = state(run, "negated")["learner"]["world"]["experience"]
    episodes = Episodes(**at_work.learner.episodes()._asdict())
    at_work.learner.close()
    with torch.no_grad():
        data = episodes.transitions(torch.zeros(episodes.num_steps))
        expected = -at_work.score.reward(data.observations, data.actions).mean(0)
    torch.testing.assert_close(kept["rewards"][: len(expected)], expected, rtol=1e-5, atol=1e-6)


def test_episodes_that_end_early_are_refused(tmp_path):
    """Partial-return answers about episodes of different lengths: the reason is given; allowed, the run goes on."""
    hopper = replace(recipe().settings, env=functools.partial(envs.make, "Hopper-v5", max_episode_steps=60))
    run = begun(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"came to a terminal state.*allow_variable_horizon=true"):
        run_online_arm("aligned", path=run.path, settings=hopper)
    run_online_arm("aligned", path=run.path, settings=replace(hopper, allow_variable_horizon=True))
    assert run.result("arms/aligned") is not None


class Mute(SimulatedTeacher):
    """Skips every question."""

    def answer(self, first, second, rng):
        return np.full(len(first), np.nan)


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [("answers", InvalidData, "skipped too often"), ("queries", ConfigError, "skipped all of the 7 questions")],
)
def test_a_teacher_that_skips_everything_is_named(budget, error, message, tmp_path):
    """An error that says what to do; the run directory can still be read."""
    made, run = recipe(), begun(tmp_path / "run")
    with pytest.raises(error, match=message):
        run_online_arm("aligned", path=run.path, settings=replace(made.settings, teacher=Mute(), budget=budget))
    assert list(rows(run, "aligned")) == [40]
    assert state(run)["sessions"] == []
    assert made.report(RunDirectory.open(run.path)).is_file()


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("sac", ["recipe.arms=[bc]"], "unknown arm 'bc'"),
        ("sac", ["recipe.arms=[aligned,aligned]"], "an arm twice"),
        ("sac", ["recipe.sessions=0"], "recipe.sessions must be >= 1"),
        ("sac", ["recipe.steps=160"], "recipe.steps=160 must be more than 160"),
        ("sac", ["recipe.segment_length=21"], "recipe.segment_length=21 is longer than an episode of at most 20 steps"),
        ("sac", ["recipe.first_share=2"], "first_share must be in"),
        ("sac", ["recipe.schedule=never"], "recipe.schedule"),
        ("sac", ["recipe.arms=[true_reward]"], "has no effect: recipe.arms has none of aligned, negated"),
        ("sac", ["data=random"], "data has no effect in recipe 'online'"),
        ("sac", ["env=delivery"], "env"),
        ("sac", ["online_agent.num_envs=3"], "recipe.explore_steps=80 must be a multiple of online_agent.num_envs=3"),
        ("ppo", ["recipe.log_every=50"], "recipe.log_every=50 must be a multiple of online_agent.rollout_steps=40"),
    ],
)
def test_wrong_keys_are_named(kind, words, message):
    """The key, its value, what is allowed, before there is a run."""
    with pytest.raises(ConfigError, match=message):
        recipe(kind, *words)


def test_a_learner_of_given_data_is_refused():
    """The slot is for what acts."""
    with pytest.raises(ConfigError, match=r"online_agent: this one learns from given data"):
        make_recipe(compose("train", [*WORDS, "online_agent=iql"]))


def test_the_stored_teacher_knows_its_session(run):
    """Thresholds and drift refer to the session: what was told is stored with the answers."""
    told = [json.loads(text) for text in read_preferences(run.path / "arms/aligned/dataset").teacher[:14]]
    assert {entry.get("session", 0) for entry in told[:7]} == {0}
