"""Recipe regret: who assumes the rater's model finds the reward, a stop loses nothing, foreign data are checked."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import envs
from prefrl.cli import main
from prefrl.core import SegmentBatch, SegmentRefs
from prefrl.data.collect import BehaviorGroup, collect_episodes
from prefrl.data.preferences import append_preferences, read_preferences
from prefrl.data.storage import read_dataset, write_dataset
from prefrl.errors import InvalidData
from prefrl.evaluation.rollout import PolicyBehavior
from prefrl.evaluation.video import film_side_by_side
from prefrl.recipes import regret
from prefrl.recipes.regret_learning import compared_traces, equal_parts, open_world
from prefrl.runs import RunDirectory, read_metrics
from prefrl.solvers import TabularMDP, TabularPolicy, recorded_trace, rewards, tabular_advantage, value_iteration

MODELS = ("regret_deterministic", "partial_return", "advantage")
QUICK = (
    "recipe=regret", "tensorboard=false", "teacher.model=regret_deterministic", f"recipe.models=[{','.join(MODELS)}]",
    "recipe.comparisons=600", "recipe.label_counts=[60,300,10000]", "recipe.curve_fits=4", "recipe.pool_size=40",
    "recipe.iterations.regret_deterministic=300", "recipe.iterations.partial_return=800",
    "recipe.iterations.advantage=150", "recipe.episodes=10", "recipe.max_steps=25",
)  # fmt: skip
# too few steps to learn anything: for laws about numbers being equal
OTHERWISE = ("models", "comparisons", "iterations", "episodes", "max_steps")
TINY = (
    *(word for word in QUICK if not any(key in word for key in OTHERWISE)), "recipe.episodes=2", "recipe.max_steps=4",
    "recipe.models=[regret_deterministic,partial_return]", "recipe.iterations.regret_deterministic=20",
    "recipe.iterations.partial_return=20",
)  # fmt: skip
STAGES = [
    "collect", *(f"{what}/{model}" for what in ("fit", "rollouts") for model in MODELS), "rollouts/optimal",
    *(f"curve/{model}/{count}" for model in MODELS for count in (60, 300)),
]  # fmt: skip
DELIVERY = partial(envs.make, "prefrl/Delivery-v0")


def train(out, *words, code=0):
    assert main(["train", *words, f"out={out}"]) == code
    return RunDirectory.open(out) if code == 0 else None


def numbers(run):
    return {stage: run.result(stage) for stage in STAGES}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A few hundred episodes of at most three random steps."""
    group = BehaviorGroup("drives at random", 400, envs.RandomBehavior())
    folder = tmp_path_factory.mktemp("data") / "random"
    write_dataset(folder, collect_episodes(DELIVERY, [group], max_steps=3, seed=0))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset):
    """One whole run with noiseless labels by regret, shared by the tests that only look."""
    return train(tmp_path_factory.mktemp("runs") / "whole", *QUICK, f"dataset={dataset}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, dataset):
    """One uninterrupted tiny run, to compare with."""
    return train(tmp_path_factory.mktemp("runs") / "tiny", *TINY, "recipe.comparisons=120", f"dataset={dataset}")


# ------------------------------------------------------------------------------------------------ what is learned


def test_the_learner_of_the_right_model_finds_the_reward(finished):
    """Labels by regret: the regret learner's policy is optimal, the partial-return learner's rarely is near."""
    fits = {model: finished.result(f"fit/{model}") for model in MODELS}
    assert fits["regret_deterministic"]["scaled_return"] >= 0.99
    near = {model: sum(finished.result(f"curve/{model}/60")["near_optimal"]) for model in MODELS}
    assert near["regret_deterministic"] >= 3 > 1 >= near["partial_return"]
    assert fits["regret_deterministic"]["cross_entropy"] < fits["partial_return"]["cross_entropy"]
    assert fits["regret_deterministic"]["agreement"] > fits["partial_return"]["agreement"]


def test_the_true_reward_says_how_the_rater_judged(finished):
    """Given the true reward, the rater's own model describes the answers best; log 2 is no information."""
    described = {model: finished.result(f"fit/{model}")["described"] for model in MODELS}
    assert described["regret_deterministic"] < described["partial_return"] < np.log(2)
    assert described["advantage"] == pytest.approx(described["regret_deterministic"], abs=0.05)


def test_exact_judgement_agrees_with_rollouts(finished):
    """A policy that is optimal by the tables earns what the optimal one earns, on the same seeds."""
    learned, optimal = (finished.result(f"rollouts/{arm}") for arm in ("regret_deterministic", "optimal"))
    assert learned["seeds"] == optimal["seeds"]
    assert np.mean(learned["returns"]) == pytest.approx(np.mean(optimal["returns"]), abs=0.5)
    assert all(optimal["success"])


def test_the_curve_has_the_parts_that_the_answers_give(finished):
    """600 answers are 10 parts of 60, of which curve_fits are fitted, and two of 300; larger parts there are none."""
    for model in MODELS:
        fits = [len(finished.result(f"curve/{model}/{count}")["near_optimal"]) for count in (60, 300)]
        assert fits == [4, 2]
        assert finished.result(f"curve/{model}/10000") is None
        assert [row["step"] for row in read_metrics(finished.path / "models" / model)] == [60, 300]


@pytest.mark.parametrize(("size", "parts"), [(60, 4), (250, 2), (360, 1), (600, 1)])
def test_parts_are_of_exactly_that_size(answered, size, parts):
    """What 600 answers have beyond whole parts is in none: a fit has as many answers as the axis says, each once."""
    numbered = answered[1].pairs()._replace(p_first=torch.arange(600) / 600)
    found = equal_parts(numbered, size, most=4, generator=torch.Generator().manual_seed(0))
    assert found.p_first.shape == (parts, size)
    assert len(found.p_first.unique()) == parts * size
    assert bool((found.weight == 1).all())


@pytest.fixture(scope="module")
def answered(finished):
    """The world, and what its segments did that were compared."""
    world, folder = open_world(DELIVERY, seed=0), finished.path / "dataset"
    comparisons = read_preferences(folder).comparisons(read_dataset(folder)).without_true_reward()
    return world, compared_traces(world.mdp, comparisons)


def learning(**options):
    defaults = dict.fromkeys(regret.Learning.__dataclass_fields__)
    return regret.Learning(**defaults | {"gamma": 0.999, "learning_rate": {}, "seed": 0} | options)


def test_an_advantage_can_be_acted_on_or_planned_with(answered):
    """A table of advantages: greedy takes the best of each state; as a reward it is planned with, and differs."""
    world, traces = answered
    values = tabular_advantage(100, 4)
    how = {use: learning(iterations={"advantage": 100}, advantage_policy=use) for use in ("greedy", "reward")}
    table = how["greedy"].fit("advantage", traces.pairs(), values, world).weights
    greedy, planned = (one.policy("advantage", table, world) for one in how.values())
    assert greedy.argmax(-1).tolist() == table.reshape(100, 4).argmax(-1).tolist()
    assert not torch.equal(greedy, planned)
    assert how["greedy"].judge("advantage", torch.stack([table, -table]), world).scaled.shape == (2,)


def test_values_may_be_soft(answered):
    """values=soft learns without a pool of policies, through the values of the world itself."""
    world, traces = answered
    soft = learning(values="soft", iterations={"regret": 60})
    weights, _ = soft.fit("regret", traces.pairs(), soft.learner_values(world, ["regret"])["regret"], world)
    assert soft.judge("regret", weights, world).scaled >= 0.95


def test_agreement_counts_decided_answers(answered):
    """With the true weights the partial return agrees with its own answers; equal ones do not count, halves do."""
    world, traces = answered
    earned = (traces.first.features - traces.second.features) @ world.true_weights
    own = traces._replace(p_first=0.5 + 0.5 * earned.sign())
    judge = learning()
    assert judge.agreement("partial_return", world.true_weights, None, own, world) == 1
    assert judge.agreement("partial_return", -world.true_weights, None, own, world) == 0
    assert judge.agreement("partial_return", 0 * world.true_weights, None, own, world) == 0.5
    equal = traces._replace(p_first=torch.full_like(traces.p_first, 0.5))
    assert judge.agreement("partial_return", world.true_weights, None, equal, world) is None


# ------------------------------------------------------------------------------------------------ runs


def test_equal_seeds_give_equal_runs(tiny, dataset, tmp_path):
    """Every number of a second run is the same."""
    again = train(tmp_path / "again", *TINY, "recipe.comparisons=120", f"dataset={dataset}")
    assert numbers(again) == numbers(tiny)


def test_a_stopped_run_resumes_to_the_same_numbers(tiny, dataset, tmp_path, monkeypatch, capsys):
    """Ctrl-C while learning: exit code 130, the command that continues, and equal numbers after it."""
    fit, calls = regret.Learning.fit, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(regret.Learning, "fit", interrupted)
        train(out, *TINY, "recipe.comparisons=120", f"dataset={dataset}", code=130)
    assert f"prefrl resume {out}" in capsys.readouterr().err
    assert main(["resume", str(out)]) == 0
    assert len(calls) == 4
    assert numbers(RunDirectory.open(out)) == numbers(tiny)


def test_answers_without_a_true_reward(tiny, tmp_path):
    """Imported answers: nothing is asked, no reward is known to the data, and the same is learned."""
    source = tiny.path / "dataset"
    episodes = read_dataset(source)
    bare = replace(episodes, true_reward=np.zeros(episodes.num_steps), env={**episodes.env, "has_true_reward": False})
    write_dataset(tmp_path / "people", bare)
    append_preferences(tmp_path / "people", read_preferences(source))
    words = [word for word in TINY if not word.startswith("teacher")]
    run = train(tmp_path / "run", *words, "recipe.comparisons=0", f"dataset={tmp_path / 'people'}")
    for model in MODELS[:2]:
        assert run.result(f"fit/{model}") == tiny.result(f"fit/{model}")


def test_data_of_another_board_are_refused(dataset, tmp_path, capsys):
    """A recorded step that the tables do not allow is found before anything is copied, and named."""
    episodes = read_dataset(dataset)
    rows = episodes.observations.copy()
    rows[1] = (rows[0] + 55) % 100
    write_dataset(tmp_path / "other", replace(episodes, observations=rows))
    train(tmp_path / "run", *TINY, "recipe.comparisons=120", f"dataset={tmp_path / 'other'}", code=1)
    assert "Segment 0 (episode 0, from step 0) contradicts the environment" in capsys.readouterr().err
    assert not (tmp_path / "run" / "dataset").exists()


def test_data_of_a_board_with_other_coins_are_refused(dataset, tmp_path, capsys):
    """Every step is possible there, but worth something else; the board itself is accepted."""
    episodes, board = read_dataset(dataset), envs.delivery.BOARD.tolist()
    regret._check(replace(episodes, env={**episodes.env, "board": board}), open_world(DELIVERY, seed=0))
    coin = next(row for row in board if 4 in row)
    coin[coin.index(4)] = 0
    write_dataset(tmp_path / "other", replace(episodes, env={**episodes.env, "board": board}))
    train(tmp_path / "run", *TINY, "recipe.comparisons=120", f"dataset={tmp_path / 'other'}", code=1)
    assert "The data are of another board than that of prefrl/Delivery-v0" in capsys.readouterr().err


def test_evaluate_is_of_a_learner_on_other_seeds(finished, capsys):
    """`prefrl evaluate RUN arm=MODEL` rolls that learner out; a model that was not learned is an error with a hint."""
    assert main(["evaluate", str(finished.path), "arm=partial_return", "episodes=3", "seed=7"]) == 0
    result = json.loads((finished.path / "evaluations" / "partial_return-seed7-episodes3.json").read_text())
    assert len(result["returns"]) == 3
    assert main(["evaluate", str(finished.path), "arm=partial_retrun"]) == 2
    assert "partial_return" in capsys.readouterr().err


def test_the_report_explains_itself(finished):
    """Names of all learners, what they assume, how to read the table, and every picture in one file."""
    page = (finished.path / "report.html").read_text()
    for words in (
        "regret learner", "partial-return learner", "advantage learner", "optimal policy", "How to read the table",
        "Near-optimal fits by number of answers", "A pair on which reward and regret disagree",
    ):  # fmt: skip
        assert words in page
    assert page.count("data:image/png") == 2 + 2 + 4 + 1  # pairs, curves, boards, weights
    assert "not finished" not in page
    assert (finished.path / "videos" / "side_by_side.gif").stat().st_size > 1000


def test_the_report_says_what_is_missing(tiny, tmp_path):
    """A run that has not got far has a report that says so."""
    run = RunDirectory.create(tmp_path / "begun", config=(tiny.path / "config.yaml").read_text())
    assert main(["report", str(run.path)]) == 0
    assert "The stage &#x27;collect&#x27; is not finished" in (run.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recipe.models=[regrets]"], "unknown model 'regrets'"),
        (["recipe.models=[regret,regret]"], "twice"),
        (["recipe.gamma=0.0"], "recipe.gamma must be in (0, 1]"),
        (["recipe.iterations.partial_return=0"], "recipe.iterations.partial_return must be at least 1"),
        (["recipe.comparisons=0"], "give dataset=FOLDER"),
        (["recipe.label_counts=[0]"], "recipe.label_counts must be at least 1"),
        (["recipe.iterations.regret=5"], "recipe.models has no regret"),
        (["recipe.values=soft", "recipe.pool_size=5"], "recipe.pool_size has no effect"),
        (["recipe.models=[partial_return]", "recipe.temperature=1.0"], "recipe.temperature has no effect"),
        (["recipe.advantage_policy=reward"], "recipe.models has no advantage"),
        (["env=point_reach", "data=random", "teacher=oracle"], "prefrl/PointReach-v0 has no tables, true_weights"),
    ],
)
def test_wrong_words_are_errors_before_there_is_a_run(words, says, tmp_path, capsys):
    """What is wrong, or would do nothing, is said with the key and what is allowed."""
    assert main(["train", "recipe=regret", *words, f"out={tmp_path / 'run'}"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ recorded segments


def batch(states, actions, lengths=None):
    """One segment a row, as data hold them."""
    lengths = np.array([len(row) for row in actions]) if lengths is None else np.array(lengths)
    mask = torch.arange(len(actions[0])) < torch.tensor(lengths)[:, None]
    floats = [torch.tensor(rows, dtype=torch.float32)[..., None] for rows in (states, actions)]
    refs = SegmentRefs(np.arange(len(states)) + 7, np.zeros(len(states)), lengths)
    return SegmentBatch(*floats, mask=mask, refs=refs)


@pytest.mark.parametrize("kind", ["deterministic", "teleport"])
def test_recorded_segments_have_the_features_that_were_rewarded(kind):
    """Σφ·w of the trace is the reward that the environment paid, where chance decides too."""
    world = envs.random_grid(np.random.default_rng(3), kind)
    group = BehaviorGroup("random", 60, envs.RandomBehavior())
    episodes = collect_episodes(lambda *, seed, render_mode=None: world, [group], max_steps=5, seed=0)
    mdp = TabularMDP.from_arrays(*world.tables())
    segments = episodes.segments(SegmentRefs(np.arange(60), np.zeros(60), episodes.lengths))
    trace = recorded_trace(mdp, segments.without_true_reward())
    paid = trace.features @ torch.as_tensor(world.true_weights)
    torch.testing.assert_close(paid, torch.as_tensor(episodes.returns()), atol=1e-4, rtol=0)
    assert trace.end.tolist() == segments.end_observations[:, 0].long().tolist()


@pytest.mark.parametrize(
    ("states", "actions", "says"),
    [
        ([[0, 1, 3]], [[3, 3]], r"Segment 0 \(episode 7, from step 0\) contradicts .* from state 1 to 2, .* say 3"),
        ([[0, 1, 2], [88, 89, 89]], [[3, 3], [3, 3]], r"Segment 1 \(episode 8.* in step 1, .* state 89.*Cut it to 1"),
        ([[0, 1, 100]], [[3, 3]], r"has 100 among its observations, .* \[0, 100\)"),
        ([[0, 1, 2]], [[3, 3.5]], r"has 3.5 among its actions"),
    ],
)  # fmt: skip
def test_segments_that_cannot_be_are_named(states, actions, says):
    """Data of another board, or with steps after the end, would give wrong values: they are refused by name."""
    mdp = open_world(DELIVERY, seed=0).mdp
    with pytest.raises(InvalidData, match=says):
        recorded_trace(mdp, batch(states, actions))


def test_outcomes_that_data_do_not_tell_apart_are_refused():
    """Two outcomes that lead to one state with different features: the data do not say which it was."""
    features = [[[[1], [2]]], [[[0], [0]]]]
    mdp = TabularMDP.from_arrays([[[1, 1]], [[1, 1]]], [[[0.5, 0.5]], [[1, 0]]], features, [0, 1], [1, 0])
    with pytest.raises(InvalidData, match="do not say with which"):
        recorded_trace(mdp, batch([[0, 1]], [[0]]))
    same = replace(mdp, features=torch.ones_like(mdp.features) * ~mdp.terminal[:, None, None, None])
    assert recorded_trace(same, batch([[0, 1]], [[0]])).features.tolist() == [[1.0]]


# ------------------------------------------------------------------------------------------------ policies of tables


def test_a_tabular_policy_is_its_table():
    """The likeliest action, of ties the first; log-probabilities of what was done, 0 on padding."""
    policy = TabularPolicy(torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64))
    assert policy.act(torch.tensor([[0.0], [1.0], [2.0]])).tolist() == [[1.0], [0.0], [0.0]]
    found = policy.log_prob(batch([[0, 1, 2, 2]], [[1, 0, 1]], lengths=[2]))
    np.testing.assert_allclose(found.numpy(), [[np.log(0.75), np.log(0.5), 0.0]])
    with pytest.raises(InvalidData, match=r"must be \(S, A\)"):
        TabularPolicy(torch.ones(3, 2))


def test_the_optimal_table_acts_optimally_and_is_filmed(tmp_path):
    """In a discrete environment a table earns V*(start), and the film shows it arrive."""
    world = open_world(DELIVERY, seed=0)
    values, action_values = value_iteration(world.mdp, rewards(world.mdp, world.true_weights), gamma=1.0)
    policy = TabularPolicy((action_values == action_values.amax(-1, keepdim=True)).double().softmax(-1))
    env = DELIVERY(seed=0)
    state, _ = env.reset(seed=3)
    start, total, ended = int(state), 0.0, False
    while not ended:
        state, reward, ended, _, _ = env.step(int(policy.act(torch.tensor([[float(state)]]))))
        total += reward
    assert total == pytest.approx(values[start].item())
    film = film_side_by_side(
        tmp_path / "film.mp4", {"best": PolicyBehavior(policy)}, DELIVERY, fps=4, seed=3, max_steps=40
    )
    assert film.stat().st_size > 1000
    assert film.with_suffix(".gif").is_file()
