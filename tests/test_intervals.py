"""Laws of the statistics: rliable's numbers, hand-computed values, symmetry, coverage."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prefrl.errors import InvalidData
from prefrl.evaluation.intervals import (
    improvement_interval,
    iqm,
    mean,
    median,
    nested_bootstrap,
    optimality_gap,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    success_interval,
)

RLIABLE = json.loads((Path(__file__).parent / "oracles" / "rliable.json").read_text())
FIRST, SECOND = np.array(RLIABLE["first"]), np.array(RLIABLE["second"])
SINGLE = {
    "mean": (FIRST, mean),
    "median": (FIRST, median),
    "iqm": (FIRST, iqm),
    "iqm_second": (SECOND, iqm),
    "optimality_gap": (FIRST, optimality_gap),
    "performance_profile": (FIRST, lambda x: performance_profile(x, np.array(RLIABLE["thresholds"]))),
}
SCORES = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 5)), elements=st.integers(-20, 20).map(float))


def rng():
    return np.random.default_rng(0)


def estimate(name):
    if name == "probability_of_improvement":
        return improvement_interval(FIRST, SECOND, repetitions=20_000, rng=rng())
    scores, statistic = SINGLE[name]
    return stratified_bootstrap(scores, statistic, repetitions=20_000, rng=rng())


@pytest.mark.parametrize("name", list(RLIABLE["statistics"]))
def test_agrees_with_rliable(name):
    """Point estimates are equal to rounding; interval ends differ by Monte-Carlo error only."""
    expected, found = RLIABLE["statistics"][name], estimate(name)
    np.testing.assert_allclose(np.atleast_1d(found.value), expected["value"], rtol=1e-12)
    tolerance = 5 * expected["spread"] + 1e-9
    np.testing.assert_allclose(np.atleast_1d(found.low), expected["low"], atol=tolerance, rtol=0)
    np.testing.assert_allclose(np.atleast_1d(found.high), expected["high"], atol=tolerance, rtol=0)


def test_hand_computed_values():
    """2 runs, 2 tasks: numbers anyone can check."""
    scores = np.array([[0.0, 1.0], [0.5, 3.0]])
    assert mean(scores) == 1.125
    assert median(scores) == (0.25 + 2.0) / 2
    assert iqm(scores) == (0.5 + 1.0) / 2
    assert optimality_gap(scores) == pytest.approx(1 - 2.5 / 4)
    assert performance_profile(scores, np.array([0.0, 0.9, 3.0])).tolist() == [0.75, 0.5, 0.0]
    assert probability_of_improvement(scores, np.array([[0.5, 0.0]])) == (0.25 + 1.0) / 2


@given(SCORES)
def test_iqm_is_scipys_trimmed_mean(scores):
    """The interquartile mean trims ⌊n/4⌋ scores at each end (scipy as an independent oracle)."""
    assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None), abs=1e-12)


@given(SCORES, st.randoms(use_true_random=False))
def test_order_of_runs_and_tasks_does_not_matter(scores, random):
    """Permuting runs within a task, or tasks, changes no statistic."""
    shuffled = scores.copy()
    for task in range(scores.shape[1]):
        shuffled[:, task] = scores[random.sample(range(len(scores)), len(scores)), task]
    shuffled = shuffled[:, random.sample(range(scores.shape[1]), scores.shape[1])]
    for statistic in (mean, median, iqm, optimality_gap):
        assert statistic(shuffled) == pytest.approx(statistic(scores), abs=1e-12)


@given(st.data())
def test_improvement_counts_pairs_and_is_antisymmetric(data):
    """P(x > y) counted pair by pair with ties as ½; P(x > y) + P(y > x) = 1."""
    tasks = data.draw(st.integers(1, 3))
    shape = st.tuples(st.integers(1, 5), st.just(tasks))
    x, y = (data.draw(arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, 2.0]))) for _ in range(2))
    pairs = [
        np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in x[:, m] for b in y[:, m]]) for m in range(tasks)
    ]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(pairs))
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)


@settings(max_examples=25)
@given(SCORES)
def test_statistics_work_on_stacks(scores):
    """A statistic of stacked scores is the stack of the statistics: the bootstrap relies on it."""
    stack = np.stack([scores, 2 * scores - 1])
    for statistic in (mean, median, iqm, optimality_gap):
        assert statistic(stack).tolist() == [statistic(one) for one in stack]
    assert probability_of_improvement(stack, stack[:, ::-1]).shape == (2,)


def test_resampling_stays_within_a_task():
    """Tasks are strata: with one run, or equal runs, per task nothing varies, however different the tasks."""
    scores = np.tile([0.0, 5.0, 100.0], (4, 1))
    found = stratified_bootstrap(scores, mean, rng=rng())
    assert found.low == found.value == found.high == 35.0


def test_every_repetition_counts_once():
    """``repetitions`` is exact also when they do not fit in memory at once."""
    seen = []
    stratified_bootstrap(np.ones((100, 50)), lambda x: seen.append(x.shape) or mean(x), repetitions=101, rng=rng())
    resampled = [shape for shape in seen if len(shape) == 3]
    assert len(resampled) > 1
    assert sum(shape[0] for shape in resampled) == 101


def test_equal_generators_give_equal_intervals():
    """Randomness is the argument, all of it."""
    first = stratified_bootstrap(FIRST, iqm, rng=np.random.default_rng(5))
    assert first == stratified_bootstrap(FIRST, iqm, rng=np.random.default_rng(5))
    assert first != stratified_bootstrap(FIRST, iqm, rng=np.random.default_rng(6))


def test_more_confidence_is_wider():
    """50 % ⊂ 95 % ⊂ 99 %."""
    widths = []
    for confidence in (0.5, 0.95, 0.99):
        found = stratified_bootstrap(FIRST, iqm, confidence=confidence, rng=rng())
        widths.append(found.high - found.low)
    assert widths == sorted(widths)
    assert widths[0] < 0.5 * widths[1]


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.6, 0.95])
def test_success_interval_covers_the_true_rate(rate):
    """Of 95 % intervals from 40 Bernoulli episodes, about 95 % hold the true rate (the bootstrap: ≥ 88)."""
    generator = np.random.default_rng(1)
    samples = generator.random((400, 40)) < rate
    intervals = [success_interval(sample, repetitions=500, rng=generator) for sample in samples]
    covered = np.mean([one.low <= rate <= one.high for one in intervals])
    assert 0.88 <= covered <= 1.0
    assert np.mean([one.high - one.low for one in intervals]) < 0.35


def test_mean_interval_covers_the_true_mean():
    """Of 95 % intervals of the mean of 20 runs on 3 tasks, 95 ± 4 % hold it."""
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        found = stratified_bootstrap(generator.normal(1.0, 1.0, (20, 3)), mean, repetitions=400, rng=generator)
        hits += found.low <= 1.0 <= found.high
    assert 0.91 <= hits / 300 <= 0.99


@pytest.mark.parametrize("episodes", [1, 5, 20, 100])
def test_unanimous_episodes_leave_doubt(episodes):
    """All or none successful: the exact Clopper–Pearson bound (scipy), not an interval of width 0."""
    for wins in (0, episodes):
        found = success_interval(np.arange(episodes) < wins, rng=rng())
        exact = scipy.stats.binomtest(wins, episodes).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
        assert found.value == wins / episodes


def test_success_interval_is_the_bootstrap_of_the_mean():
    """Drawing from the binomial is resampling the episodes."""
    wins = np.arange(30) < 21
    direct = stratified_bootstrap(wins[:, None].astype(float), mean, repetitions=20_000, rng=rng())
    short = success_interval(wins, repetitions=20_000, rng=rng())
    assert (short.value, short.low, short.high) == pytest.approx((direct.value, direct.low, direct.high), abs=0.034)


def test_pairing_cancels_what_both_find_hard():
    """On the same hard and easy episodes, the paired interval is far narrower than the two rates' own."""
    generator = rng()
    hardness = generator.normal(size=200)
    first, second = hardness + 0.3 + 0.1 * generator.normal(size=200), hardness
    found = paired_difference(first, second, rng=generator)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert 0.25 < found.low < 0.3 < found.high < 0.35
    own = stratified_bootstrap(first[:, None], mean, rng=generator)
    assert found.high - found.low < 0.2 * (own.high - own.low)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stratified_bootstrap(np.array([[np.nan]]), iqm, rng=rng()), InvalidData, "NaN"),
        (lambda: stratified_bootstrap(np.ones(3), iqm, rng=rng()), InvalidData, "R runs, M tasks"),
        (lambda: stratified_bootstrap(np.ones((0, 3)), iqm, rng=rng()), InvalidData, "at least one"),
        (
            lambda: stratified_bootstrap(np.ones((2, 3)), iqm, confidence=95, rng=rng()),
            ValueError,
            "confidence",
        ),
        (
            lambda: stratified_bootstrap(np.ones((2, 3)), iqm, repetitions=0, rng=rng()),
            ValueError,
            "repetitions",
        ),
        (lambda: nested_bootstrap(np.ones(3), rng=rng()), InvalidData, "S seeds, E episodes"),
        (lambda: nested_bootstrap(np.ones((2, 3)), repetitions=0, rng=rng()), ValueError, "repetitions"),
        (lambda: success_interval(np.array([0.5]), rng=rng()), InvalidData, "yes/no"),
        (lambda: success_interval(np.array([]), rng=rng()), InvalidData, "at least one"),
        (lambda: paired_difference(np.ones(3), np.ones(4), rng=rng()), InvalidData, "equal shapes"),
        (
            lambda: improvement_interval(np.ones((2, 3)), np.ones((2, 4)), rng=rng()),
            InvalidData,
            "same tasks",
        ),
    ],
)
def test_bad_scores_are_refused(call, error, message):
    """NaN, wrong shapes and impossible settings are errors that say what was expected."""
    with pytest.raises(error, match=message):
        call()


def test_unanimous_pairs_are_not_certain():
    """Ones against zeros on 20 episodes: the interval has the width of the exact bound, on each side of zero."""
    ones, zeros, rng = np.ones(20), np.zeros(20), np.random.default_rng(0)
    better, worse, equal = (paired_difference(*pair, rng=rng) for pair in ((ones, zeros), (zeros, ones), (ones, ones)))
    bound = 0.025 ** (1 / 20)
    assert (better.value, better.high) == (1, 1)
    assert better.low == pytest.approx(2 * bound - 1)  # the pairs not seen may go the other way
    assert (worse.value, worse.low, worse.high) == (-1, -1, -better.low)
    assert equal.value == 0
    assert (equal.low, equal.high) == (pytest.approx(bound - 1), pytest.approx(1 - bound))


@pytest.mark.parametrize(("wins", "losses"), [(0.9, 0.1), (0.95, 0.05), (0.9, 0.0), (0.02, 0.02)])
def test_intervals_of_few_pairs_cover_the_difference(wins, losses):
    """P(unanimous and missed) ≤ 2.5 %: intervals of 20 pairs hold wins − losses, also where pairs rarely disagree."""
    generator, unanimous, missed = np.random.default_rng(3), 0, 0
    for draw in generator.random((400, 20)):
        first, second = (draw < wins).astype(float), ((draw >= wins) & (draw < wins + losses)).astype(float)
        found = paired_difference(first, second, repetitions=1, rng=generator)
        if np.ptp(first - second) == 0:
            unanimous += 1
            missed += not found.low <= wins - losses <= found.high
    assert unanimous > 10
    assert missed / 400 <= 0.025


def test_nested_bootstrap_covers_the_mean():
    """95 % intervals over seeds and episodes hold the true mean in 84 to 100 % of simulated benchmarks of 8 seeds."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        rates = rng.beta(5, 2, size=(8, 1))
        estimate = nested_bootstrap((rng.random((8, 30)) < rates).astype(float), repetitions=400, rng=rng)
        inside += estimate.low <= 5 / 7 <= estimate.high
    assert inside >= 168


def test_nested_bootstrap_of_one_seed_is_a_bootstrap_over_episodes():
    """With one seed only episodes vary: the interval is that of the success rate."""
    outcomes = (np.arange(100) < 70).astype(float)
    nested = nested_bootstrap(outcomes[None], repetitions=20000, rng=np.random.default_rng(0))
    plain = success_interval(outcomes, repetitions=20000, rng=np.random.default_rng(1))
    assert (nested.low, nested.high) == (pytest.approx(plain.low, abs=0.011), pytest.approx(plain.high, abs=0.011))
