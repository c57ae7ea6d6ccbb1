"""What a run of recipe regret shows: the table, the side-by-side video, and ``report.html``, for any reader.

The pictures and measures of Knox et al. 2022 (arXiv 2206.02231): pairs as a rater sees them, learned against true
weights, the share of fits that are near optimal by the number of labels, and the policies on the board.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as Printed
from torch import Tensor

from prefrl.core import Comparisons, SegmentBatch
from prefrl.data.preferences import read_preferences
from prefrl.data.storage import read_dataset
from prefrl.evaluation.intervals import success_interval
from prefrl.evaluation.plots import Curve, colors_for, image_png, learning_curves, weight_bars
from prefrl.evaluation.report import Picture, PolicyRow, Report, RewardModel, Table, Video, policy_row, write_report
from prefrl.evaluation.rollout import PolicyBehavior, episode_seeds
from prefrl.evaluation.video import VideoUnavailable, film_side_by_side, side_by_side
from prefrl.files import read_json
from prefrl.protocols import MakeEnv, Policy
from prefrl.recipes.regret_learning import World, compared_traces
from prefrl.runs import RunDirectory
from prefrl.solvers import rewards, trace_statistics, value_iteration

__all__ = ["OPTIMAL", "report_regret", "show_table", "video_regret"]

OPTIMAL = "optimal"  # the policy that is best under the true reward, beside those that were learned
NAMES = {
    "partial_return": "partial-return learner",
    "expected_return": "expected-return learner",
    "regret_deterministic": "regret learner",
    "regret": "regret learner (with chance)",
    "advantage": "advantage learner",
    OPTIMAL: "optimal policy",
}
MEANING = {
    "partial_return": "takes it that people prefer the segment with more reward on it",
    "expected_return": "takes it that people prefer more reward on the segment and what can still be had after it",
    "regret_deterministic": "takes it that people prefer the segment that gave less away, compared with acting best",
    "regret": "takes it that people prefer the better decisions, whatever luck they met with",
    "advantage": "learns a number for every state and action, and prefers the segment with the larger sum",
    OPTIMAL: "plans with the true reward: the best that can be learned",
}
READING = (
    "How to read the table. Scaled return: what the learned policy earns by the true reward, averaged over all starts "
    "and computed exactly; 1 is the best policy, 0 acting at random, and below 0 is worse than random. Near optimal: "
    "a scaled return above 0.9. Cross-entropy: how badly the learner explains the answers it learned from; 0 is "
    "perfect, 0.69 is guessing. Agreement: in how many of the answers that prefer one segment the learner prefers the "
    "same one. Fit of the true reward: the cross-entropy, on answers left out, of the assumption itself when it is "
    "given the true reward; the lowest one is how the rater most likely judged.",
    "Success and return are of real episodes, all policies on the same starts. A policy may agree with every answer "
    "and still drive in circles, so only scaled return and episodes say what it is worth.",
)


def policy_rows(run: RunDirectory, arms: Sequence[str]) -> list[PolicyRow]:
    """The optimal policy and every learner that was rolled out."""
    rng, rows = np.random.default_rng(0), []
    for arm in (OPTIMAL, *arms):
        rolled, fit = run.result(f"rollouts/{arm}"), run.result(f"fit/{arm}")
        if rolled is None:
            continue
        judged = {key: rolled[key] for key in ("success", "returns", "lengths")}
        rows.append(policy_row(NAMES[arm], **judged, rng=rng, note=MEANING[arm], extra=_columns(fit)))
    return rows


def _columns(fit: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """What was computed exactly of a learner; of the optimal policy (None) what holds by definition."""
    if fit is None:
        return ("Scaled return", "1"), ("Near optimal", "yes")
    return (
        ("Scaled return", _number(fit["scaled_return"])),
        ("Near optimal", "yes" if fit["near_optimal"] else "no"),
        ("Cross-entropy", _number(fit["cross_entropy"])),
        ("Agreement", "" if fit["agreement"] is None else f"{fit['agreement']:.0%}"),
        ("Fit of the true reward", _number(fit["described"])),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}".replace("-", "−")


def show_table(run: RunDirectory, arms: Sequence[str]) -> None:
    """Print the headline table."""
    table = Printed(title=str(run.path), title_justify="left")
    headings = ("Scaled return", "Near optimal", "Cross-entropy", "Agreement", "Fit of the true reward")
    for column in ("policy", *(heading.lower() for heading in headings), "return", "success"):
        table.add_column(column)
    for row in policy_rows(run, arms):
        extra = dict(row.extra)
        known = [extra.get(heading, "") for heading in headings]
        table.add_row(row.name, *known, _number(float(row.returns.value)), f"{row.success.value:.0%}")
    Console(width=None if Console().is_terminal else 140).print(table)


def video_regret(
    run: RunDirectory, policies: Mapping[str, Policy], make_env: MakeEnv, *, seed: int, max_steps: int
) -> Path | None:
    """The first evaluation episode of each policy, side by side, as mp4 and gif in ``RUN/videos``.

    None, with the reason printed and kept for the report, where nothing can be rendered.
    """
    video, arms = run.stage("videos") / "side_by_side.mp4", list(policies)
    behaviors = {NAMES[arm]: PolicyBehavior(policy) for arm, policy in policies.items()}
    first = int(episode_seeds(seed, 1)[0])
    try:
        film_side_by_side(video, behaviors, make_env, fps=4, seed=first, max_steps=max_steps)
    except VideoUnavailable as error:
        print(f"note: {error}")
        run.finish("videos", {"video": None, "reason": str(error), "arms": arms})
        return None
    run.finish("videos", {"video": str(video.relative_to(run.path)), "reason": None, "arms": arms})
    return video


def report_regret(
    run: RunDirectory, arms: Sequence[str], world: World, policies: Mapping[str, Tensor], *, gamma: float
) -> Path:
    """Write ``RUN/report.html`` from what the stages left; unfinished stages are said to be missing.

    policies: (S, A) probabilities of each learned policy and of the optimal one.
    """
    path, video = run.path / "report.html", run.result("videos") or {}
    stages = ["collect", "label", *(f"{what}/{arm}" for what in ("fit", "rollouts") for arm in arms)]
    unfinished = [stage for stage in stages if run.result(stage) is None]
    shown = [run.path / video["video"]] if video.get("video") else []
    colors = colors_for([NAMES[arm] for arm in arms])
    report = Report(
        title=f"prefrl: {run.path.resolve().name}",
        summary=(*_summary(run, arms, world), *READING),
        policies=tuple(policy_rows(run, arms)),
        pictures=(*_pairs(run, world, gamma), *_curves(run, arms, colors), *_boards(world, policies)),
        reward_model=_weights(run, arms, world, colors),
        videos=tuple(
            Video(
                title="Side by side", mp4=file.read_bytes(), caption="the same start for all; 4 steps a second",
                alt=f"One episode each of: {', '.join(NAMES[arm] for arm in video['arms'])}.",
            )
            for file in shown
        ),
        sensitivity=_curve_table(run, arms),
        missing=(
            *(f"The stage {stage!r} is not finished: continue with `prefrl resume`." for stage in unfinished),
            *([video["reason"]] if video.get("reason") else []),
        ),
        config=(run.path / "config.yaml").read_text(encoding="utf-8"),
        versions=read_json(run.path / "versions.json"),
    )  # fmt: skip
    write_report(path, report)
    return path


def _summary(run: RunDirectory, arms: Sequence[str], world: World) -> tuple[str, ...]:
    features = ", ".join(
        f"{name} {_number(weight)}"
        for name, weight in zip(world.env.feature_names, world.true_weights.tolist(), strict=True)
    )
    texts = [
        f"Can a reward be learned from which of two short segments is preferred? The task is {world.name}, with "
        f"{world.mdp.sizes[0]} states, and its true reward is known: {features}. No learner sees it. All learners get "
        "the same answers; they differ in what they take a rater to compare."
    ]
    labelled = run.result("label")
    if labelled is not None:
        teachers = "; ".join(_teacher(json.loads(text)) for text in labelled["teachers"])
        texts.append(f"Preferences: {labelled['comparisons']} comparisons. Who answered: {teachers}.")
    texts += [f"The {NAMES[arm]} {MEANING[arm]}." for arm in arms]
    return tuple(texts)


def _teacher(parameters: Mapping[str, Any]) -> str:
    told = {key: value for key, value in parameters.items() if type(value) in (str, int, float, bool) and key != "sign"}
    return ", ".join(f"{key} {value}" for key, value in told.items())


def _pairs(run: RunDirectory, world: World, gamma: float) -> tuple[Picture, ...]:
    """The first comparison, and the one in which partial return and regret differ most about who is better."""
    if run.result("label") is None:
        return ()
    folder = run.path / "dataset"
    comparisons = read_preferences(folder).comparisons(read_dataset(folder)).without_true_reward()
    values = value_iteration(world.mdp, rewards(world.mdp, world.true_weights), gamma=gamma)
    traces = compared_traces(world.mdp, comparisons)
    known = [trace_statistics(trace, world.true_weights, *values) for trace in traces[:2]]
    earned = torch.stack([statistics.reward for statistics in known])  # (2, n)
    given = -torch.stack([s.advantage for s in known if s.advantage is not None])  # (2, n), regret
    conflict = -(earned[0] - earned[1]) * (given[1] - given[0])
    chosen = {"A pair as the rater saw it": 0}
    if conflict.max() > 0:
        chosen["A pair on which reward and regret disagree"] = int(conflict.argmax())
    return tuple(
        _pair(title, comparisons[row : row + 1], world, earned[:, row].tolist(), given[:, row].tolist())
        for title, row in chosen.items()
    )


def _pair(
    title: str, comparison: Comparisons, world: World, earned: Sequence[float], given: Sequence[float]
) -> Picture:
    p_first = float(comparison.p_first[0])
    marks = ("equal", "equal") if p_first == 0.5 else ("preferred", "") if p_first > 0.5 else ("", "preferred")
    names = [" · ".join(filter(None, words)) for words in zip(("first", "second"), marks, strict=True)]
    frames = [_drawn(segments, world)[None] for segments in (comparison.first, comparison.second)]
    answer = {1.0: "the first is preferred", 0.0: "the second is preferred", 0.5: "both are equally good"}
    said = answer.get(p_first, f"the first is preferred with probability {p_first:.2f}")
    facts = (
        f"Answer: {said}. Reward on the segments: {_number(earned[0])} and {_number(earned[1])}. Given away compared "
        f"with acting best (regret): {_number(round(given[0], 2) + 0.0)} and {_number(round(given[1], 2) + 0.0)}."
    )
    return Picture(title=title, png=image_png(side_by_side(frames, names)[0]), alt=facts, caption=facts)


def _drawn(segments: SegmentBatch, world: World) -> np.ndarray:
    length = int(segments.lengths[0])
    states, actions = segments.observations[0, : length + 1, 0], segments.actions[0, :length, 0]
    return world.env.draw_segment(states.numpy().astype(int), actions.numpy().astype(int))


def _curve_points(run: RunDirectory, arm: str) -> list[dict[str, Any]]:
    """The finished fits of the curve of a learner, by their number of answers."""
    files = (run.path / "stages").glob(f"curve.{arm}.*.json")
    return sorted((read_json(file) for file in files), key=lambda point: point["labels"])


def _share_curve(name: str, points: Sequence[dict[str, Any]], rng: np.random.Generator) -> Curve:
    """Near-optimal fits, with intervals where there are enough fits to speak of one."""
    found = [success_interval(np.array(point["near_optimal"]), rng=rng) for point in points]
    few = [len(point["near_optimal"]) < 3 for point in points]
    low, high = (np.where(few, np.nan, [getattr(e, end) for e in found]).tolist() for end in ("low", "high"))
    return Curve(name, [point["labels"] for point in points], [e.value for e in found], low, high)


def _median_curve(name: str, points: Sequence[dict[str, Any]]) -> Curve:
    """Median and quartiles of the scaled return, clipped to [−1, 1]: a loop costs so much that it says nothing more."""
    scaled = [np.clip(point["scaled_return"], -1, 1) for point in points]
    quartiles = ([float(np.quantile(of_one, share)) for of_one in scaled] for share in (0.5, 0.25, 0.75))
    return Curve(name, [point["labels"] for point in points], *quartiles)


def _curves(run: RunDirectory, arms: Sequence[str], colors: Mapping[str, str]) -> tuple[Picture, ...]:
    rng = np.random.default_rng(0)
    finished = {NAMES[arm]: points for arm in arms if (points := _curve_points(run, arm))}
    if not finished:
        return ()
    shares = [_share_curve(name, points, rng) for name, points in finished.items()]
    medians = [_median_curve(name, points) for name, points in finished.items()]
    looks: dict[str, Any] = {"xlabel": "answers that one fit learns from", "logarithmic": True, "colors": colors}
    words = "; ".join(
        f"{curve.name} {', '.join(f'{v:.0%} of {s}' for s, v in zip(curve.steps, curve.values, strict=True))}"
        for curve in shares
    )
    return (
        Picture(
            title="How many answers are needed",
            png=learning_curves(shares, title="Near-optimal fits", ylabel="share of fits", percent=True, **looks),
            alt=f"Share of near-optimal fits by number of answers: {words}.",
            caption="the answers are split into parts of equal size, and each part is learned from alone; bands are "
            "95 % intervals where there are at least 3 parts",
        ),
        Picture(
            title="How good they are",
            png=learning_curves(medians, title="Scaled return", ylabel="median over fits", **looks),
            alt="Median scaled return by number of answers.",
            caption="1 is the best policy, 0 is acting at random; clipped to [−1, 1]; bands hold the middle half "
            "of the fits",
        ),
    )


def _boards(world: World, policies: Mapping[str, Tensor]) -> tuple[Picture, ...]:
    return tuple(
        Picture(
            title=NAMES[arm],
            png=image_png(world.env.draw_policy(policy.numpy())),
            alt=f"What the {NAMES[arm]} does in every state.",
            caption="what it does in every state; several short arrows are equally good",
        )
        for arm, policy in policies.items()
    )


def _weights(run: RunDirectory, arms: Sequence[str], world: World, colors: Mapping[str, str]) -> RewardModel | None:
    """Learned weights, each multiplied by the positive number that makes it as long as the true ones."""
    true = world.true_weights.numpy()
    fits = {arm: fit for arm in arms if (fit := run.result(f"fit/{arm}")) is not None}
    linear = {NAMES[arm]: np.array(fit["weights"]) for arm, fit in fits.items() if len(fit["weights"]) == len(true)}
    if not linear:
        return None
    scaled = {name: weights * np.linalg.norm(true) / np.linalg.norm(weights) for name, weights in linear.items()}
    names = world.env.feature_names
    bars = weight_bars(
        names, {"true reward": true.tolist()} | {name: values.tolist() for name, values in scaled.items()},
        title="Learned and true weights", note="reward for one of each (linear up to ±1, then logarithmic)",
        colors={"true reward": "#24292f", **colors},
    )  # fmt: skip
    words = "; ".join(
        f"{who}: {', '.join(f'{name} {_number(float(w))}' for name, w in zip(names, values, strict=True))}"
        for who, values in {"true": true, **scaled}.items()
    )
    facts = tuple((f"length of the weights, {name}", _number(float(np.linalg.norm(w)))) for name, w in linear.items())
    picture = Picture(
        title="Learned and true weights", png=bars, alt=f"Weights by feature. {words}.",
        caption="preferences fix a reward only up to its unit, so each learned set of weights is multiplied by the one "
        "positive number that makes its length (root of the sum of squares) that of the true weights; "
        "who learns a number for each state and action has none for features",
    )  # fmt: skip
    return RewardModel(facts=facts, pictures=(picture,))


def _curve_table(run: RunDirectory, arms: Sequence[str]) -> tuple[Table, ...]:
    points = {arm: {point["labels"]: point for point in _curve_points(run, arm)} for arm in arms}
    counts = sorted({count for found in points.values() for count in found})
    if not counts:
        return ()

    def cell(point: dict[str, Any] | None) -> str:
        if point is None:
            return ""
        near, scaled = point["near_optimal"], np.array(point["scaled_return"])
        return f"{sum(near)} of {len(near)} (median {_number(float(np.median(scaled)))})"

    return (
        Table(
            title="Near-optimal fits by number of answers",
            columns=("Answers", *(NAMES[arm] for arm in arms)),
            rows=tuple((f"{count}", *(cell(points[arm].get(count)) for arm in arms)) for count in counts),
            caption="In parentheses: the median scaled return.",
        ),
    )
