"""Optimal transport, on POT: between tasks (distances within one, couplings of two), and between videos."""

from prefrl.transport.batched import gromov_wasserstein_batch
from prefrl.transport.descent import product_start, third_lower_bound_start
from prefrl.transport.distances import cosine_distances, cross_cost, euclidean_distances, window_distances, z_score
from prefrl.transport.gromov import gromov_wasserstein, wasserstein
from prefrl.transport.problem import Coupling, Solver, coupling_loss, round_to_marginals
from prefrl.transport.reduction import k_medoids
from prefrl.transport.sequences import pairwise_costs, plan_entropy, plans, transport_distance

__all__ = [
    "Coupling",
    "Solver",
    "cosine_distances",
    "coupling_loss",
    "cross_cost",
    "euclidean_distances",
    "gromov_wasserstein",
    "gromov_wasserstein_batch",
    "k_medoids",
    "pairwise_costs",
    "plan_entropy",
    "plans",
    "product_start",
    "round_to_marginals",
    "third_lower_bound_start",
    "transport_distance",
    "wasserstein",
    "window_distances",
    "z_score",
]
