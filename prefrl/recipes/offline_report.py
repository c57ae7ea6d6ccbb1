"""What a run of the offline recipe shows: the table, the side-by-side video, and ``report.html``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from prefrl.data.labeling import in_words
from prefrl.evaluation.intervals import Estimate, paired_difference
from prefrl.evaluation.plots import (
    Curve,
    calibration_curve,
    colors_for,
    learning_curves,
    return_scatter,
    success_bars,
)
from prefrl.evaluation.report import Picture, PolicyRow, Report, RewardModel, Video, policy_row, write_report
from prefrl.evaluation.rollout import PolicyBehavior, episode_seeds
from prefrl.evaluation.video import VideoUnavailable, film_side_by_side
from prefrl.files import read_json
from prefrl.recipes.arms import ARMS, DIRECT, ArmSettings, load_policy
from prefrl.runs import RunDirectory, read_metrics

__all__ = ["report_offline", "show_table", "videos_offline"]

SHORT = {
    "bc": "behavior cloning",
    "aligned": "aligned by preferences",
    "true_reward": "true reward",
    "random": "random reward",
    "untrained": "untrained reward model",
    "zero": "zero reward",
    "negated": "negated preferences",
    "sft": "preferred cloned",
    "cpl": "CPL",
    "cpl_random": "CPL, random answers",
    "cpl_negated": "CPL, negated answers",
}


def policy_rows(run: RunDirectory) -> list[PolicyRow]:
    """The data (where their success is known) and every finished arm with their intervals.

    Differences are to cloning and to the random reward.
    """
    rng, rows = np.random.default_rng(0), []
    collected = run.result("collect")
    if collected is not None and collected["success"] is not None:
        judged = {key: collected[key] for key in ("success", "returns", "lengths")}
        rows.append(policy_row("behavior data", **judged, rng=rng))
    results = {arm: result for arm in ARMS if (result := run.result(f"arms/{arm}")) is not None}
    success = {arm: np.array(result["success"], dtype=float) for arm, result in results.items()}
    for arm, result in results.items():
        judged = {key: result[key] for key in ("success", "returns", "lengths")}
        compared = arm != "random" and "random" in success
        against = _points(paired_difference(success[arm], success["random"], rng=rng)) if compared else ""
        ends = ", ".join(f"{name} {share:.0%}" for name, share in result["resemblance"].items() if share > 0)
        rows.append(
            policy_row(
                SHORT[arm],
                **judged,
                rng=rng,
                baseline=success["bc"] if arm != "bc" and "bc" in success else None,
                note=ARMS[arm],
                extra=(("Against random reward", against), ("Ends like", ends)),
            )
        )
    return rows


def _points(difference: Estimate | None) -> str:
    """A difference of success rates in percentage points, with its interval."""
    if difference is None:
        return ""
    value, low, high = (100 * float(x) for x in (difference.value, difference.low, difference.high))
    return f"{value:+.0f} ({low:+.0f} to {high:+.0f})".replace("-", "−")


def show_table(run: RunDirectory) -> None:
    """Print the headline table; differences are in percentage points, all ranges 95 % intervals."""
    table = Table(title=str(run.path), title_justify="left")
    for column in ("policy", "success", "95 % interval", "against cloning", "against random reward", "ends like"):
        table.add_column(column, justify="right" if column == "success" else "left")
    for row in policy_rows(run):
        value, low, high = (f"{100 * float(x):.0f}" for x in (row.success.value, row.success.low, row.success.high))
        extra = [text for _, text in row.extra] or ["", ""]
        table.add_row(row.name, f"{value} %", f"{low} – {high} %", _points(row.versus), *extra)
    Console(width=None if Console().is_terminal else 140).print(table)


def videos_offline(run: RunDirectory, settings: ArmSettings, arms: Sequence[str]) -> Path | None:
    """The first evaluation episode of each arm, side by side, as mp4 and gif in ``RUN/videos``.

    None, with the reason printed and kept for the report, where nothing can be rendered.
    """
    if not arms:
        return None
    seed = int(episode_seeds(settings.seed + 1, 1)[0])
    try:
        video = film_side_by_side(
            run.stage("videos") / "side_by_side.mp4",
            {SHORT[arm]: PolicyBehavior(load_policy(run, arm, settings)) for arm in arms},
            settings.env,
            fps=25,
            seed=seed,
            max_steps=settings.max_steps,
            every=2,
            after_success=20,
        )
    except VideoUnavailable as error:
        print(f"note: {error}")
        run.finish("videos", {"video": None, "reason": str(error), "arms": list(arms)})
        return None
    run.finish("videos", {"video": str(video.relative_to(run.path)), "reason": None, "arms": list(arms)})
    return video


def report_offline(run: RunDirectory, stages: Sequence[str]) -> Path:
    """Write ``RUN/report.html`` from what the ``stages`` left; unfinished ones are said to be missing."""
    path = run.path / "report.html"
    rows, video = policy_rows(run), run.result("videos") or {}
    unfinished = [stage for stage in stages if run.result(stage) is None]
    shown = [] if not video.get("video") else [run.path / video["video"]]
    report = Report(
        title=f"prefrl: {run.path.resolve().name}",
        summary=_summary(run),
        policies=tuple(rows),
        baseline="cloning",
        pictures=_pictures(run, rows),
        reward_model=_reward_model(run),
        videos=tuple(
            Video(
                title="Side by side",
                mp4=file.read_bytes(),
                alt=f"One episode each of: {', '.join(SHORT[a] for a in video['arms'])}.",
                caption="the first evaluation episode; a tile stands still from 20 steps after its success",
            )
            for file in shown
        ),
        missing=(
            *(f"The stage {stage!r} is not finished: continue with `prefrl resume`." for stage in unfinished),
            *([video["reason"]] if video.get("reason") else []),
        ),
        config=(run.path / "config.yaml").read_text(encoding="utf-8"),
        versions=read_json(run.path / "versions.json"),
    )
    write_report(path, report)
    return path


def _summary(run: RunDirectory) -> tuple[str, ...]:
    collected, labelled = run.result("collect"), run.result("label")
    texts = []
    if collected is not None:
        groups = "; ".join(
            f"{group['episodes']} × {name}" + ("" if group["success"] is None else f" (success {group['success']:.0%})")
            for name, group in collected["behaviors"].items()
        )
        texts.append(f"Data: {collected['episodes']} episodes, {collected['steps']} steps: {groups}.")
    if labelled is not None:
        teachers = "; ".join(in_words(teacher) for teacher in labelled["teachers"])
        texts.append(f"Preferences: {labelled['comparisons']} comparisons. Teacher: {teachers}.")
    return tuple(texts)


def _pictures(run: RunDirectory, rows: Sequence[PolicyRow]) -> tuple[Picture, ...]:
    names = [row.name for row in rows]
    colors = colors_for(names)
    words = ", ".join(f"{row.name} {float(row.success.value):.0%}" for row in rows)
    bars = Picture(
        title="Success",
        png=success_bars(names, [r.success for r in rows], colors=colors),
        alt=f"Success rates: {words}.",
    )
    curves = _curves(run, ARMS, "success")
    if not curves:
        return (bars, *_agreement(run, colors))
    png = learning_curves(
        curves,
        title="Success during training",
        xlabel="updates",
        ylabel="success",
        percent=True,
        colors=colors,
    )
    learning = Picture(
        title="Learning curves",
        png=png,
        alt="Success of each policy over training.",
        caption="few episodes a point; no smoothing",
    )
    return (bars, learning, *_agreement(run, colors))


def _curves(run: RunDirectory, arms: Iterable[str], metric: str) -> list[Curve]:
    """What each finished arm logged of a metric while it was trained."""
    curves = []
    for arm in arms:
        points = [row for row in read_metrics(run.path / "arms" / arm) if metric in row]
        if points and run.result(f"arms/{arm}") is not None:
            curves.append(Curve(SHORT[arm], [p["step"] for p in points], [p[metric] for p in points]))
    return curves


def _agreement(run: RunDirectory, colors: Mapping[str, str]) -> tuple[Picture, ...]:
    """How the arms that learn from comparisons explain theirs, which is not how they act."""
    curves = _curves(run, DIRECT, "accuracy")
    if not curves:
        return ()
    words = ", ".join(f"{curve.name} {curve.values[-1]:.0%}" for curve in curves)
    png = learning_curves(
        curves, title="Pair accuracy during training", xlabel="updates", ylabel="pair accuracy", percent=True,
        colors=colors,
    )  # fmt: skip
    caption = (
        "share of the answers that an arm learned from which its log-probs agree with, a batch a point. It is not "
        "success: a policy can order every pair well, and act badly."
    )
    accuracy = Picture(title="Pair accuracy", png=png, alt=f"Pair accuracy at the end: {words}.", caption=caption)
    return (accuracy, *(_log_probs(run, arm) for arm in DIRECT if run.result(f"arms/{arm}") is not None))


def _log_probs(run: RunDirectory, arm: str) -> Picture:
    """Chosen and rejected log-prob of one arm: where both fall, the policy leaves the data."""
    sides = ("chosen", "rejected")
    curves = [replace(_curves(run, [arm], f"{side}_log_prob")[0], name=side) for side in sides]
    png = learning_curves(
        curves, title=f"Log-probs: {SHORT[arm]}", xlabel="updates", ylabel="mean log-prob of a step",
        colors=colors_for(sides),
    )  # fmt: skip
    words = ", ".join(f"{curve.name} {curve.values[-1]:.3g}" for curve in curves)
    return Picture(
        title=f"Log-probs of {SHORT[arm]}", png=png, alt=f"Mean log-prob of a step at the end: {words}.",
        caption="by the answers that the arm learned from; where both fall, the policy leaves the data",
    )  # fmt: skip


def _reward_model(run: RunDirectory) -> RewardModel | None:
    fit, scatter, collected = (run.result(name) for name in ("score", "rewards", "collect"))
    if fit is None or scatter is None or collected is None:
        return None
    kind = "held-out" if fit["heldout_comparisons"] else "training"
    prefix = "heldout" if fit["heldout_comparisons"] else "train"
    facts = (
        (f"{kind} accuracy", _number(fit[f"{prefix}_accuracy"])),
        (f"{kind} comparisons", str(fit[f"{prefix}_comparisons"])),
        ("training accuracy", _number(fit["train_accuracy"])),
        (f"{kind} negative log-likelihood", f"{_number(fit[f'{prefix}_nll'])} nats"),
        ("expected calibration error", _number(fit["heldout_ece"])),
        ("correlation of true and learned return", _number(scatter["correlation"])),
    )
    curve = fit["reliability"]
    if curve is None:
        return RewardModel(facts=facts, pictures=_scatter(scatter, collected))
    calibration = Picture(
        title="Calibration", png=calibration_curve(curve["predicted"], curve["observed"], curve["count"]),
        alt="Predicted probability against observed frequency of preferring the first.", caption=f"{kind} comparisons",
    )  # fmt: skip
    pictures = (calibration, *_scatter(scatter, collected))
    return RewardModel(facts=facts, pictures=pictures)


def _scatter(scatter: dict[str, Any], collected: dict[str, Any]) -> tuple[Picture, ...]:
    if scatter["true_returns"] is None:
        return ()
    png = return_scatter(
        np.array(scatter["true_returns"]), np.array(scatter["learned_returns"]), groups=collected["behavior"]
    )
    return (
        Picture(
            title="True and learned return",
            png=png,
            alt="Each episode's true return against its learned return.",
        ),
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
