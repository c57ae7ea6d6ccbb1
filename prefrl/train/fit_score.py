r"""Fit a score to comparisons: Bradley–Terry on logits (Christiano et al. 2017, arXiv 1706.03741, eq. 1), or any loss.

Every member of the ensemble has its own minibatch order (and, if asked, its own bootstrap sample), and all
members are computed in one forward pass. The likelihood is computed on logits: on clipped probabilities, a
confident mistake has no gradient and is never repaired. Where labels are wrong that is no virtue: then a bounded
loss, such as :func:`prefrl.losses.reward_mae`, or one that expects a rate of wrong labels,
:func:`prefrl.losses.with_flip_correction`, may take its place, or the raters are judged on the way
(``rater_reliability``).

A score may have ``training_scores(encoded, mask, generator)``, which says what else must explain the labels, and
what it costs; see :class:`prefrl.scores.GaussianReward`. Its randomness is that of the fit.

Where answers keep coming, as in online learning, call it again with the same score and all answers so far: training
goes on from where it was. Give it the same ``optimizer`` to keep its moments too, and a ``split_seed``, so that no
answer is trained on in one call and measured in the next.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from prefrl.core import Comparisons
from prefrl.errors import ConfigError, InvalidData, RunDirectoryError
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.losses.lifts import PairLoss
from prefrl.runs import MetricLogger
from prefrl.train.calibration import Fit, Reliability, measure_fit
from prefrl.train.epoch import Augment, Epoch, augmented
from prefrl.train.heldout import Patience, held_out_rows
from prefrl.train.label_loss import DIVERGED, DoubtedLabels, described, of_logits
from prefrl.train.pairs import Pairs, TrainableScore, encode_pairs
from prefrl.train.resume import require_same_settings

__all__ = ["FitReport", "fit_score", "score_optimizer"]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class FitReport:
    """What a fit reached after ``epochs``, by the mean score of the members (definitions: ``measure_fit``).

    Accuracies are in [0, 1], None where every label is a tie; nll in nats; calibration (``heldout_ece`` and
    its curve ``reliability``) is of the held-out comparisons. Without those, their fields are None.
    rater_reliability: rater → probability that it labels rightly, as estimated; None where that was not asked for.
    """

    epochs: int
    train_comparisons: int
    train_accuracy: float | None
    train_nll: float
    heldout_comparisons: int
    heldout_accuracy: float | None
    heldout_nll: float | None
    heldout_ece: float | None
    reliability: Reliability | None
    rater_reliability: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return asdict(self)


def fit_score(
    score: TrainableScore,
    comparisons: Comparisons,
    *,
    epochs: int = 50,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.0,
    holdout: float = 0.1,
    stop_accuracy: float | None = None,
    bootstrap: bool = False,
    loss: PairLoss | None = None,
    rater_reliability: float | None = None,
    augment: Augment | None = None,
    patience: int | None = None,
    split_seed: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int,
    folder: Path | None = None,
    checkpoint_every: int = 10,
    tensorboard: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> FitReport:
    """Train ``score`` in place by Adam; learning rate and early stop as in B-Pref (arXiv 2111.03026).

    Whatever a score does in training mode only, dropout for example, is on in the updates and off in every
    measurement, and off in the score that is left.

    Args:
        epochs: passes over the training comparisons. batch_size: comparisons per member and step.
        weight_decay: decoupled (AdamW, arXiv 1711.05101); 0 is Adam.
        holdout: share of the comparisons in [0, 1) that is only measured, never trained on.
        stop_accuracy: stop after an epoch whose training accuracy reaches it (B-Pref: 0.97); None: never.
        bootstrap: each member trains on its own resample, with replacement, of the training comparisons.
        loss: any per-pair loss of ``prefrl.losses`` of the difference s₁ − s₂, by :func:`with_soft_labels` for soft
            labels; None: the likelihood of Bradley–Terry. The report measures that likelihood whatever the loss.
        rater_reliability: probability in [0.001, 0.999] that a rater labels rightly, at first; then it is estimated for
            each ``Comparisons.rater`` and member, and labels count by it (LCPO, arXiv 2509.24159: 0.9). The loss must
            then be a negative log-probability, or is a surrogate of one. None: every label is believed.
        augment: makes each epoch's training comparisons of the answers: crops, pseudo-labels. None: as they are. Not
            together with rater_reliability: what a score says of itself has no rater. Accuracies are of the answers.
        patience: epochs without a better held-out accuracy (or an equal one and a better likelihood) after which
            training stops; the best score measured is left, with the optimizer's last moments. None: never.
        split_seed: comparison i is held out or not by this number and i alone, one in every round(1 / holdout); None:
            shuffled by ``seed``.
        optimizer: of this score's parameters, as :func:`score_optimizer` makes it, to go on with; learning_rate and
            weight_decay become its own. None: a new one.
        folder: for metrics and the checkpoint; one that is there already is continued, to the same result.
        checkpoint_every: epochs between checkpoints. progress: called as ``progress(epoch, epochs)``.
    """
    settings: dict[str, Any] = {
        "batch_size": batch_size, "learning_rate": learning_rate, "weight_decay": weight_decay,
        "holdout": holdout, "stop_accuracy": stop_accuracy, "bootstrap": bootstrap, "seed": seed,
        "comparisons": len(comparisons), "loss": described(loss), "rater_reliability": rater_reliability,
        "augment": described(augment), "patience": patience, "split_seed": split_seed,
    }  # fmt: skip
    _validate(epochs=epochs, checkpoint_every=checkpoint_every, **settings)
    training = _Training(score, settings, loss, optimizer)
    known, unseen = _split(comparisons.without_true_reward(), holdout, training.generator, split_seed)
    train, heldout = encode_pairs(score, known), None if unseen is None else encode_pairs(score, unseen)
    training.doubt(known, rater_reliability)
    samples = _samples(score.members, len(train), bootstrap, training.generator)  # (N, n)
    file = None if folder is None else Path(folder) / CHECKPOINT
    training.resume(file, epochs)

    with _logger(folder, training.epoch, tensorboard) as log:
        while training.epoch < epochs and not training.stopped:
            data = Epoch(train, samples)
            if augment is not None:
                data = augmented(augment, score, known, samples, training.generator)
            mean_loss, accuracy = _train_epoch(training, data, batch_size)
            training.epoch += 1
            metrics = _heldout_metrics(score, heldout)
            good = accuracy is not None and accuracy >= (stop_accuracy or math.inf)
            training.stopped = training.patience.exhausted(score, metrics) or good
            log(training.epoch, loss=mean_loss, train_accuracy=accuracy, **metrics, **training.rater_metrics())
            last = training.stopped or training.epoch == epochs
            if last or training.epoch % checkpoint_every == 0:
                training.save(file)
            if progress is not None:
                progress(epochs if last else training.epoch, epochs)
    training.patience.restore(score)
    fit = _report(training.epoch, _measure(score, train), None if heldout is None else _measure(score, heldout))
    return replace(fit, rater_reliability=training.raters())


def score_optimizer(score: TrainableScore) -> torch.optim.Optimizer:
    """AdamW for a score, to be kept from one fit to the next; the fit sets its learning rate and weight decay."""
    return torch.optim.AdamW(score.parameters(), fused=True)


class _Training:
    """What changes during a fit, and is kept in its checkpoint."""

    def __init__(
        self,
        score: TrainableScore,
        settings: dict[str, Any],
        loss: PairLoss | None,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.score, self.settings, self.loss = score, settings, of_logits(loss)
        self.generator = torch.Generator().manual_seed(settings["seed"])
        self.optimizer = score_optimizer(score) if optimizer is None else optimizer
        _require_optimizer_of(score, self.optimizer)
        for group in self.optimizer.param_groups:
            group.update(lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
        self.patience = Patience(settings["patience"])
        self.epoch, self.stopped = 0, False
        self.doubted: DoubtedLabels | None = None

    def doubt(self, train: Comparisons, reliability: float | None) -> None:
        """Estimate from now on how reliable the raters of the training comparisons are, unless that is None."""
        if reliability is not None:
            rater = cast(Tensor, train.rater)
            self.doubted = DoubtedLabels(rater, members=self.score.members, initial=reliability, loss=self.loss)

    def raters(self) -> dict[str, float] | None:
        """Rater → reliability, None if labels are believed."""
        return None if self.doubted is None else self.doubted.estimates()

    def rater_metrics(self) -> dict[str, float]:
        return {f"rater_{rater}_reliability": value for rater, value in (self.raters() or {}).items()}

    def explain(self, pairs: Pairs, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(N, b) losses of the pairs that each member sees, rows (N, b), and its logits (N, b)."""
        p_first = pairs.p_first[rows]
        if not hasattr(self.score, "training_scores"):
            logit = pairs.logits(self.score, rows)
            return self.loss(logit, self._believed(logit, p_first, rows)), logit
        drawn = _Drawn(self.score, self.generator)
        logits = pairs.logits(cast(TrainableScore, drawn), rows)  # (N, b, V)
        p_first = self._believed(logits[..., 0], p_first, rows)  # by the mean: a sample would believe itself
        values = self.loss(logits, p_first[..., None].expand_as(logits))
        return values @ drawn.weights + drawn.penalty[:, None], logits[..., 0]

    def _believed(self, logit: Tensor, p_first: Tensor, rows: Tensor) -> Tensor:
        """(N, b) labels as they are, or as far as their raters are reliable."""
        return p_first if self.doubted is None else self.doubted.believed(logit, p_first, rows)

    def save(self, file: Path | None) -> None:
        if file is None:
            return
        state = {
            "score": self.score.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "settings": self.settings,
            "epoch": self.epoch,
            "stopped": self.stopped,
            "patience": self.patience.state_dict(),
            "raters": {} if self.doubted is None else self.doubted.reliability.state_dict(),
        }
        save_checkpoint(file, state)

    def resume(self, file: Path | None, epochs: int) -> None:
        """Continue from the checkpoint, if there is one."""
        if file is None or not file.is_file():
            return
        state = load_checkpoint(file)
        require_same_settings(file, state["settings"], self.settings)
        if state["epoch"] > epochs:
            raise RunDirectoryError(f"{file} has {state['epoch']} epochs, more than {epochs}. Use a new folder.")
        self.score.load_state_dict(state["score"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.patience.load_state_dict(state.get("patience", self.patience.state_dict()))  # older ones have none
        if self.doubted is not None:
            self.doubted.reliability.load_state_dict(state["raters"])
        self.epoch, self.stopped = state["epoch"], state["stopped"]


class _Drawn:
    """One pass of a score that has ``training_scores``: V scores a segment, each with a weight, and a penalty (N,)."""

    def __init__(self, score: Any, generator: torch.Generator) -> None:
        self.score, self.generator = score, generator

    def score_encoded(self, encoded: Tensor, mask: Tensor | None) -> Tensor:
        """(N, B, V); the first is the score that is measured."""
        scores, self.weights, self.penalty = self.score.training_scores(encoded, mask, self.generator)
        return scores


def _train_epoch(training: _Training, data: Epoch, batch_size: int) -> tuple[float, float | None]:
    """One pass over the (N, n) samples of the members, each in its own order: (mean loss, accuracy)."""
    pairs, samples = data.pairs, data.rows
    members, n = samples.shape
    order = torch.stack([torch.randperm(n, generator=training.generator) for _ in range(members)])
    rows = samples.gather(1, order).to(pairs.p_first.device)  # (N, n)
    total, hits, decided = torch.zeros(3, device=rows.device).unbind()
    training.score.train()
    for batch in rows.split(batch_size, dim=1):  # (N, b)
        p_first = pairs.p_first[batch]
        loss, logit = training.explain(pairs, batch)  # (N, b) each
        loss = loss if data.weight is None else loss * data.weight[batch]
        training.optimizer.zero_grad()
        loss.mean(1).sum().backward()  # a sum over members: no member sees another's gradient
        training.optimizer.step()
        answered = p_first != 0.5 if data.answers is None else (p_first != 0.5) & (batch < data.answers)
        total += loss.detach().sum()
        hits += ((logit.detach() > 0) == (p_first > 0.5)).logical_and(answered).sum()
        decided += answered.sum()
    mean = total.item() / (members * n)
    if not math.isfinite(mean):
        raise InvalidData(DIVERGED.format(mean))
    return mean, (hits / decided).item() if decided > 0 else None


def _measure(score: TrainableScore, pairs: Pairs) -> Fit:
    """Judge the mean score of the members: its logit is the mean of theirs."""
    score.train(False)
    with torch.no_grad():
        rows = torch.arange(len(pairs), device=pairs.p_first.device)
        logits = [pairs.logits(score, chunk.expand(score.members, -1)).mean(0) for chunk in rows.split(128)]
    return measure_fit(torch.cat(logits), pairs.p_first)


def _report(epochs: int, train: Fit, heldout: Fit | None) -> FitReport:
    return FitReport(
        epochs=epochs,
        train_comparisons=train.comparisons,
        train_accuracy=train.accuracy,
        train_nll=train.nll,
        heldout_comparisons=heldout.comparisons if heldout else 0,
        heldout_accuracy=heldout.accuracy if heldout else None,
        heldout_nll=heldout.nll if heldout else None,
        heldout_ece=heldout.ece if heldout else None,
        reliability=heldout.reliability if heldout else None,
    )


def _heldout_metrics(score: TrainableScore, heldout: Pairs | None) -> dict[str, float | None]:
    if heldout is None:
        return {}
    fit = _measure(score, heldout)
    return {"heldout_accuracy": fit.accuracy, "heldout_nll": fit.nll, "heldout_ece": fit.ece}


def _split(
    comparisons: Comparisons, holdout: float, generator: torch.Generator, split_seed: int | None
) -> tuple[Comparisons, Comparisons | None]:
    """The training and the held-out comparisons (None if the share rounds to 0)."""
    n = len(comparisons)
    if split_seed is None or holdout == 0:
        order, held = torch.randperm(n, generator=generator), round(holdout * n)
    else:
        chosen = torch.from_numpy(held_out_rows(n, share=holdout, seed=split_seed))
        order, held = chosen.int().argsort(descending=True, stable=True), int(chosen.sum())
    if held >= n:
        raise InvalidData(f"holdout {holdout} leaves none of {n} comparisons to train on. Ask for more.")
    return comparisons[order[held:]], comparisons[order[:held]] if held else None


def _samples(members: int, n: int, bootstrap: bool, generator: torch.Generator) -> Tensor:
    """(N, n): which training comparisons each member sees."""
    if bootstrap:
        return torch.randint(n, (members, n), generator=generator)
    return torch.arange(n).expand(members, n)


@contextmanager
def _logger(folder: Path | None, epoch: int, tensorboard: bool) -> Iterator[Callable[..., None]]:
    """``log(epoch, **scalars)``; what is None is left out, and without a folder nothing is written."""
    if folder is None:
        yield lambda _epoch, **_scalars: None
        return
    with MetricLogger(Path(folder), resume_step=epoch, tensorboard=tensorboard) as logger:
        yield lambda step, **scalars: logger.log(step, **{k: v for k, v in scalars.items() if v is not None})


def require_fit_settings(**settings: Any) -> None:
    """An error now where :func:`fit_score` would not take these settings of its arguments."""
    given = inspect.signature(fit_score).parameters
    unknown = next((name for name in settings if name not in given), None)
    if unknown:
        raise ConfigError(f"fit: there is no {unknown}; use one of {', '.join(list(given)[2:])}.")
    defaults = {name: p.default for name, p in given.items() if p.default is not p.empty}
    _validate(comparisons=1, **defaults | settings)


def _validate(*, comparisons: int, stop_accuracy: float | None, **values: Any) -> None:
    if comparisons == 0:
        raise InvalidData("There are no comparisons to fit: none was asked for, or the teacher skipped all.")
    allowed = {
        "epochs": ("[1, inf)", values["epochs"] >= 1),
        "batch_size": ("[1, inf)", values["batch_size"] >= 1),
        "checkpoint_every": ("[1, inf)", values["checkpoint_every"] >= 1),
        "learning_rate": ("(0, inf)", 0 < values["learning_rate"] < math.inf),
        "weight_decay": ("[0, inf)", 0 <= values["weight_decay"] < math.inf),
        "holdout": ("[0, 1)", 0 <= values["holdout"] < 1),
    }
    for name, (interval, holds) in allowed.items():
        if not holds:
            raise ConfigError(f"fit: {name} must be in {interval}, but is {values[name]}.")
    if stop_accuracy is not None and not 0 < stop_accuracy <= 1:
        raise ConfigError(f"fit: stop_accuracy must be in (0, 1] or null, but is {stop_accuracy}.")
    patience = values["patience"]
    if patience is not None and (patience < 1 or values["holdout"] == 0):
        raise ConfigError(
            f"fit: patience must be >= 1 or null, and needs a holdout above 0 to judge by; it is {patience}, with "
            f"holdout {values['holdout']}."
        )
    if values["augment"] is not None and values["rater_reliability"] is not None:
        raise ConfigError("fit: augment and rater_reliability do not go together: pseudo-labels have no rater.")


def _require_optimizer_of(score: TrainableScore, optimizer: torch.optim.Optimizer) -> None:
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if sorted(held) != sorted(id(p) for p in score.parameters()):
        raise ConfigError("fit: optimizer must hold the parameters of this score; make it by score_optimizer(score).")
