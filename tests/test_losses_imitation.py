"""Laws of imitation weighted, filtered or reversed by scores."""

import math

import pytest
import torch

from prefrl.losses import LogProbs, Pairs, with_soft_labels
from prefrl.losses.imitation import (
    BAD,
    GOOD,
    UNCONDITIONED,
    awr,
    awr_with_value,
    chosen_nll,
    control_labels,
    filtered,
    nll,
    rwr,
    unlikelihood,
)

MASK = torch.tensor([[True, True, False], [True, False, False]])
ALL_GOOD = torch.ones(2, 3, dtype=torch.bool)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def steps(score=None):
    """Two sequences of 2 and 1 steps; NaN beyond their ends."""
    policy = double([-1.0, -2.0, math.nan], [-0.5, math.nan, math.nan]).requires_grad_()
    return LogProbs(policy, mask=MASK, score=score)


def test_closed_forms():
    """The values worked out by hand: ℓ = (−1 − 2, −½)."""
    items = steps(score=double(2.0, -1.0))
    torch.testing.assert_close(nll(items), double(3.0, 0.5))
    torch.testing.assert_close(filtered(items), double(3.0, 0.0))
    torch.testing.assert_close(filtered(items, threshold=-1.0), double(3.0, 0.5))
    torch.testing.assert_close(rwr(items, beta=2.0), double(3 * math.e, 0.5 * math.exp(-0.5)))
    good = torch.tensor([[True, False, False], [False, True, True]])
    expected = double(1 - 0.1 * math.log1p(-math.exp(-2)), -0.1 * math.log1p(-math.exp(-0.5)))
    torch.testing.assert_close(unlikelihood(items, good, alpha=0.1), expected)


def test_the_chosen_is_imitated_by_step_and_the_rejected_not_read():
    """−ℓ_w / L_w = nll / length, without gradient to the rejected; a tie is half of either side."""
    chosen, rejected = steps(), steps()
    value = chosen_nll(Pairs(chosen, rejected))
    torch.testing.assert_close(value, nll(chosen) / double(2, 1))
    value.sum().backward()
    assert rejected.policy.grad is None
    torch.testing.assert_close(chosen.policy.grad, double([-0.5, -0.5, 0.0], [-1.0, 0.0, 0.0]))
    halves = with_soft_labels(chosen_nll)(
        Pairs(chosen, LogProbs(double(-8.0, -2.0), length=double(4, 4))), double(0.5, 1)
    )
    torch.testing.assert_close(halves, double(0.5 * 1.5 + 0.5 * 2, 0.5))


def test_advantages_weigh_steps_or_sequences():
    """e^{A/β} multiplies the steps' log-probs for A of shape (B, T), the sequence's for (B,)."""
    advantage = double([0.0, 2.0, math.nan], [-4.0, math.nan, 9.0])
    torch.testing.assert_close(awr(steps(), advantage, beta=2.0), double(1 + 2 * math.e, 0.5 * math.exp(-2)))
    torch.testing.assert_close(awr(steps(), double(2.0, -4.0), beta=2.0), double(3 * math.e, 0.5 * math.exp(-2)))
    same = double([2.0, 2.0, 2.0], [-4.0, -4.0, -4.0])
    torch.testing.assert_close(awr(steps(), same), awr(steps(), double(2.0, -4.0)))


def test_neutral_weights_are_plain_likelihood():
    """No advantage, an infinite temperature, a threshold below all scores, only good steps: −ℓ."""
    items = steps(score=double(2.0, -1.0))
    for found in (
        awr(items, double(0.0, 0.0)),
        rwr(items, beta=math.inf),
        filtered(items, threshold=-math.inf),
        unlikelihood(items, ALL_GOOD),
    ):
        torch.testing.assert_close(found, nll(items), rtol=0, atol=1e-12)


def test_weights_are_capped_and_never_overflow():
    """An advantage of 1e30 weighs 1000 as one of ln 1000 does, with a finite gradient."""
    policy = torch.tensor([-1.0, -1.0], requires_grad=True)
    values = awr(LogProbs(policy), torch.tensor([1e30, math.log(1000)]))
    values.sum().backward()
    torch.testing.assert_close(values, torch.tensor([1000.0, 1000.0]))
    torch.testing.assert_close(policy.grad, torch.tensor([-1000.0, -1000.0]))
    assert awr(LogProbs(policy), torch.tensor([5.0, 5.0]), max_weight=20.0)[0].item() == pytest.approx(20.0)


def test_the_cap_of_rewards_is_an_option():
    """RWR weighs min(e^{R/beta}, max_weight), as AWR of the same values does."""
    items = LogProbs(double(-1.0, -1.0, -1.0), score=double(2.0, 30.0, 60.0))
    torch.testing.assert_close(rwr(items), double(math.exp(0.2), math.exp(3.0), math.exp(6.0)))
    torch.testing.assert_close(rwr(items, max_weight=20.0), double(math.exp(0.2), 20.0, 20.0))
    torch.testing.assert_close(rwr(items, beta=1.0, max_weight=math.inf), double(2.0, 30.0, 60.0).exp())


def test_values_keep_their_digits_beside_a_policy_of_half_precision():
    """Errors and weights are those of the float32 values, and so is the values' gradient."""
    policy, returns = torch.tensor([-1.0, -2.0]), torch.tensor([100.2, 100.0])
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        values = torch.tensor([100.1, 100.3], requires_grad=True)
        value = awr_with_value(LogProbs(policy.to(dtype)), values, returns)
        found.append([value, torch.autograd.grad(value.sum(), values)[0]])
    for half, single in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, single)


def test_weighted_regression_ends_at_the_tilted_policy_of_the_data():
    """On a bandit with data π₀, the gradient of Σ_a π₀(a) · awr(a) is zero at π ∝ π₀ e^{A/β}."""
    behavior, advantage, beta = double(0.2, 0.5, 0.3), double(1.0, -0.5, 0.2), 0.7
    logits = (behavior.log() + advantage / beta).requires_grad_()
    value = (behavior * awr(LogProbs(logits.log_softmax(-1)), advantage, beta=beta)).sum()
    assert torch.autograd.grad(value, logits)[0].abs().max().item() < 1e-12


def test_value_and_policy_learn_apart():
    """The policy's gradient is α times that of AWR, the values' 2(1 − α)(V − R); padding has none."""
    items, alpha, beta = steps(), 0.25, 2.0
    returns = double([1.0, 3.0, math.nan], [0.0, 1.0, 1.0])
    values = double([0.0, 1.0, 5.0], [4.0, math.nan, 0.0]).requires_grad_()
    found = awr_with_value(items, values, returns, alpha=alpha, beta=beta)
    expected = alpha * awr(items, returns - values, beta=beta) + (1 - alpha) * double(1.0 + 4.0, 16.0)
    torch.testing.assert_close(found, expected)
    of_policy, of_values = torch.autograd.grad(found.sum(), (items.policy, values))
    alone = torch.autograd.grad(awr(items, returns - values, beta=beta).sum(), items.policy)[0]
    torch.testing.assert_close(of_policy, alpha * alone)
    torch.testing.assert_close(of_values, 2 * (1 - alpha) * double([-1.0, -2.0, 0.0], [4.0, 0.0, 0.0]))


def test_value_of_whole_sequences():
    """With values and returns (B,) the errors are those of sequences."""
    found = awr_with_value(steps(), double(1.0, 1.0), double(1.0, 3.0), alpha=0.0)
    torch.testing.assert_close(found, double(0.0, 4.0))


def test_unlikelihood_lowers_bad_steps_and_raises_good_ones():
    """Slopes: −1 in a good log p, α p / (1 − p) in a bad one; 0 in padding."""
    items, good = steps(), torch.tensor([[True, False, True], [False, True, True]])
    found = torch.autograd.grad(unlikelihood(items, good, alpha=0.5).sum(), items.policy)[0]
    bad = [0.5 * math.exp(x) / (1 - math.exp(x)) for x in (-2.0, -0.5)]
    torch.testing.assert_close(found, double([-1.0, bad[0], 0.0], [bad[1], 0.0, 0.0]))


@pytest.mark.parametrize("log_prob", [-1e4, -50.0, -1.0, -math.log(2), -1e-3, -1.0001e-4])
def test_the_complement_is_exact_below_its_edge(log_prob):
    """−log(1 − p) agrees with log1p and expm1 in double precision, on both branches."""
    items = LogProbs(double([log_prob]), mask=torch.tensor([[True]]))
    found = unlikelihood(items, torch.tensor([[False]]), alpha=1.0).item()
    assert found == pytest.approx(-math.log(-math.expm1(log_prob)), rel=1e-12)


def test_a_bad_step_that_is_certain_is_still_corrected():
    """From p = 0.9999 on the loss is its tangent: continuous, increasing, slope 1 / (e^1e-4 − 1), never infinite."""
    policy = double([-1e-4, -5e-5, 0.0, 1e-3]).T.reshape(4, 1).requires_grad_()
    values = unlikelihood(LogProbs(policy, mask=torch.ones(4, 1, dtype=torch.bool)), ~ALL_GOOD[:1, :1].repeat(4, 1))
    slope = torch.autograd.grad(values.sum(), policy)[0]
    torch.testing.assert_close(slope[1:], torch.full((3, 1), 0.01 / math.expm1(1e-4), dtype=torch.float64))
    edge = -0.01 * math.log(-math.expm1(-1e-4))
    expected = edge + 0.01 * double(0.0, 5e-5, 1e-4, 1e-3 + 1e-4) / math.expm1(1e-4)
    torch.testing.assert_close(values, expected)


def test_padding_gets_no_gradient():
    """NaN beyond the end of a sequence reaches neither values nor gradients."""
    for loss in (
        nll,
        lambda items: unlikelihood(items, ALL_GOOD),
        lambda items: awr(items, double([1.0] * 3, [2.0] * 3)),
    ):
        items = steps()
        found = torch.autograd.grad(loss(items).sum(), items.policy)[0]
        assert found.isfinite().all()
        assert (found[~MASK] == 0).all()


def test_control_labels_follow_the_threshold():
    """Good is score ≥ threshold, of sequences or steps; the labels index an embedding."""
    found = control_labels(double([0.1, 0.5], [0.9, -3.0]), threshold=0.5)
    assert found.tolist() == [[BAD, GOOD], [GOOD, BAD]]
    assert sorted({BAD, GOOD, UNCONDITIONED}) == [0, 1, 2]
    assert not found.is_floating_point()


def test_control_labels_are_dropped_at_the_given_rate():
    """A fraction of the prefixes goes, whatever the score, equally for equal seeds; 1 drops all."""
    score = torch.linspace(-1, 1, 10_000)
    labels = [control_labels(score, threshold=0.0, drop_prefix=0.1, generator=seeded()) for _ in range(2)]
    assert torch.equal(*labels)
    rate = (labels[0] == UNCONDITIONED).float().mean().item()
    assert rate == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 10_000))
    kept = labels[0] != UNCONDITIONED
    assert torch.equal(labels[0][kept], control_labels(score, threshold=0.0)[kept])
    assert (control_labels(score, threshold=0.0, drop_prefix=1.0, generator=seeded()) == UNCONDITIONED).all()


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: filtered(steps(score=double(0.0, 1.0)), threshold=math.nan), "threshold must be a number"),
        (lambda: control_labels(double(math.nan), threshold=0.0), "score must be without NaN"),
        (lambda: control_labels(double(1.0), threshold=0.0, drop_prefix=1.5), r"drop_prefix must be in \[0, 1\]"),
        (lambda: control_labels(double(1.0), threshold=0.0, drop_prefix=0.5), "generator must be given"),
        (lambda: control_labels(double(1.0), threshold=0.0, generator=seeded()), "generator must be given"),
        (lambda: unlikelihood(steps(), torch.ones(2, 3)), "good must be bool"),
        (lambda: unlikelihood(steps(), ALL_GOOD[0]), "good must be of shape"),
        (lambda: unlikelihood(steps(), ALL_GOOD, alpha=-1.0), "alpha must be >= 0"),
        (
            lambda: unlikelihood(LogProbs(double([0.5]), mask=MASK[1:, :1]), ALL_GOOD[:1, :1]),
            r"policy must be log-probs ≤ 0, but is up to 0\.5",
        ),
        (lambda: rwr(steps(score=double(1.0, 2.0)), max_weight=0.0), "max_weight must be > 0"),
        (lambda: unlikelihood(LogProbs(double(-1.0)), ALL_GOOD), "unlikelihood needs steps"),
        (lambda: awr(steps(), double(1.0, 2.0, 3.0)), r"advantage must be of shape \(2,\) or \(2, 3\)"),
        (lambda: awr(LogProbs(double(-1.0)), double([1.0, 2.0])), r"advantage must be of shape \(1,\), but"),
        (lambda: awr(steps(), double(1.0, math.nan)), "advantage must be without NaN"),
        (lambda: awr(steps(), double(1.0, 2.0), beta=0.0), "beta must be a number above 0"),
        (lambda: awr(steps(), double(1.0, 2.0), max_weight=0.0), "max_weight must be > 0"),
        (lambda: awr_with_value(steps(), double(1.0, 2.0), double(1.0, 2.0), alpha=2.0), r"alpha must be in \[0, 1\]"),
        (lambda: awr_with_value(steps(), double(1.0, 2.0), torch.ones(2, 3)), "returns must have the shape of values"),
        (lambda: rwr(steps()), "rwr needs score"),
    ],
)
def test_bad_input_is_named(call, match):
    """Wrong shapes, labels and options are ValueErrors that name the argument."""
    with pytest.raises(ValueError, match=match):
        call()
