"""Align an encoder with a user's rankings of videos, so that distances order videos as the user does.

RAPL (Tian et al. 2024, arXiv 2310.07932; 2412.04835): in a triplet, the positive video is to be nearer to the neutral
than to the negative one, P = exp(−d(p, u)) / (exp(−d(p, u)) + exp(−d(p, n))). Its released code minimizes 1 − P, here
an option; the default is −log P. Ordinary pairs of videos count by how near each is to the closest demonstration.

Axes: N labels, B of a batch, V videos, T frames, F features, E embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prefrl.data.triplets import Triplets, VideoPairs
from prefrl.errors import ConfigError, InvalidData
from prefrl.losses.alignment import demo_pair_nll, equal_triplet, triplet_error, triplet_nll
from prefrl.representation.features import VideoFeatures
from prefrl.train.align_distance import VideoDistance
from prefrl.transport.sequences import Metric, Plan

__all__ = ["AlignmentHistory", "align"]

Loss = Literal["log", "one_minus_p"]
DIVERGED = "align: the loss became {}. Lower learning_rate, or check the scale of the features."
LOSSES = {"log": triplet_nll, "one_minus_p": triplet_error}
SURE = 0.55  # a held-out triplet counts as aligned if its P is larger: the released code asks for 1 − P < .45


@dataclass(frozen=True)
class AlignmentHistory:
    """What an alignment reached; entry e of each tuple is after e epochs, entry 0 before the first.

    train_loss, heldout_loss: mean of a label · alignment_score: share of held-out contrastive triplets with P > .55
    entropy: of the plans of held-out triplets, in [0, 1], 1 is uniform · best: the entry whose weights were kept.
    Without held-out labels, the measured ones are those of training. None: there is nothing to measure.
    """

    train_loss: tuple[float, ...]
    heldout_loss: tuple[float, ...]
    alignment_score: tuple[float | None, ...]
    entropy: tuple[float | None, ...]
    best: int
    train_labels: int
    heldout_labels: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def align(
    encoder: nn.Module,
    features: VideoFeatures,
    triplets: Triplets | None = None,
    *,
    demos: VideoFeatures | None = None,
    pairs: VideoPairs | None = None,
    loss: Loss = "log",
    equal_weight: float = 1.0,
    metric: Metric = "euclidean",
    plan: Plan = "entropic",
    epsilon: float = 0.1,
    learning_rate: float = 1e-3,
    batch_size: int = 20,
    max_epochs: int = 100,
    patience: int | None = 20,
    holdout: float = 0.2,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    **transport: Any,
) -> AlignmentHistory:
    """Train ``encoder`` in place by Adam; the weights with the best held-out loss are left. Defaults: RAPL's code.

    Args:
        encoder: embeddings (B, T, E) of features (B, T, F); features: of the videos that the labels name.
        demos: preferred demonstrations, which ``pairs`` need: a video scores minus the distance to the closest.
        loss: of contrastive triplets, −log P or 1 − P. equal_weight: of (P − ½)² of equal triplets; 0: not used.
        metric, plan, epsilon: of :class:`VideoDistance`; further options of it are taken by name. RAPL has ε = 1,
            absolute, with which plans are nearly uniform.
        batch_size: labels of a step. max_epochs: passes over the training labels. patience: epochs without a better
            held-out loss after which it ends; None: never. holdout: share of the labels, in [0, 1), not trained on.
        progress: called as ``progress(epoch, max_epochs)``.
    """
    _validate(loss, equal_weight, learning_rate, batch_size, max_epochs, patience, holdout)
    distance = VideoDistance(metric, plan, epsilon, transport)
    labels = _Labels(features, triplets, pairs, demos, distance, loss, equal_weight)
    generator = torch.Generator().manual_seed(seed)
    train, heldout = labels.split(holdout, generator)
    measured = heldout if len(heldout) else train
    optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
    measures = [labels.measure(encoder, measured, batch_size)]
    train_loss = [labels.measure(encoder, train, batch_size).loss]
    best, kept = 0, copy.deepcopy(encoder.state_dict())

    for epoch in range(1, max_epochs + 1):
        order = train[torch.randperm(len(train), generator=generator)]
        train_loss.append(_train_epoch(encoder, labels, order.split(batch_size), optimizer))
        measures.append(labels.measure(encoder, measured, batch_size))
        if not len(heldout) or measures[-1].loss < measures[best].loss:
            best, kept = epoch, copy.deepcopy(encoder.state_dict())
        stopped = patience is not None and epoch - best >= patience
        if progress is not None:
            progress(max_epochs if stopped else epoch, max_epochs)
        if stopped:
            break
    encoder.load_state_dict(kept)
    encoder.eval()
    return AlignmentHistory(
        train_loss=tuple(train_loss),
        heldout_loss=tuple(m.loss for m in measures),
        alignment_score=tuple(m.alignment_score for m in measures),
        entropy=tuple(m.entropy for m in measures),
        best=best,
        train_labels=len(train),
        heldout_labels=len(heldout),
    )


def _train_epoch(
    encoder: nn.Module, labels: _Labels, batches: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> float:
    """The mean loss of the labels, each before the step that it was used in."""
    encoder.train()
    total = 0.0
    for rows in batches:
        values = labels.losses(encoder, rows)  # (B,)
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
        total += values.detach().sum().item()
    return _finite(total / sum(map(len, batches)))


@dataclass(frozen=True)
class _Measure:
    loss: float
    alignment_score: float | None
    entropy: float | None


class _Labels:
    """Triplets and pairs, numbered one after the other, and what each costs an encoder."""

    def __init__(
        self,
        features: VideoFeatures,
        triplets: Triplets | None,
        pairs: VideoPairs | None,
        demos: VideoFeatures | None,
        distance: VideoDistance,
        loss: Loss,
        equal_weight: float,
    ) -> None:
        self.loss, self.equal_weight = loss, equal_weight
        self.features, self.demos, self.distance = features, demos, distance
        none = torch.empty(0, dtype=torch.int64)
        self.triplets = none.view(0, 3) if triplets is None else torch.from_numpy(triplets.videos)  # (N, 3)
        self.equal = none.bool() if triplets is None else torch.from_numpy(triplets.is_equal)  # (N,)
        self.pairs = none.view(0, 2)  # (N', 2)
        self.p_first = torch.empty(0)
        if triplets is not None:
            triplets.require_videos(len(features))
        if pairs is not None and len(pairs):
            if demos is None:
                raise ConfigError("align: pairs need demos, preferred videos that both are compared with.")
            if demos.feature_size != features.feature_size:
                raise InvalidData(
                    f"align: videos have {features.feature_size} features, demos {demos.feature_size}. Take one "
                    "backbone for both."
                )
            pairs.require_videos(len(features))
            self.pairs = torch.from_numpy(np.stack([pairs.first, pairs.second], axis=1))
            self.p_first = torch.from_numpy(pairs.p_first).float()
        if not len(self.triplets) + len(self.pairs):
            raise InvalidData("align: there are no labels. Give triplets, or pairs with demos.")

    def split(self, holdout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows to train on and rows held out, the same share of triplets and of pairs."""
        parts = []
        for first, n in ((0, len(self.triplets)), (len(self.triplets), len(self.pairs))):
            order, held = first + torch.randperm(n, generator=generator), round(holdout * n)
            parts.append((order[held:], order[:held]))
        train, heldout = (torch.cat(column) for column in zip(*parts, strict=True))
        if not len(train):
            raise InvalidData(f"align: holdout {holdout} leaves none of {len(heldout)} labels to train on.")
        return train, heldout

    def losses(self, encoder: nn.Module, rows: Tensor) -> Tensor:
        """(B,): of the labels at these rows; triplets come first."""
        of_triplet = rows < len(self.triplets)
        triplets, pairs = rows[of_triplet], rows[~of_triplet] - len(self.triplets)
        values = []
        if len(triplets):
            near, far = self._distances(encoder, triplets)
            contrastive = LOSSES[self.loss](near, far)
            equal = self.equal_weight * equal_triplet(near, far)
            values.append(torch.where(self.equal[triplets], equal, contrastive))
        if len(pairs):
            first, second = self._demo_distances(encoder, pairs)
            values.append(demo_pair_nll(first, second, self.p_first[pairs]))
        return torch.cat(values)

    def _embedded(self, encoder: nn.Module, videos: Tensor) -> VideoFeatures:
        return _finite_embeddings(encoder(self.features.features[videos]), self.features.mask[videos])

    def _distances(self, encoder: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
        """d(positive, neutral) and d(positive, negative), (B,) each, in one batch of transport problems."""
        positive, others = self._triplets(encoder, rows)
        near, far = self.distance(positive, others).split(len(rows))
        return near, far

    def _triplets(self, encoder: nn.Module, rows: Tensor) -> tuple[VideoFeatures, VideoFeatures]:
        """(2B, T, E) each: positive, positive; neutral, negative."""
        b = torch.arange(len(rows))
        embedded = self._embedded(encoder, self.triplets[rows].T.reshape(-1))  # (3B, T, E)
        return embedded.subset(torch.cat([b, b])), embedded.subset(slice(len(rows), None))

    def _demo_distances(self, encoder: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of first and second to the closest demo, (B,) each."""
        assert self.demos is not None
        demos = _finite_embeddings(encoder(self.demos.features), self.demos.mask)
        videos = self._embedded(encoder, self.pairs[rows].T.reshape(-1))  # (2B, T, E)
        first, second = self.distance.to_demos(videos, demos).amin(1).split(len(rows))
        return first, second

    @torch.no_grad()
    def measure(self, encoder: nn.Module, rows: Tensor, batch_size: int) -> _Measure:
        """Mean loss, and what the triplets among the rows say."""
        encoder.eval()
        parts = rows.split(batch_size)
        total = sum(self.losses(encoder, part).sum().item() for part in parts)
        probabilities, entropies = [], []
        for part in rows[rows < len(self.triplets)].split(batch_size):
            if not len(part):
                continue
            near, far = self._distances(encoder, part)
            probabilities.append(torch.sigmoid(far - near)[~self.equal[part]])
            entropies.append(self.distance.entropy(*self._triplets(encoder, part)))
        p = torch.cat(probabilities) if probabilities else torch.empty(0)
        return _Measure(
            loss=_finite(total / len(rows)),
            alignment_score=(p > SURE).float().mean().item() if len(p) else None,
            entropy=torch.cat(entropies).mean().item() if entropies else None,
        )


def _finite_embeddings(embeddings: Tensor, mask: Tensor) -> VideoFeatures:
    if not bool(embeddings.detach().isfinite().all()):
        raise InvalidData(DIVERGED.format("not finite in the embeddings"))
    return VideoFeatures(embeddings, mask)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise InvalidData(DIVERGED.format(loss))
    return loss


def _validate(
    loss: str,
    equal_weight: float,
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    patience: int | None,
    holdout: float,
) -> None:
    allowed = {
        "loss": (" or ".join(LOSSES), loss, loss in LOSSES),
        "equal_weight": ("in [0, inf)", equal_weight, 0 <= equal_weight < math.inf),
        "learning_rate": ("in (0, inf)", learning_rate, 0 < learning_rate < math.inf),
        "batch_size": ("at least 1", batch_size, batch_size >= 1),
        "max_epochs": ("at least 0", max_epochs, max_epochs >= 0),
        "patience": ("at least 1, or null", patience, patience is None or patience >= 1),
        "holdout": ("in [0, 1)", holdout, 0 <= holdout < 1),
    }
    for name, (words, value, holds) in allowed.items():
        if not holds:
            raise ConfigError(f"align: {name} must be {words}, but is {value!r}.")
