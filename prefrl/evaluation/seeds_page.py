"""The page on many runs, of the same parts as the report of one: a single file that opens offline, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from prefrl.evaluation import report as parts
from prefrl.evaluation.report import Picture, Table
from prefrl.evaluation.seeds_runs import SeedRun
from prefrl.files import atomic_path, read_json

__all__ = ["write_page"]


def write_page(
    path: Path,
    *,
    title: str,
    summary: Sequence[str],
    missing: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    runs: Sequence[SeedRun],
) -> None:
    """Write the page as one file, atomically; its folder is made."""
    sections = {
        "Results": "".join(map(parts._table, tables)) or "<p>No run has results yet.</p>",
        "Learning curves": parts._figures(pictures, "No run has logged any."),
        "Configurations": "".join(parts._fold(str(run.path), f"<pre>{escape(run.config)}</pre>") for run in runs),
        "Versions": "".join(
            parts._fold(str(run.path), parts._table(parts._versions(read_json(run.path / "versions.json"))))
            for run in runs
        ),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(_page(title, sections, summary=summary, missing=missing), encoding="utf-8")


def _page(title: str, sections: Mapping[str, str], *, summary: Sequence[str], missing: Sequence[str]) -> str:
    links = "".join(f'<a href="#{parts._id(name)}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{parts._id(name)}"><h2>{name}</h2>{sections[name]}</section>' for name in sections)
    said = "".join(f"<p>{escape(text)}</p>" for text in summary)
    said += "".join(f'<p class="missing">{escape(text)}</p>' for text in missing)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{parts._style()}</style></head>\n'
        f'<body><header><h1>{escape(title)}</h1>{said}<nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>{body}</main>\n<footer><p>Made by prefrl. This file is complete: it needs no network and no other file."
        "</p></footer></body></html>\n"
    )
