"""Laws of the losses of reward and cost models."""

import math

import pytest
import torch

from prefrl.losses import LogProbs, Pairs, preference_nll, rao_kupper, with_flip_correction, with_soft_labels
from prefrl.losses.logistic import dpo
from prefrl.losses.reward_model import reward_bradley_terry, reward_cost, reward_gce, reward_mae, reward_ties
from prefrl.losses.unpaired import bco

FIRST = torch.tensor([3.0, 0.5, -2.0, 40.0, 0.0], dtype=torch.float64)
SECOND = torch.tensor([1.0, 0.5, 5.0, -40.0, 0.1], dtype=torch.float64)
YES = torch.ones(5, dtype=torch.bool)


def softplus(x):
    return math.log1p(math.exp(x))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def outcomes(value):
    return torch.full((5,), value, dtype=torch.float64)


def as_pairs(chosen, rejected):
    zero = torch.zeros_like(chosen)
    return Pairs(LogProbs(chosen, zero), LogProbs(rejected, zero))


def test_closed_forms():
    """The values worked out by hand at r = (3, 1)."""
    found = reward_bradley_terry(double(3.0), double(1.0), margin=0.5, centering=0.01)
    assert found.item() == pytest.approx(softplus(-1.5) + 0.16, abs=1e-12)
    for outcome, expected in (
        (1.0, softplus(math.log(5) - 2)),
        (0.0, softplus(math.log(5) + 2)),
        (0.5, softplus(math.log(5) - 2) + softplus(math.log(5) + 2) - math.log(24)),
    ):
        assert reward_ties(double(3.0), double(1.0), double(outcome)).item() == pytest.approx(expected, abs=1e-12)
    unsafe, safe = torch.tensor([True]), torch.tensor([False])
    found = reward_cost(double(3.0), double(1.0), unsafe, safe)
    assert found.item() == pytest.approx(softplus(-2) + softplus(-3) + softplus(1), abs=1e-12)


def test_without_margin_it_is_the_likelihood_of_bradley_terry():
    """The loss of a hard label of the choice model; soft labels are the choice model's own loss."""
    torch.testing.assert_close(reward_bradley_terry(FIRST, SECOND), preference_nll(FIRST - SECOND, outcomes(1.0)))


def test_a_margin_shifts_the_chosen_reward():
    """−log σ(r_w − r_l − m): a pair must be won by m; one number is the same margin everywhere."""
    margin = torch.linspace(0, 3, 5, dtype=torch.float64)
    shifted = reward_bradley_terry(FIRST - margin, SECOND)
    torch.testing.assert_close(reward_bradley_terry(FIRST, SECOND, margin=margin), shifted)
    torch.testing.assert_close(reward_bradley_terry(FIRST, SECOND, margin=1.0), reward_bradley_terry(FIRST - 1, SECOND))


def test_centering_sees_the_sum_only():
    """c (r_w + r_l)² is zero for opposite rewards, and stops their common shift, which likelihood does not see."""
    torch.testing.assert_close(
        reward_bradley_terry(FIRST, -FIRST, centering=0.3), reward_bradley_terry(FIRST, -FIRST), rtol=0, atol=0
    )
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for centering, expected in ((0.0, 0.0), (0.3, 0.3 * 2 * 2 * (FIRST + SECOND).sum().item())):
        value = reward_bradley_terry(FIRST + shift, SECOND + shift, centering=centering).sum()
        assert torch.autograd.grad(value, shift)[0].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1.5, 5.0, 50.0])
def test_likelihoods_of_win_tie_and_loss_sum_to_one(k):
    """P(first) + P(tie) + P(second) = 1 at any difference, to 1e-12."""
    total = sum(torch.exp(-reward_ties(FIRST, SECOND, outcomes(o), k=k)) for o in (0.0, 0.5, 1.0))
    torch.testing.assert_close(total, outcomes(1.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1.5, 5.0])
def test_ties_are_the_model_of_rao_and_kupper(k):
    """Each outcome has the probability of the choice model with θ = k."""
    for outcome, expected in zip((1.0, 0.5, 0.0), rao_kupper(FIRST, SECOND, theta=k), strict=True):
        found = torch.exp(-reward_ties(FIRST, SECOND, outcomes(outcome), k=k))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_ties_swap_with_their_outcome():
    """(first, second, outcome) and (second, first, 1 − outcome) say the same."""
    outcome = double(1.0, 0.5, 0.0, 0.5, 1.0)
    torch.testing.assert_close(reward_ties(FIRST, SECOND, outcome), reward_ties(SECOND, FIRST, 1 - outcome))


def test_without_ties_it_is_bradley_terry():
    """k → 1 leaves no room for ties."""
    torch.testing.assert_close(
        reward_ties(FIRST, SECOND, outcomes(1.0), k=1 + 1e-12), reward_bradley_terry(FIRST, SECOND)
    )


def test_a_tie_pulls_the_rewards_together():
    """The loss of a tie is least at Δ = 0, where P(tie) = (k − 1) / (k + 1)."""
    delta = torch.linspace(-3, 3, 13, dtype=torch.float64)
    values = reward_ties(delta, torch.zeros_like(delta), torch.full_like(delta, 0.5), k=5.0)
    assert values.argmin() == 6
    assert values[6].exp().reciprocal().item() == pytest.approx(4 / 6, abs=1e-12)


def test_an_improbable_tie_still_has_a_gradient():
    """At Δ = 1e4 P(tie) is 0 in any precision; the loss is |Δ| + …, its slope 1."""
    first = torch.tensor([1e4], requires_grad=True)
    value = reward_ties(first, torch.zeros(1), torch.tensor([0.5]))
    value.sum().backward()
    assert value.item() == pytest.approx(1e4 + math.log(5) - math.log(24), rel=1e-6)
    assert first.grad.item() == pytest.approx(1.0)


def test_rewards_of_half_precision_are_computed_in_float32():
    """(200 + 100)² has no place in float16; a margin of more digits keeps them."""
    chosen, rejected = torch.tensor([200.0], dtype=torch.float16), torch.tensor([100.0], dtype=torch.float16)
    found = reward_bradley_terry(chosen, rejected, centering=0.01)
    torch.testing.assert_close(found, torch.tensor([900.0]))
    torch.testing.assert_close(reward_ties(chosen, rejected, torch.tensor([0.0])), torch.tensor([100 + math.log(5)]))
    assert reward_cost(chosen, rejected, YES[:1], YES[:1]).dtype == torch.float32
    half = torch.tensor([1.0], dtype=torch.bfloat16)
    margin = torch.tensor([1e-3])
    torch.testing.assert_close(
        reward_bradley_terry(half, half, margin=margin), torch.tensor([softplus(1e-3)]), rtol=0, atol=1e-7
    )


def test_cost_of_an_unsafe_and_a_safe_sequence_is_ranking_and_classification():
    """Where the worse sequence is unsafe and the better one safe: DPO + BCO with costs for log-ratios."""
    pairs = as_pairs(FIRST, SECOND)
    expected = dpo(pairs, beta=1.0) + bco(pairs, beta=1.0)
    torch.testing.assert_close(reward_cost(FIRST, SECOND, YES, ~YES), expected, rtol=0, atol=1e-12)


def test_cost_is_unchanged_when_costs_become_virtues():
    """Negated costs, exchanged sequences and exchanged words safe and unsafe are the same data."""
    unsafe = torch.tensor([True, True, False, False, True])
    torch.testing.assert_close(reward_cost(FIRST, SECOND, YES, unsafe), reward_cost(-SECOND, -FIRST, ~unsafe, ~YES))


def test_the_sign_of_a_cost_says_whether_it_is_safe():
    """The slope pulls costs of unsafe sequences up and of safe ones down, apart from the ranking."""
    cost = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([True, False])
    value = reward_cost(cost, cost, labels, labels).sum()  # the ranking of a cost against itself has no slope
    torch.testing.assert_close(torch.autograd.grad(value, cost)[0], double(-1.0, 1.0))


def test_mae_is_the_distance_of_the_probability_from_the_label():
    """|σ(s_w − s_l) − 1|."""
    expected = (torch.sigmoid(FIRST - SECOND) - 1).abs()
    torch.testing.assert_close(reward_mae(as_pairs(FIRST, SECOND)), expected, rtol=0, atol=1e-15)


def test_mae_is_symmetric():
    """ℓ(w ≻ l) + ℓ(l ≻ w) = 1 at any difference; the likelihood has no such bound."""
    pairs = as_pairs(FIRST, SECOND)
    torch.testing.assert_close(reward_mae(pairs) + reward_mae(pairs.swapped()), torch.ones_like(FIRST))
    assert (reward_bradley_terry(FIRST, SECOND) + reward_bradley_terry(SECOND, FIRST)).max() > 70


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_flipped_labels_scale_the_gradient_of_mae(rate):
    """Expected over flips at rate ε it is (1 − 2ε) ℓ + ε, so the flip correction is the loss over 1 − 2ε, shifted."""
    pairs = as_pairs(FIRST, SECOND)
    expected = (1 - 2 * rate) * reward_mae(pairs) + rate
    torch.testing.assert_close(with_soft_labels(reward_mae)(pairs, outcomes(1 - rate)), expected)
    corrected = with_flip_correction(reward_mae, noise_rate=rate)(pairs)
    torch.testing.assert_close(corrected, (reward_mae(pairs) - rate) / (1 - 2 * rate))


def test_gce_lies_between_the_likelihood_and_mae():
    """q = 1 is MAE, q → 0 the likelihood, and in between it falls with q."""
    pairs = as_pairs(FIRST, SECOND)
    torch.testing.assert_close(reward_gce(pairs, q=1.0), reward_mae(pairs))
    torch.testing.assert_close(reward_gce(pairs, q=1e-9), reward_bradley_terry(FIRST, SECOND), rtol=1e-6, atol=1e-9)
    values = torch.stack([reward_gce(pairs, q=q) for q in (0.1, 0.4, 0.7, 1.0)])
    assert (values.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("q", [0.3, 0.7])
def test_gce_weighs_the_gradient_of_the_likelihood(q):
    """∂ℓ/∂z = p^q ∂(−log p)/∂z: a label counts by the power of its probability."""
    z = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(z)
    slope, likelihood = (
        torch.autograd.grad(values.sum(), z)[0]
        for values in (reward_gce(as_pairs(z, zero), q=q), reward_bradley_terry(z, zero))
    )
    torch.testing.assert_close(slope, torch.sigmoid(z.detach()) ** q * likelihood)


def test_truncation_leaves_improbable_labels_out():
    """Below p = k: the value of k, without gradient; above: the loss itself; continuous between the two."""
    z = torch.linspace(-3, 3, 9, dtype=torch.float64, requires_grad=True)
    zero, below = torch.zeros(9, dtype=torch.float64), torch.sigmoid(z.detach()) < 0.3
    values, plain = reward_gce(as_pairs(z, zero), truncation=0.3), reward_gce(as_pairs(z, zero))
    torch.testing.assert_close(values[below], torch.full_like(values[below], (1 - 0.3**0.7) / 0.7))
    torch.testing.assert_close(values[~below], plain[~below])
    slope = torch.autograd.grad(values.sum(), z)[0]
    assert not slope[below].any()
    assert (slope[~below] < 0).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: reward_gce(as_pairs(FIRST, SECOND), q=0.0), r"q must be in \(0, 1\]"),
        (lambda: reward_gce(as_pairs(FIRST, SECOND), q=1.5), r"q must be in \(0, 1\]"),
        (lambda: reward_gce(as_pairs(FIRST, SECOND), truncation=1.0), r"truncation must be in \[0, 1\)"),
        (lambda: reward_bradley_terry(FIRST, SECOND[:3]), r"rejected must be of shape \(5,\), but is of shape \(3,\)"),
        (lambda: reward_bradley_terry(FIRST, SECOND, margin=torch.ones(4)), "margin must be of shape"),
        (lambda: reward_bradley_terry(FIRST, SECOND, margin=math.nan), "margin must be without NaN"),
        (lambda: reward_bradley_terry(FIRST, SECOND, centering=-0.1), "centering must be >= 0"),
        (lambda: reward_ties(FIRST, SECOND, outcomes(1.0), k=1.0), "k must be > 1"),
        (lambda: reward_ties(FIRST, SECOND, outcomes(0.7)), "outcome must be 0, 0.5 or 1"),
        (lambda: reward_ties(FIRST, SECOND, outcomes(math.nan)), "outcome must be 0, 0.5 or 1"),
        (lambda: reward_ties(FIRST, SECOND, outcomes(1.0)[:2]), "outcome must be of shape"),
        (lambda: reward_ties(FIRST, SECOND[:1], outcomes(1.0)), "second must be of shape"),
        (lambda: reward_cost(FIRST, SECOND, outcomes(1.0), YES), "worse_unsafe must be bool"),
        (lambda: reward_cost(FIRST, SECOND, YES, YES[:2]), "better_unsafe must be of shape"),
        (lambda: reward_cost(FIRST, SECOND[:2], YES, YES), "better must be of shape"),
    ],
)
def test_bad_input_is_named(call, match):
    """Wrong shapes, labels and options are ValueErrors that name the argument."""
    with pytest.raises(ValueError, match=match):
        call()
