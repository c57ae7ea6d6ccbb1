"""What a run of recipe rapl_diffusion shows: sides before and after, what is forgotten meanwhile, and a film of both.

The share of successes that are as the person prefers is what alignment should move, success what it should not
(Tian et al. 2024, arXiv 2412.04835); the error on demonstrations tells a collapse (:mod:`prefrl.losses.denoising`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from prefrl.evaluation.plots import Curve, colors_for, learning_curves
from prefrl.evaluation.report import Picture, PolicyRow, Report, policy_row, write_report
from prefrl.files import read_json
from prefrl.recipes.online_report import return_pictures
from prefrl.recipes.rapl_diffusion_arm import (
    ARMS_OF_RAPL_DIFFUSION,
    BASE,
    DiffusionSettings,
    load_diffusion_policy,
    results,
)
from prefrl.recipes.rapl_report import film_arms, film_of, reward_model_of
from prefrl.runs import RunDirectory, read_metrics

__all__ = ["preferred_share", "report_rapl_diffusion", "show_table", "videos_rapl_diffusion"]


def preferred_share(result: dict[str, Any]) -> float | None:
    """Of the episodes that succeed, the share in the preferred way; None where none does.

    >>> preferred_share({"preferred": [True, False, False], "success": [True, True, False]})
    0.5
    """
    done = np.sum(result["success"])
    return float(np.sum(result["preferred"]) / done) if done else None


def policy_rows(run: RunDirectory, arms: Sequence[str]) -> list[PolicyRow]:
    """Base and every finished arm; success is that in the preferred way, beside what it is made of."""
    found, rng = results(run, [BASE, *arms]), np.random.default_rng(0)
    scores = run.result("scores") or {}
    return [
        policy_row(
            arm, success=result["preferred"], returns=result["returns"], lengths=result["lengths"], rng=rng,
            note=ARMS_OF_RAPL_DIFFUSION[arm], baseline=None if arm == BASE else found[BASE]["preferred"],
            extra=(
                ("Preferred of done", _percent(preferred_share(result))),
                ("Task done", _percent(float(np.mean(result["success"])))),
                ("Error on demonstrations", f"× {result['demo_error_ratio']:.2f}"),
                ("Scores order pairs", _percent(scores.get(arm, {}).get("orders_pairs"))),
            ),
        )
        for arm, result in found.items()
    ]  # fmt: skip


def show_table(run: RunDirectory, arms: Sequence[str]) -> None:
    """Print one row an arm; ranges are 95 % intervals over evaluation episodes of one seed."""
    table = Table(title=str(run.path), title_justify="left")
    columns = ("policy", "as preferred", "95 % interval", "of done", "task done", "demo error", "scores order pairs")
    for column in columns:
        table.add_column(column)
    for row in policy_rows(run, arms):
        one = row.success
        interval = f"{float(one.low):.0%} – {float(one.high):.0%}"
        table.add_row(row.name, f"{float(one.value):.0%}", interval, *(text for _, text in row.extra))
    Console(width=None if Console().is_terminal else 140).print(table)
    for text in (*collapses(run, arms), worth(run, arms)):
        print(text)


def worth(run: RunDirectory, arms: Sequence[str]) -> str:
    """What the rankings were worth, in words; "" before that is known."""
    found, learned = results(run, [BASE, *arms]), run.result("align") or {}
    if len(found) < 2:
        return ""
    said = [
        f"{arm} {_percent(preferred_share(result))} (task done: {np.mean(result['success']):.0%})"
        for arm, result in found.items()
    ]
    answers = f" Learned rewards are from {learned['judgements']} answers." if "judgements" in learned else ""
    return f"Preferred share of successes: {', '.join(said)}.{answers}"


def collapses(run: RunDirectory, arms: Sequence[str]) -> list[str]:
    """What happened in each arm that was stopped because it forgot its demonstrations."""
    return [
        f"The arm {arm!r} collapsed, and was judged by its best weights. {result['collapse']}"
        for arm, result in results(run, arms).items()
        if result["collapse"]
    ]


def videos_rapl_diffusion(run: RunDirectory, settings: DiffusionSettings, arms: Sequence[str]) -> Path | None:
    """:func:`film_arms` of these arms, before and after alignment."""
    policies = {arm: load_diffusion_policy(run, arm, settings) for arm in arms}
    return film_arms(run, policies, settings.place(), seed=settings.seed, max_steps=settings.max_steps)


def report_rapl_diffusion(run: RunDirectory, arms: Sequence[str]) -> Path:
    """Write ``RUN/report.html`` from what is finished; the rest is said to be missing."""
    path, rows, film = run.path / "report.html", policy_rows(run, arms), run.result("videos") or {}
    unfinished = [arm for arm in [BASE, *arms] if arm not in results(run, [BASE, *arms])]
    write_report(
        path,
        Report(
            title=f"prefrl: {run.path.resolve().name}",
            summary=tuple(text for text in (worth(run, arms),) if text),
            policies=tuple(rows),
            baseline=BASE,
            pictures=(*return_pictures(rows), *error_pictures(run, arms)),
            reward_model=reward_model_of(run),
            videos=film_of(run, film),
            missing=(
                *collapses(run, arms),
                *(f"The arm {arm!r} is not finished: continue with `prefrl resume`." for arm in unfinished),
                *([film["reason"]] if film.get("reason") else []),
            ),
            config=(run.path / "config.yaml").read_text(encoding="utf-8"),
            versions=read_json(run.path / "versions.json"),
        ),
    )  # fmt: skip
    return path


def error_pictures(run: RunDirectory, arms: Sequence[str]) -> tuple[Picture, ...]:
    """Error on demonstrations while the arms are tuned, unfinished arms too."""
    found = {arm: read_metrics(run.path / "arms" / arm) for arm in arms}
    curves = [
        Curve(arm, [row["step"] for row in rows], [row["demo_error_ratio"] for row in rows])
        for arm, rows in found.items()
        if rows
    ]
    if not curves:
        return ()
    png = learning_curves(
        curves, title="Error on demonstrations", xlabel="updates", ylabel="relative to the start",
        colors=colors_for([BASE, *arms]),
    )  # fmt: skip
    words = ", ".join(f"{curve.name} {curve.values[-1]:.2f}" for curve in curves)
    caption = "of the denoiser, on the half of the demonstrations that the arm's scores like; 1 is that of base"
    return (Picture(title="Collapse monitor", png=png, alt=f"At the end: {words}.", caption=caption),)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
