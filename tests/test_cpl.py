"""Laws of agents.cpl: Hejna et al. 2024, arXiv 2310.13639, and its bar on a linear-quadratic problem."""

import inspect
from functools import partial
from math import log

import numpy as np
import pytest
import torch
from torch import nn

from agents.cpl import CPL, SquaredErrorPolicy
from agents.policies import DeterministicPolicy
from envs import DoubleIntegrator
from prefrl.benchmarks.regret_control import Regulator, learn
from prefrl.config import build, compose
from prefrl.core import Comparisons, Rankings, Segment, SegmentBatch
from prefrl.errors import ConfigError, InvalidData
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.losses import cpl, cpl_bc, cpl_kl, dpo, gapo
from prefrl.protocols import Policy

BOX = {"action_low": np.array([-1.0, -2.0]), "action_high": np.array([1.0, 2.0])}
EVERY_LOSS = [cpl, cpl_kl, cpl_bc]
LINE = {"action_low": -np.ones(1), "action_high": np.ones(1)}
small = partial(CPL, **BOX, hidden=(8,), bc_steps=3, warmup_steps=2, lr=1e-2, bc_lr=1e-2)


class SumPolicy(nn.Module):
    """Answers the first action coordinate, times a weight of 1, as its log-prob: any number can be asked for."""

    def __init__(self, **arguments):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def act(self, observations):
        return observations[:, :1]

    def log_prob(self, segments):
        return self.weight * segments.actions[..., 0] * segments.mask


def said(first, second, p_first):
    """Comparisons of segments whose steps have these log-probs under a SumPolicy."""
    sides = [
        SegmentBatch.from_segments([Segment(torch.zeros(len(x) + 1, 1), torch.tensor(x)[:, None]) for x in side])
        for side in (first, second)
    ]
    return Comparisons(*sides, torch.tensor(p_first))


def random_comparisons(n=48, seed=0, T=5):
    """Segments of 1 to T steps; every fourth answer is a tie."""
    g = torch.Generator().manual_seed(seed)

    def side():
        mask = torch.arange(T) < torch.randint(1, T + 1, (n, 1), generator=g)
        observations, actions = (torch.randn(n, t, d, generator=g) for t, d in ((T + 1, 3), (T, 2)))
        return SegmentBatch(observations, actions.clamp(-1, 1), mask, true_reward=torch.randn(n, T, generator=g))

    p_first = torch.where(torch.arange(n) % 4 == 0, 0.5, torch.rand(n, generator=g).round())
    return Comparisons(side(), side(), p_first)


def batches(data, updates, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [data[torch.randint(len(data), (size,), generator=g)] for _ in range(updates)]


def trained(data, updates, *, seed=0, **options):
    learner = small(comparisons=data, seed=seed, **options)
    for batch in batches(data, updates):
        learner.update(batch)
    return learner


def equal(one, two):
    return all(torch.equal(p, q) for p, q in zip(one.policy.parameters(), two.policy.parameters(), strict=True))


def first_loss(data, loss, policy=SumPolicy, **options):
    """The loss of stage 2 on ``data`` before any step."""
    learner = CPL(comparisons=data, **LINE, seed=0, loss=loss, bc_steps=0, policy=policy, **options)
    return learner.update(data)["policy_loss"].item()


def test_unit_values():
    """Advantages −1 and −2, the second preferred, λ = ½: softplus(1.5); equal ones and λ = 1: log 2."""
    data = said([[-1.0]], [[-2.0]], [0.0])
    assert first_loss(data, partial(cpl, alpha=1.0)) == pytest.approx(1.7014, abs=5e-5)
    with pytest.warns(UserWarning, match="contrastive_bias=1 without a BC term"):
        found = first_loss(said([[-1.0, -2.0]], [[-3.0]], [1.0]), partial(cpl, contrastive_bias=1.0))
    assert found == pytest.approx(log(2))


@pytest.mark.parametrize("loss", EVERY_LOSS)
@pytest.mark.filterwarnings("ignore:CPL")
def test_swapping_every_pair_and_its_label_changes_nothing(loss):
    """The same update, in both stages, of the swapped comparisons."""
    data = random_comparisons()
    one, two = (small(comparisons=data, seed=0, loss=loss) for _ in range(2))
    for batch in batches(data, 6):
        metrics, swapped = one.update(batch), two.update(batch.swapped())
        torch.testing.assert_close(metrics, swapped)
    for p, q in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_a_tie_is_half_of_either_order():
    """p = ½: the mean of the losses with p = 1 and p = 0, and that of the pair in the other order."""
    one, other, tie = (first_loss(said([[-1.0]], [[-6.0]], [p]), partial(cpl, alpha=1.0)) for p in (1.0, 0.0, 0.5))
    assert tie == pytest.approx((one + other) / 2)
    assert tie == pytest.approx(first_loss(said([[-6.0]], [[-1.0]], [0.5]), partial(cpl, alpha=1.0)))


def test_a_ranking_is_all_its_pairs():
    """The authors' form for scored batches: mean of softplus(λ A_i − A_j) over all pairs with i ranked below j."""
    advantages = [-3.0, -0.5, -2.0, -7.0]
    rank = np.array([2, 0, 1, 3])
    segments = SegmentBatch.from_segments([Segment(torch.zeros(2, 1), torch.tensor([[a]])) for a in advantages])
    data = Rankings(segments, torch.tensor(rank[None])).to_comparisons()
    below, above = (np.array(advantages)[np.argsort(-rank)][i] for i in np.triu_indices(4, 1))
    expected = np.log1p(np.exp(0.5 * below - above)).mean()
    assert first_loss(data, partial(cpl, alpha=1.0)) == pytest.approx(expected, rel=1e-6)


def test_cloning_is_the_mean_over_all_real_steps():
    """Stage 1: −mean of log π over the steps of both sides, whoever was preferred; padding does not count."""
    data = said([[-1.0, -2.0], [-3.0]], [[-4.0], [-5.0]], [1.0, 0.0])
    learner = CPL(comparisons=data, **LINE, seed=0, policy=SumPolicy, bc_steps=1)
    assert learner.update(data)["policy_loss"].item() == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)


def test_metrics_by_hand():
    """Mean log-probs per step of chosen and rejected, a tie half of each; accuracy counts it as half."""
    data = said([[-1.0, -3.0], [-6.0], [-8.0]], [[-4.0], [-10.0, -2.0], [-1.0]], [1.0, 0.5, 1.0])
    learner = CPL(comparisons=data, **LINE, seed=0, policy=SumPolicy)
    metrics = {name: value.item() for name, value in learner.update(data).items()}
    assert metrics["chosen_log_prob"] == pytest.approx((-2 - 6 - 8) / 3)
    assert metrics["rejected_log_prob"] == pytest.approx((-4 - 6 - 1) / 3)
    assert metrics["accuracy"] == pytest.approx((0.5 + 0.5 + 0) / 3)  # equal sums −4; a tie; −8 against −1


def test_the_warm_start_ignores_the_answers_and_leaves_them():
    """Other answers give bitwise the same policy after stage 1, another one after stage 2; nothing is written to."""
    data = random_comparisons()
    other = Comparisons(data.first, data.second, 1 - data.p_first)
    before = [x.clone() for x in (data.p_first, data.first.observations, data.second.actions)]
    assert equal(trained(data, 3), trained(other, 3))
    assert not equal(trained(data, 6), trained(other, 6))
    after = (data.p_first, data.first.observations, data.second.actions)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_stage_two_begins_anew():
    """From the cloned policy on it is bitwise a learner without stage 1: no moment of Adam is left."""
    data = random_comparisons()
    whole, fresh = trained(data, 3), small(comparisons=data, seed=1, bc_steps=0)
    fresh.policy.load_state_dict(whole.policy.state_dict())
    for done, batch in enumerate(batches(data, 4, seed=1), start=1):
        whole.update(batch)
        fresh.update(batch)
        assert {state["step"].item() for state in whole.optimizer.state.values()} == {done}
    assert equal(whole, fresh)


def test_learning_rates():
    """bc_lr in stage 1; then lr k/W in the k-th update, and lr from the W-th on."""
    data = random_comparisons()
    learner = small(comparisons=data, seed=0, bc_steps=2, warmup_steps=4, lr=8e-3, bc_lr=1e-3)
    rates = []
    for batch in batches(data, 8):
        learner.update(batch)
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 2e-3, 4e-3, 6e-3, 8e-3, 8e-3, 8e-3])


def test_the_rate_falls_along_a_cosine_to_a_hundredth():
    """lr (0.01 + 0.99 cos²(πk/2D)) after k of D updates on comparisons, and a hundredth from then on."""
    data = random_comparisons()
    learner = small(comparisons=data, seed=0, bc_steps=2, warmup_steps=0, decay_steps=4, lr=8e-3, bc_lr=1e-3)
    rates = []
    for batch in batches(data, 8):
        learner.update(batch)
        rates.append(learner.optimizer.param_groups[0]["lr"] / 8e-3)
    cosine = [0.01 + 0.99 * np.cos(np.pi * k / 8) ** 2 for k in range(5)]
    assert rates[2:] == pytest.approx([*cosine, 0.01])


def test_the_reference_is_the_cloned_policy():
    """CPL-KL: it is that of the end of stage 1, where the loss is log 2; then it does not move, and the policy does."""
    data = random_comparisons()
    learner = trained(data, 3, loss=cpl_kl)
    cloned = [p.clone() for p in learner.policy.parameters()]
    assert learner.update(data)["policy_loss"].item() == pytest.approx(log(2), abs=1e-6)
    for batch in batches(data, 3):
        learner.update(batch)
    assert abs(learner.update(data)["policy_loss"].item() - log(2)) > 1e-3
    assert all(torch.equal(p, q) for p, q in zip(learner.reference.parameters(), cloned, strict=True))
    assert not any(p.requires_grad for p in learner.reference.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(learner.policy.parameters(), cloned, strict=True))


@pytest.mark.parametrize("done", [2, 3, 5])
@pytest.mark.parametrize("loss", [cpl, cpl_kl])
def test_resume_is_bitwise(loss, done, tmp_path):
    """Save within stage 1, at its end, or within stage 2; load into a learner of another seed; go on to 8."""
    data = random_comparisons()
    whole, first = trained(data, 8, loss=loss), trained(data, done, loss=loss)
    save_checkpoint(tmp_path / "cpl.safetensors", first.state_dict())
    second = small(comparisons=data, seed=1, loss=loss)
    second.load_state_dict(load_checkpoint(tmp_path / "cpl.safetensors"))
    for batch in batches(data, 8)[done:]:
        metrics = second.update(batch)
    assert equal(whole, second)
    assert all(torch.isfinite(value) for value in metrics.values())


def test_equal_seeds_give_equal_parameters():
    """Equal seeds: bitwise equal; another: different. The global random state is not touched."""
    data = random_comparisons()
    before = torch.random.get_rng_state()
    one, two, other = trained(data, 5), trained(data, 5), trained(data, 5, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert equal(one, two)
    assert not equal(one, other)


def test_true_rewards_are_not_read():
    """Without them the policy is bitwise the same."""
    data = random_comparisons()
    assert equal(trained(data, 6), trained(data.without_true_reward(), 6))


@pytest.mark.parametrize("loss", EVERY_LOSS)
@pytest.mark.filterwarnings("ignore:CPL")
def test_padding_has_no_say(loss):
    """What stands on padding changes nothing, in either stage."""
    data = random_comparisons()
    noisy = [
        SegmentBatch(s.observations, torch.where(s.mask[..., None], s.actions, 9.0), s.mask)
        for s in (data.first, data.second)
    ]
    assert equal(trained(data, 6, loss=loss), trained(Comparisons(*noisy, data.p_first), 6, loss=loss))


def test_any_module_can_be_the_policy():
    """Only ``log_prob`` and parameters are used; frozen parameters stay."""

    class Adapted(SumPolicy):
        def __init__(self, **arguments):
            super().__init__()
            self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    data = said([[-1.0]], [[-2.0]], [1.0])
    learner = CPL(comparisons=data, **LINE, seed=0, policy=Adapted, loss=cpl_kl, bc_steps=1)
    for _ in range(3):
        learner.update(data)
    assert isinstance(learner.policy, Policy)
    assert learner.policy.frozen.item() == 1
    assert learner.policy.weight.item() != 1


def test_any_loss_of_one_ordered_pair_can_be_used():
    """DPO gets a reference, and imitation of the chosen is a loss of one's own."""
    data = said([[-1.0]], [[-2.0]], [0.0])
    learner = CPL(comparisons=data, **LINE, seed=0, loss=dpo, policy=SumPolicy, bc_steps=1)
    learner.update(data)
    assert learner.update(data)["policy_loss"].item() == pytest.approx(log(2))
    assert first_loss(data, lambda pairs: -pairs.chosen.mean) == pytest.approx(2.0)


WARN = [partial(cpl, contrastive_bias=1.0), partial(cpl_kl, contrastive_bias=1.0), partial(cpl_bc, bc_coefficient=0.0)]


@pytest.mark.parametrize(("loss", "warns"), [*((loss, True) for loss in WARN), *((loss, False) for loss in EVERY_LOSS)])
def test_lambda_one_without_cloning_warns(loss, warns, recwarn):
    """λ = 1 is a warning, unless a BC term keeps the policy on the data."""
    small(comparisons=random_comparisons(), seed=0, loss=loss)
    assert [str(w.message)[:43] for w in recwarn] == ["CPL: contrastive_bias=1 without a BC term. "] * warns


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bc_steps": -1}, "bc_steps must be >= 0, but is -1"),
        ({"bc_steps": 0, "loss": cpl_kl}, "bc_steps must be >= 1 for a loss that reads a reference"),
        ({"warmup_steps": -1}, "warmup_steps must be >= 0, but is -1"),
        ({"decay_steps": 0}, "decay_steps must be >= 1 or null, but is 0"),
        ({"lr": 0.0}, "lr must be > 0, but is 0.0"),
        ({"bc_lr": -1.0}, "bc_lr must be > 0, but is -1.0"),
        ({"policy": "determined"}, "policy must be one of gaussian, deterministic"),
        ({"loss": partial(cpl, alpha=0.0)}, "alpha must be positive, but is 0.0"),
        ({"loss": partial(cpl, contrastive_bais=0.5)}, "no option 'contrastive_bais'"),
        ({"loss": gapo}, "cannot lift gapo"),
        ({"loss": lambda pairs, margin: margin}, "cannot be used on pairs .* missing 1 required"),
    ],
)
def test_wrong_options_are_named(options, named):
    """An error at construction, before any update, says which option, its value and what is allowed."""
    with pytest.raises(ConfigError, match=named):
        small(comparisons=random_comparisons(), seed=0, **options)


@pytest.mark.parametrize("name", ["first.observations", "second.actions", "p_first"])
def test_nan_is_refused(name):
    """NaN in the comparisons is an error that names the field; so are no comparisons, and a box of another size."""
    data = random_comparisons()
    part, _, field = name.rpartition(".")
    getattr(getattr(data, part) if part else data, field)[3] = float("nan")
    with pytest.raises(InvalidData, match=f"{name} holds"):
        small(comparisons=data, seed=0)
    with pytest.raises(InvalidData, match="comparisons is empty"):
        small(comparisons=random_comparisons()[:0], seed=0)
    with pytest.raises(InvalidData, match=r"action_low must have shape \(2,\), as the actions, but has \(1,\)"):
        small(comparisons=random_comparisons(), seed=0, action_low=-np.ones(1), action_high=np.ones(1))


@pytest.mark.parametrize(
    "options",
    [
        {"loss": cpl_bc}, {"loss": partial(cpl, discount=0.5)}, {"bc_steps": 2}, {"warmup_steps": 5},
        {"decay_steps": 2}, {"lr": 1e-3}, {"bc_lr": 1e-3}, {"hidden": (4,)}, {"policy": "gaussian"},
        {"normalize_observations": False}, {"policy": partial(SquaredErrorPolicy, squash=False)}, {"std_floor": 2.0},
    ],
)  # fmt: skip
def test_every_option_has_an_effect(options):
    """Changing an option changes what is learned."""
    data, losses = random_comparisons(), []
    for learner in (small(comparisons=data, seed=0, **chosen) for chosen in ({}, options)):
        losses.append([learner.update(batch)["policy_loss"].item() for batch in batches(data, 6)])
    assert losses[0] != losses[1]


def test_configuration_repeats_the_signatures():
    """cpl.yaml names every hyper-parameter with the constructor's default; its loss, and the variants', with theirs."""
    defaults = {p.name: p.default for p in inspect.signature(CPL).parameters.values() if p.default is not p.empty}
    for name, loss in (("cpl", cpl), ("cpl_kl", cpl_kl), ("cpl_bc", cpl_bc)):
        made = build(compose("train", [f"agent={name}"]).components["agent"], key="agent")
        found = {**made.keywords, "hidden": tuple(made.keywords["hidden"])}
        bound = found.pop("loss")
        assert (made.func, bound.func, set(found)) == (CPL, loss, set(defaults) - {"loss"})
        assert bound.keywords == {
            p.name: p.default for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY
        }
        assert found == {**{k: v for k, v in defaults.items() if k != "loss"}, "lr": found["lr"]}
        assert found["lr"] == (1e-5 if name == "cpl_kl" else 1e-4)


def test_squared_error_has_no_constant():
    """log π is 0 at the policy's own action, else minus the squared distance in half ranges: no constant."""
    policy = SquaredErrorPolicy(observation_dim=3, **BOX, hidden=(8,), seed=1)
    s, shift = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 3.0])
    torch.testing.assert_close(policy.step_log_prob(s, policy.act(s)), torch.zeros(4), atol=1e-6, rtol=0)
    found = policy.step_log_prob(s, policy.act(s) + shift)
    torch.testing.assert_close(found, torch.full((4,), -(0.5**2) - 1.5**2), atol=1e-5, rtol=0)
    gaussian = DeterministicPolicy(observation_dim=3, **BOX, hidden=(8,))
    gaussian.load_state_dict(policy.state_dict(), strict=False)
    gap = gaussian.step_log_prob(s, policy.act(s) + shift) - found
    torch.testing.assert_close(gap, gap[:1].expand(4), atol=1e-5, rtol=0)
    assert isinstance(policy, Policy)


def test_without_tanh_and_hidden_layers_the_policy_is_linear():
    """act(s) + act(r) = act(s + r) + act(0), inside of the box."""
    policy = SquaredErrorPolicy(observation_dim=3, **BOX, hidden=(), squash=False)
    s, r = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.act(s) + policy.act(r), policy.act(s + r) + policy.act(torch.zeros(4, 3)))


@pytest.mark.filterwarnings("ignore:CPL")
def test_it_finds_the_regulator():
    """Cloning finds the behavior's 0.3 K*, comparisons of regret K*; comparisons of partial return do not."""
    regulator = Regulator(DoubleIntegrator())
    linear = partial(SquaredErrorPolicy, squash=False)
    make = partial(CPL, hidden=(), lr=5e-3, bc_lr=5e-3, policy=linear)
    short = {"bias": 1.0, "seed": 0, "pairs": 1000, "bc_steps": 200, "steps": 500, "batch_size": 64}
    found = learn(regulator, make, model="regret", **short)
    assert found.cloned == pytest.approx(1.75, abs=0.1)
    assert found.final < 1.02
    assert learn(regulator, make, model="partial_return", **short).final > 10
