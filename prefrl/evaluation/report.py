"""The report of a run: one HTML file that opens offline, with every picture and video inside it.

No scripts, no links to elsewhere (its own security policy forbids both); light and dark, on a phone and in
print.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from prefrl.evaluation.intervals import (
    Estimate,
    mean,
    paired_difference,
    stratified_bootstrap,
    success_interval,
)
from prefrl.files import atomic_path

__all__ = ["Picture", "PolicyRow", "Report", "RewardModel", "Table", "Video", "policy_row", "write_report"]


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """One policy of the headline table.

    success: rate in [0, 1] · returns: mean return · length: mean steps · versus: success minus that of the
    baseline on the same episodes, or None · extra: further columns as (heading, text) pairs.
    """

    name: str
    success: Estimate
    returns: Estimate
    length: float
    episodes: int
    note: str = ""
    versus: Estimate | None = None
    extra: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG. ``alt`` says in words what it shows, for those who cannot see it."""

    title: str
    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Video:
    """An mp4. ``alt`` says in words what it shows."""

    title: str
    mp4: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A plain table: R rows of one text for each column; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """facts: (name, value) pairs, as ("held-out accuracy", "0.94") · pictures: calibration, scatter …"""

    facts: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page. What is empty is said in plain words; ``missing`` says what failed, and why.

    summary: paragraphs under the title · baseline: whom ``PolicyRow.versus`` is measured against
    sensitivity: tables over seeds or settings · config: resolved YAML · versions: ``prefrl.runs.versions()``.
    """

    title: str
    policies: tuple[PolicyRow, ...]
    config: str
    versions: Mapping[str, Any]
    summary: tuple[str, ...] = ()
    baseline: str = ""
    pictures: tuple[Picture, ...] = ()
    reward_model: RewardModel | None = None
    videos: tuple[Video, ...] = ()
    sensitivity: tuple[Table, ...] = ()
    missing: tuple[str, ...] = ()


def policy_row(
    name: str,
    *,
    success: Sequence[bool] | np.ndarray,
    returns: Sequence[float] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    rng: np.random.Generator,
    baseline: Sequence[bool] | np.ndarray | None = None,
    note: str = "",
    extra: tuple[tuple[str, str], ...] = (),
) -> PolicyRow:
    """The row of one policy from its (E,) episodes; ``baseline`` (E,) is another's success on their seeds."""
    won = np.asarray(success, dtype=np.float64)
    versus = None if baseline is None else paired_difference(won, np.asarray(baseline, np.float64), rng=rng)
    return PolicyRow(
        name=name,
        success=success_interval(won, rng=rng),
        returns=stratified_bootstrap(np.asarray(returns, dtype=np.float64)[:, None], mean, rng=rng),
        length=float(np.mean(lengths)),
        episodes=len(won),
        note=note,
        versus=versus,
        extra=extra,
    )


def write_report(path: Path | str, report: Report) -> None:
    """Write the page as one file, atomically."""
    page = _page(report)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _page(report: Report) -> str:
    sections = {
        "Results": _results(report),
        "Plots": _figures(report.pictures, "No plots were made."),
        "Reward model": _reward_model(report.reward_model),
        "Videos": _videos(report.videos),
        "Sensitivity": "".join(_table(table) for table in report.sensitivity),
        "Configuration": _fold("Resolved configuration", f"<pre>{escape(report.config)}</pre>"),
        "Versions": _fold("What ran", _table(_versions(report.versions))),
    }
    shown = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{_id(title)}">{title}</a>' for title in shown)
    body = "".join(f'<section id="{_id(title)}"><h2>{title}</h2>{body}</section>' for title, body in shown.items())
    summary = "".join(f"<p>{escape(text)}</p>" for text in report.summary)
    missing = "".join(f'<p class="missing">{escape(text)}</p>' for text in report.missing)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "media-src data:; style-src 'unsafe-inline'\">"
        f'<title>{escape(report.title)}</title><link rel="icon" href="data:,"><style>{_style()}</style>'
        "</head>\n"
        f"<body><header><h1>{escape(report.title)}</h1>{summary}{missing}"
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>{body}</main>\n'
        "<footer><p>Made by prefrl. This file is complete: it needs no network and no other file.</p>"
        "</footer></body></html>\n"
    )


def _style() -> str:
    return resources.files("prefrl.evaluation").joinpath("report.css").read_text(encoding="utf-8")


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _results(report: Report) -> str:
    if not report.policies:
        return "<p>No policy was evaluated.</p>"
    versus = any(row.versus for row in report.policies)
    extra = list(dict.fromkeys(heading for row in report.policies for heading, _ in row.extra))
    headings = ["Policy", "Success", *([f"Against {report.baseline}"] if versus else []), *extra]
    headings += ["Return", "Length", "Episodes"]
    rows = []
    for row in report.policies:
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        cells = [_rate(row.success), *([_difference(row.versus)] if versus else [])]
        cells += [escape(dict(row.extra).get(heading, "")) for heading in extra]
        cells += [_interval(row.returns), f"{row.length:,.0f}", str(row.episodes)]
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(row.name)}{note}</th>{body}</tr>')
    caption = "Success counts at any step of an episode. Ranges are 95 % bootstrap intervals over episodes."
    if versus:
        caption += f" Differences to {report.baseline} are taken on the same episodes, in percentage points."
    return _grid(headings, rows, caption)


def _grid(headings: Sequence[str], rows: Sequence[str], caption: str, label: str = "Results") -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<p class="faint">{escape(caption)}</p>' if caption else "")
    )


def _rate(rate: Estimate) -> str:
    """A success rate in words, over a bar with its interval."""
    value, low, high = (100 * x for x in (rate.value, rate.low, rate.high))
    return (
        f"<strong>{value:.0f}%</strong> <small>{low:.0f} to {high:.0f}%</small>"
        f'<span class="track" aria-hidden="true"><span class="fill" style="width:{value:.1f}%"></span>'
        f'<span class="span" style="left:{low:.1f}%;width:{high - low:.1f}%"></span></span>'
    )


def _difference(points: Estimate | None) -> str:
    if points is None:
        return ""
    value, low, high = (_minus(f"{100 * x:+.0f}") for x in (points.value, points.low, points.high))
    return f"<strong>{value}</strong> <small>{low} to {high}</small>"


def _interval(estimate: Estimate) -> str:
    value, low, high = (_minus(f"{x:,.4g}") for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} <small>{low} to {high}</small>"


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _reward_model(model: RewardModel | None) -> str:
    if model is None:
        return "<p>This run learned no reward model.</p>"
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in model.facts)
    return f"<dl>{facts}</dl>" + _figures(model.pictures, "")


def _figures(pictures: Sequence[Picture], otherwise: str) -> str:
    figures = [
        _figure(f'<img src="{_data("image/png", one.png)}" alt="{escape(one.alt)}">', one.title, one.caption)
        for one in pictures
    ]
    return f'<div class="grid">{"".join(figures)}</div>' if figures else f"<p>{otherwise}</p>" if otherwise else ""


def _videos(videos: Sequence[Video]) -> str:
    figures = [
        _figure(
            f'<video controls loop muted playsinline preload="auto" aria-label="{escape(one.alt)}" '
            f'src="{_data("video/mp4", one.mp4)}">{escape(one.alt)}</video>',
            one.title,
            one.caption,
            style="wide",
        )
        for one in videos
    ]
    return f'<div class="grid">{"".join(figures)}</div>' if figures else "<p>No videos were made.</p>"


def _figure(content: str, title: str, caption: str, *, style: str = "") -> str:
    words = f"<strong>{escape(title)}</strong> {escape(caption)}"
    return f'<figure class="{style}">{content}<figcaption>{words}</figcaption></figure>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _table(table: Table) -> str:
    rows = [
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in table.rows
    ]
    return f"<h3>{escape(table.title)}</h3>" + _grid(table.columns, rows, table.caption, table.title)


def _fold(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _versions(versions: Mapping[str, Any], prefix: str = "") -> Table:
    rows: list[tuple[str, ...]] = []
    for name, value in versions.items():
        if isinstance(value, Mapping):
            rows += _versions(value, f"{prefix}{name}: ").rows
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return Table(title="Versions and machine", columns=("What", "Version or value"), rows=tuple(rows))
