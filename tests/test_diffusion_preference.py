"""Laws of preference learning of a diffusion policy, and of its collapse monitor."""

import copy
import functools
import math

import numpy as np
import pytest
import torch

from agents.diffusion.collapse import CollapseDetected, DemonstrationError
from agents.diffusion.denoisers import MLPDenoiser, TransformerDenoiser, UNetDenoiser
from agents.diffusion.policy import DiffusionPolicy
from agents.diffusion.preference import DiffusionPreference
from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError, InvalidData, PrefrlError
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.losses import d3po, diffusion_dpo, diffusion_hinge, diffusion_ipo, dpo, flow_rwr

D, A, T = 3, 2, 6
BOX = {"action_low": -np.ones(A, np.float32), "action_high": np.ones(A, np.float32)}


def base(denoiser=MLPDenoiser, seed=0, **options):
    small = functools.partial(denoiser, hidden=(32,)) if denoiser is MLPDenoiser else denoiser
    return DiffusionPolicy(
        observation_mean=torch.zeros(D), observation_std=torch.ones(D), **BOX, horizon=4, executed=2, denoiser=small,
        train_steps=20, sampling_steps=4, seed=seed, **options,
    )  # fmt: skip


def segments(n, seed, lengths=None):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) < torch.full((n, 1), T) if lengths is None else torch.arange(T) < lengths[:, None]
    return SegmentBatch(torch.randn(n, T + 1, D, generator=g), torch.rand(n, T, A, generator=g) * 2 - 1, mask)


def comparisons(n=16, p_first=None):
    p = torch.arange(n) / (n - 1) if p_first is None else torch.full((n,), p_first)
    return Comparisons(segments(n, 0), segments(n, 1), p)


def learner(policy=None, seed=0, **options):
    return DiffusionPreference(
        comparisons=comparisons(), **BOX, seed=seed, policy=policy or base(), demonstrations=segments(8, 2),
        **{"demo_chunks": 64, "lr": 1e-3, **options},
    )  # fmt: skip


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def gradient(policy):
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def moved(**options):
    """A learner whose policy is not its reference any more, so that margins are not 0."""
    made = learner(**options)
    for _ in range(3):
        made.update(comparisons())
    return made


# identities of the loss


@pytest.mark.parametrize("denoiser", [MLPDenoiser, UNetDenoiser, TransformerDenoiser])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_two_at_the_start(denoiser, reduction):
    """The policy is its reference, bitwise: every excess is 0 and the loss log 2, whatever the labels."""
    made = learner(base(denoiser), anchor=0.0, reduction=reduction)
    metrics = made.update(comparisons())
    assert metrics["policy_loss"].item() == pytest.approx(math.log(2), abs=1e-7)
    assert metrics["margin"].item() == 0
    pairs = learner(base(denoiser)).errors(comparisons())
    assert torch.equal(pairs.chosen.policy.detach(), pairs.chosen.reference)


def test_the_anchor_adds_the_error_of_the_chosen():
    """log 2 + λ e_w at the start; of a soft label p, p e_first + (1 − p) e_second."""
    metrics = learner(anchor=3.0).update(comparisons())
    assert metrics["policy_loss"].item() == pytest.approx(math.log(2) + 3 * metrics["anchor"].item(), rel=1e-6)
    pairs = learner().errors(comparisons(p_first=1.0))
    chosen = learner().update(comparisons(p_first=1.0))["anchor"]
    torch.testing.assert_close(chosen, pairs.chosen.policy.mean().detach())


def test_nothing_is_learned_from_equal_trajectories():
    """Chosen = rejected: without the anchor the gradient is 0, but for rounding."""
    batch = comparisons(p_first=1.0)
    norms = []
    for second in (batch.first, batch.second):
        made = moved(anchor=0.0)
        made.update(Comparisons(batch.first, second, batch.p_first))
        norms.append(gradient(made.policy).norm().item())
    assert norms[0] < 1e-5 * norms[1]


def test_swapping_the_labels_turns_the_margin():
    """p ↔ 1 − p: the margin changes its sign, the accuracy goes to its complement."""
    batch = comparisons()
    one, two = (moved().update(Comparisons(batch.first, batch.second, p)) for p in (batch.p_first, 1 - batch.p_first))
    assert one["margin"].abs() > 1e-5
    torch.testing.assert_close(one["margin"], -two["margin"])
    torch.testing.assert_close(one["accuracy"], 1 - two["accuracy"])


def test_swapping_pairs_and_labels_changes_nothing():
    """Draws are the same for both sides of a pair."""
    one, two = moved(), moved()
    metrics, swapped = one.update(comparisons()), two.update(comparisons().swapped())
    for name in metrics:
        torch.testing.assert_close(metrics[name], swapped[name])
    torch.testing.assert_close(weights(one.policy), weights(two.policy))


def test_sum_is_the_mean_times_the_length():
    """Trajectories of different lengths: one stands for all of its chunks, or for one of them."""
    first = segments(4, 0, torch.tensor([1, 2, 4, 6]))
    batch = Comparisons(first, segments(4, 1), torch.ones(4))
    mean, total = (moved(reduction="mean", anchor=0.0), moved(reduction="mean", anchor=0.0))
    total.reduction = "sum"
    one, two = mean.errors(batch), total.errors(batch)
    torch.testing.assert_close(two.chosen.policy, one.chosen.policy * torch.tensor([1.0, 2.0, 4.0, 6.0]))
    torch.testing.assert_close(two.rejected.excess, one.rejected.excess * 6)


def test_losses_on_log_probs_are_given_them():
    """``dpo`` on −½ e is Diffusion-DPO, here with the anchor too."""
    one, two = (moved(loss=functools.partial(loss, beta=30.0)) for loss in (diffusion_dpo, dpo))
    torch.testing.assert_close(weights(one.policy), weights(two.policy))


@pytest.mark.parametrize(
    "loss", [functools.partial(diffusion_ipo, beta=25.0), functools.partial(diffusion_hinge, beta=25.0)]
)
def test_other_losses_run(loss):
    """Each moves the margin up on the pairs that it learns from."""
    made, batch = learner(loss=loss, anchor=0.0, draws=16), comparisons(p_first=1.0)
    margins = [made.update(batch)["margin"].item() for _ in range(20)]
    assert np.mean(margins[-3:]) > 1e-3


# the collapse monitor


def test_the_ratio_is_one_at_the_start():
    """Exactly, because chunks, times and noises are fixed; another policy has another."""
    policy = base()
    monitor = DemonstrationError(policy, segments(8, 2), chunks=32, limit=0.2, seed=0)
    assert monitor.ratio(policy) == 1.0
    assert monitor.ratio(base(seed=1)) != 1.0


def test_a_ratio_of_no_number_is_a_collapse():
    """NaN and infinity are above every limit."""
    policy = base()
    monitor = DemonstrationError(policy, segments(8, 2), chunks=32, limit=0.2, seed=0)
    broken = copy.deepcopy(policy)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    assert monitor.collapsed(monitor.ratio(broken))
    assert not monitor.collapsed(1.2)
    assert monitor.collapsed(1.2001)


def test_a_collapse_is_detected_and_undone():
    """Without anchor and at a huge rate the demonstrations are forgotten: an error, and the weights before it."""
    made = learner(anchor=0.0, lr=0.03, monitor_every=2, loss=functools.partial(diffusion_dpo, beta=1.0))
    kept = weights(made.policy)
    with pytest.raises(CollapseDetected, match=r"demonstrations is .* times that at the start \(limit 1.2\)") as caught:
        [made.update(comparisons(p_first=1.0)) for _ in range(200)]
    assert isinstance(caught.value, PrefrlError)
    assert made.collapsed
    assert made.demo_error_ratio > 1.2
    assert not made.monitor.collapsed(made.monitor.ratio(made.policy))
    if made.best_step == 0:
        assert torch.equal(weights(made.policy), kept)
    with pytest.raises(CollapseDetected, match="has collapsed before"):
        made.update(comparisons())


def test_numbers_out_of_range_are_a_collapse():
    """A policy that is not a number any more is found at once, between two looks at the demonstrations."""
    made = learner(monitor_every=1000)
    with torch.no_grad():
        next(made.policy.parameters()).fill_(float("nan"))
    with pytest.raises(CollapseDetected):
        made.update(comparisons())
    assert bool(weights(made.policy).isfinite().all())


# resume and determinism


def test_resume_is_bitwise(tmp_path):
    """Save at 5, load into a learner that began with another policy, continue to 10: as if never stopped."""
    whole, first = learner(monitor_every=3), learner(monitor_every=3)
    second = learner(base(seed=4), monitor_every=3)
    batches = [comparisons()[torch.arange(i, i + 6)] for i in range(10)]
    for batch in batches:
        expected = whole.update(batch)
    for batch in batches[:5]:
        first.update(batch)
    save_checkpoint(tmp_path / "p.safetensors", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "p.safetensors"))
    for batch in batches[5:]:
        found = second.update(batch)
    assert torch.equal(weights(whole.policy), weights(second.policy))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (whole.best_step, whole.best_loss) == (second.best_step, second.best_loss)


def test_equal_seeds_give_equal_policies_and_the_given_one_stays():
    """Other seeds others; the policy that was given is not touched."""
    policy = base()
    before = weights(policy)
    tuned = [moved(policy=policy, seed=seed).policy for seed in (0, 0, 1)]
    assert torch.equal(weights(tuned[0]), weights(tuned[1]))
    assert not torch.equal(weights(tuned[0]), weights(tuned[2]))
    assert torch.equal(weights(policy), before)


# bad input


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: learner(anchor=-1.0), ConfigError, "anchor must be >= 0, but is -1"),
        (lambda: learner(draws=0), ConfigError, "draws must be >= 1"),
        (lambda: learner(reduction="max"), ConfigError, "'mean' or 'sum', but is 'max'"),
        (lambda: learner(monitor_every=0), ConfigError, "monitor_every must be >= 1"),
        (lambda: learner(collapse_limit=0.0), ConfigError, "collapse_limit > 0"),
        (lambda: learner(loss=flow_rwr), ConfigError, "loss cannot be used"),
        (lambda: learner(loss=d3po), ConfigError, "loss cannot be used"),
        (lambda: learner(loss=functools.partial(diffusion_dpo, beta=-1.0)), ConfigError, "beta must be"),
        (lambda: learner(DiffusionPolicy(
            observation_mean=torch.zeros(5), observation_std=torch.ones(5), **BOX)), InvalidData, "the policy is for"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, said):
    """Which argument, its value, and what is allowed."""
    with pytest.raises(error, match=said):
        call()


def test_demonstrations_are_needed():
    """Without any, a collapse could not be noticed."""
    with pytest.raises(InvalidData, match="demonstrations is empty"):
        DemonstrationError(base(), segments(8, 2)[torch.arange(0)], chunks=8, limit=0.2, seed=0)
