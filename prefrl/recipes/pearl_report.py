"""What a run of recipe pearl shows: the verdict in words, the plan, how right its labels are, and the arms' table.

How many labels of the target the transfer is worth is read off the arms ``few_N`` (after Liu et al. 2024, arXiv
2306.03615, who compare with few human labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences
from prefrl.evaluation.plots import Curve, colors_for, learning_curves, success_bars
from prefrl.evaluation.report import Picture, PolicyRow, Report, Video, policy_row, write_report
from prefrl.evaluation.report import Table as TextTable
from prefrl.evaluation.transport_plots import binned_plan, plan_map
from prefrl.files import read_json
from prefrl.runs import RunDirectory
from prefrl.transfer.datasets import Transfer, accuracy_by_share, in_words, judgement, window_returns
from prefrl.transfer.labels import carried_scores, scores_of

__all__ = ["ALIGNED", "report_pearl", "show_table", "transfer_summary"]

ALIGNED = ("aligned", "negated")  # of transferred labels
SHARES = tuple(round(0.1 * k, 1) for k in range(1, 11))
NOTES = {
    "bc": "behavior cloning of the whole target mix: no reward at all",
    "aligned": "the learner on the reward from transferred labels",
    "negated": "control: that reward with its sign changed",
    "oracle": "the learner on a reward from as many true labels of the target as a teacher would give",
    "true_reward": "the learner on the target's own reward",
    "random": "control: one uniform random number per transition as its reward",
    "zero": "control: no reward anywhere",
}


def transfer_summary(transfer: Transfer, answers: Preferences, source: Episodes, target: Episodes) -> dict[str, Any]:
    """What the report shows of a transfer; rows and columns of the plan are sorted by true return where it is known."""
    judged, found = source.has_true_reward and target.has_true_reward, transfer.alignment
    scores = scores_of(transfer.source_labels)
    rows = window_returns(source, transfer.source) if judged else scores
    columns = window_returns(target, transfer.target) if judged else carried_scores(found.plan, scores)
    return {
        "verdict": found.diagnostics.verdict,
        "words": in_words(transfer),
        "answers": len(answers),
        "raters": judgement(answers, target),
        "shares": SHARES,
        "accuracy": accuracy_by_share(transfer, target, SHARES) if target.has_true_reward else None,
        "sorted_by": "true return" if judged else "what the labels say",
        "plan": binned_plan(found.plan, rows, columns).round(6).tolist(),
    }


def policy_rows(run: RunDirectory, arms: Sequence[str]) -> list[PolicyRow]:
    """Every finished arm with its intervals, and its reward's accuracy where it learned one."""
    results = {arm: result for arm in arms if (result := run.result(f"arms/{arm}")) is not None}
    rng, cloned = np.random.default_rng(0), results.get("bc")
    return [
        policy_row(
            arm,
            **{key: result[key] for key in ("success", "returns", "lengths")},
            rng=rng,
            baseline=cloned["success"] if cloned and arm != "bc" else None,
            note=NOTES.get(arm, f"the learner on a reward from {arm.partition('_')[2]} true labels of the target"),
            extra=(("Reward orders pairs", _accuracy(run, arm)), ("Ends like", _ends(result))),
        )
        for arm, result in results.items()
    ]


def _accuracy(run: RunDirectory, arm: str) -> str:
    score = run.result(f"scores/{arm}")
    return "" if score is None or score["accuracy"] is None else f"{score['accuracy']:.0%}"


def _ends(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in result["resemblance"].items() if share > 0)


def worth(run: RunDirectory, arms: Sequence[str]) -> str:
    """How the transferred labels compare with the target's own, in words; "" before the arms are there.

    The number of labels is a comparison of means over the evaluation episodes of one seed.
    """
    found = {arm: run.result(f"arms/{arm}") for arm in arms}
    success = {arm: float(np.mean(result["success"])) for arm, result in found.items() if result is not None}
    if "aligned" not in success:
        return ""
    ours, parts = success["aligned"], [f"Transferred labels: success {success['aligned']:.0%}."]
    for arm in ("oracle", "bc", "random", "negated"):
        if arm in success:
            parts.append(f"{arm}: {success[arm]:.0%}.")
    few = sorted(int(arm.partition("_")[2]) for arm in success if arm.startswith("few_"))
    if few:
        enough = [count for count in few if success[f"few_{count}"] >= ours]
        parts.append(
            f"{enough[0]} of the target's own labels do at least as well."
            if enough
            else f"None of {', '.join(map(str, few))} own labels does as well: they are worth more than {few[-1]}."
        )
    beaten = [arm for arm in ("bc", "random", "zero", "negated") if success.get(arm, -1.0) >= ours]
    if beaten:
        parts.append(f"No better than {', '.join(beaten)}: here the preferences have shown nothing.")
    return " ".join(parts)


def show_table(run: RunDirectory, arms: Sequence[str]) -> None:
    """Print one row an arm; ranges are 95 % intervals over episodes."""
    table = Table(title=str(run.path), title_justify="left")
    for column in ("policy", "success", "95 % interval", "reward orders pairs", "ends like"):
        table.add_column(column)
    for row in policy_rows(run, arms):
        value, low, high = (f"{100 * float(x):.0f}" for x in (row.success.value, row.success.low, row.success.high))
        table.add_row(row.name, f"{value} %", f"{low} – {high} %", *(text for _, text in row.extra))
    Console(width=None if Console().is_terminal else 140).print(table)
    print(worth(run, arms))


def report_pearl(run: RunDirectory, arms: Sequence[str]) -> Path:
    """Write ``RUN/report.html`` from what is finished; the rest is said to be missing."""
    path, rows, video = run.path / "report.html", policy_rows(run, arms), run.result("videos") or {}
    moved = run.result("transfer")
    stages = ["source", "collect", *(["transfer"] if set(ALIGNED) & set(arms) else []), "rewards"]
    missing = [stage for stage in stages if run.result(stage) is None]
    shown = [run.path / video["video"]] if video.get("video") else []
    write_report(
        path,
        Report(
            title=f"prefrl: {run.path.resolve().name}",
            summary=tuple(
                text for text in (_of_data(run), *(moved or {"words": []})["words"], worth(run, arms)) if text
            ),
            policies=tuple(rows),
            baseline="cloning",
            pictures=(*_of_arms(rows), *_of_transfer(moved)),
            videos=tuple(
                Video(
                    title="Side by side", mp4=file.read_bytes(), alt=f"One episode each of {', '.join(video['arms'])}."
                )
                for file in shown
            ),
            sensitivity=_raters(moved),
            missing=(
                *(f"The stage {stage!r} is not finished: continue with `prefrl resume`." for stage in missing),
                *([video["reason"]] if video.get("reason") else []),
            ),
            config=(run.path / "config.yaml").read_text(encoding="utf-8"),
            versions=read_json(run.path / "versions.json"),
        ),
    )
    return path


def _of_data(run: RunDirectory) -> str:
    source, target = run.result("source"), run.result("collect")
    if source is None or target is None:
        return ""
    return (
        f"Source: {source['episodes']} episodes of {source['env'].get('id')}, {source['comparisons']} labels. "
        f"Target: {target['episodes']} episodes."
    )


def _of_arms(rows: Sequence[PolicyRow]) -> tuple[Picture, ...]:
    if not rows:
        return ()
    names = [row.name for row in rows]
    words = ", ".join(f"{row.name} {float(row.success.value):.0%}" for row in rows)
    png = success_bars(names, [row.success for row in rows], colors=colors_for(names))
    return (Picture(title="Success", png=png, alt=f"Success rates: {words}."),)


def _of_transfer(moved: dict[str, Any] | None) -> tuple[Picture, ...]:
    if moved is None:
        return ()
    by = moved["sorted_by"]
    plan = Picture(
        title="Transport plan",
        png=plan_map(np.array(moved["plan"]), source=f"source windows, by {by}", target=f"target windows, by {by}"),
        alt="Which target windows each source window is matched with.",
        caption=f"both sorted by {by}: along the rising diagonal, good is matched with good",
    )
    if moved["accuracy"] is None:
        return (plan,)
    curve = Curve("transferred labels", [100 * share for share in moved["shares"]], moved["accuracy"])
    words = f"{moved['accuracy'][0]:.0%} of the surest tenth, {moved['accuracy'][-1]:.0%} of all"
    png = learning_curves(
        [curve], title="Label accuracy", xlabel="surest share of the labels [%]", ylabel="agree with the true reward",
        percent=True,
    )  # fmt: skip
    caption = "the true reward judges here, and nothing learned from it"
    return (plan, Picture(title="Accuracy and confidence", png=png, alt=f"Right: {words}.", caption=caption))


def _raters(moved: dict[str, Any] | None) -> tuple[TextTable, ...]:
    if moved is None:
        return ()
    rows = tuple(tuple(line.split(": ", 1)) for line in moved["raters"])
    return (TextTable(title="Transferred answers by their confidence", columns=("rater", "answers"), rows=rows),)
