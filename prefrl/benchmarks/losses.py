"""``prefrl bench losses``: log-probs of tokens against all logits, TRL and Liger; losses of diffusion on two modes.

Each setting of the head is a step of DPO on log-probs of tokens: hidden states and a head in, gradients out. In every
turn each contender runs it in a fresh process, in a new order, on two threads that sleep while they wait. A row is the
median over turns of the ratio contender / prefrl, so above 1 is better, with its extremes. Of TRL's two paths (its
fused head and ``selective_log_softmax``) the better one counts, for time and memory alike. All must find the same loss
and gradients.

Rows ``gpu_…`` need an accelerator, and a side environment whose torch can use it. The toy's rows are described in
``prefrl.benchmarks.two_modes``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefrl.benchmarks.cells import code_version
from prefrl.benchmarks.side_env import make_side, missing_side, run_here, run_side
from prefrl.benchmarks.two_modes import TOY_ROWS, toy_rows
from prefrl.errors import ConfigError, PrefrlError
from prefrl.files import read_json, write_json
from prefrl.progress import Bars, progress_bars

__all__ = ["HEAD_ROWS", "HeadRow", "Setting", "run"]

SIDE, SCRIPT, THREADS = "trl", "vocabulary_head.py", 2
OURS = "prefrl.losses.vocabulary:token_log_probs"
PEERS = {"naive": ("naive",), "trl": ("trl_kernel", "trl_selective"), "liger": ("liger",)}
SHOWN = {"naive": "all logits", "trl": "TRL 1.16, its better path", "liger": "Liger 0.8.5"}
MEASURES = {"time": ("seconds", "time"), "memory": ("mib", "peak memory")}


@dataclass(frozen=True)
class Setting:
    """One head. tolerance: relative, of losses and gradients among contenders · accelerator: whether it needs one."""

    id: str
    frozen: bool
    sequences: int = 4
    tokens: int = 512
    hidden: int = 256
    vocabulary: int = 64_000
    dtype: str = "float32"
    tolerance: float = 1e-3
    accelerator: bool = False

    @property
    def arguments(self) -> list[str]:
        """Of the script, but for the contender and the device."""
        sizes = ("sequences", "tokens", "hidden", "vocabulary", "dtype")
        frozen = ["--frozen"] if self.frozen else []
        return [*(f"--{name}={getattr(self, name)}" for name in sizes), f"--threads={THREADS}", *frozen]

    @property
    def what(self) -> str:
        head = "frozen" if self.frozen else "trainable"
        sizes = f"{self.sequences}×{self.tokens} tokens, H {self.hidden}, V {self.vocabulary}, {self.dtype}"
        return f"log-probs + DPO, {head} head, {sizes}"


@dataclass(frozen=True)
class HeadRow:
    """A ratio peer / prefrl of one measure in one setting."""

    id: str
    setting: Setting
    measure: str
    peer: str
    bar: float | None

    @property
    def what(self) -> str:
        return f"{MEASURES[self.measure][1]} of {self.setting.what}: {SHOWN[self.peer]} / prefrl"

    def ratio(self, found: dict[str, dict[str, Any]]) -> float:
        """From what the contenders of one turn measured."""
        key = MEASURES[self.measure][0]
        return min(found[contender][key] for contender in PEERS[self.peer]) / float(found[OURS][key])


def _rows(setting: Setting, **main: tuple[str, float | None]) -> Iterator[HeadRow]:
    """main: measure -> (peer, bar) of the row that has the plain name; rows of other peers are named after them."""
    for measure, (first, bar) in main.items():
        yield HeadRow(f"{setting.id}_{measure}", setting, measure, first, bar)
        for peer in PEERS:
            if peer != first:
                yield HeadRow(f"{setting.id}_{measure}_{peer}", setting, measure, peer, None)


GPU: dict[str, Any] = {
    "sequences": 16, "tokens": 1024, "hidden": 4096, "vocabulary": 128_256,
    "dtype": "bfloat16", "tolerance": 0.1, "accelerator": True,
}  # fmt: skip
HEAD_ROWS = [
    *_rows(Setting("head_frozen_64k", True), time=("trl", 2.5), memory=("trl", 20.0)),
    *_rows(Setting("head_trainable_64k", False), time=("trl", 1.0), memory=("naive", 4.0)),
    *_rows(Setting("head_frozen_128k", True, vocabulary=128_256), time=("trl", 2.5), memory=("trl", 20.0)),
    *_rows(Setting("head_trainable_128k", False, vocabulary=128_256), time=("trl", 1.0), memory=("naive", 4.0)),
    *_rows(Setting("gpu_frozen", True, **GPU), time=("liger", 1.2), memory=("liger", 1.0)),
    *_rows(Setting("gpu_trainable", False, **GPU), time=("liger", None), memory=("liger", None)),
]


def run(
    *,
    seeds: int | Sequence[int] = 3,
    rows: Sequence[str] | None = None,
    fresh: bool = False,
    make_sides: bool = False,
    sides: str = ".side",
    folder: str = "bench/losses",
) -> list[dict[str, Any]]:
    """Rows of the benchmark; ``skipped`` where a side environment or an accelerator is missing.

    seeds: how many turns each (and seeds of the toy), or a list of them · rows: ids (all if None)
    fresh: measure finished turns of the heads anew · make_sides: make a missing side environment first
    sides, folder: of side environments, of finished turns.
    """
    known = [*(row.id for row in HEAD_ROWS), *TOY_ROWS]
    wanted = list(known if rows is None else rows)
    if not wanted or not set(wanted) <= set(known):
        raise ConfigError(f"bench losses: rows must be of {', '.join(known)}.")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigError("bench losses: seeds must name at least one turn.")
    heads = [row for row in HEAD_ROWS if row.id in wanted]
    if heads and make_sides and missing_side(SIDE, Path(sides)):
        make_side(SIDE, Path(sides))
    toy = [row for row in TOY_ROWS if row in wanted]
    with progress_bars() as bars:
        bench = _Heads(numbers, Path(sides), Path(folder), fresh, bars)
        results = [bench.row(row) for row in heads]
        results += toy_rows(seeds=numbers, rows=toy, progress=bars) if toy else []
    if bench.old_code:
        print(f"note: some turns ran other code versions ({', '.join(sorted(bench.old_code))}); fresh=true runs anew.")
    return results


class _Heads:
    """Measures each setting when its first row is asked for: one file a turn, which is kept."""

    def __init__(self, seeds: list[int], sides: Path, folder: Path, fresh: bool, show: Bars) -> None:
        self._seeds, self._sides, self._folder, self._fresh, self._show = seeds, sides, folder, fresh, show
        self._turns: dict[str, list[dict[str, Any]]] = {}
        self._no_side = missing_side(SIDE, sides)
        self.old_code: set[str] = set()

    def row(self, row: HeadRow) -> dict[str, Any]:
        result: dict[str, Any] = {"id": row.id, "what": row.what, "value": None, "low": None, "high": None}
        result["bar"] = row.bar
        reason = self._no_side if row.peer != "naive" else None
        if row.setting.accelerator and not torch.accelerator.is_available():
            reason = "skipped: no accelerator here"
        if reason:
            return {**result, "holds": reason, "seeds": [], "seconds": None}
        if row.setting.id not in self._turns:
            self._turns[row.setting.id] = self._measure(row.setting)
        turns = self._turns[row.setting.id]
        ratios = [row.ratio(turn["found"]) for turn in turns]
        median = float(np.median(ratios))
        key = MEASURES[row.measure][0]
        return {
            **result,
            "value": median,
            "low": min(ratios),
            "high": max(ratios),
            "holds": None if row.bar is None else median >= row.bar,
            "seeds": self._seeds,
            "seconds": sum(turn["seconds"] for turn in turns),
            "ours": float(np.median([turn["found"][OURS][key] for turn in turns])),  # [s] or [MiB]
            "hardware": turns[0]["found"][OURS]["hardware"],
            "date": max(turn["date"] for turn in turns),
        }

    def _measure(self, setting: Setting) -> list[dict[str, Any]]:
        contenders = [OURS, "naive"]
        if self._no_side is None:
            contenders += [*PEERS["trl"], *PEERS["liger"]]
        turns = []
        for number, seed in enumerate(self._seeds):
            order = contenders[number % len(contenders) :] + contenders[: number % len(contenders)]
            turns.append(self._turn(setting, seed, order))
            self._show(setting.id, len(turns), len(self._seeds))
        return turns

    def _turn(self, setting: Setting, seed: int, contenders: list[str]) -> dict[str, Any]:
        """What every contender found; as it was kept, or measured now."""
        file = self._folder / f"{setting.id}-seed{seed}.json"
        arguments = [*setting.arguments, f"--seed={seed}"]
        if setting.accelerator:
            arguments.append(f"--device={torch.accelerator.current_accelerator()}")
        if file.is_file() and not self._fresh:
            kept: dict[str, Any] = read_json(file)
            if kept["arguments"] == arguments and set(kept["found"]) >= set(contenders):
                self.old_code |= {kept["code"]} - {code_version()}
                return kept
        begin = time.perf_counter()
        found = {contender: self._run(contender, arguments) for contender in contenders}
        _check_agreement(setting, found)
        turn: dict[str, Any] = {"arguments": arguments, "code": code_version(), "date": date.today().isoformat()}
        turn |= {"found": found, "seconds": time.perf_counter() - begin}
        write_json(file, turn)
        return turn

    def _run(self, contender: str, arguments: list[str]) -> dict[str, Any]:
        if contender in (OURS, "naive"):
            return run_here(SCRIPT, [contender, *arguments], threads=THREADS)
        return run_side(SIDE, self._sides, SCRIPT, [contender, *arguments], threads=THREADS)


def _check_agreement(setting: Setting, found: dict[str, dict[str, Any]]) -> None:
    """A contender that computes something else is no contender."""
    expected = [found["naive"]["loss"], *found["naive"]["gradients"]]
    for contender, result in found.items():
        values = [result["loss"], *result["gradients"]]
        if len(values) != len(expected) or not np.allclose(values, expected, rtol=setting.tolerance, atol=0):
            raise PrefrlError(f"{setting.id}: {contender} finds loss and gradient norms {values}, not {expected}.")
