"""Laws of the losses that align a metric with triplets and pairs."""

import math

import pytest
import torch

from prefrl.losses import demo_pair_nll, equal_triplet, reward_bradley_terry, triplet_error, triplet_nll

ORDERED = [triplet_nll, triplet_error]


@pytest.fixture
def distances():
    """Positive and negative, in float64."""
    generator = torch.Generator().manual_seed(0)
    return tuple(5 * torch.rand(20, generator=generator, dtype=torch.float64) for _ in range(2))


def test_both_orders_of_a_triplet_share_one_probability(distances):
    """p of a triplet and p of its reverse sum to 1, whichever loss tells them."""
    positive, negative = distances
    there, back = (-triplet_nll(positive, negative)).exp(), (-triplet_nll(negative, positive)).exp()
    torch.testing.assert_close(there + back, torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(1 - triplet_error(positive, negative), there)
    torch.testing.assert_close(there, (-positive).exp() / ((-positive).exp() + (-negative).exp()))


@pytest.mark.parametrize("loss", ORDERED)
def test_descent_draws_the_positive_near_and_drives_the_negative_away(loss, distances):
    """The gradient is above 0 in the positive's distance, and minus that in the negative's."""
    positive, negative = (d.requires_grad_() for d in distances)
    pull, push = torch.autograd.grad(loss(positive, negative).sum(), (positive, negative))
    assert (pull > 0).all()
    torch.testing.assert_close(push, -pull)


def test_equal_distances():
    """log 2, one half, and nothing to gain."""
    one = torch.ones(1)
    assert triplet_nll(one, one).item() == pytest.approx(math.log(2))
    assert triplet_error(one, one).item() == 0.5
    assert equal_triplet(one, one).item() == 0
    assert demo_pair_nll(one, one, torch.tensor([0.3])).item() == pytest.approx(math.log(2))


def test_far_in_the_wrong_order():
    """The likelihood grows without bound and keeps its gradient; the published error is 1 and has none."""
    positive = torch.tensor([1e4], requires_grad=True)
    likelihood, error = triplet_nll(positive, torch.zeros(1)), triplet_error(positive, torch.zeros(1))
    assert likelihood.item() == pytest.approx(1e4)
    assert torch.autograd.grad(likelihood, positive)[0].item() == pytest.approx(1)
    assert error.item() == 1
    assert torch.autograd.grad(error, positive)[0].item() == 0


def test_equal_ranks_are_drawn_together(distances):
    """(p − ½)² is symmetric, at most ¼, and its descent makes the larger distance smaller."""
    first, second = (d.requires_grad_() for d in distances)
    values = equal_triplet(first, second)
    torch.testing.assert_close(values, equal_triplet(second, first))
    assert ((values > 0) & (values <= 0.25)).all()
    (gradient,) = torch.autograd.grad(values.sum(), first)
    assert (gradient.sign() == (first - second).sign()).all()


def test_pairs_are_choices_by_minus_the_distance(distances):
    """With a sure label it is the triplet's loss and the reward model's; swapping pair and label changes nothing."""
    first, second = distances
    label = torch.linspace(0, 1, 20, dtype=torch.float64)
    torch.testing.assert_close(demo_pair_nll(first, second, torch.ones_like(first)), triplet_nll(first, second))
    torch.testing.assert_close(triplet_nll(first, second), reward_bradley_terry(-first, -second))
    torch.testing.assert_close(demo_pair_nll(first, second, label), demo_pair_nll(second, first, 1 - label))


@pytest.mark.parametrize("loss", [*ORDERED, equal_triplet])
def test_gradients_are_those_of_finite_differences(loss, distances):
    """gradcheck in float64."""
    assert torch.autograd.gradcheck(loss, tuple(d.requires_grad_() for d in distances))


def test_different_numbers_of_distances_are_refused():
    """No broadcasting between items."""
    with pytest.raises(ValueError, match="second distances"):
        triplet_nll(torch.zeros(3), torch.zeros(1))
