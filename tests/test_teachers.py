"""Laws of teachers: the simulated one (B-Pref, arXiv 2111.03026) and that by preference models (arXiv 2206.02231)."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrl.config import build, check, compose, from_saved
from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, InvalidData
from prefrl.preference_models import PREFERENCE_MODELS, SegmentStatistics, segment_score
from prefrl.teachers import PreferenceTeacher, SimulatedTeacher
from prefrl.value_oracles import ScriptedOracle

SEEDS = st.integers(0, 2**32 - 1)


def with_rewards(rewards, lengths=None):
    """Segments that differ in their rewards (B, T) only."""
    rewards = torch.as_tensor(np.asarray(rewards), dtype=torch.float32)
    B, T = rewards.shape
    lengths = torch.full((B,), T) if lengths is None else torch.as_tensor(lengths)
    mask = torch.arange(T) < lengths[:, None]
    return SegmentBatch(torch.zeros(B, T + 1, 1), torch.zeros(B, T, 1), mask, rewards)


def random_pair(seed=0, n=200, T=6, low=0.0):
    rng = np.random.default_rng(seed)
    return with_rewards(rng.uniform(low, 1, (n, T))), with_rewards(rng.uniform(low, 1, (n, T)))


def answers(teacher, first, second, seed=0):
    return teacher.answer(first, second, np.random.default_rng(seed))


def returns(segments):
    return (segments.true_reward * segments.mask).double().sum(1).numpy()


def within_binomial_bounds(hits, p, n):
    """Five standard deviations: fails once in a million by chance."""
    return abs(hits - n * p) <= 5 * math.sqrt(n * p * (1 - p))


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_oracle_never_contradicts_the_return(seed):
    """p_first is 1, 0 or 0.5 as the first return is larger, smaller or equal."""
    first, second = random_pair(seed, n=20, low=-1.0)
    expected = 0.5 + 0.5 * np.sign(returns(first) - returns(second))
    assert np.array_equal(answers(SimulatedTeacher(), first, second), expected)


def test_an_exact_tie_is_one_half():
    """The oracle has no side where the returns are equal."""
    assert answers(SimulatedTeacher(), with_rewards([[1, 2]]), with_rewards([[2, 1]])).tolist() == [0.5]


def test_mistakes_come_at_their_rate():
    """With mistake=ε, wrong answers are binomial with rate ε; with ε=1 all are wrong."""
    first, second = random_pair(n=5000)
    truth = answers(SimulatedTeacher(), first, second)
    wrong = answers(SimulatedTeacher(mistake=0.1), first, second) != truth
    assert within_binomial_bounds(wrong.sum(), 0.1, 5000)
    assert np.array_equal(answers(SimulatedTeacher(mistake=1.0), first, second), 1 - truth)


@given(seed=SEEDS, gamma=st.floats(0.1, 1.0))
@settings(max_examples=30, deadline=None)
def test_myopia_weighs_as_in_b_pref(seed, gamma):
    """Step t of H counts γ^(H−1−t): as if each step multiplied all earlier ones by γ; γ=1 is the oracle."""
    first, second = random_pair(seed, n=20, low=-1.0)

    def recent(segments):
        weighted = segments.true_reward.double().numpy().copy()
        for t in range(weighted.shape[1] - 1):
            weighted[:, : t + 1] *= gamma
        return weighted.sum(1)

    difference = recent(first) - recent(second)
    clear = np.abs(difference) > 1e-9  # the two ways of multiplying round differently
    found = answers(SimulatedTeacher(gamma=gamma), first, second)
    assert np.array_equal(found[clear], (difference > 0).astype(float)[clear])
    plain = answers(SimulatedTeacher(gamma=1.0), first, second)
    assert np.array_equal(plain, answers(SimulatedTeacher(), first, second))


def test_infinite_rationality_is_the_limit_of_large_rationality():
    """β → ∞ is the oracle."""
    first, second = random_pair()
    assert np.array_equal(
        answers(SimulatedTeacher(beta=1e9), first, second), answers(SimulatedTeacher(), first, second)
    )


def test_no_rationality_is_a_coin():
    """β = 0 answers by half, and does not look at rewards."""
    first, second = random_pair(n=5000)
    found = answers(SimulatedTeacher(beta=0.0), first, second)
    assert within_binomial_bounds(found.sum(), 0.5, 5000)
    assert np.array_equal(found, answers(SimulatedTeacher(beta=0.0), *random_pair(seed=1, n=5000)))


def test_a_noisy_teacher_answers_at_the_bradley_terry_rate():
    """P(first) = σ(β ΔR)."""
    n, beta = 5000, 2.0
    found = answers(SimulatedTeacher(beta=beta), with_rewards([[0.4, 0.3]] * n), with_rewards([[0.1, 0.1]] * n))
    assert within_binomial_bounds(found.sum(), 1 / (1 + math.exp(-beta * 0.5)), n)


@given(seed=SEEDS, low=st.floats(0, 2), more=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_skip_and_equal_are_monotone(seed, low, more):
    """A larger share skips (calls equal) every pair that a smaller one skips (calls equal); 0 skips none."""
    first, second = random_pair(seed, n=50)
    for knob, marked in (("skip", np.isnan), ("equal", lambda p: p == 0.5)):
        few, many = (
            marked(answers(SimulatedTeacher(**{knob: share}, reward_per_step=0.5), first, second))
            for share in (low, low + more)
        )
        assert not (few & ~many).any()
    assert not np.isnan(answers(SimulatedTeacher(skip=0.0, reward_per_step=0.5), first, second)).any()


def test_thresholds_are_shares_of_the_mean_return_of_a_segment():
    """Hand-worked: mean reward 1 a step, T = 2, share 0.5: thresholds are 1."""
    first, second = (
        with_rewards([[0.5, 0.5], [1.0, 1.0], [0.6, 0.6]]),
        with_rewards([[0.0, 0.4], [1.5, 1.4], [0.0, 0.0]]),
    )
    skipping = SimulatedTeacher(skip=0.5).calibrated(1.0)
    assert np.isnan(answers(skipping, first, second)).tolist() == [True, False, False]
    lenient = SimulatedTeacher(equal=0.5).calibrated(1.0)
    assert answers(lenient, first, second).tolist() == [0.5, 0.5, 1.0]


def test_thresholds_do_not_drift():
    """Later sessions answer as the first one did (B-Pref's code multiplies by ε once more)."""
    first, second = random_pair()
    teacher = SimulatedTeacher(skip=0.9, equal=0.1).calibrated(0.5)
    session = answers(teacher, first, second)
    assert 0 < np.isnan(session).sum() < len(session)
    for _ in range(3):
        teacher = teacher.calibrated(0.5)
        assert np.array_equal(answers(teacher, first, second), session, equal_nan=True)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_swapping_the_pair_turns_the_answer_around(seed):
    """p(second, first) = 1 − p(first, second) for every teacher without noise; a skip stays a skip."""
    first, second = random_pair(seed, n=30)
    first.true_reward[:3] = second.true_reward[:3]  # exact ties
    for knobs in ({}, {"gamma": 0.9}, {"skip": 0.9}, {"equal": 0.1}, {"mistake": 1.0}):
        teacher = SimulatedTeacher(**knobs).calibrated(0.5)
        one, two = answers(teacher, first, second), answers(teacher, second, first)
        assert np.array_equal(two, 1 - one, equal_nan=True), knobs


def test_the_knobs_act_in_the_order_of_b_pref():
    """Equal overrides choice and mistake, and skip overrides equal."""
    first, second = random_pair()
    generous = SimulatedTeacher(equal=100.0, mistake=1.0, beta=1.0).calibrated(0.5)
    assert (answers(generous, first, second) == 0.5).all()
    assert np.isnan(answers(replace(generous, skip=100.0), first, second)).all()


def test_equal_seeds_give_equal_answers():
    """The rng is the only randomness."""
    first, second = random_pair()
    teacher = SimulatedTeacher(beta=1.0, mistake=0.2)
    assert np.array_equal(answers(teacher, first, second), answers(teacher, first, second))
    assert not np.array_equal(answers(teacher, first, second), answers(teacher, first, second, seed=1))


def test_padding_is_not_rewarded():
    """Rewards in the padding do not enter, and myopia counts back from the last real step."""
    first = with_rewards([[1.0, 0.0, 99.0]], lengths=[2])
    second = with_rewards([[0.0, 0.9, 0.0]], lengths=[2])
    assert answers(SimulatedTeacher(), first, second).tolist() == [1.0]
    assert answers(SimulatedTeacher(gamma=0.5), first, second).tolist() == [0.0]


def test_parameters_are_json_that_makes_the_teacher_anew():
    """What is stored beside an answer says who gave it."""
    teacher = SimulatedTeacher(skip=0.1, gamma=0.9).calibrated(2.0)
    stored = json.loads(json.dumps(teacher.parameters(), allow_nan=False))
    assert stored.pop("teacher") == "simulated"
    assert SimulatedTeacher(**{**stored, "beta": float(stored["beta"])}) == teacher


@pytest.mark.parametrize(
    ("knobs", "allowed"),
    [
        ({"beta": -1.0}, r"beta must be in \[0, inf\]"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\]"),
        ({"gamma": 1.1}, r"gamma must be in \(0, 1\]"),
        ({"mistake": 2.0}, r"mistake must be in \[0, 1\]"),
        ({"skip": -0.1}, r"skip must be in \[0, inf\)"),
        ({"equal": math.nan}, r"equal must be in \[0, inf\)"),
    ],
)
def test_a_knob_out_of_range_is_an_error_that_names_the_allowed_set(knobs, allowed):
    """Constructors validate; NaN is out of every range."""
    with pytest.raises(ConfigError, match=allowed):
        SimulatedTeacher(**knobs)


def test_thresholds_need_a_positive_scale():
    """skip and equal without the mean reward, or with a negative one, are errors; the oracle needs none."""
    pair = random_pair()
    with pytest.raises(InvalidData, match="calibrated"):
        answers(SimulatedTeacher(equal=0.1), *pair)
    with pytest.raises(InvalidData, match="must be > 0"):
        SimulatedTeacher(skip=0.1).calibrated(-1.0)
    with pytest.raises(InvalidData, match="finite"):
        SimulatedTeacher().calibrated(math.nan)
    assert SimulatedTeacher().calibrated(-1.0).reward_per_step == -1.0


def test_a_teacher_without_true_reward_is_an_error():
    """Segments as learners see them cannot be answered."""
    first, second = random_pair()
    with pytest.raises(InvalidData, match="carry none"):
        answers(SimulatedTeacher(), first.without_true_reward(), second)


class Known:
    """An oracle that reads the statistics off the rewards: Σr, 10 Σr, 0 and −Σr² in turn."""

    models = tuple(PREFERENCE_MODELS)

    def statistics(self, segments):
        total = torch.from_numpy(returns(segments))
        return SegmentStatistics(total, 10 * total, torch.zeros_like(total), -(total**2))

    def parameters(self):
        return {"oracle": "known", "gamma": 0.9, "sign": "higher is better"}


@pytest.mark.parametrize("model", PREFERENCE_MODELS)
def test_a_preference_teacher_answers_by_its_model(model):
    """Noiseless answers are the sign of the difference of the scores of that model, and of no other."""
    first, second = random_pair(low=-1.0)
    oracle = Known()
    one, two = (segment_score(oracle.statistics(segments), model) for segments in (first, second))
    expected = 0.5 + 0.5 * torch.sign(torch.round(one - two, decimals=2))
    found = answers(PreferenceTeacher(oracle=oracle, model=model), first, second)
    assert found.dtype == np.float64
    assert np.array_equal(found, expected.numpy())
    assert len(set(found.tolist())) > 1


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_swapping_the_pair_turns_the_answer_of_every_model_around(seed):
    """p(second, first) = 1 − p(first, second) without noise and for probabilities; a skipped tie stays skipped."""
    first, second = random_pair(seed, n=30, low=-1.0)
    first.true_reward[:3] = second.true_reward[:3]  # exact ties
    for model in PREFERENCE_MODELS:
        for options in ({}, {"ties": False}, {"noise": "probability", "beta": 0.5}):
            teacher = PreferenceTeacher(oracle=Known(), model=model, **options)
            one, two = answers(teacher, first, second), answers(teacher, second, first)
            np.testing.assert_allclose(two, 1 - one, rtol=0, atol=1e-12)


def test_ties_are_scores_that_are_equal_when_rounded():
    """0.5 to two decimals, or not a tie with more of them; with ties=False they are skipped."""
    first, second = with_rewards([[1.0, 1.0]] * 2), with_rewards([[1.0, 1.001], [1.0, 1.01]])
    teacher = PreferenceTeacher(oracle=Known(), model="partial_return")
    assert answers(teacher, first, second).tolist() == [0.5, 0.0]
    assert answers(replace(teacher, decimals=4), first, second).tolist() == [0.0, 0.0]
    np.testing.assert_equal(answers(replace(teacher, ties=False), first, second), [np.nan, 0.0])


def test_a_preference_teacher_with_noise_draws_at_the_bradley_terry_rate():
    """P(first) = σ(β Δ), as a number or as draws, which follow the rng."""
    n, beta = 5000, 2.0
    first, second = with_rewards([[0.4, 0.3]] * n), with_rewards([[0.1, 0.1]] * n)
    p = 1 / (1 + math.exp(-beta * 0.5))
    teacher = PreferenceTeacher(oracle=Known(), model="partial_return", noise="bernoulli", beta=beta)
    found = answers(teacher, first, second)
    assert set(found.tolist()) == {0.0, 1.0}
    assert within_binomial_bounds(found.sum(), p, n)
    assert np.array_equal(found, answers(teacher, first, second))
    assert not np.array_equal(found, answers(teacher, first, second, seed=1))
    np.testing.assert_allclose(answers(replace(teacher, noise="probability"), first, second), p, atol=1e-6)
    assert (answers(replace(teacher, noise="probability", beta=0.0), first, second) == 0.5).all()


def test_noise_does_not_change_what_is_drawn_afterwards():
    """Equal generators go on equally whatever the noise, so that teachers are asked for the same pairs."""
    first, second = random_pair()
    later = []
    for noise in ("none", "bernoulli", "probability"):
        rng = np.random.default_rng(0)
        PreferenceTeacher(oracle=Known(), noise=noise).answer(first, second, rng)
        later.append(rng.random())
    assert len(set(later)) == 1


def test_parameters_of_a_preference_teacher_say_model_and_oracle():
    """JSON with the knobs, and all that the oracle says: its gamma and its sign convention."""
    teacher = PreferenceTeacher(oracle=Known(), model="advantage", noise="bernoulli", beta=0.5, decimals=3, ties=False)
    stored = json.loads(json.dumps(teacher.parameters(), allow_nan=False))
    assert stored == {
        "teacher": "preference_model", "model": "advantage", "noise": "bernoulli", "beta": 0.5, "decimals": 3,
        "ties": False, "oracle": "known", "gamma": 0.9, "sign": "higher is better",
    }  # fmt: skip
    assert teacher.calibrated(3.0) is teacher


@pytest.mark.parametrize(
    ("knobs", "allowed"),
    [
        ({"model": "return"}, "model must be one that Known can serve, partial_return, .* but is 'return'"),
        ({"noise": "gaussian"}, "noise must be one of none, bernoulli, probability"),
        ({"beta": math.inf}, r"beta must be in \[0, inf\)"),
        ({"beta": math.nan}, r"beta must be in \[0, inf\)"),
        ({"decimals": -1}, "decimals must be >= 0"),
    ],
)
def test_a_preference_teacher_validates_its_knobs(knobs, allowed):
    """Options out of range are errors that name the allowed set."""
    with pytest.raises(ConfigError, match=allowed):
        PreferenceTeacher(oracle=Known(), **knobs)


def test_a_model_that_the_oracle_cannot_serve_is_an_error():
    """A script knows no values of states: a teacher by partial return cannot be made of it."""
    script = ScriptedOracle(behavior=Known(), env=None)
    assert PreferenceTeacher(oracle=script).model == "regret"
    with pytest.raises(ConfigError, match="ScriptedOracle can serve, regret, advantage, but is 'partial_return'"):
        PreferenceTeacher(oracle=script, model="partial_return")


def test_scores_that_are_not_finite_are_never_answers():
    """NaN would look like a skipped pair."""

    class Diverged(Known):
        def statistics(self, segments):
            return SegmentStatistics(*[torch.full((len(segments),), torch.nan)] * 4)

    with pytest.raises(InvalidData, match="score of model 'regret' holds"):
        answers(PreferenceTeacher(oracle=Diverged()), *random_pair())


@pytest.mark.parametrize(
    ("noise", "idle"),
    [("none", ["beta"]), ("bernoulli", ["decimals", "ties"]), ("probability", ["decimals", "ties"])],
)
def test_knobs_without_effect_are_told_and_change_no_answer(noise, idle):
    """Rationality acts with noise only, ties without; the oracle tells of its own options."""

    class Idle(Known):
        def ineffective(self, key):
            return "of a pool" if key == "pool_size" else None

    teacher = PreferenceTeacher(oracle=Idle(), noise=noise)
    assert [key for key in ("model", "noise", "beta", "decimals", "ties") if teacher.ineffective(key)] == idle
    assert (teacher.ineffective("oracle.pool_size"), teacher.ineffective("oracle.seed")) == ("of a pool", None)
    first, second = with_rewards([[1.0, 1.0], [0.3, 0.2]]), with_rewards([[1.0, 1.001], [0.1, 0.1]])
    other = {"beta": 0.3, "decimals": 5, "ties": False}
    for key, value in other.items():
        one, two = (answers(each, first, second) for each in (teacher, replace(teacher, **{key: value})))
        assert np.array_equal(one, two, equal_nan=True) or key not in idle


@pytest.mark.parametrize(
    ("option", "env", "says"),
    [
        ("regret_scripted", "point_reach", "cannot act in prefrl/PointReach-v0.*teacher=regret_point"),
        ("regret_point", "metaworld", "cannot act in prefrl/MetaWorld.*teacher=regret_scripted"),
        ("regret_point", "point_reach", None),
        ("regret_tabular", "delivery", None),
        ("regret_lqr", "double_integrator", None),
    ],
)
def test_a_teacher_is_checked_before_it_is_asked(option, env, says):
    """A teacher of another environment is an error at once, which names the teacher to choose."""
    teacher = build(compose("train", [f"teacher={option}", f"env={env}"]).components["teacher"], key="teacher")
    if says is None:
        teacher.check()
        return
    with pytest.raises(ConfigError, match=says):
        teacher.check()


BY_VALUES = {
    "regret_tabular": ("delivery", "prefrl/Delivery-v0"),
    "regret_lqr": ("double_integrator", "prefrl/DoubleIntegrator-v0"),
    "regret_scripted": ("metaworld", "prefrl/MetaWorld-faucet-open-v0"),
}


@pytest.mark.parametrize("option", BY_VALUES)
def test_teachers_by_values_are_given_the_environment_of_the_run(option, tmp_path):
    """The env slot's node, with what the user changed in it, is the oracle's too; it is saved, and built again."""
    env, id = BY_VALUES[option]
    config = compose("train", [f"teacher={option}", f"env={env}", "env.width=64" if env != "delivery" else "seed=3"])
    node = config.components["teacher"]["oracle"]["env"]
    assert node == config.components["env"]
    assert node["id"] == id
    (tmp_path / "config.yaml").write_text(config.text)
    again = from_saved(tmp_path / "config.yaml")
    assert again.components["teacher"] == config.components["teacher"]
    teacher = build(again.components["teacher"], key="teacher")
    assert teacher.parameters()["oracle"] == {"regret_lqr": "linear_quadratic"}.get(option, option[7:])


def test_keys_below_an_oracle_are_checked():
    """A misspelt argument of the environment, or of the oracle, is found before anything is built."""
    with pytest.raises(ConfigError, match=r"teacher\.oracle\.gama"):
        compose("train", ["teacher=regret_tabular", "env=delivery", "teacher.oracle.gama=1.0"])
    config = compose("train", ["teacher=regret_tabular", "env=delivery"])
    config.components["teacher"]["oracle"]["env"]["_target_"] = "envs.mak"
    with pytest.raises(ConfigError, match=r"teacher\.oracle\.env\._target_: cannot find 'envs\.mak'"):
        check(config.components["teacher"], key="teacher")


def test_an_environment_that_the_teacher_cannot_ask_is_refused_before_the_run():
    """The oracle is made with the teacher, so that hours of collecting do not come first."""
    config = compose("train", ["teacher=regret_tabular", "env=point_reach"])
    with pytest.raises(ConfigError, match=r"teacher: .*needs an environment with tables\(\)"):
        build(config.components["teacher"], key="teacher")


def test_critics_need_a_file():
    """regret_sac names the key to give."""
    with pytest.raises(ConfigError, match=r"teacher\.oracle\.critic\.path is required"):
        compose("label", ["teacher=regret_sac"])
