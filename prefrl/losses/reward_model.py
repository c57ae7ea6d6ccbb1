"""Losses of reward and cost models: likelihood of choices and ties between two scored sequences.

Here a score is what a model said of a sequence: a tensor (B,), with gradient. Soft labels need no row of their own:
:func:`prefrl.losses.preference_nll` of score differences is their loss. Two losses bear wrong labels (MAE and GCE);
they take pairs, ``Pairs(LogProbs(chosen_score), LogProbs(rejected_score))``, so that the lifts know them.

References: Llama 2 (margin) arXiv 2307.09288, Eisenstein et al. (centering) arXiv 2312.09244, VideoAlign (ties)
arXiv 2501.13918, Safe RLHF (cost) arXiv 2310.12773, Ghosh et al. (MAE) arXiv 1712.09482, Zhang and Sabuncu (GCE)
arXiv 1805.07836.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prefrl.losses.choice import preference_nll
from prefrl.losses.inputs import LogProbs, Pairs, check, wide
from prefrl.losses.table import loss

__all__ = ["reward_bradley_terry", "reward_cost", "reward_gce", "reward_mae", "reward_ties"]


@loss("Reward model with margin and centering, arXiv 2307.09288, arXiv 2312.09244", takes="scores")
def reward_bradley_terry(
    chosen: Tensor, rejected: Tensor, *, margin: float | Tensor | None = None, centering: float = 0.0
) -> Tensor:
    """Bradley–Terry likelihood of rewards: −log σ(r_w − r_l − m) + c (r_w + r_l)²; (B,).

    The margin m is eq. 2 of arXiv 2307.09288 (Llama 2: larger for pairs that were rated further apart), the centering
    c that of eq. 2 of arXiv 2312.09244: it settles the free constant of the rewards (0.01 where it is used).
    chosen, rejected: (B,) rewards · margin: a number or (B,). log 2 where r_w − r_l = m and c = 0.

    >>> reward_bradley_terry(torch.tensor([1.0]), torch.tensor([1.0]), centering=0.01)
    tensor([0.7331])
    """
    _check_shape("rejected", rejected, chosen)
    check(centering >= 0, "centering", centering, ">= 0")
    chosen, rejected = wide(chosen), wide(rejected)
    difference = chosen - rejected
    if margin is not None:
        shift = wide(margin) if isinstance(margin, Tensor) else torch.as_tensor(margin, dtype=chosen.dtype)
        if shift.ndim:
            _check_shape("margin", shift, chosen)
        check(not bool(shift.isnan().any()), "margin", margin, "without NaN")
        difference = difference - shift.to(chosen.device)
    return -F.logsigmoid(difference) + centering * (chosen + rejected) ** 2


@loss("BTT, arXiv 2501.13918", takes="scores")
def reward_ties(first: Tensor, second: Tensor, outcome: Tensor, *, k: float = 5.0) -> Tensor:
    """Bradley–Terry with ties: −log P, P(first) = σ(Δ − ln k), P(tie) = (k² − 1) σ(Δ − ln k) σ(−Δ − ln k); (B,).

    Δ = r₁ − r₂; k = 5 as in VideoAlign, arXiv 2501.13918; the model of Rao and Kupper 1967,
    :func:`prefrl.losses.rao_kupper` with θ = k. first, second: (B,) rewards · outcome: (B,), 1 where the first sequence
    was preferred, ½ for a tie, 0 where the second was: a ``p_first`` of three values. k → 1 has no ties and is
    Bradley–Terry. A tie is least surprising at Δ = 0, where its probability is (k − 1) / (k + 1).

    >>> zero = torch.zeros(3)
    >>> reward_ties(zero, zero, torch.tensor([1.0, 0.5, 0.0]), k=3.0).neg().exp()
    tensor([0.2500, 0.5000, 0.2500])
    """
    _check_shape("second", second, first)
    _check_shape("outcome", outcome, first)
    check(k > 1, "k", k, "> 1 (without ties use reward_bradley_terry)")
    tie = outcome == 0.5
    check(bool((tie | (outcome == 0) | (outcome == 1)).all()), "outcome", outcome, "0, 0.5 or 1 everywhere")
    delta, log_k = wide(first) - wide(second), math.log(k)
    nll_first, nll_second = F.softplus(log_k - delta), F.softplus(log_k + delta)
    nll_tie = nll_first + nll_second - math.log(k**2 - 1)
    return torch.where(tie, nll_tie, torch.where(outcome == 1, nll_first, nll_second))


@loss("Safe RLHF cost model, arXiv 2310.12773", takes="scores")
def reward_cost(worse: Tensor, better: Tensor, worse_unsafe: Tensor, better_unsafe: Tensor) -> Tensor:
    """Cost model: −log σ(c_w − c_l) − log σ(s_w c_w) − log σ(s_l c_l), s = 1 where unsafe, −1 where safe; (B,).

    The cost loss of arXiv 2310.12773 (Safe RLHF), equation number unverified. A cost is larger where it is worse, and
    above 0 where a sequence is unsafe. worse, better: (B,) costs of the more and of the less harmful sequence ·
    worse_unsafe, better_unsafe: (B,) bool. Both may be safe, or both unsafe. 3 log 2 where both costs are 0.

    >>> reward_cost(torch.zeros(1), torch.zeros(1), torch.tensor([True]), torch.tensor([False]))
    tensor([2.0794])
    """
    _check_shape("better", better, worse)
    for name, unsafe in (("worse_unsafe", worse_unsafe), ("better_unsafe", better_unsafe)):
        check(unsafe.dtype == torch.bool, name, unsafe.dtype, "bool")
        _check_shape(name, unsafe, worse)
    signs = preference_nll(worse, worse_unsafe) + preference_nll(better, better_unsafe)
    return reward_bradley_terry(worse, better) + signs


@loss("MAE, arXiv 1712.09482")
def reward_mae(pairs: Pairs[LogProbs]) -> Tensor:
    """Mean absolute error |1 − σ(z)| of Bradley–Terry, z = s_w − s_l: the loss that flipped labels do not bias; (B,).

    Ghosh et al. 2017, arXiv 1712.09482 (theirs is twice this one, a sum over both classes). Symmetric: its values of
    (w ≻ l) and (l ≻ w) sum to 1, so labels flipped at a rate ε < ½ scale its mean by 1 − 2ε and shift it, and the
    minimum stays where it was; the likelihood has no bound, and follows every label. A label that the score
    contradicts surely has no gradient, and with soft labels (:func:`prefrl.losses.with_soft_labels`) a tie has none.
    pairs: of ``LogProbs(score)`` with scores (B,); a reference is not read. ½ between equal scores.

    >>> reward_mae(Pairs(LogProbs(torch.tensor([0.0, 30.0, -30.0])), LogProbs(torch.zeros(3))))
    tensor([5.0000e-01, 9.3576e-14, 1.0000e+00])
    """
    return torch.sigmoid(pairs.rejected.total - pairs.chosen.total)


@loss("GCE, arXiv 1805.07836")
def reward_gce(pairs: Pairs[LogProbs], *, q: float = 0.7, truncation: float = 0.0) -> Tensor:
    """Generalized cross-entropy (1 − p^q) / q of Bradley–Terry, p = σ(s_w − s_l): between likelihood and MAE; (B,).

    Zhang and Sabuncu 2018, arXiv 1805.07836, L_q with q = 0.7 (equation numbers unverified). q in (0, 1]: 1 is
    :func:`reward_mae`, q → 0 the likelihood −log p. truncation k in [0, 1), their L_trunc: below p = k the value stays
    that of k, so labels which the score finds less probable than k teach nothing; 0 leaves none out. Theirs is 0.5
    and begins late in training: from the start, 0.5 leaves out whatever new weights happen to contradict.
    pairs: of ``LogProbs(score)`` with scores (B,); a reference is not read. Bounded by 1 / q.

    >>> reward_gce(Pairs(LogProbs(torch.tensor([0.0])), LogProbs(torch.tensor([0.0]))), q=0.5)
    tensor([0.5858])
    """
    check(0 < q <= 1, "q", q, "in (0, 1] (q → 0 is the likelihood, 1 is reward_mae)")
    check(0 <= truncation < 1, "truncation", truncation, "in [0, 1)")
    log_p = F.logsigmoid(pairs.chosen.total - pairs.rejected.total)
    if truncation > 0:
        log_p = log_p.clamp_min(math.log(truncation))
    return -torch.expm1(q * log_p) / q


def _check_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    shape, expected = tuple(tensor.shape), tuple(like.shape)
    check(shape == expected, name, f"of shape {shape}", f"of shape {expected}")
