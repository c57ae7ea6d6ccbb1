"""How well a score predicts answers that it has not seen: k-fold cross-validated accuracy (Stone 1974, JRSS B 36).

For data sets of a hundred comparisons, where a held-out tenth says little: every comparison is judged once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefrl.core import Comparisons
from prefrl.errors import ConfigError, InvalidData

__all__ = ["CrossValidation", "cross_validated_accuracy"]


class CrossValidation(NamedTuple):
    """Which of n decided comparisons a score predicted that was trained without their fold.

    correct: (n,) float64, 1 predicted, 0 not, 0.5 where both sides scored the same · accuracy: its mean
    fold: (n,) int64, in which each was held out · rows: (n,) int64, where each stands among all comparisons.
    """

    correct: Tensor
    accuracy: float
    fold: Tensor
    rows: Tensor


def cross_validated_accuracy(
    make_score: Callable[..., Any],
    comparisons: Comparisons,
    *,
    folds: int = 5,
    seed: int,
    fit: Callable[..., Any],
) -> CrossValidation:
    """Train on all folds but one, judge that one by the sign of the mean score difference; each fold in turn.

    Ties (p_first = 0.5) have no side: they are left out of everything. Weights, minibatches *and input statistics*
    come from the training folds only, and true rewards are not passed on.

    Args:
        make_score: as ``ReturnEnsemble.for_data``, called with ``observations``, ``actions`` and ``seed``.
        folds: in [2, n]; their sizes differ by at most one. seed: of the folds, the weights and the fits.
        fit: as ``fit_score`` with its hyper-parameters bound, called as ``fit(score, train, seed=, holdout=0.0)``.
    """
    rows = (comparisons.p_first != 0.5).nonzero().squeeze(1).cpu()  # (n,)
    n = len(rows)
    if n < 2:
        raise InvalidData(f"Cross-validation needs at least 2 comparisons that are no ties, but there are {n}.")
    if not 2 <= folds <= n:
        raise ConfigError(f"cross-validation: folds must be in [2, {n}] (decided comparisons), but is {folds}.")
    decided = comparisons[rows].without_true_reward()
    fold = torch.empty(n, dtype=torch.int64)
    fold[torch.randperm(n, generator=torch.Generator().manual_seed(seed))] = torch.arange(n) % folds
    correct = torch.empty(n, dtype=torch.float64)
    for held in range(folds):
        score = _trained(make_score, decided[fold != held], seed=seed, fit=fit)
        correct[fold == held] = _hits(score, decided[fold == held])
    return CrossValidation(correct, correct.mean().item(), fold, rows)


def _trained(make_score: Callable[..., Any], train: Comparisons, *, seed: int, fit: Callable[..., Any]) -> Any:
    """A fresh score with statistics of the real steps of ``train``, fitted to it."""
    both = train.first, train.second
    observations = torch.cat([segments.observations[:, :-1][segments.mask] for segments in both])
    actions = torch.cat([segments.actions[segments.mask] for segments in both])
    score = make_score(observations=observations, actions=actions, seed=seed)
    fit(score, train, seed=seed, holdout=0.0)
    return score


def _hits(score: Any, comparisons: Comparisons) -> Tensor:
    """(n,) float64: 1 where the mean score is higher on the preferred side, 0.5 where it is equal on both."""
    with torch.no_grad():
        difference = (score(comparisons.first) - score(comparisons.second)).mean(0)
    agrees = torch.sign(difference) * torch.sign(comparisons.p_first - 0.5)
    return (0.5 + 0.5 * agrees).double().cpu()
