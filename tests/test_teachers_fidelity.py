"""Laws of the simulated teacher against B-Pref's two texts, paper and code (arXiv 2111.03026), and of its drift."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_episodes

from prefrl.core import SegmentBatch
from prefrl.data.labeling import label
from prefrl.data.query import UniformQuery
from prefrl.errors import ConfigError
from prefrl.teachers import Drift, SimulatedTeacher

SEEDS = st.integers(0, 2**32 - 1)


class Draws:
    """A generator whose uniform numbers are known: first those of the choices, then those of the mistakes."""

    def __init__(self, choice, mistake):
        self.rows = [np.asarray(choice), np.asarray(mistake)]

    def random(self, n):
        row = self.rows.pop(0)
        assert len(row) == n
        return row


def with_rewards(rewards):
    rewards = torch.as_tensor(np.asarray(rewards), dtype=torch.float32)
    B, T = rewards.shape
    return SegmentBatch(torch.zeros(B, T + 1, 1), torch.zeros(B, T, 1), torch.ones(B, T, dtype=torch.bool), rewards)


def quarters(seed, n=30, T=4):
    """Two times n segments whose rewards are quarters: sums are exact, and many are equal."""
    return (with_rewards(np.random.default_rng([seed, k]).integers(0, 3, (n, T)) / 4) for k in range(2))


def by_formula(one, two, *, teacher, threshold_skip, threshold_equal, draws):
    """One pair at a time: p_first by the five steps in B-Pref's order, from rewards (T,) and two uniform numbers."""
    if threshold_skip > 0 and max(one.sum(), two.sum()) <= threshold_skip:
        return math.nan
    if abs(one.sum() - two.sum()) < threshold_equal:
        return 0.5
    weights = [teacher.gamma ** (len(one) - 1 - t) for t in range(len(one))]
    gap = sum(w * (a - b) for w, a, b in zip(weights, one, two, strict=True))
    if math.isinf(teacher.beta):
        first = gap >= 0 if teacher.fidelity == "bpref" else (gap > 0) + 0.5 * (gap == 0)
    else:
        first = draws[0] < 1 / (1 + math.exp(-teacher.beta * gap))
    return 1 - float(first) if draws[1] < teacher.mistake else float(first)


@given(
    seed=SEEDS,
    beta=st.sampled_from([0.0, 1.0, math.inf]),
    gamma=st.sampled_from([0.5, 1.0]),
    mistake=st.sampled_from([0.0, 0.3]),
    skip=st.sampled_from([0.0, 0.5, 1.0]),
    equal=st.sampled_from([0.0, 0.125, 0.5]),
    fidelity=st.sampled_from(["paper", "bpref"]),
    session=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_answer_is_that_of_b_pref(seed, session, **knobs):
    """Both fidelities, in every session, equal a pair-by-pair derivation; only the thresholds' power of ε differs."""
    first, second = quarters(seed)
    teacher = SimulatedTeacher(**knobs).calibrated(0.5, session=session)
    draws = np.random.default_rng(seed).random((2, len(first)))
    power = 2 if teacher.fidelity == "bpref" and session >= 1 else 1
    expected = [
        by_formula(
            one, two, teacher=teacher, draws=pair,
            threshold_skip=teacher.skip**power * 0.5 * 4, threshold_equal=teacher.equal**power * 0.5 * 4,
        )
        for one, two, pair in zip(
            first.true_reward.double().numpy(), second.true_reward.double().numpy(), draws.T, strict=True
        )
    ]  # fmt: skip
    np.testing.assert_equal(teacher.answer(first, second, Draws(*draws)), expected)


def in_order(one, two, *, teacher, power, draws):
    """One pair, as B-Pref's code goes about it, for segments that may be of unequal lengths, from lists of rewards."""
    margin = teacher.reward_per_step * max(len(one), len(two))
    if teacher.skip > 0 and max(sum(one), sum(two)) <= teacher.skip**power * margin:
        return math.nan
    equal = abs(sum(one) - sum(two)) < teacher.equal**power * margin  # before myopia: undiscounted
    late = []
    for rewards in (one, two):
        seen = list(rewards)
        for t in range(len(seen) - 1):  # each step makes all before it weigh less
            seen[: t + 1] = [teacher.gamma * reward for reward in seen[: t + 1]]
        late.append(sum(seen))
    if math.isinf(teacher.beta):
        answer = 0.5 if late[0] == late[1] and teacher.fidelity == "paper" else float(late[0] >= late[1])
    else:
        answer = float(draws[0] < 1 / (1 + math.exp(teacher.beta * (late[1] - late[0]))))
    answer = 1 - answer if draws[1] < teacher.mistake else answer
    return 0.5 if equal else answer  # after the mistake: what is equal stays equal


@given(
    seed=SEEDS,
    beta=st.sampled_from([0.5, 3.0, math.inf]),
    gamma=st.sampled_from([0.5, 1.0]),  # exact in binary, so that ties are ties
    mistake=st.sampled_from([0.0, 0.4, 1.0]),
    skip=st.sampled_from([0.0, 0.5, 1.5]),
    equal=st.sampled_from([0.0, 0.25, 1.0]),
    fidelity=st.sampled_from(["paper", "bpref"]),
    session=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_segments_of_unequal_lengths_are_answered_in_the_order_of_b_pref(seed, session, **knobs):
    """Skip, equal, myopia, choice, mistake, equal again: pair by pair, with thresholds by the longer segment."""
    rng, n, T = np.random.default_rng(seed), 25, 5
    lengths = rng.integers(1, T + 1, size=(2, n))
    sides = []
    for length in lengths:
        whole = with_rewards(rng.integers(0, 4, (n, T)) / 4)  # what lies behind the end is not 0
        mask = torch.arange(T) < torch.as_tensor(length)[:, None]
        sides.append(SegmentBatch(whole.observations, whole.actions, mask, whole.true_reward))
    teacher = SimulatedTeacher(**knobs).calibrated(0.5, session=session)
    draws = rng.random((2, n))
    power = 2 if teacher.fidelity == "bpref" and session else 1
    expected = [
        in_order(*(side.true_reward[k, : lengths[s, k]].tolist() for s, side in enumerate(sides)), teacher=teacher,
                 power=power, draws=draws[:, k])
        for k in range(n)
    ]  # fmt: skip
    np.testing.assert_equal(teacher.answer(*sides, Draws(*draws)), expected)


@given(seed=SEEDS, mistake=st.floats(0, 1), gamma=st.sampled_from([0.5, 1.0]), equal=st.sampled_from([0.0, 0.2]))
@settings(max_examples=40, deadline=None)
def test_mistakes_are_binomial_at_any_rate(seed, mistake, gamma, equal):
    """Of what is not equal a share of ε is wrong, within six deviations, whatever else the teacher is."""
    first, second = quarters(seed, n=2000)
    right = SimulatedTeacher(gamma=gamma, equal=equal).calibrated(0.5)
    truth = right.answer(first, second, np.random.default_rng(0))
    found = replace(right, mistake=mistake).answer(first, second, np.random.default_rng(seed))
    decided = truth != 0.5
    n, wrong = decided.sum(), (found != truth).sum()
    assert (found[~decided] == 0.5).all()
    assert abs(wrong - n * mistake) <= 6 * math.sqrt(n * mistake * (1 - mistake)) + 1e-9


@given(seed=SEEDS, beta=st.floats(0, 20), gap=st.sampled_from([-1.0, -0.25, 0.0, 0.25, 1.0]))
@settings(max_examples=40, deadline=None)
def test_choices_are_binomial_at_any_rationality(seed, beta, gap):
    """ "First" comes with σ(β ΔR), within six deviations, and "second" with what is left to one."""
    n = 2000
    first, second = with_rewards([[1.0 + gap, 0.5]] * n), with_rewards([[1.0, 0.5]] * n)
    found = SimulatedTeacher(beta=beta).answer(first, second, np.random.default_rng(seed))
    p = 1 / (1 + math.exp(-beta * gap))
    assert (found == 1).sum() + (found == 0).sum() == n
    assert abs((found == 1).sum() - n * p) <= 6 * math.sqrt(n * p * (1 - p)) + 1e-9


@given(seed=SEEDS, skip=st.floats(0, 1.5), equal=st.floats(0, 1.5), session=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_thresholds_are_those_of_the_first_session_or_of_the_square_of_their_share(seed, skip, equal, session):
    """By the paper every session is the first; by the code every later one is the paper's with ε², and never ε³."""
    first, second = quarters(seed)

    def answers(teacher, session):
        told = replace(teacher, beta=1.0).calibrated(0.5, session=session)  # a finite beta knows no ties
        return told.answer(first, second, np.random.default_rng(seed))

    paper, squared = SimulatedTeacher(skip=skip, equal=equal), SimulatedTeacher(skip=skip**2, equal=equal**2)
    code = replace(paper, fidelity="bpref")
    np.testing.assert_equal(answers(paper, session), answers(paper, 0))
    np.testing.assert_equal(answers(code, 0), answers(paper, 0))
    np.testing.assert_equal(answers(code, session), answers(squared, session))


def test_thresholds_of_the_paper_do_not_drift_over_sessions_and_those_of_the_code_do_once():
    """Hand-worked, ε = 0.1 and a mean return of 1 a segment: differences below 0.1 are equal, or below 0.01."""
    first, second = with_rewards([[0.5, 0.5]] * 3), with_rewards([[0.5, 0.495], [0.5, 0.45], [0.5, 0.3]])
    rng = np.random.default_rng(0)

    def sessions(fidelity):
        teacher = SimulatedTeacher(equal=0.1, fidelity=fidelity)
        return [teacher.calibrated(0.5, session=k).answer(first, second, rng).tolist() for k in range(4)]

    found = {fidelity: sessions(fidelity) for fidelity in ("paper", "bpref")}
    assert found["paper"] == [[0.5, 0.5, 1.0]] * 4
    assert found["bpref"] == [[0.5, 0.5, 1.0]] + [[0.5, 1.0, 1.0]] * 3


def test_the_code_skips_less_from_the_second_session_on():
    """ε = 0.1 of a mean return of 1: 0.05 is skipped in session 0 only, 0.01 always, by the code."""
    first, second = with_rewards([[0.05], [0.01], [0.5]]), with_rewards([[0.0], [0.0], [0.0]])
    teacher = SimulatedTeacher(skip=0.1, fidelity="bpref")
    skipped = [
        np.isnan(teacher.calibrated(1.0, session=k).answer(first, second, np.random.default_rng(0))).tolist()
        for k in range(3)
    ]
    assert skipped == [[True, True, False], [False, True, False], [False, True, False]]


@given(seed=SEEDS, beta=st.floats(0.0, 50.0), gamma=st.floats(0.1, 1.0), equal=st.floats(0, 1), skip=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_probabilities_of_both_orders_sum_to_one(seed, beta, gamma, equal, skip):
    """With the complement of each draw of the choice, the swapped pair gets the complement of the answer."""
    first, second = quarters(seed)
    rng = np.random.default_rng(seed)
    choice, mistake = rng.random(len(first)), rng.random(len(first))
    drift = Drift(answers=20, mistake=0.5, beta=1.0) if beta > 1e-6 else None
    teacher = SimulatedTeacher(beta=beta, gamma=gamma, mistake=0.1, equal=equal, skip=skip, drift=drift).calibrated(0.3)
    one = teacher.answer(first, second, Draws(choice, mistake))
    two = teacher.answer(second, first, Draws(1 - choice, mistake))
    np.testing.assert_equal(two, 1 - one)


def test_no_myopia_is_the_oracle_in_both_fidelities():
    """γ = 1 answers as the return says, and B-Pref's code says "first" to an exact tie."""
    first, second = quarters(0, n=200)
    gap = (first.true_reward - second.true_reward).sum(1).numpy()
    assert (gap == 0).sum() > 5
    for fidelity, tie in (("paper", 0.5), ("bpref", 1.0)):
        found = SimulatedTeacher(gamma=1.0, fidelity=fidelity).answer(first, second, np.random.default_rng(0))
        assert np.array_equal(found, np.where(gap == 0, tie, gap > 0))


@pytest.mark.parametrize("form", ["linear", "exponential"])
def test_drift_starts_at_the_knob_and_goes_to_its_end(form):
    """w(0) = 0, w grows to 1, and is 1 (linear) or 1 − 1/e (exponential) after `answers` answers."""
    drift = Drift(form=form, answers=50, mistake=0.4, beta=2.0)
    n = np.array([0, 10, 50, 100, 10_000])
    mistakes, betas = drift.mistakes(0.1, n), drift.betas(math.inf, n)
    share = 1.0 if form == "linear" else 1 - math.exp(-1)
    assert mistakes[0] == 0.1
    assert math.isinf(betas[0])
    assert mistakes[2] == pytest.approx(0.1 + 0.3 * share)
    assert 1 / betas[2] == pytest.approx(share / 2)
    assert (np.diff(mistakes) >= 0).all()
    assert (np.diff(betas) <= 0).all()
    assert (mistakes[-1], betas[-1]) == (pytest.approx(0.4), pytest.approx(2.0))


def test_a_tired_teacher_errs_at_its_rate():
    """Mistakes in each fifth of 10 000 answers are binomial with that fifth's mean rate; a rater can also learn."""
    n = 10_000
    first, second = with_rewards([[1.0]] * n), with_rewards([[0.0]] * n)
    for start, end in ((0.0, 0.4), (0.4, 0.0)):
        teacher = SimulatedTeacher(mistake=start, drift=Drift(answers=n, mistake=end))
        wrong = (teacher.answer(first, second, np.random.default_rng(0)) == 0).reshape(5, -1).sum(1)
        rates = start + (end - start) * (np.arange(5) + 0.5) / 5
        assert (np.abs(wrong - 2000 * rates) <= 5 * np.sqrt(2000 * rates * (1 - rates))).all()


def test_a_teacher_whose_drift_is_over_is_one_without():
    """After `answers` answers a linear drift has reached its ends, and before the first answer nothing has changed."""
    first, second = quarters(1, n=200)
    drift = Drift(answers=100, mistake=0.3, beta=1.5)

    def answers(teacher):
        return teacher.answer(first, second, np.random.default_rng(0))

    late = SimulatedTeacher(mistake=0.1, drift=drift).calibrated(None, answered=100)
    assert np.array_equal(answers(late), answers(SimulatedTeacher(mistake=0.3, beta=1.5)))
    fresh, start = (
        answers(SimulatedTeacher(mistake=0.1, drift=drift)) for drift in (replace(drift, answers=1e12), None)
    )
    assert np.array_equal(fresh[start != 0.5], start[start != 0.5])  # a tie is drawn where beta is finite


@given(seed=SEEDS, cut=st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_answers_in_two_parts_are_those_in_one(seed, cut):
    """All that a teacher keeps is how many answers it gave: with that told, a batch can be cut anywhere."""
    first, second = quarters(seed)
    draws = np.random.default_rng(seed).random((2, len(first)))
    teacher = SimulatedTeacher(skip=0.6, drift=Drift(answers=15, mistake=1.0, beta=0.1)).calibrated(0.5)
    whole = teacher.answer(first, second, Draws(*draws))
    before = teacher.answer(first[:cut], second[:cut], Draws(*draws[:, :cut]))
    given_before = int((~np.isnan(before)).sum())  # what is skipped tires nobody
    after = teacher.calibrated(0.5, answered=given_before).answer(first[cut:], second[cut:], Draws(*draws[:, cut:]))
    np.testing.assert_equal(np.concatenate([before, after]), whole)


def test_labeling_counts_the_answers_of_a_tiring_teacher():
    """The answers that a dataset holds are the state: asked twice, a teacher goes on where it stopped, as itself."""
    data, teacher = make_episodes([30, 40]), SimulatedTeacher(drift=Drift(answers=20, mistake=1.0))
    known = None
    for asked in (20, 15):
        given = {"comparisons": asked, "segment_length": 3, "known": known, "rng": np.random.default_rng(asked)}
        known = label(data, teacher=teacher, query=UniformQuery(), **given)
    gap = [data.segments(refs).true_reward.sum(1) for refs in (known.first, known.second)]
    assert (known.p_first == (gap[0] < gap[1]).float().numpy()).all()  # after 20 answers all are wrong
    assert '"answered": 20' in known.teacher[0]
    assert known.rater.tolist() == [0] * 15


def test_labeling_counts_answers_over_rounds():
    """Where pairs are skipped and others asked, each round is told how many answers came before it."""
    data = make_episodes([30, 40])
    data = replace(data, true_reward=np.abs(data.true_reward))
    teacher = SimulatedTeacher(skip=1.2, drift=Drift(answers=20, mistake=0.5))
    numbers = {"comparisons": 40, "segment_length": 3, "rng": np.random.default_rng(0)}
    told = [
        json.loads(text)["answered"] for text in label(data, teacher=teacher, query=UniformQuery(), **numbers).teacher
    ]
    assert len(set(told)) > 1
    assert all(count == told.index(count) for count in told)


def test_labeling_tells_session_and_scale():
    """B-Pref's calibration: the mean return of the last 10 episodes by their length; what was told is stored."""
    data = make_episodes([20] * 15)
    data = replace(data, true_reward=np.abs(data.true_reward))
    teacher = SimulatedTeacher(equal=0.1, fidelity="bpref")
    numbers = {"comparisons": 4, "segment_length": 5, "session": 2, "last_episodes": 10}
    answers = label(data, teacher=teacher, query=UniformQuery(), rng=np.random.default_rng(0), **numbers)
    mean = float(data.select(np.arange(5, 15)).true_reward.mean())
    told = teacher.calibrated(mean, session=2).parameters()
    assert told["reward_per_step"] == pytest.approx(data.returns()[5:].mean() / 20)
    assert (told["fidelity"], told["session"]) == ("bpref", 2)
    assert all(f'"reward_per_step": {mean}' in text and '"session": 2' in text for text in answers.teacher)


@pytest.mark.parametrize(
    ("knobs", "allowed"),
    [
        ({"answers": 0, "mistake": 0.1}, r"answers must be in \(0, inf\), but is 0"),
        ({"answers": 5, "mistake": 1.5}, r"mistake must be in \[0, 1\] or null, but is 1.5"),
        ({"answers": 5, "beta": 0.0}, r"beta must be in \(0, inf\] or null, but is 0.0"),
        ({"answers": 5, "form": "cubic", "mistake": 0.1}, "form must be linear or exponential, but is 'cubic'"),
        ({"answers": 5}, "needs mistake or beta"),
    ],
)
def test_a_drift_validates_its_knobs(knobs, allowed):
    """Out of range, and a drift of nothing, are errors that name the allowed set."""
    with pytest.raises(ConfigError, match=allowed):
        Drift(**knobs)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"fidelity": "code"}, "fidelity must be in paper, bpref, but is code"),
        ({"session": -1}, r"session must be in \[0, inf\), but is -1"),
        ({"answered": -1}, r"answered must be in \[0, inf\), but is -1"),
        ({"beta": 0.0, "drift": Drift(answers=1, beta=1.0)}, r"beta must be in \(0, inf\] where drift.beta is given"),
    ],
)
def test_state_and_fidelity_are_validated(knobs, says):
    """What cannot be is an error at once."""
    with pytest.raises(ConfigError, match=says):
        SimulatedTeacher(**knobs)


def test_fidelity_is_refused_where_it_changes_no_answer():
    """`ineffective` says so exactly where both fidelities answer alike in every session."""
    first, second = quarters(3, n=300)
    for beta, equal, skip in itertools.product([1.0, math.inf], [0.0, 0.5], [0.0, 0.9]):
        teacher = SimulatedTeacher(beta=beta, equal=equal, skip=skip)
        paper, code = (
            replace(teacher, fidelity=fidelity)
            .calibrated(0.5, session=1)
            .answer(first, second, np.random.default_rng(0))
            for fidelity in ("paper", "bpref")
        )
        assert (teacher.ineffective("fidelity") is not None) == np.array_equal(paper, code, equal_nan=True)
    assert "counted where questions are asked" in SimulatedTeacher().ineffective("session")
    assert SimulatedTeacher().ineffective("beta") is None
