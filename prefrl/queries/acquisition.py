r"""How much a question would tell, from what the members of an ensemble expect of its answer.

All are functions of the logits x_i = s_i(first) − s_i(second) of N members, with P_i = σ(x_i):

- disagreement, the standard deviation of P_i over the members (Christiano et al. 2017, arXiv 1706.03741, §2.2.4);
- entropy of the mean P, high near the decision boundary (PEBBLE, Lee et al. 2021, arXiv 2106.05091, §4.2);
- information gain about the members, H(mean P) − mean H(P_i): BALD (Houlsby et al. 2011, arXiv 1112.5745), which leaves
  out questions whose answer every member knows to be a coin toss.

B-Pref's code (arXiv 2111.03026) calls the mean of the members' entropies "entropy", and has no information gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefrl.core import SegmentRefs, require_finite
from prefrl.data.dataset import Episodes, require_inside
from prefrl.data.query import RefPairs, joined
from prefrl.errors import ConfigError
from prefrl.protocols import Score

__all__ = ["ACQUISITIONS", "acquisition", "disagreement", "entropy", "information_gain", "pair_logits"]


def disagreement(logits: Tensor) -> Tensor:
    """(M,) in [0, 1/2]: standard deviation of P over the members, of logits (N, M); 0 where all agree.

    >>> disagreement(torch.tensor([[0.0, 100.0], [0.0, -100.0]]))
    tensor([0.0000, 0.5000])
    """
    return logits.sigmoid().std(0, correction=0)


def entropy(logits: Tensor) -> Tensor:
    """(M,) in [0, log 2] nats: entropy of the mean of P over the members, of logits (N, M).

    >>> entropy(torch.tensor([[0.0, 200.0], [0.0, 200.0]]))
    tensor([0.6931, 0.0000])
    """
    log_p, log_q = (torch.logsumexp(F.logsigmoid(x), 0) - math.log(len(logits)) for x in (logits, -logits))
    return (-log_p.exp() * log_p - log_q.exp() * log_q).abs()


def information_gain(logits: Tensor) -> Tensor:
    """(M,) in [0, log 2] nats: what the answer tells about which member is right, of logits (N, M); 0 for one member.

    >>> information_gain(torch.tensor([[0.0, 100.0], [0.0, -100.0]]))
    tensor([0.0000, 0.6931])
    """
    each = F.softplus(logits) - logits * logits.sigmoid()  # entropy of σ(x)
    return (entropy(logits) - each.mean(0)).clamp_min(0)


ACQUISITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "disagreement": disagreement,
    "entropy": entropy,
    "information_gain": information_gain,
}


def acquisition(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name."""
    if name not in ACQUISITIONS:
        raise ConfigError(f"query: by must be one of {', '.join(ACQUISITIONS)}, but is {name!r}.")
    return ACQUISITIONS[name]


def pair_logits(score: Score, episodes: Episodes, pairs: RefPairs, *, batch_size: int = 4096) -> Tensor:
    """(N, M): what each member of a ``score`` expects of M pairs; each different segment is scored once.

    Where a score is the sum of its steps' rewards (``additive``), that is each different step. ``batch_size`` steps are
    computed at a time; it changes no more than the last digits. The score must not be in training mode (``fit_score``
    leaves none in it).
    """
    places = joined(*pairs)
    rows = np.stack([places.episode, places.start, places.length], axis=1)
    different, of_place = np.unique(rows, axis=0, return_inverse=True)
    of = _by_steps if getattr(score, "additive", False) else _by_segments
    with torch.no_grad():
        scores = of(score, episodes, SegmentRefs(*different.T), batch_size)
    require_finite("scores of segments", scores)
    first, second = torch.from_numpy(of_place.reshape(2, -1))
    return scores[:, first] - scores[:, second]


def _by_segments(score: Score, episodes: Episodes, refs: SegmentRefs, batch_size: int) -> Tensor:
    """(N, M): scores of the segments."""
    at_once = max(1, batch_size // int(refs.length.max(initial=1)))
    batches = (refs[begin : begin + at_once] for begin in range(0, len(refs), at_once))
    return torch.cat([score(episodes.segments(batch).without_true_reward()) for batch in batches], dim=1)


def _by_steps(score: Score, episodes: Episodes, refs: SegmentRefs, batch_size: int) -> Tensor:
    """(N, M): the same, as differences of running sums of the rewards of all steps that are in a segment."""
    require_inside(refs, episodes.lengths)
    begin = episodes.step_offsets[refs.episode] + refs.start
    edges = np.zeros(episodes.num_steps + 1, dtype=np.int64)
    np.add.at(edges, begin, 1)
    np.add.at(edges, begin + refs.length, -1)
    covered = np.cumsum(edges[:-1]) > 0  # (N,) steps of the episodes
    steps = np.flatnonzero(covered)
    states = steps + episodes.episode_of_step[steps]
    rewards = [
        score.reward(torch.from_numpy(episodes.observations[o]), torch.from_numpy(episodes.actions[a]))
        for o, a in ((states[i : i + batch_size], steps[i : i + batch_size]) for i in range(0, len(steps), batch_size))
    ]
    sums = F.pad(torch.cat(rewards, dim=1).double().cumsum(1), (1, 0))  # (N, steps + 1)
    first = torch.from_numpy(np.cumsum(covered) - 1)[begin]  # which of the covered steps a segment begins with
    return (sums[:, first + torch.from_numpy(refs.length)] - sums[:, first]).to(rewards[0].dtype)
