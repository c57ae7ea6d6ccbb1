"""Laws of agents.networks and agents.policies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import AffineTransform, Independent, Normal, TransformedDistribution

from agents.networks import MLP, StackedMLP, polyak_
from agents.policies import (
    DeterministicPolicy,
    GaussianPolicy,
    make_policy,
    observation_statistics,
)
from prefrl.core import SegmentBatch, Transitions
from prefrl.errors import ConfigError, InvalidData
from prefrl.protocols import Policy

KINDS = [GaussianPolicy, DeterministicPolicy]
LOW, HIGH = np.array([-1.0, 2.0, -0.5]), np.array([1.0, 6.0, 0.25])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, **options):
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    box = {"action_low": LOW, "action_high": HIGH}
    return kind(observation_dim=2, observation_mean=mean, observation_std=std, hidden=(8,), seed=1, **box, **options)


def random_segments(B=4, T=5):
    low, high = torch.tensor(LOW).float(), torch.tensor(HIGH).float()
    return SegmentBatch(
        observations=torch.randn(B, T + 1, 2, generator=generator()),
        actions=low + (high - low) * torch.rand(B, T, 3, generator=generator(1)),
        mask=torch.arange(T) < torch.tensor([5, 3, 1, 4])[:B, None],
    )


def test_a_stack_is_its_members_side_by_side():
    """StackedMLP equals N single MLPs with its weights, with and without layer norm."""
    for layer_norm in (False, True):
        stack = StackedMLP(3, [4, 8, 8, 2], generator=generator(), layer_norm=layer_norm)
        x = torch.randn(5, 4, generator=generator(1))
        for member in range(3):
            single = MLP([4, 8, 8, 2], generator=generator(), layer_norm=layer_norm)
            with torch.no_grad():
                for layer, weight, bias in zip(single.layers, stack.weights, stack.biases, strict=True):
                    layer.weight.copy_(weight[member])
                    layer.bias.copy_(bias[member, 0])
            torch.testing.assert_close(stack(x)[member], single(x))


def test_members_of_a_stack_differ_and_take_their_own_inputs():
    """Members start differently; an input (N, B, D) gives each member its own."""
    stack = StackedMLP(2, [4, 8, 1], generator=generator())
    x = torch.randn(2, 5, 4, generator=generator(1))
    assert not torch.allclose(stack(x[0])[0], stack(x[0])[1])
    torch.testing.assert_close(stack(x)[1], stack(x[1])[1])


def test_inits_of_the_field():
    """orthogonal: WᵀW = 2 I and zero bias; uniform: within 1/√fan_in; anything else is refused."""
    orthogonal = MLP([16, 16, 1], generator=generator()).layers[0]
    torch.testing.assert_close(orthogonal.weight @ orthogonal.weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)
    assert not orthogonal.bias.any()
    uniform = MLP([16, 64, 1], generator=generator(), init="uniform").layers[0]
    assert 0.23 < uniform.weight.abs().max() <= 0.25
    with pytest.raises(ConfigError, match="'orthogonal' or 'uniform'"):
        MLP([2, 1], generator=generator(), init="he")


def test_polyak_moves_towards_the_source():
    """Rate 1 copies the source, rate 0 changes nothing, ¼ goes a quarter of the way."""
    for rate in (0.0, 0.25, 1.0):
        target = [torch.full((2,), 4.0)]
        polyak_(target, [torch.full((2,), 8.0)], rate)
        torch.testing.assert_close(target[0], torch.full((2,), 4 + 4 * rate))


@pytest.mark.parametrize("kind", KINDS)
def test_is_a_policy(kind):
    """Both policies implement the protocol."""
    assert isinstance(make(kind), Policy)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0, 1e6), seed=st.integers(0, 100))
def test_actions_stay_in_the_box(kind, scale, seed):
    """act and sample are in the action box for any observation."""
    observations = scale * torch.randn(7, 2, generator=generator(seed))
    policy = make(kind)
    for actions in (policy.act(observations), policy.sample(observations, generator(seed))):
        assert actions.shape == (7, 3)
        assert (actions >= torch.tensor(LOW)).all()
        assert (actions <= torch.tensor(HIGH)).all()


@pytest.mark.parametrize(
    "policy",
    [
        make(GaussianPolicy),
        make(GaussianPolicy, state_dependent_std=True),
        make(DeterministicPolicy, std=0.3),
    ],
)
def test_log_prob_is_that_of_torch_distributions(policy):
    """log π(a|s) is the density of an affinely transformed diagonal Gaussian, in units of the action."""
    segments = random_segments()
    mean, log_std = policy.distribution(policy.normalize(segments.observations[:, :-1]))
    low, high = torch.tensor(LOW).float(), torch.tensor(HIGH).float()
    unit = Independent(Normal(mean, log_std.exp().expand_as(mean)), 1)
    oracle = TransformedDistribution(unit, AffineTransform((low + high) / 2, (high - low) / 2, event_dim=1))
    expected = torch.where(segments.mask, oracle.log_prob(segments.actions), 0.0)
    torch.testing.assert_close(policy.log_prob(segments), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_say(kind):
    """log_prob is 0 on padding, whatever stands there, and the gradient ignores it."""
    segments, policy = random_segments(), make(kind)
    actions = torch.where(segments.mask[..., None], segments.actions, 1e6)
    other = SegmentBatch(segments.observations, actions, segments.mask)
    assert torch.equal(policy.log_prob(segments), policy.log_prob(other))
    assert not policy.log_prob(other)[~segments.mask].any()
    policy.log_prob(other).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one(kind):
    """∫ exp(log π(a|s)) da = 1 over the line, for a box that is not [−1, 1]."""
    policy = kind(observation_dim=1, action_low=[-1.0], action_high=[3.0], hidden=(4,))
    actions = torch.linspace(-25, 25, 20_001)[:, None]
    density = policy.step_log_prob(torch.ones(len(actions), 1), actions).exp()
    assert torch.trapezoid(density, actions[:, 0]).item() == pytest.approx(1, abs=1e-4)


def test_deterministic_regression_is_the_squared_error():
    """−log π differs from ‖u − μ‖², in box units, by a constant."""
    policy = make(DeterministicPolicy)
    observations, actions = random_segments().observations[:, 0], random_segments().actions[:, 0]
    units = policy.to_units(actions)
    error = (units - policy.to_units(policy.act(observations))).square().sum(-1)
    gap = -policy.step_log_prob(observations, actions) - error
    torch.testing.assert_close(gap, gap[:1].expand(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_regression_gradient(kind):
    """The gradient of −Σ w log π equals finite differences, in float64."""
    policy = make(kind).double()
    observations, actions = (
        random_segments().observations[:, 0].double(),
        random_segments().actions[:, 0].double(),
    )
    weight = torch.tensor([0.0, 1.0, 3.0, 100.0], dtype=torch.float64)
    names = [name for name, _ in policy.named_parameters()]

    def loss(*values):
        log_prob = torch.func.functional_call(policy, dict(zip(names, values, strict=True)), (observations, actions))
        return -(weight * log_prob).sum()

    policy.forward = policy.step_log_prob
    assert torch.autograd.gradcheck(loss, [p.detach().requires_grad_() for p in policy.parameters()])


@settings(deadline=None, max_examples=30)
@given(shift=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e3))
def test_normalization_whitens(shift, scale):
    """Normalized data have mean 0 and std 1 where they vary; a constant coordinate is 0, and not blown up."""
    x = torch.randn(500, 1, generator=generator()) * scale + shift
    data = torch.cat([x, torch.full_like(x, shift)], 1)
    mean, std = observation_statistics(data, floor=1e-3)
    z = (data - mean) / std
    torch.testing.assert_close(z[:, 0].mean(), torch.tensor(0.0), atol=0.02, rtol=0)
    torch.testing.assert_close(z[:, 0].std(), torch.tensor(1.0), atol=0.02, rtol=0)
    assert not z[:, 1].any()
    assert std[1] == 1


def test_std_has_a_floor():
    """A coordinate that hardly varies is divided by the floor."""
    _, std = observation_statistics(1e-4 * torch.randn(100, 1, generator=generator()), floor=0.01)
    assert std.item() == pytest.approx(0.01)


def test_refusals():
    """An unbounded or empty box, an unknown kind and a std of 0 are named errors."""
    for low, high in [([-np.inf], [1.0]), ([1.0], [1.0]), ([0.0, 0.0], [1.0])]:
        with pytest.raises(InvalidData, match="action box"):
            GaussianPolicy(observation_dim=1, action_low=low, action_high=high)
    data = Transitions(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2))
    box = {"action_low": np.array([-1.0]), "action_high": np.array([1.0])}
    with pytest.raises(ConfigError, match="gaussian, deterministic"):
        make_policy("gausian", data=data, **box, hidden=(4,), normalize_observations=True, std_floor=0.01, seed=0)
    with pytest.raises(ConfigError, match="std must be > 0"):
        make(DeterministicPolicy, std=0.0)
