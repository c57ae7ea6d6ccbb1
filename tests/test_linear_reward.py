"""Laws of learners of linear rewards and advantages, and of cross-validated scales."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from small_mdps import (
    CONDITIONS,
    DATA,
    TRUE_WEIGHTS,
    corridor,
    delivery,
    delivery_pairs,
    needs_board,
    random_mdp,
)

from prefrl.errors import InvalidData
from prefrl.preference_models import label, segment_score
from prefrl.solvers import (
    SegmentPairs,
    fit_linear_reward,
    greedy_policy,
    partition_pairs,
    policy_pool,
    rewards,
    sample_segments,
    scale_cross_entropy,
    scaled_return,
    segment_pairs,
    soft_values,
    stack_pairs,
    stack_pools,
    successor_feature_values,
    tabular_advantage,
    trace_statistics,
    value_iteration,
)


def labeled_pairs(mdp, weights, model, *, count=300, length=3, gamma=0.99, seed=0, **options):
    """Pairs of random segments and their labels under the true weights; noiseless unless options say otherwise."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (sample_segments(mdp, count=count, length=length, generator=generator) for _ in "12")
    values, action_values = value_iteration(mdp, rewards(mdp, weights), gamma=gamma)
    one, two = (segment_score(trace_statistics(t, weights, values, action_values), model) for t in (first, second))
    return segment_pairs(first, second, label(one, two, **options))


def pool_values(mdp, *, gamma=0.99, size=30, seed=1, actions=False):
    psi, of_actions = policy_pool(mdp, gamma=gamma, size=size, generator=torch.Generator().manual_seed(seed))
    return successor_feature_values(psi, of_actions if actions else None)


def same_pairs(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# what can be learned


def test_partial_return_explains_its_own_labels_by_the_true_weights():
    """Soft labels of the partial return model are explained to the entropy, by the true weights alone."""
    mdp, weights = random_mdp(0), torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    pairs = labeled_pairs(mdp, weights, "partial_return", noise="probability")
    fit = fit_linear_reward(pairs, model="partial_return", learning_rate=0.2, iterations=500)
    torch.testing.assert_close(fit.weights, weights, rtol=0, atol=1e-4)
    p = pairs.p_first
    assert fit.loss.item() == pytest.approx(-(p * p.log() + (1 - p) * (1 - p).log()).mean().item(), abs=1e-7)


def test_partial_return_learns_nothing_from_a_corridor():
    """With −1 everywhere, segments of one length earn the same: p = 0.5 exactly, and every weight is as good."""
    mdp, weights = corridor(20, step=-1.0)
    pairs = labeled_pairs(mdp, weights, "partial_return", count=500)
    whole = pairs.select((pairs.visits >= 0).all(-1).all(-1))
    assert (whole.p_first == 0.5).all()
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    fit = fit_linear_reward(whole, model="partial_return", initial=start, iterations=100)
    assert fit.loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(fit.weights[0], start[0])


@pytest.mark.parametrize("noise", ["none", "bernoulli"])
def test_regret_learns_the_corridor_in_every_state(noise):
    """500 pairs with −1 everywhere: regret tells right from left, and the learned greedy actions are optimal."""
    mdp, weights = corridor(8, step=-1.0)
    generator = torch.Generator().manual_seed(5)
    pairs = labeled_pairs(mdp, weights, "regret_deterministic", count=500, noise=noise, generator=generator)
    fit = fit_linear_reward(pairs, values=pool_values(mdp), iterations=300)
    _, action_values = value_iteration(mdp, rewards(mdp, fit.weights), gamma=0.99)
    assert greedy_policy(action_values)[:8, 1].tolist() == [1] * 8


@pytest.mark.parametrize("oracle", ["successor features", "soft values"])
def test_regret_learners_are_near_optimal_on_small_processes(oracle):
    """From 300 noiseless labels of a process without chance; by either oracle of values."""
    mdp, weights = random_mdp(4, S=8, K=1, ends=1), torch.tensor([2.0, -1.0, 0.5, 1.0], dtype=torch.float64)
    pairs = labeled_pairs(mdp, weights, "regret_deterministic", gamma=0.9)
    values = (
        pool_values(mdp, gamma=0.9)
        if oracle == "successor features"
        else soft_values(mdp, gamma=0.9, temperature=0.1, iterations=30)
    )
    fit = fit_linear_reward(pairs, values=values, iterations=150)
    assert scaled_return(mdp, fit.weights, weights, gamma=0.9).scaled > 0.99


@pytest.mark.parametrize("oracle", ["successor features", "soft values"])
def test_general_regret_learners_are_near_optimal_where_chance_decides(oracle):
    """Labels and learner both read ΣA*: luck of the transitions is in neither."""
    mdp, weights = random_mdp(7, S=7, K=2), torch.tensor([2.0, -1.0, 0.5, 1.0], dtype=torch.float64)
    pairs = labeled_pairs(mdp, weights, "regret", gamma=0.9)
    values = (
        pool_values(mdp, gamma=0.9, actions=True)
        if oracle == "successor features"
        else soft_values(mdp, gamma=0.9, temperature=0.1, iterations=30)
    )
    fit = fit_linear_reward(pairs, model="regret", values=values, iterations=150)
    assert scaled_return(mdp, fit.weights, weights, gamma=0.9).scaled > 0.99


def test_stop_gradient_changes_what_is_learned():
    """The values are taken as given: another path of weights, and not an option without effect."""
    mdp, weights = corridor(6, step=-1.0, goal=5.0)
    pairs, values = labeled_pairs(mdp, weights, "regret_deterministic"), pool_values(mdp)
    through, stopped = (
        fit_linear_reward(pairs, values=values, iterations=20, stop_gradient=stop) for stop in (False, True)
    )
    assert (through.weights - stopped.weights).abs().max() > 0.01


# an advantage learned by the partial return


def test_a_table_of_advantages_is_the_partial_return_of_one_hot_features():
    """Sums over visits are Φ·g: one learner, two ways to write it."""
    mdp, weights = random_mdp(0), torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    pairs = labeled_pairs(mdp, weights, "regret", gamma=0.9, length=5)
    counts = torch.zeros(300, 2, 18, dtype=torch.float64)
    counts.scatter_add_(-1, pairs.visits.clamp(min=0), (pairs.visits >= 0).to(torch.float64))
    options = {"learning_rate": 2.0, "iterations": 30, "keep": "last", "size": 18, "seed": 3}
    table = fit_linear_reward(pairs, model="advantage", values=tabular_advantage(6, 3), **options)
    hot = pairs._replace(features=counts[:, 0] - counts[:, 1])
    torch.testing.assert_close(table.weights, fit_linear_reward(hot, model="partial_return", **options).weights)
    untouched = fit_linear_reward(hot, model="partial_return", **options | {"iterations": 0}).weights
    assert torch.equal(table.weights[15:], untouched[15:])  # steps out of the terminal state are in no sum
    assert (table.weights[:15] != untouched[:15]).all()


def test_only_segments_that_end_early_fix_the_level_of_an_advantage():
    """g + c explains pairs of full length as well as g; with steps after the end counted 0, another c is worse."""
    mdp, weights = corridor(4, step=-1.0)
    pairs = labeled_pairs(mdp, weights, "regret", gamma=0.99, noise="probability")
    full = pairs.select((pairs.visits >= 0).all(-1).all(-1))
    assert 50 < len(full.p_first) < len(pairs.p_first)

    def loss(data, g):
        options = {"initial": g, "iterations": 0, "keep": "last"}
        return fit_linear_reward(data, model="advantage", values=tabular_advantage(5, 2), **options).loss.item()

    values, action_values = value_iteration(mdp, rewards(mdp, weights), gamma=0.99)
    truth = (action_values - values[:, None]).flatten()
    assert loss(full, truth + 1.0) == pytest.approx(loss(full, truth), abs=1e-12)
    assert loss(pairs, truth + 1.0) > loss(pairs, truth) + 0.01
    assert loss(pairs, truth - 1.0) > loss(pairs, truth) + 0.01


# many fits at once


@pytest.mark.parametrize("model", ["partial_return", "regret_deterministic", "expected_return"])
def test_fits_at_once_are_each_alone(model):
    """Parts of different sizes in one call learn what they learn alone: padding counts 0."""
    mdp, weights = corridor(6, step=-1.0, goal=5.0)
    pairs, values = labeled_pairs(mdp, weights, "regret_deterministic", noise="probability"), pool_values(mdp)
    parts = [pairs.select(torch.arange(n)) for n in (300, 17, 80)]
    options = {"model": model, "values": values, "iterations": 60, "learning_rate": 0.5}
    whole = fit_linear_reward(stack_pairs(parts), **options)
    for n, part in enumerate(parts):
        alone = fit_linear_reward(part, **options)
        torch.testing.assert_close(whole.weights[n], alone.weights, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(whole.loss[n], alone.loss, rtol=1e-6, atol=1e-8)


def test_fits_of_several_processes_at_once_are_each_alone():
    """Each fit has its own process, pool and pairs."""
    weights = torch.tensor([-1.0, 5.0], dtype=torch.float64)
    mdps = [corridor(length, *weights.tolist())[0] for length in (4, 7)]
    data = [labeled_pairs(mdp, weights, "regret_deterministic", count=60, seed=m) for m, mdp in enumerate(mdps)]
    pools = [
        policy_pool(mdp, gamma=0.99, size=10, generator=torch.Generator().manual_seed(m))[0]
        for m, mdp in enumerate(mdps)
    ]
    psi, count = stack_pools(pools)
    whole = fit_linear_reward(stack_pairs(data), values=successor_feature_values(psi, count=count), iterations=60)
    for m, pairs in enumerate(data):
        alone = fit_linear_reward(pairs, values=successor_feature_values(pools[m]), iterations=60)
        torch.testing.assert_close(whole.weights[m], alone.weights, rtol=1e-6, atol=1e-6)


def test_mirrored_pairs_add_nothing():
    """Every pair once more with its segments and label swapped: the same weights and the same loss."""
    mdp, _ = corridor(6, step=-1.0, goal=5.0)
    generator = torch.Generator().manual_seed(0)
    first, second = (sample_segments(mdp, count=50, length=3, generator=generator) for _ in "12")
    p_first = torch.rand(50, generator=generator, dtype=torch.float64)
    once = segment_pairs(first, second, p_first)
    mirrored = segment_pairs(second, first, 1 - p_first)
    both = SegmentPairs(*(torch.cat(fields) for fields in zip(once, mirrored, strict=True)))
    one, two = (fit_linear_reward(pairs, values=pool_values(mdp), iterations=50) for pairs in (once, both))
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.loss, two.loss)


def test_the_best_weights_are_no_worse_than_the_last_ones():
    """keep="best" returns the lowest loss seen, keep="last" where the steps ended; equal seeds give equal fits."""
    mdp, weights = corridor(6, step=-1.0, goal=5.0)
    pairs, values = labeled_pairs(mdp, weights, "regret_deterministic", noise="probability"), pool_values(mdp)
    kept = {
        keep: [fit_linear_reward(pairs, values=values, iterations=40, learning_rate=5.0, keep=keep) for _ in "12"]
        for keep in ("best", "last")
    }
    assert all(torch.equal(*(fit.weights for fit in fits)) for fits in kept.values())
    assert kept["best"][0].loss < kept["last"][0].loss
    other = fit_linear_reward(pairs, values=values, iterations=40, learning_rate=5.0, seed=1)
    assert not torch.equal(other.weights, kept["best"][0].weights)


def test_partitions_hold_every_pair_once():
    """Sizes differ by one at most, padding has weight 0, equal seeds give equal parts."""
    mdp, weights = corridor(6, step=-1.0, goal=5.0)
    pairs = labeled_pairs(mdp, weights, "regret_deterministic", count=50)
    numbered = pairs._replace(p_first=torch.arange(50) / 100)
    parts, again = (partition_pairs(numbered, 7, generator=torch.Generator().manual_seed(0)) for _ in "12")
    assert same_pairs(parts, again)
    assert parts.weight.sum(-1).sort().values.tolist() == [7] * 6 + [8]
    assert parts.p_first[parts.weight > 0].sort().values.tolist() == numbered.p_first.tolist()


# scales


def test_scales_are_those_of_a_scalar_minimizer():
    """Fold by fold, scipy finds the same scale; the cross-entropy is that of held-out pairs."""
    generator = torch.Generator().manual_seed(0)
    x = 10 * torch.randn(60, generator=generator, dtype=torch.float64)
    p = (2 * torch.sigmoid(0.1 * x + torch.randn(60, generator=generator))).round() / 2
    found = scale_cross_entropy(x, p, folds=6, seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))

    def loss(c, rows):
        return torch.nn.functional.binary_cross_entropy_with_logits(c * x[rows], p[rows]).item()

    held_out = []
    for fold in range(6):
        rows = order.reshape(6, 10)
        rest = torch.cat([rows[:fold], rows[fold + 1 :]]).flatten()
        scale = minimize_scalar(loss, args=(rest,), bracket=(0, 0.5), tol=1e-10).x
        held_out.append(loss(scale, rows[fold]))
    np.testing.assert_allclose(found.folds, held_out, atol=1e-6)
    assert found.cross_entropy == pytest.approx(np.mean(held_out), abs=1e-6)
    whole = minimize_scalar(loss, args=(torch.arange(60),), bracket=(0, 0.5), tol=1e-10).x
    assert found.scale == pytest.approx(whole, abs=1e-6)


def test_scores_without_information_have_the_entropy_of_a_coin():
    """Zero differences: log 2. Labels that the sign explains: nearly 0, and finite. Units do not matter."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = (x > 0).to(torch.float64)
    assert scale_cross_entropy(0 * x, p).cross_entropy == pytest.approx(math.log(2))
    assert 0 <= scale_cross_entropy(x, p).cross_entropy < 0.05
    noisy = torch.where(torch.arange(200) % 5 == 0, 1 - p, p)
    one, thousand = scale_cross_entropy(x, noisy), scale_cross_entropy(1000 * x, noisy)
    assert one.cross_entropy == pytest.approx(thousand.cross_entropy)
    assert one.scale == pytest.approx(1000 * thousand.scale)


# bad input


def test_what_does_not_fit_is_named():
    """Labels, models, values, numbers of parts and folds."""
    mdp, weights = corridor(6, step=-1.0, goal=5.0)
    pairs = labeled_pairs(mdp, weights, "regret_deterministic", count=20)
    trace = sample_segments(mdp, count=20, length=3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidData, match="20 first segments, 20 second ones and 19 labels"):
        segment_pairs(trace, trace, torch.ones(19))
    with pytest.raises(InvalidData, match="p_first"):
        segment_pairs(trace, trace, torch.full((20,), 2.0))
    with pytest.raises(InvalidData, match="'regret_deterministic' reads values: give values"):
        fit_linear_reward(pairs, iterations=1)
    with pytest.raises(InvalidData, match="values gave none"):
        fit_linear_reward(pairs, values=lambda w: (None, w.reshape(1, 2)), iterations=1)
    with pytest.raises(InvalidData, match=r"7 · 2 weights, but there are 2: fit it with size=14"):
        fit_linear_reward(pairs, model="advantage", values=tabular_advantage(7, 2), iterations=1)
    with pytest.raises(InvalidData, match="'partial_return' has a weight for each of 2 features, but not 14"):
        fit_linear_reward(pairs, model="partial_return", size=14, iterations=1)
    with pytest.raises(InvalidData, match="advantage=None"):
        fit_linear_reward(pairs, model="regret", values=pool_values(mdp), iterations=1)
    with pytest.raises(InvalidData, match="Unknown preference model 'luck'"):
        fit_linear_reward(pairs, model="luck", values=pool_values(mdp), iterations=1)
    with pytest.raises(InvalidData, match="stop_gradient leaves nothing to learn"):
        fit_linear_reward(pairs, model="regret", values=pool_values(mdp), stop_gradient=True)
    with pytest.raises(InvalidData, match="keep must be one of best, last"):
        fit_linear_reward(pairs, model="partial_return", keep="first")
    with pytest.raises(InvalidData, match=r"count must be in \[1, 20\]"):
        partition_pairs(pairs, 21, generator=torch.Generator())
    with pytest.raises(InvalidData, match=r"p_first must have shape \(20,\), but has \(19,\)"):
        scale_cross_entropy(pairs.p_first, pairs.p_first[1:])
    with pytest.raises(InvalidData, match=r"folds must be in \[2, 20\]"):
        scale_cross_entropy(pairs.p_first, pairs.p_first, folds=21)


# people on the delivery board


def human_statistics(mdp, condition):
    values, action_values = value_iteration(mdp, rewards(mdp, TRUE_WEIGHTS), gamma=1.0)
    first, second, p_first = delivery_pairs(mdp, condition)
    statistics = [trace_statistics(trace, TRUE_WEIGHTS, values, action_values) for trace in (first, second)]
    return first, second, p_first, statistics


@needs_board
@pytest.mark.parametrize("condition", CONDITIONS)
def test_regret_describes_people_better_unless_they_were_shown_partial_returns(condition):
    """Held-out cross-entropy of one scale: the winner of each of the nine conditions; .620 and .573 without a nudge."""
    _, _, p_first, (one, two) = human_statistics(delivery(), condition)
    partial, regret = (
        scale_cross_entropy(segment_score(one, model) - segment_score(two, model), p_first).cross_entropy
        for model in ("partial_return", "regret_deterministic")
    )
    if condition.startswith("Pr-"):
        assert partial < regret < math.log(2)
    else:
        assert regret < partial - 0.04
    if condition == "Privileged-Control":
        assert partial == pytest.approx(0.620, abs=0.003)
        assert regret == pytest.approx(0.573, abs=0.003)


@needs_board
def test_noiseless_labels_identify_the_delivery_reward_by_regret_only():
    """1,793 noiseless pairs: partial return finds the ratios of small weights, not the goal's, and returns .702."""
    mdp = delivery()
    first, second, _, (one, two) = human_statistics(mdp, "Privileged-Control")
    psi = torch.from_numpy(np.load(DATA / "delivery_mdp" / "succ_feats_no_gt.npy")).flatten(1, 2)
    found = {}
    for model, iterations in (("partial_return", 3000), ("regret_deterministic", 600)):
        labels = label(segment_score(one, model), segment_score(two, model))
        pairs = segment_pairs(first, second, labels)
        found[model] = fit_linear_reward(
            pairs, model=model, values=successor_feature_values(psi), iterations=iterations
        ).weights
    partial = found["partial_return"]
    ratios = (partial / partial[0].abs())[[0, 3, 4, 5]]
    torch.testing.assert_close(ratios, torch.tensor([-1, 1, -1, -2], dtype=torch.float64), rtol=0.02, atol=0)
    assert scaled_return(mdp, partial, TRUE_WEIGHTS).scaled.item() == pytest.approx(0.702, abs=0.01)
    assert scaled_return(mdp, found["regret_deterministic"], TRUE_WEIGHTS).scaled.item() > 0.99
