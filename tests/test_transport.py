"""Laws of distances within a task and of couplings between two."""

import itertools

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrl.errors import ConfigError, InvalidData
from prefrl.transport import (
    cosine_distances,
    coupling_loss,
    cross_cost,
    euclidean_distances,
    gromov_wasserstein,
    gromov_wasserstein_batch,
    k_medoids,
    product_start,
    round_to_marginals,
    third_lower_bound_start,
    wasserstein,
    window_distances,
    z_score,
)
from prefrl.transport.entropic import sinkhorn
from prefrl.transport.problem import finite_plan

SOLVERS = ("exact", "entropic", "proximal", "quantized")


def clusters(n: int, seed: int, noise: float = 0.01):
    """Points in 4 clusters, the same rotated, shuffled and disturbed, the order, and the clusters of the first."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(4, size=n)
    points = 3 * rng.normal(size=(4, 12))[cluster] + rng.normal(size=(n, 12)) * np.linspace(1, 0.2, 12)
    rotation, order = np.linalg.qr(rng.normal(size=(12, 12)))[0], rng.permutation(n)
    moved = (points @ rotation)[order] + noise * rng.normal(size=(n, 12))
    return euclidean_distances(points), euclidean_distances(moved), order, cluster


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_distances_do_not_see_rotation_shift_and_scale(n, seed):
    """Euclidean distances divided by their largest: a metric in [0, 1] of the shape alone."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    distances = euclidean_distances(points)
    np.testing.assert_allclose(euclidean_distances(7 * points @ rotation + 5), distances, atol=1e-9)
    assert distances.max() == 1
    assert (distances == distances.T).all()
    assert (distances[:, :, None] <= distances[:, None] + distances[None] + 1e-12).all()


def test_cosine_distances_do_not_see_lengths():
    """Scaling an item changes no angle."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(6, 4, 2))
    scaled = items * rng.uniform(0.1, 10, size=(6, 1, 1))
    np.testing.assert_allclose(cosine_distances(items), cosine_distances(scaled), atol=1e-12)


def test_window_distances_against_all_matchings():
    """Between clouds of equally many points: the cheapest matching, found by enumeration."""
    windows = np.random.default_rng(0).normal(size=(4, 3, 2))
    distances = window_distances(windows, normalize=False)
    for i, j in itertools.combinations(range(4), 2):
        lengths = np.linalg.norm(windows[i][:, None] - windows[j][None], axis=-1)
        best = min(lengths[range(3), order].mean() for order in map(list, itertools.permutations(range(3))))
        assert distances[i, j] == pytest.approx(best)


def test_cross_cost_does_not_see_units():
    """Each task's features may have their own unit and zero."""
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    np.testing.assert_allclose(cross_cost(source, target), cross_cost(source, 9 * target - 4))


@given(st.integers(2, 5), st.integers(2, 5), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_loss_against_its_definition(n, m, alpha, seed):
    """The factorized loss is the sum over four indices."""
    rng = np.random.default_rng(seed)
    source, target = (euclidean_distances(rng.normal(size=(count, 2))) for count in (n, m))
    plan, cost = rng.random((n, m)), rng.random((n, m))
    square = sum(
        (source[i, k] - target[j, h]) ** 2 * plan[i, j] * plan[k, h]
        for i, k, j, h in itertools.product(range(n), range(n), range(m), range(m))
    )
    expected = (1 - alpha) * (cost * plan).sum() + alpha * square
    assert coupling_loss(plan, source, target, cost=cost, alpha=alpha) == pytest.approx(expected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("fused", [False, True])
def test_marginals_hold_for_any_weights(solver, fused):
    """Rows and columns of the plan sum to the weights of the items, in the items' order."""
    rng = np.random.default_rng(1)
    source, target = euclidean_distances(rng.normal(size=(40, 3))), euclidean_distances(rng.normal(size=(31, 2)))
    p, q = rng.random(40) + 0.1, rng.random(31) + 0.1
    plan = gromov_wasserstein(
        source, target, solver=solver, source_weights=p, target_weights=q, medoids=8, max_iterations=100,
        cost=rng.random((40, 31)) if fused else None,
    ).plan  # fmt: skip
    np.testing.assert_allclose(plan.sum(1), p / p.sum(), atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), q / q.sum(), atol=1e-9)
    assert (plan >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_rotated_and_shuffled_clusters_are_recovered(seed):
    """From two starts, the exact coupling finds at least 95 % of 200 exact matches."""
    source, target, order, _ = clusters(200, seed)
    coupling = gromov_wasserstein(source, target)
    assert (coupling.plan.argmax(0) == order).mean() >= 0.95
    assert coupling.losses.keys() == {"product", "tlb"}


@pytest.mark.parametrize(("solver", "reduced"), [("quantized", True), ("exact", True), ("entropic", False)])
def test_mass_goes_to_the_right_cluster(solver, reduced):
    """Through medoids, in the order of the items, nearly all mass stays in its cluster; entropy keeps it there too."""
    source, target, order, cluster = clusters(200, 0)
    options = {"max_exact": 100, "medoids": 40} if reduced else {"epsilon": 0.005}
    coupling = gromov_wasserstein(source, target, solver=solver, **options)
    assert coupling.reduced == reduced
    right = cluster[:, None] == cluster[order][None]
    assert coupling.plan[right].sum() >= 0.95


def test_the_best_start_is_kept():
    """The plan is the one with the smallest loss, and that loss is the plan's."""
    rng = np.random.default_rng(0)
    source, target = euclidean_distances(rng.normal(size=(15, 2))), euclidean_distances(rng.normal(size=(12, 2)))
    starts = ["product", "tlb", ("own", np.full((15, 12), 1 / 180))]
    coupling = gromov_wasserstein(source, target, starts=starts)
    assert coupling.loss == min(coupling.losses.values())
    assert coupling.loss == pytest.approx(coupling_loss(coupling.plan, source, target))
    assert coupling.losses["own"] == pytest.approx(coupling.losses["product"])
    for name, plan in coupling.plans.items():
        assert coupling.losses[name] == pytest.approx(coupling_loss(plan, source, target))


def test_third_lower_bound_finds_a_shuffled_copy():
    """Where every item has its own distances to the others, their distribution names it."""
    distances = euclidean_distances(np.random.default_rng(0).normal(size=(20, 3)))
    order = np.random.default_rng(1).permutation(20)
    uniform = np.full(20, 1 / 20)
    plan = third_lower_bound_start(distances, distances[np.ix_(order, order)], uniform, uniform)
    assert (plan.argmax(0) == order).all()


@pytest.mark.parametrize("solver", ["exact", "entropic"])
def test_the_unit_of_distances_does_not_matter(solver):
    """Distances in other units: the same plan, a loss in their square."""
    source, target, *_ = clusters(20, 0)
    one, other = (gromov_wasserstein(u * source, u * target, solver=solver) for u in (1, 1000))
    np.testing.assert_allclose(one.plan, other.plan, atol=1e-12)
    assert other.loss == pytest.approx(1e6 * one.loss)


def test_alpha_goes_from_cost_to_distances():
    """alpha 0 is Wasserstein, alpha 1 Gromov-Wasserstein."""
    rng = np.random.default_rng(0)
    source, target = euclidean_distances(rng.normal(size=(9, 2))), euclidean_distances(rng.normal(size=(9, 2)))
    cost = rng.random((9, 9))
    linear = gromov_wasserstein(source, target, cost=cost, alpha=0.0)
    np.testing.assert_allclose(linear.plan, ot.emd(np.full(9, 1 / 9), np.full(9, 1 / 9), cost), atol=1e-12)
    np.testing.assert_allclose(linear.plan, wasserstein(cost).plan, atol=1e-12)
    assert linear.loss == pytest.approx(wasserstein(cost).loss)
    plain = gromov_wasserstein(source, target)
    assert gromov_wasserstein(source, target, cost=cost, alpha=1.0).loss == pytest.approx(plain.loss)


def test_a_cost_turns_a_symmetric_task_the_right_way_round():
    """A line with equal steps is its own mirror: a small cost decides."""
    line = euclidean_distances(np.arange(8.0)[:, None])
    for target in (np.arange(8.0), -np.arange(8.0)):
        cost = cross_cost(np.arange(8.0)[:, None], target[:, None])
        plan = gromov_wasserstein(line, line, cost=cost, alpha=0.9).plan
        assert (np.arange(8.0)[plan.argmax(0)] == (target if target[1] > 0 else target + 7)).all()


def test_epsilon_blurs():
    """The larger epsilon, the more a target item is a mixture; the proximal plan is nearly a matching."""
    source, target, *_ = clusters(30, 0)
    entropic = [gromov_wasserstein(source, target, solver="entropic", epsilon=e).plan for e in (0.002, 0.01, 0.1)]
    peaks = [30 * plan.max(0).mean() for plan in entropic]
    assert peaks[0] > peaks[1] > peaks[2]
    assert 30 * gromov_wasserstein(source, target, solver="proximal").plan.max(0).mean() > 0.95


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_entropic_steps_against_pot(alpha):
    """The same plan as POT's projected gradient from the same start."""
    rng = np.random.default_rng(0)
    source, target = euclidean_distances(rng.normal(size=(15, 3))), euclidean_distances(rng.normal(size=(12, 2)))
    cost, p, q = rng.random((15, 12)), rng.dirichlet(np.ones(15)), rng.dirichlet(np.ones(12))
    expected = ot.gromov.entropic_fused_gromov_wasserstein(
        cost, source, target, p, q, "square_loss", epsilon=0.05, alpha=alpha, symmetric=True, tol=1e-9
    )
    ours = gromov_wasserstein(
        source, target, cost=cost, alpha=alpha, solver="entropic", epsilon=0.05,
        source_weights=p, target_weights=q, starts=["product"],
    )  # fmt: skip
    np.testing.assert_allclose(ours.plan, expected, atol=1e-4)


def test_sinkhorn_does_not_underflow():
    """With costs of a thousand epsilons it is nearly the exact plan, and may start from its own potentials."""
    rng = np.random.default_rng(0)
    cost, p, q = rng.random((8, 9)), rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(9))
    plan, potentials = sinkhorn(cost, p, q, epsilon=1e-3, max_iterations=100_000)
    assert (cost * plan).sum() == pytest.approx(ot.emd2(p, q, cost), abs=2e-3)
    again, _ = sinkhorn(cost, p, q, epsilon=1e-3, potentials=potentials, max_iterations=5)
    np.testing.assert_allclose(again, plan, atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_rounding_restores_marginals(n, m, seed):
    """Any non-negative matrix becomes a coupling; a coupling stays what it is."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    plan = round_to_marginals(rng.random((n, m)) / (n * m), p, q)
    np.testing.assert_allclose(plan.sum(1), p, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), q, atol=1e-12)
    np.testing.assert_allclose(round_to_marginals(product_start(p, q), p, q), product_start(p, q), atol=1e-12)


def test_medoids_are_the_middles_of_their_clusters():
    """Every item is with its nearest medoid, no member is more central, and equal seeds give equal results."""
    distances, *_ = clusters(60, 0)
    medoids, cluster = k_medoids(distances, 6, np.random.default_rng(0))
    np.testing.assert_allclose(distances[np.arange(60), medoids[cluster]], distances[:, medoids].min(1))
    for a, medoid in enumerate(medoids):
        members = np.flatnonzero(cluster == a)
        assert distances[medoid, members].sum() == distances[np.ix_(members, members)].sum(1).min()
    assert (k_medoids(distances, 6, np.random.default_rng(0))[0] == medoids).all()


def test_equal_items_share_a_medoid():
    """Three different items are three medoids, however many are asked for."""
    line = np.repeat([0.0, 1.0, 5.0], 4)
    medoids, cluster = k_medoids(np.abs(line[:, None] - line[None]), 9, np.random.default_rng(0))
    assert sorted(line[medoids]) == [0, 1, 5]
    assert np.bincount(cluster).tolist() == [4, 4, 4]


def test_a_batch_solves_each_of_its_problems():
    """Shuffled copies, in one loop: each shuffle is found, marginals hold."""
    rng = np.random.default_rng(0)
    source = np.stack([euclidean_distances(rng.normal(size=(7, 3))) for _ in range(5)])
    orders = [rng.permutation(7) for _ in range(5)]
    target = np.stack([C[np.ix_(order, order)] for C, order in zip(source, orders, strict=True)])
    couplings = gromov_wasserstein_batch(source, target, epsilon=0.005)
    for coupling, order in zip(couplings, orders, strict=True):
        assert (coupling.plan.argmax(0) == order).all()
        np.testing.assert_allclose(coupling.plan.sum(0), 1 / 7, atol=1e-9)


LINE = euclidean_distances([[0.0], [1.0], [3.0]])
BAD_NUMBERS = {
    "constant trajectories": lambda: euclidean_distances(np.ones((3, 4))),
    "constant trajectories ": lambda: gromov_wasserstein(np.zeros((3, 3)), LINE),
    "At least 2|at least 2 items": lambda: euclidean_distances(np.ones((1, 4))),
    "one trajectory": lambda: gromov_wasserstein([[0.0]], LINE),
    "item 1 hold NaN": lambda: euclidean_distances([[0.0], [np.nan], [1.0]]),
    "NaN or an infinite value at": lambda: gromov_wasserstein(np.where(LINE == 1, np.nan, LINE), LINE),
    "all items of one shape": lambda: euclidean_distances([[0.0], [1.0, 2.0]]),
    "Item 0 of the features is zero": lambda: cosine_distances([[0.0, 0.0], [1.0, 0.0]]),
    "shape .n, T, F.": lambda: window_distances(np.ones((3, 2))),
    "the same features in both": lambda: cross_cost(np.eye(4), np.eye(3)),
    "symmetric": lambda: gromov_wasserstein(np.triu(LINE), LINE),
    "3 positive numbers": lambda: gromov_wasserstein(LINE, LINE, source_weights=[1.0, 0.0, 1.0]),
    "cost must have shape": lambda: gromov_wasserstein(LINE, LINE, cost=np.ones((2, 3))),
    "is no coupling": lambda: gromov_wasserstein(LINE, LINE, starts=[("own", np.ones((3, 3)))]),
    "numerical failure": lambda: finite_plan(np.full((3, 3), np.nan), "entropic", 0.02),
    "as many sources": lambda: gromov_wasserstein_batch(LINE[None], np.stack([LINE, LINE])),
}
BAD_OPTIONS = {
    "Unknown solver": lambda: gromov_wasserstein(LINE, LINE, solver="magic"),
    "epsilon must be": lambda: gromov_wasserstein(LINE, LINE, solver="entropic", epsilon=1e-4),
    "alpha must be": lambda: gromov_wasserstein(LINE, LINE, cost=LINE, alpha=1.5),
    "cost is None": lambda: gromov_wasserstein(LINE, LINE, alpha=0.5),
    "Unknown start": lambda: gromov_wasserstein(LINE, LINE, starts=["best"]),
    "starts is empty": lambda: gromov_wasserstein(LINE, LINE, starts=[]),
    "medoids must be": lambda: gromov_wasserstein(LINE, LINE, solver="quantized", medoids=1),
    "takes no plan": lambda: gromov_wasserstein(LINE, LINE, solver="quantized", starts=[("own", LINE)]),
}


@pytest.mark.parametrize("message", BAD_NUMBERS)
def test_bad_numbers_are_named(message):
    """What cannot be transported is an error that says what is wrong."""
    with pytest.raises(InvalidData, match=message.strip()):
        BAD_NUMBERS[message]()


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options_are_named(message):
    """An option out of its range is an error that says what is allowed."""
    with pytest.raises(ConfigError, match=message):
        BAD_OPTIONS[message]()


def test_a_constant_column_has_no_z_score():
    """It is 0 in every item, not NaN, also where its mean is large."""
    assert (z_score([[1e6, 1.0], [1e6, 2.0]])[:, 0] == 0).all()
