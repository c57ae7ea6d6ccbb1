"""Laws of agents.iql: Kostrikov et al. 2021, arXiv 2110.06169."""

import inspect
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agents.bc import BC
from agents.iql import IQL, advantage_weight, expectile_loss
from agents.policies import GaussianPolicy
from prefrl.core import Transitions
from prefrl.errors import ConfigError, InvalidData
from prefrl.files import load_checkpoint, save_checkpoint

BOX = {"action_low": np.array([-1.0]), "action_high": np.array([1.0])}
CONFIGS = Path(__file__).parents[1] / "configs" / "agent"
GOOD = 0.2  # share of good actions in the chain's data


def chain_data():
    """Two states. At A (s = −1), a = +½ leads to B and a = −½ ends with reward 0.1; at B (s = 1), a = +½
    ends with reward 1 and a = −½ ends with 0. Four of five actions are −½."""
    rows = []
    for good in (1, 0, 0, 0, 0):
        a = 0.5 if good else -0.5
        rows.append((-1.0, a, 0.0 if good else 0.1, 1.0 if good else -1.0, 1.0 - good))
        rows.append((1.0, a, float(good), 1.0, 1.0))
    s, a, r, s_next, end = torch.tensor(rows).T
    return Transitions(s[:, None], a[:, None], r, s_next[:, None], end)


def two_point_expectile(high, low, tau):
    """The τ-expectile of a variable that is ``high`` with probability GOOD and ``low`` otherwise."""
    up, down = GOOD * tau, (1 - GOOD) * (1 - tau)
    return (up * high + down * low) / (up + down)


def random_data(n=256, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=g)
    actions = torch.rand(n, 1, generator=g) * 2 - 1
    return Transitions(draw(n, 3), actions, draw(n), draw(n, 3), (draw(n) > 1).float())


def parameters(learner):
    return [p for module in learner._modules().values() for p in module.parameters()]


def trained(updates=4, seed=0, data=None, **options):
    data = random_data() if data is None else data
    learner = IQL(data=data, **BOX, seed=seed, hidden=(8, 8), **options)
    for i in range(updates):
        learner.update(data[torch.arange(32 * i, 32 * i + 32) % len(data)])
    return learner


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_expectile_half_is_half_the_squared_error(values):
    """τ = ½: the loss is u²/2."""
    u = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(expectile_loss(u, 0.5), u.square() / 2)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(0.05, 0.95))
def test_expectile_loss_is_least_at_the_expectile(values, tau):
    """The derivative of the mean loss is 0 at scipy's expectile, and the loss is not smaller beside it."""
    sample = np.array(values)
    v = torch.tensor(stats.expectile(sample, alpha=tau), requires_grad=True)
    loss = expectile_loss(torch.tensor(sample) - v, tau).mean()
    (gradient,) = torch.autograd.grad(loss, v)
    assert abs(gradient.item()) < 1e-6
    for beside in (v.detach() - 0.01, v.detach() + 0.01):
        assert expectile_loss(torch.tensor(sample) - beside, tau).mean() >= loss.detach() - 1e-12


def test_weights_are_clipped():
    """exp(βA): 1 at A = 0, at most ``maximum``, finite however large A is."""
    weight = advantage_weight(torch.tensor([-1e6, 0.0, 1.0, 1e6]), 3.0, 100.0)
    torch.testing.assert_close(weight, torch.tensor([0.0, 1.0, float(np.exp(3)), 100.0]))


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_chain_has_its_closed_form_solution(policy):
    """On a two-state chain Q, V and the action approach closed forms, while BC copies the bad majority."""
    data, tau, gamma, beta = chain_data(), 0.9, 0.9, 8.0
    common = {"data": data, **BOX, "seed": 0, "hidden": (32, 32), "lr": 3e-3, "policy": policy}
    iql = IQL(**common, expectile=tau, gamma=gamma, beta=beta, polyak=0.05)
    bc = BC(**common)
    for _ in range(400):
        iql.update(data)
        bc.update(data)
    v_b = two_point_expectile(1.0, 0.0, tau)
    v_a = two_point_expectile(gamma * v_b, 0.1, tau)
    states = iql.policy.normalize(torch.tensor([[-1.0], [1.0]]))
    np.testing.assert_allclose(iql.value(states)[:, 0].detach(), [v_a, v_b], atol=1e-3)
    s, actions = iql.policy.normalize(data.observations), iql.policy.to_units(data.actions)
    q = iql.critic(torch.cat([s, actions], 1)).detach()[..., 0]  # (2, 10)
    expected = torch.tensor([gamma * v_b, 1.0] + [0.1, 0.0] * 4)
    np.testing.assert_allclose(q, expected.expand(2, 10), atol=1e-3)

    good, bad = np.exp(beta * (gamma * v_b - v_a)), np.exp(beta * (0.1 - v_a))
    best = 0.5 * (GOOD * good - (1 - GOOD) * bad) / (GOOD * good + (1 - GOOD) * bad)  # weighted mean of ±½ at A
    a_state = torch.tensor([[-1.0]])
    assert iql.policy.act(a_state).item() == pytest.approx(best, abs=0.02)
    assert best > 0.4
    assert bc.policy.act(a_state).item() == pytest.approx(0.5 * (2 * GOOD - 1), abs=0.05)


@pytest.mark.parametrize("n_step", [1, 2, 5])
def test_one_path_has_the_same_values_for_every_n(n_step):
    """A corridor with one way and reward 1 at its end: V(s_t) = γ^(steps left − 1), whatever n_step."""
    s = torch.eye(3)
    data = Transitions(s, torch.zeros(3, 1), torch.tensor([0.0, 0, 1]), s.roll(-1, 0), torch.tensor([0.0, 0, 1]))
    learner = IQL(data=data, **BOX, seed=0, hidden=(32,), lr=1e-2, gamma=0.5, polyak=0.1, n_step=n_step)
    prepared = learner.prepare(data, np.array([3]))
    for _ in range(400):
        learner.update(prepared)
    np.testing.assert_allclose(learner.value(learner.policy.normalize(s))[:, 0].detach(), [0.25, 0.5, 1.0], atol=0.02)


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_beta_zero_is_behavior_cloning(policy):
    """β = 0 and rewards 0: the policy's gradient is that of BC."""
    data = random_data()
    data.rewards.zero_()
    iql = IQL(data=data, **BOX, seed=3, beta=0.0, policy=policy)
    bc = BC(data=data, **BOX, seed=3, policy=policy)
    iql.update(data)
    bc.update(data)
    for one, two in zip(iql.policy.parameters(), bc.policy.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_policy_loss_leaves_critics_alone():
    """The losses touch disjoint parameters: β changes the policy, never V or Q; targets get no gradient."""
    one, two = trained(beta=3.0), trained(beta=0.5)
    for name in ("value", "critic", "target"):
        pairs = zip(one._modules()[name].parameters(), two._modules()[name].parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
    assert not torch.equal(one.policy.network.layers[0].weight, two.policy.network.layers[0].weight)
    assert all(p.grad is None for p in one.target.parameters())


def test_published_constants():
    """The defaults are those of the paper's App. B and of the authors' code."""
    published = {
        "expectile": 0.7, "beta": 3.0, "gamma": 0.99, "polyak": 0.005, "lr": 3e-4, "hidden": (256, 256),
        "max_weight": 100.0, "policy": "gaussian", "advantage_scale": "none", "layer_norm": False,
        "n_step": 1,
    }  # fmt: skip
    signature = inspect.signature(IQL).parameters
    assert {name: signature[name].default for name in published} == published


@pytest.mark.parametrize(("learner", "name"), [(IQL, "iql"), (BC, "bc")])
def test_configuration_repeats_the_signature(learner, name):
    """configs/agent/*.yaml name every hyper-parameter with the constructor's default, and comment on it."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    assert (config.pop("_target_"), config.pop("_partial_")) == (f"agents.{name}.{learner.__name__}", True)
    parameters = inspect.signature(learner).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert {**config, "hidden": tuple(config["hidden"])} == defaults
    assert all(" # " in line or line.startswith(("#", "_target_")) for line in text.splitlines())


def test_equal_seeds_give_equal_parameters():
    """Equal seeds: bitwise equal; another seed: different. The global random state is not touched."""
    before = torch.random.get_rng_state()
    one, two, other = trained(seed=0), trained(seed=0), trained(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(parameters(one), parameters(two), strict=True))
    assert not torch.equal(parameters(one)[0], parameters(other)[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"cosine_steps": 8, "advantage_scale": "std", "layer_norm": True, "policy": "deterministic"}],
)
def test_resume_is_bitwise(options, tmp_path):
    """Save at 4, load into a learner of another seed, continue to 8: as if never stopped."""
    data = random_data()
    whole, first = trained(8, **options), trained(4, **options)
    save_checkpoint(tmp_path / "iql.safetensors", first.state_dict())
    second = trained(0, seed=1, **options)
    second.load_state_dict(load_checkpoint(tmp_path / "iql.safetensors"))
    for i in range(4, 8):
        second.update(data[torch.arange(32 * i, 32 * i + 32) % len(data)])
    assert all(torch.equal(p, q) for p, q in zip(parameters(whole), parameters(second), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"expectile": 0.9}, {"beta": 1.0}, {"gamma": 0.9}, {"n_step": 2}, {"polyak": 0.1}, {"lr": 1e-3},
        {"hidden": (4,)},
        {"max_weight": 0.5}, {"policy": "deterministic"},
        {"policy": partial(GaussianPolicy, state_dependent_std=True)},
        {"cosine_steps": 2}, {"advantage_scale": "std"}, {"layer_norm": True},
        {"normalize_observations": False}, {"std_floor": 2.0},
    ],
)  # fmt: skip
def test_every_option_has_an_effect(options):
    """Changing an option changes what is learned."""
    data = random_data()
    learners = [IQL(data=data, **BOX, seed=0, **{"hidden": (8, 8), **o}) for o in ({}, options)]
    losses = []
    for learner in learners:
        prepared = learner.prepare(data, np.array([128, 128]))
        for _ in range(4):
            metrics = learner.update(prepared)
        losses.append([metrics[k].item() for k in ("value_loss", "critic_loss", "policy_loss")])
    assert losses[0] != losses[1]


def test_cosine_schedule():
    """The policy's learning rate falls from lr to 0 over ``cosine_steps``; the critics' stays."""
    learner = trained(1, cosine_steps=4, lr=1e-3)
    rates = [learner.optimizer.param_groups[0]["lr"]]
    for _ in range(5):
        learner.update(random_data())
        rates.append(learner.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(
        rates, 1e-3 * 0.5 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 1, 1]))), atol=1e-12
    )
    assert learner.optimizer.param_groups[1]["lr"] == 1e-3


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3))
def test_scaled_advantages_do_not_know_the_scale(scale):
    """advantage_scale=std: multiplying all advantages by a constant changes no weight."""
    advantages = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    one, two = (trained(0, advantage_scale="std") for _ in range(2))
    for a in advantages:
        torch.testing.assert_close(one._scaled(a), two._scaled(scale * a), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one._scaled(a).std(), torch.tensor(1.0), atol=0.3, rtol=0)


@pytest.mark.parametrize("field", ["observations", "actions", "rewards", "next_observations", "terminated"])
def test_nan_is_refused(field):
    """NaN anywhere in the data is an error at construction that names the field."""
    data = random_data()
    getattr(data, field).view(-1)[5] = float("nan")
    with pytest.raises(InvalidData, match=f"{field} holds 1 value"):
        IQL(data=data, **BOX, seed=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("expectile", 1.0),
        ("beta", -1.0),
        ("gamma", 1.1),
        ("n_step", 0),
        ("polyak", 0.0),
        ("advantage_scale", "mean"),
    ],
)
def test_out_of_range_is_refused(option, value):
    """A hyper-parameter outside its range is an error that names it and its value."""
    with pytest.raises(ConfigError, match=f"{option} must .*{value}"):
        IQL(data=random_data(), **BOX, seed=0, **{option: value})
