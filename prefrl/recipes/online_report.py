"""What a run of recipe online shows: the arms' table, returns over steps, and what the answers taught the reward.

As in the figures of PEBBLE (Lee et al. 2021, arXiv 2106.05091): true return over environment steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from prefrl.evaluation.plots import Curve, colors_for, learning_curves, return_bars, success_bars
from prefrl.evaluation.report import Picture, PolicyRow, Report, RewardModel, Video, policy_row, write_report
from prefrl.evaluation.rollout import PolicyBehavior, episode_seeds
from prefrl.evaluation.video import VideoUnavailable, film_side_by_side
from prefrl.files import read_json
from prefrl.protocols import Policy
from prefrl.recipes.online_policies import load_arm_policy, load_milestones
from prefrl.recipes.online_settings import ARMS_ONLINE, ASKING, OnlineSettings
from prefrl.runs import RunDirectory, read_metrics

__all__ = ["learning_pictures", "report_online", "return_pictures", "show_table", "videos_online"]


def policy_rows(run: RunDirectory, arms: Sequence[str]) -> list[PolicyRow]:
    """Every finished arm with its intervals over evaluation episodes."""
    results, rng = _results(run, arms), np.random.default_rng(0)
    return [
        policy_row(
            arm,
            **{key: result[key] for key in ("success", "returns", "lengths")},
            rng=rng,
            note=ARMS_ONLINE[arm],
            extra=(("Answers", str(_last(result, "answered", ""))), ("Reward orders pairs", _accuracy(result))),
        )
        for arm, result in results.items()
    ]


def show_table(run: RunDirectory, arms: Sequence[str]) -> None:
    """Print one row an arm; ranges are 95 % intervals over evaluation episodes of one seed."""
    table = Table(title=str(run.path), title_justify="left")
    for column in ("policy", "mean return", "95 % interval", "success", "answers", "reward orders pairs"):
        table.add_column(column)
    for row in policy_rows(run, arms):
        value, low, high = (_number(x) for x in (row.returns.value, row.returns.low, row.returns.high))
        extra = [text for _, text in row.extra]
        table.add_row(row.name, value, f"{low} – {high}", f"{float(row.success.value):.0%}", *extra)
    Console(width=None if Console().is_terminal else 140).print(table)
    print(worth(run, arms))


def worth(run: RunDirectory, arms: Sequence[str]) -> str:
    """How the learned reward compares with the true one and with the controls, in words; "" before it is there."""
    means = {arm: float(np.mean(result["returns"])) for arm, result in _results(run, arms).items()}
    if "aligned" not in means:
        return ""
    others = "; ".join(f"{arm}: {_number(mean)}" for arm, mean in means.items() if arm != "aligned")
    answered = _last(_results(run, arms)["aligned"], "answered", 0)
    said = f"From {answered} answers: mean return {_number(means['aligned'])}" + (f" ({others})." if others else ".")
    beaten = [arm for arm in ("untrained", "zero", "negated") if arm in means and means[arm] >= means["aligned"]]
    return said + (f" No better than {', '.join(beaten)}: the preferences have shown nothing." if beaten else "")


def videos_online(run: RunDirectory, settings: OnlineSettings, arms: Sequence[str]) -> Path | None:
    """The first evaluation episode of each arm, side by side, as mp4 and gif in ``RUN/videos``; then ``milestones``.

    The second shows the first arm as it acted at each of its milestones. None, with the reason printed and kept for
    the report, where nothing can be rendered.
    """
    if not arms:
        return None
    acting: dict[str, dict[str, Policy]] = {
        "side_by_side": {arm: load_arm_policy(run, arm, settings) for arm in arms},
        "milestones": {
            f"{stop:,} steps": policy for stop, policy in load_milestones(run.path / "arms" / arms[0], settings).items()
        },
    }
    episode: dict[str, Any] = {"seed": int(episode_seeds(settings.seed + 1, 1)[0]), "max_steps": settings.max_steps}
    made: dict[str, Path] = {}
    reason = None
    try:
        for name, policies in acting.items():
            if policies:
                made[name] = film_side_by_side(
                    run.stage("videos") / f"{name}.mp4",
                    {label: PolicyBehavior(policy) for label, policy in policies.items()},
                    settings.env, fps=25, every=2, after_success=20, **episode,
                )  # fmt: skip
    except VideoUnavailable as error:
        reason = str(error)
        print(f"note: {error}")
    found = {name: str(file.relative_to(run.path)) for name, file in made.items()}
    steps = list(acting["milestones"])
    run.finish(
        "videos",
        {"video": found.get("side_by_side"), "reason": reason, "arms": list(arms),
         "milestones": found.get("milestones"), "milestones_at": steps},
    )  # fmt: skip
    return made.get("side_by_side")


def report_online(run: RunDirectory, arms: Sequence[str]) -> Path:
    """Write ``RUN/report.html`` from what is finished; the rest is said to be missing."""
    path, rows, video = run.path / "report.html", policy_rows(run, arms), run.result("videos") or {}
    results = _results(run, arms)
    unfinished = [arm for arm in arms if arm not in results]
    write_report(
        path,
        Report(
            title=f"prefrl: {run.path.resolve().name}",
            summary=tuple(text for text in (worth(run, arms),) if text),
            policies=tuple(rows),
            pictures=(*return_pictures(rows), *learning_pictures(run, arms)),
            reward_model=_reward_model(results),
            videos=_videos(run, video),
            missing=(
                *(f"The arm {arm!r} is not finished: continue with `prefrl resume`." for arm in unfinished),
                *([video["reason"]] if video.get("reason") else []),
            ),
            config=(run.path / "config.yaml").read_text(encoding="utf-8"),
            versions=read_json(run.path / "versions.json"),
        ),
    )  # fmt: skip
    return path


def _videos(run: RunDirectory, made: dict[str, Any]) -> tuple[Video, ...]:
    """The arms side by side, and the first of them as it learned; those that could be made."""
    arms = made.get("arms", [])
    told = {
        "video": (
            "Side by side", f"One episode each of {', '.join(arms)}.",
            "the first evaluation episode; a tile stands still from 20 steps after its success",
        ),
        "milestones": (
            "Milestones", f"One episode by {', '.join(arms[:1])} after {', '.join(made.get('milestones_at', []))}.",
            "the first evaluation episode, by what the arm acted by then",
        ),
    }  # fmt: skip
    return tuple(
        Video(title=title, mp4=(run.path / made[name]).read_bytes(), alt=alt, caption=caption)
        for name, (title, alt, caption) in told.items()
        if made.get(name)
    )


def _results(run: RunDirectory, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {arm: result for arm in arms if (result := run.result(f"arms/{arm}")) is not None}


def _last(result: dict[str, Any], name: str, otherwise: Any) -> Any:
    """What the last session that measured it found."""
    found = [session[name] for session in result["sessions"] if session.get(name) is not None]
    return found[-1] if found else otherwise


def _accuracy(result: dict[str, Any]) -> str:
    right = _last(result, "reward_accuracy", None)
    return "" if right is None else f"{right:.0%}"


def _number(value: Any) -> str:
    return f"{float(value):,.4g}".replace("-", "−")


def return_pictures(rows: Sequence[PolicyRow]) -> tuple[Picture, ...]:
    """Returns, and successes where there are any."""
    if not rows:
        return ()
    names = [row.name for row in rows]
    words = ", ".join(f"{row.name} {_number(row.returns.value)}" for row in rows)
    colors = colors_for(names)
    bars = [
        Picture(
            title="Return", png=return_bars(names, [row.returns for row in rows], colors=colors),
            alt=f"Mean returns: {words}.",
        )
    ]  # fmt: skip
    if any(float(row.success.value) > 0 for row in rows):
        words = ", ".join(f"{row.name} {float(row.success.value):.0%}" for row in rows)
        png = success_bars(names, [row.success for row in rows], colors=colors)
        bars.append(Picture(title="Success", png=png, alt=f"Success rates: {words}."))
    return tuple(bars)


def learning_pictures(run: RunDirectory, arms: Sequence[str]) -> tuple[Picture, ...]:
    """True return of the episodes that each arm learned from, unfinished arms too."""
    found = {arm: [row for row in read_metrics(run.path / "arms" / arm) if "true_return" in row] for arm in arms}
    curves = [
        Curve(arm, [row["step"] for row in rows], [row["true_return"] for row in rows])
        for arm, rows in found.items()
        if rows
    ]
    if not curves:
        return ()
    png = learning_curves(
        curves, title="Return while learning", xlabel="environment steps", ylabel="true return", colors=colors_for(arms)
    )
    words = ", ".join(f"{curve.name} {_number(curve.values[-1])}" for curve in curves)
    caption = "of the episodes that were learned from, with the noise of exploration; no smoothing"
    return (Picture(title="Learning curves", png=png, alt=f"True return at the end: {words}.", caption=caption),)


def _reward_model(results: dict[str, dict[str, Any]]) -> RewardModel | None:
    """What the answers taught: facts of the last session, and accuracy over answers."""
    asked = {arm: result for arm, result in results.items() if arm in ASKING}
    if not asked:
        return None
    last = next(iter(asked.values()))
    names = {"answered": "answers", "asked": "questions", "train_accuracy": "training accuracy",
             "heldout_accuracy": "held-out accuracy", "reward_accuracy": "accuracy on random pairs"}  # fmt: skip
    values = {text: _last(last, name, None) for name, text in names.items()}
    facts = tuple((text, f"{value:.3g}") for text, value in values.items() if value is not None)
    curves = []
    for arm, result in asked.items():
        points = [session for session in result["sessions"] if session.get("reward_accuracy") is not None]
        if points:
            curves.append(Curve(arm, [p["answered"] for p in points], [p["reward_accuracy"] for p in points]))
    if not curves:
        return RewardModel(facts=facts)
    png = learning_curves(
        curves, title="Reward accuracy", xlabel="answers", ylabel="pairs in the order of the true reward", percent=True,
        colors=colors_for(list(results)),
    )  # fmt: skip
    words = ", ".join(f"{curve.name} {curve.values[-1]:.0%}" for curve in curves)
    caption = "random pairs of segments of all episodes so far; the true reward judges here, and teaches nothing"
    over = Picture(title="Accuracy over answers", png=png, alt=f"At the end: {words}.", caption=caption)
    return RewardModel(facts=facts, pictures=(over,))
