"""Laws of optimal transport between embedded videos, with POT as oracle."""

import numpy as np
import ot
import ot.batch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from prefrl.errors import ConfigError, InvalidData
from prefrl.transport import pairwise_costs, plan_entropy, plans, transport_distance
from prefrl.transport.sequence_plans import entropic_plans

ALL = ("entropic", "exact", "uniform", "identity", "banded")


def walks(count, frames, seed, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, frames, size, generator=generator, dtype=torch.float64).cumsum(1)


def uniform(frames):
    return np.full(frames, 1 / frames)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_costs_are_those_of_scipy(metric):
    """Problem by problem; in float32 a frame is at no distance from itself."""
    x, y = walks(3, 6, 0), walks(3, 5, 1)
    expected = np.stack([cdist(a, b, metric) for a, b in zip(x.numpy(), y.numpy(), strict=True)])
    np.testing.assert_allclose(pairwise_costs(x, y, metric), expected, atol=1e-12)
    far = 1e3 + walks(1, 30, 2).float()
    assert (pairwise_costs(far, far).diagonal(dim1=1, dim2=2) == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_every_plan_has_its_marginals(plan, n, m, seed):
    """Frames weigh the same on both sides, and there is no negative mass; any lengths."""
    found = plans(pairwise_costs(walks(2, n, seed), walks(2, m, seed + 1)), plan, epsilon=0.3)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(2), torch.full((2, n), 1 / n, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.full((2, m), 1 / m, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("plan", ALL)
def test_padding_changes_nothing(plan):
    """Videos of other lengths in one batch: the plan of each alone, no mass on padding, whatever it holds."""
    x, y = walks(3, 8, 0), walks(3, 9, 1)
    lengths = [(8, 4), (5, 9), (1, 6)]
    mask_x = torch.arange(8) < torch.tensor([n for n, _ in lengths])[:, None]
    mask_y = torch.arange(9) < torch.tensor([m for _, m in lengths])[:, None]
    x, y = x.where(mask_x[..., None], 50.0), y.where(mask_y[..., None], -9.0)
    options = {"epsilon": 0.2, "tolerance": 1e-10, "band": 0.2}
    padded = plans(pairwise_costs(x, y), plan, mask_x=mask_x, mask_y=mask_y, **options)
    found = transport_distance(x, y, plan=plan, mask_x=mask_x, mask_y=mask_y, **options)
    entropy = plan_entropy(padded, mask_x, mask_y)
    for k, (n, m) in enumerate(lengths):
        one, other = x[k : k + 1, :n], y[k : k + 1, :m]
        alone = plans(pairwise_costs(one, other), plan, **options)
        torch.testing.assert_close(padded[k : k + 1, :n, :m], alone, atol=1e-9, rtol=1e-6)
        assert padded[k].sum().item() == pytest.approx(1)
        assert found[k].item() == pytest.approx(transport_distance(one, other, plan=plan, **options).item(), rel=1e-6)
        assert entropy[k].item() == pytest.approx(plan_entropy(alone).item(), rel=1e-6)
    assert (padded.sum(2)[~mask_x] == 0).all()
    assert (padded.sum(1)[~mask_y] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("domain", ["kernel", "log"])
def test_entropic_plans_are_those_of_pot(domain, dtype):
    """One by one (ot.sinkhorn) and in batches (ot.batch), to 1e-4."""
    costs = pairwise_costs(walks(4, 12, 0), walks(4, 9, 1))
    found = plans(costs.to(dtype), epsilon=0.1, domain=domain, tolerance=1e-6).double()
    epsilon = 0.1 * costs.mean((1, 2))
    for cost, reg, plan in zip(costs.numpy(), epsilon.tolist(), found.numpy(), strict=True):
        expected = ot.sinkhorn(uniform(12), uniform(9), cost, reg, stopThr=1e-9, numItermax=5000)
        np.testing.assert_allclose(plan, expected, atol=1e-5)
        assert (plan * cost).sum() == pytest.approx((expected * cost).sum(), abs=1e-4)
    scaled = costs / epsilon[:, None, None]
    batch = ot.batch.solve_batch(scaled, 1.0, tol=1e-9, max_iter=5000, grad="detach").plan
    torch.testing.assert_close(found, batch, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_little_entropy_the_distance_is_the_earth_movers(dtype):
    """Within 2 % of ot.emd2 at an epsilon of .005 of the largest cost, where a float32 kernel would be all 0."""
    x, y = walks(5, 20, 0), walks(5, 15, 1)
    for first, second in zip(x, y, strict=True):
        cost = cdist(first, second)
        expected = ot.emd2(uniform(20), uniform(15), cost)
        epsilon, pair = 0.005 * cost.max(), (first[None].to(dtype), second[None].to(dtype))
        found = transport_distance(*pair, epsilon=epsilon, relative=False)
        assert found.item() == pytest.approx(expected, rel=0.02)
        assert transport_distance(*pair, plan="exact").item() == pytest.approx(expected, rel=1e-5)


def test_the_log_domain_bears_any_epsilon():
    """Costs of 1000 ε: marginals hold and the cost is the cheapest; auto finds it on its own."""
    costs = pairwise_costs(walks(3, 6, 0), walks(3, 6, 1)).float()
    found = plans(costs, epsilon=1e-3, max_iterations=5000)
    torch.testing.assert_close(found.sum(1), torch.full((3, 6), 1 / 6), atol=1e-3, rtol=0)
    exact = plans(costs, "exact")
    torch.testing.assert_close((found * costs).sum((1, 2)), (exact * costs).sum((1, 2)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("plan", ["entropic", "exact", "identity", "banded"])
def test_a_video_is_at_no_distance_from_itself(plan):
    """d(x, x) → 0 as ε → 0."""
    x = walks(2, 10, 0)
    assert (transport_distance(x, x, plan=plan, epsilon=0.003, max_iterations=5000) < 1e-3).all()


@pytest.mark.parametrize("plan", ["entropic", "exact", "uniform"])
def test_transport_does_not_see_the_order_of_frames(plan):
    """A shuffled video is as far as before."""
    x, y = walks(2, 10, 0), walks(2, 10, 1)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(transport_distance(x, y[:, order], plan=plan), transport_distance(x, y, plan=plan))


@pytest.mark.parametrize("plan", ["identity", "banded"])
def test_plans_in_time_see_the_order_of_frames(plan):
    """Played backwards, a video is far from itself."""
    x = walks(2, 10, 0)
    options = {"plan": plan, "epsilon": 0.01, "max_iterations": 5000}
    assert (transport_distance(x, x.flip(1), **options) > 10 * transport_distance(x, x, **options)).all()


def test_the_identity_plan_is_time():
    """Equal lengths: the identity; twice the length: each frame is two."""
    equal, double = plans(torch.rand(1, 4, 4), "identity"), plans(torch.rand(1, 3, 6), "identity")
    torch.testing.assert_close(equal[0], torch.eye(4) / 4)
    torch.testing.assert_close(double[0], torch.eye(3).repeat_interleave(2, 1) / 6)


def test_a_band_is_between_time_and_transport():
    """Width 0 is the identity plan, width 1 the entropic one; no mass lies farther from the diagonal than the band."""
    costs = pairwise_costs(walks(2, 10, 0), walks(2, 10, 1))
    torch.testing.assert_close(plans(costs, "banded", band=0.0), plans(costs, "identity"), atol=1e-6, rtol=0)
    torch.testing.assert_close(plans(costs, "banded", band=1.0), plans(costs), atol=1e-6, rtol=0)
    times = torch.arange(10) / 10
    far = (times[:, None] - times).abs() > 0.2 + 1e-6
    found = plans(costs, "banded", band=0.2)
    assert (found[:, far] == 0).all()
    assert (found[:, ~far] > 0).all()


def test_epsilon_is_relative_to_each_problem():
    """Scaling the embedding of one problem of a batch changes no plan; absolute, it does."""
    costs = pairwise_costs(walks(2, 8, 0), walks(2, 8, 1))
    scaled = costs * torch.tensor([1.0, 7.0])[:, None, None]
    torch.testing.assert_close(plans(scaled), plans(costs), atol=1e-6, rtol=0)
    absolute = plan_entropy(plans(scaled, relative=False)) - plan_entropy(plans(costs, relative=False))
    assert absolute[0].item() == pytest.approx(0, abs=1e-9)
    assert absolute[1].item() < -0.05


def test_entropy_is_one_where_uniform_and_falls_with_epsilon():
    """From the uniform plan (ε → ∞) down to ½, that of a matching."""
    costs = pairwise_costs(walks(3, 10, 0), walks(3, 10, 1))
    torch.testing.assert_close(plan_entropy(plans(costs, "uniform")), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(plan_entropy(plans(costs, epsilon=1e4)), torch.ones(3, dtype=torch.float64))
    falling = torch.stack([plan_entropy(plans(costs, epsilon=e)) for e in (1.0, 0.3, 0.1, 0.03)])
    assert (falling.diff(dim=0) < 0).all()
    torch.testing.assert_close(plan_entropy(plans(costs, "exact")), torch.full((3,), 0.5, dtype=torch.float64))
    assert plan_entropy(torch.ones(1, 1, 1)).item() == 1


def difference_quotient(function, x, direction, step=1e-5):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("domain", ["kernel", "log"])
def test_autodiff_is_the_gradient_of_the_distance(domain):
    """Finite differences of ⟨P, C⟩ with the plan moving."""
    y, options = walks(2, 5, 1), {"epsilon": 0.5, "relative": False, "tolerance": 1e-13, "domain": domain}
    x = walks(2, 6, 0).requires_grad_()
    direction = walks(2, 6, 2)

    def distance(at):
        return transport_distance(at, y, gradient="autodiff", max_iterations=3000, **options).sum()

    (gradient,) = torch.autograd.grad(distance(x), x)
    expected = difference_quotient(distance, x.detach(), direction)
    assert (gradient * direction).sum().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("plan", ["entropic", "exact"])
def test_the_envelope_is_the_gradient_of_the_objective(plan):
    """Finite differences of ⟨P, C⟩ + ε Σ P log P, which is ⟨P, C⟩ for exact plans."""
    y, epsilon = walks(2, 5, 1), 0.5 if plan == "entropic" else 0.0
    options = {"plan": plan, "epsilon": epsilon or 1.0, "relative": False, "tolerance": 1e-13, "max_iterations": 3000}
    x = walks(2, 6, 0).requires_grad_()
    direction = walks(2, 6, 2)

    def objective(at):
        found = plans(pairwise_costs(at, y), **options)
        return (transport_distance(at, y, **options) - epsilon * torch.special.entr(found).sum((1, 2))).sum()

    (gradient,) = torch.autograd.grad(transport_distance(x, y, **options).sum(), x)
    expected = difference_quotient(objective, x.detach(), direction)
    assert (gradient * direction).sum().item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_are_finite_everywhere():
    """Equal frames, padding and bands leave no NaN in either gradient."""
    x = torch.zeros(2, 6, 3, requires_grad=True)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    for plan in ALL:
        for gradient in ("envelope", "autodiff"):
            found = transport_distance(x, x.detach(), plan=plan, gradient=gradient, mask_x=mask, mask_y=mask)
            assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


def test_iterations_stop_at_the_tolerance_or_the_limit():
    """Rows are exact from the first iteration; columns as far as asked, if there is time."""
    costs = pairwise_costs(walks(3, 20, 0), walks(3, 20, 1))

    def off(**options):
        found = plans(costs, epsilon=0.03, **options)
        torch.testing.assert_close(found.sum(2), torch.full((3, 20), 0.05, dtype=torch.float64))
        return (found.sum(1) - 0.05).abs().sum(1).max().item()

    assert off(tolerance=1e-9, max_iterations=100_000) <= 1e-9 < off(tolerance=1e-3) <= 1e-3
    assert off(max_iterations=1) > 1e-2


def test_a_problem_that_no_kernel_bears_goes_on_in_logs():
    """Beside an easy one, in one batch, costs of which some are huge."""
    costs = pairwise_costs(walks(2, 6, 0), walks(2, 6, 1))
    costs[1] *= 1e5
    weights = torch.full((2, 6), 1 / 6, dtype=torch.float64)
    epsilon = torch.full((2, 1, 1), 0.5, dtype=torch.float64)
    found = entropic_plans(costs, weights, weights, epsilon, max_iterations=500, tolerance=1e-6)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:1], plans(costs[:1], epsilon=0.5, relative=False), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"plan": "sinkhorn"}, ConfigError, "entropic, exact"),
        ({"domain": "fast"}, ConfigError, "auto, kernel, log"),
        ({"epsilon": 0.0}, ConfigError, "plan='exact'"),
        ({"band": 1.5}, ConfigError, "in \\[0, 1\\]"),
        ({"max_iterations": 0}, ConfigError, "at least 1"),
        ({"mask_x": torch.zeros(2, 4, dtype=torch.bool)}, InvalidData, "Video 0 of mask_x has no frame"),
        ({"mask_y": torch.ones(2, 4)}, InvalidData, "mask_y must be bool"),
        ({"costs": torch.full((2, 4, 4), torch.nan)}, InvalidData, "NaN"),
        ({"costs": torch.zeros(2, 0, 4)}, InvalidData, "not empty"),
    ],
)
def test_bad_input_is_named(options, error, words):
    """What is given, and what is allowed."""
    with pytest.raises(error, match=words):
        plans(**{"costs": torch.ones(2, 4, 4), **options})


def test_unlike_embeddings_are_refused():
    """As many problems, and numbers, on both sides; a metric and a gradient that exist."""
    with pytest.raises(InvalidData, match="must be"):
        pairwise_costs(torch.zeros(2, 4, 3), torch.zeros(2, 4, 5))
    with pytest.raises(ConfigError, match="euclidean, cosine"):
        pairwise_costs(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), "manhattan")
    with pytest.raises(ConfigError, match="envelope, autodiff"):
        transport_distance(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), gradient="none")
