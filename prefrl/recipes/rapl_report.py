"""What a run of recipe rapl shows: the arms' table, plans of transport, rewards of single steps, curves and a film.

As figures of RAPL (Tian et al. 2024, arXiv 2310.07932): how the reward of a step goes along with what happens in the
video, and which frames of a demonstration the plan finds in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from prefrl.data.dataset import Episodes
from prefrl.evaluation.plots import Curve, colors_for, learning_curves
from prefrl.evaluation.report import Picture, PolicyRow, Report, RewardModel, Video, policy_row, write_report
from prefrl.evaluation.rollout import PolicyBehavior, episode_seeds
from prefrl.evaluation.transport_plots import plan_map
from prefrl.evaluation.video import VideoUnavailable, film_side_by_side
from prefrl.files import atomic_path, read_json
from prefrl.protocols import MakeEnv, Policy
from prefrl.recipes.online_policies import load_arm_policy
from prefrl.recipes.online_report import learning_pictures, return_pictures
from prefrl.recipes.rapl_arm import ARMS_OF_RAPL, RaplSettings
from prefrl.recipes.rapl_rewards import VideoRewards
from prefrl.representation.features import VideoFeatures
from prefrl.runs import RunDirectory

__all__ = ["draw_rewards", "film_arms", "film_of", "report_rapl", "reward_model_of", "show_table", "videos_rapl"]

PICTURES = "pictures"  # folder in the run


def policy_rows(run: RunDirectory, arms: Sequence[str]) -> list[PolicyRow]:
    """Every finished arm; success is that in the preferred way, the task's stands beside it."""
    results, rng = _results(run, arms), np.random.default_rng(0)
    return [
        policy_row(
            arm, success=result["preferred"], returns=result["returns"], lengths=result["lengths"], rng=rng,
            note=ARMS_OF_RAPL[arm], extra=(("Task done", f"{np.mean(result['success']):.0%}"),),
        )
        for arm, result in results.items()
    ]  # fmt: skip


def show_table(run: RunDirectory, arms: Sequence[str]) -> None:
    """Print one row an arm; ranges are 95 % intervals over evaluation episodes of one seed."""
    table = Table(title=str(run.path), title_justify="left")
    for column in ("policy", "as preferred", "95 % interval", "task done", "mean return"):
        table.add_column(column)
    for row in policy_rows(run, arms):
        one = row.success
        interval = f"{float(one.low):.0%} – {float(one.high):.0%}"
        table.add_row(row.name, f"{float(one.value):.0%}", interval, row.extra[0][1], f"{float(row.returns.value):.4g}")
    Console(width=None if Console().is_terminal else 140).print(table)
    print(worth(run, arms))


def worth(run: RunDirectory, arms: Sequence[str]) -> str:
    """What the answers were worth, in words; "" before that is known."""
    results, learned = _results(run, arms), run.result("align") or {}
    if "aligned" not in results:
        return ""
    rates = {arm: float(np.mean(result["preferred"])) for arm, result in results.items()}
    others = "; ".join(f"{arm}: {rate:.0%}" for arm, rate in rates.items() if arm != "aligned")
    said = f"From {learned.get('judgements', 0)} answers: {rates['aligned']:.0%} as preferred"
    return said + (f" ({others})." if others else ".")


def draw_rewards(run: RunDirectory, rewards: VideoRewards, episodes: Episodes, features: VideoFeatures) -> None:
    """Pictures of three videos, those of the most, the median and the least true return, into ``RUN/pictures``."""
    returns = episodes.returns()
    order = np.argsort(-returns, kind="stable")
    shown = dict(zip(("best", "median", "worst"), order[[0, len(order) // 2, -1]].tolist(), strict=True))
    transport = rewards.ot_reward("aligned")
    curves, folder = [], run.stage(PICTURES)
    for name, video in shown.items():
        own = features.features[video][features.mask[video]]  # (T, F)
        values = transport.per_step(own[None])[0].numpy() * len(own)  # of a frame, as if it were alone
        curves.append(Curve(f"{name} ({returns[video]:.1f})", np.arange(1, len(values) + 1).tolist(), values.tolist()))
        png = plan_map(
            transport.plan(own).numpy(), source="frames of the video", target="frames of the demonstration",
            title=f"Plan, {name} video",
        )  # fmt: skip
        _write(folder / f"plan_{name}.png", png)
    png = learning_curves(
        curves, title="Reward of each frame", xlabel="compared frame", ylabel="−cost of its transport",
        colors=colors_for([curve.name for curve in curves]),
    )  # fmt: skip
    _write(folder / "rewards.png", png)


def _write(path: Path, png: bytes) -> None:
    with atomic_path(path) as file:
        file.write_bytes(png)


def videos_rapl(run: RunDirectory, settings: RaplSettings, arms: Sequence[str]) -> Path | None:
    """:func:`film_arms` of what trained arms act by."""
    policies = {arm: load_arm_policy(run, arm, settings) for arm in arms}
    return film_arms(run, policies, settings.env, seed=settings.seed, max_steps=settings.max_steps)


def film_arms(
    run: RunDirectory, policies: Mapping[str, Policy], make_env: MakeEnv, *, seed: int, max_steps: int
) -> Path | None:
    """The first evaluation episode of each policy, side by side, as mp4 and gif in ``RUN/videos``; None without any.

    None, too, with the reason printed and kept for the report, where nothing can be rendered. seed: of the run.
    """
    if not policies:
        return None
    acting = {arm: PolicyBehavior(policy) for arm, policy in policies.items()}
    file, made, reason = run.stage("videos") / "side_by_side.mp4", None, None
    try:
        made = film_side_by_side(
            file, acting, make_env, fps=15, seed=int(episode_seeds(seed + 1, 1)[0]), max_steps=max_steps
        )
    except VideoUnavailable as error:
        reason = str(error)
        print(f"note: {error}")
    video = None if made is None else str(made.relative_to(run.path))
    run.finish("videos", {"video": video, "reason": reason, "arms": list(policies)})
    return made


def report_rapl(run: RunDirectory, arms: Sequence[str]) -> Path:
    """Write ``RUN/report.html`` from what is finished; the rest is said to be missing."""
    path, rows, film = run.path / "report.html", policy_rows(run, arms), run.result("videos") or {}
    unfinished = [arm for arm in arms if arm not in _results(run, arms)]
    missing = [f"The arm {arm!r} is not finished: continue with `prefrl resume`." for arm in unfinished]
    write_report(
        path,
        Report(
            title=f"prefrl: {run.path.resolve().name}",
            summary=tuple(text for text in (worth(run, arms),) if text),
            policies=tuple(rows),
            pictures=(*return_pictures(rows), *learning_pictures(run, arms)),
            reward_model=reward_model_of(run),
            videos=film_of(run, film),
            missing=(*missing, *([film["reason"]] if film.get("reason") else [])),
            config=(run.path / "config.yaml").read_text(encoding="utf-8"),
            versions=read_json(run.path / "versions.json"),
        ),
    )  # fmt: skip
    return path


def reward_model_of(run: RunDirectory) -> RewardModel | None:
    learned = run.result("align")
    if learned is None:
        return None
    told = {
        "answers": learned["judgements"], "rankings of three": learned["triplets"],
        "demonstrations": len(learned["demos"]), **learned.get("align", {}),
    }  # fmt: skip
    facts = tuple((name, f"{value:.3g}") for name, value in told.items() if value is not None)
    titles = {
        "rewards": ("Reward of each frame", "in brackets: the true return", "minus the cost of each frame's transport"),
        "plan_best": ("Plan, best video", "", "which frames of the closest demonstration each frame is moved to"),
        "plan_worst": ("Plan, worst video", "", "which frames of the closest demonstration each frame is moved to"),
    }
    pictures = tuple(
        Picture(title=title, png=file.read_bytes(), alt=alt, caption=caption)
        for name, (title, caption, alt) in titles.items()
        if (file := run.path / PICTURES / f"{name}.png").is_file()
    )
    return RewardModel(facts=facts, pictures=pictures)


def film_of(run: RunDirectory, made: dict[str, Any]) -> tuple[Video, ...]:
    if not made.get("video"):
        return ()
    alt = f"One episode each of {', '.join(made['arms'])}."
    caption = "the first evaluation episode of each"
    mp4 = (run.path / made["video"]).read_bytes()
    return (Video(title="Side by side", mp4=mp4, alt=alt, caption=caption),)


def _results(run: RunDirectory, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What finished arms were judged by."""
    return {arm: result for arm in arms if (result := run.result(f"arms/{arm}")) is not None}
