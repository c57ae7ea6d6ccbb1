"""Pairs of segments that others recorded and compared become a dataset: an episode of each segment, and no reward.

The common end of the importers of preferences (``prefrl.data.importers``). The folder appears whole or not at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from prefrl.core import SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences, append_preferences
from prefrl.data.storage import write_dataset
from prefrl.errors import PrefrlError

__all__ = ["write_pairs"]


def write_pairs(
    out: Path | str,
    *,
    observations: np.ndarray,
    actions: np.ndarray,
    lengths: np.ndarray,
    p_first: np.ndarray,
    rater: np.ndarray,
    teacher: Sequence[str],
    env: dict[str, Any],
    fps: float,
    success: np.ndarray | None = None,
    terminated: np.ndarray | None = None,
) -> Episodes:
    """Write n compared pairs as 2n episodes, and return these: the first segments are 0 … n - 1, then the second.

    lengths, terminated: (2n,) · observations: (N + 2n, D), actions: (N, A), success: (N,) of all N steps
    p_first, rater, teacher: (n,), see ``Preferences`` · env, fps: see ``Episodes``; ``has_true_reward`` is added.
    """
    n, E, N = len(p_first), len(lengths), len(actions)
    data = Episodes(
        observations=observations,
        actions=actions,
        true_reward=np.zeros(N),
        success=np.zeros(N) if success is None else success,
        lengths=lengths,
        terminated=np.zeros(E) if terminated is None else terminated,
        behavior=("imported",) * E,
        seeds=np.full(E, -1),
        env={**env, "has_true_reward": False},
        fps=fps,
    )
    first, second = (SegmentRefs(np.arange(at, at + n), np.zeros(n), lengths[at : at + n]) for at in (0, n))
    answers = Preferences(first, second, p_first=p_first, rater=rater, teacher=tuple(teacher), time=np.zeros(n))
    _write_whole(Path(out), data, answers)
    return data


def _write_whole(out: Path, data: Episodes, answers: Preferences) -> None:
    """Write beside what will be the dataset, inside ``out``, and move it there; after any error nothing is left."""
    made = not out.exists()
    if not made and (not out.is_dir() or any(out.iterdir())):
        raise PrefrlError(f"{out} is already used. Choose another folder for the dataset.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".import.", suffix=".tmp", dir=out) as scratch:
            write_dataset(scratch, data)
            append_preferences(scratch, answers)
            for part in ("data", "meta"):  # meta/info.json makes it a dataset, so it comes last
                Path(scratch, part).replace(out / part)
    except OSError as error:
        raise PrefrlError(
            f"Cannot write {out}: {error.strerror or error}. Choose another folder, or free it."
        ) from error
    finally:
        if made:
            with suppress(OSError):
                out.rmdir()  # only an empty one can be removed
