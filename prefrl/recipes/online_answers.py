"""What was asked and answered in an online run, session by session: one file, written before anything learns from it.

Questions (see :class:`prefrl.queries.Questions`) and answers stand in it together, so that a killed run asks nothing
twice and loses no answer: those of a session that is not in the checkpoint yet are found here, and learned from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefrl.core import SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences
from prefrl.data.query import NOTHING_ASKED, RefPairs
from prefrl.errors import DamagedFile
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.protocols import Score
from prefrl.queries import Questions

__all__ = ["AnswerBook", "Recent"]


class AnswerBook:
    """The sessions so far, of an arm in ``file``; its length is how many sessions have been held."""

    def __init__(self, file: Path) -> None:
        self.file = file
        state = self._load() if file.is_file() else {}
        self._asked: Tensor = state.get("asked", torch.zeros(0, 6, dtype=torch.int64))
        self._answers = _preferences(state["answers"]) if "answers" in state else None
        self._ends: list[list[int]] = state.get("ends", [])  # questions and answers up to the end of each session
        self._seen: list[str] = state.get("seen", [])  # of each session, which episodes there were

    def _load(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = load_checkpoint(self.file)
        except DamagedFile as error:
            raise DamagedFile(f"{error} {self._remedy}") from error
        held = len(state.get("answers", {}).get("p_first", ()))
        if not {"asked", "seen"} <= state.keys() or (state.get("ends") or [[]])[-1] != [len(state["asked"]), held]:
            raise DamagedFile(f"{self.file} does not hold the questions and answers of an online run. {self._remedy}")
        return state

    @property
    def _remedy(self) -> str:
        return f"Without a copy, delete all that is in {self.file.parent}: this arm then begins, and asks, anew."

    def __len__(self) -> int:
        return len(self._ends)

    def asked(self, sessions: int) -> int:
        """How many questions were asked in the first so many sessions."""
        return self._up_to(sessions)[0]

    def answered(self, sessions: int) -> int:
        """How many of them were answered."""
        return self._up_to(sessions)[1]

    def _up_to(self, sessions: int) -> list[int]:
        if sessions > len(self):
            raise DamagedFile(
                f"{self.file} holds {len(self)} sessions, but the checkpoint beside it has learned from {sessions}. "
                f"Restore it. {self._remedy}"
            )
        return self._ends[sessions - 1] if sessions else [0, 0]

    def remember(self, questions: Questions, sessions: int) -> None:
        """Let ``questions`` know what was asked in the first so many sessions."""
        questions.load_state_dict({"asked": self._asked[: self.asked(sessions)]})

    def answers(self, sessions: int) -> Preferences | None:
        """The answers of the first so many sessions; None if there are none."""
        return None if self._answers is None else self._answers[: self.answered(sessions)]

    def require_about(self, episodes: Episodes, session: int) -> None:
        """An error if the answers of a session, which are places in episodes, were not about these."""
        if self._seen[session] != _fingerprint(episodes):
            raise DamagedFile(
                f"{self.file}: the answers of session {session} are about other episodes than this run has now, as "
                f"where another machine, library or configuration goes on without its checkpoint. {self._remedy}"
            )

    def add(self, new: Preferences | None, questions: Questions, episodes: Episodes) -> None:
        """One more session, with ``questions`` as they are after it: on the disk when this returns."""
        self._seen.append(_fingerprint(episodes))
        parts = [part for part in (self._answers, new) if part is not None]
        self._answers = Preferences.concat(parts) if parts else None
        self._asked = questions.state_dict()["asked"]
        self._ends.append([len(questions), 0 if self._answers is None else len(self._answers)])
        state: dict[str, Any] = {"asked": self._asked, "ends": self._ends, "seen": self._seen}
        if self._answers is not None:
            state["answers"] = _state(self._answers)
        save_checkpoint(self.file, state)


class Recent:
    """A query about the last so many episodes only, as in B-Pref's code (arXiv 2111.03026): what the agent does now."""

    def __init__(self, query: Any, *, last: int) -> None:
        self.query, self.last = query, last

    def __call__(
        self,
        lengths: np.ndarray,
        n: int,
        segment_length: int,
        rng: np.random.Generator,
        *,
        episodes: Episodes | None = None,
        score: Score | None = None,
        labelled: RefPairs | None = None,
    ) -> RefPairs:
        """n pairs by the query, which sees no other episodes; numbered as all of them are."""
        begin = max(0, len(lengths) - self.last)
        known = None if episodes is None else episodes.select(np.arange(begin, len(lengths)))
        pairs = self.query(
            lengths[begin:], n, segment_length, rng, episodes=known, score=score, labelled=_renumbered(labelled, begin)
        )
        return _shifted(pairs[0], begin), _shifted(pairs[1], begin)

    def remaining(self, lengths: np.ndarray, segment_length: int, labelled: RefPairs) -> int:
        """How many different questions there are beside those ``labelled``."""
        begin = max(0, len(lengths) - self.last)
        left: int = self.query.remaining(lengths[begin:], segment_length, _renumbered(labelled, begin))
        return left


def _renumbered(pairs: RefPairs | None, begin: int) -> RefPairs:
    """Those of the pairs that are of episodes from ``begin`` on, which is 0 then."""
    first, second = NOTHING_ASKED if pairs is None else pairs
    kept = np.flatnonzero((first.episode >= begin) & (second.episode >= begin))
    return _shifted(first[kept], -begin), _shifted(second[kept], -begin)


def _shifted(refs: SegmentRefs, by: int) -> SegmentRefs:
    return SegmentRefs(refs.episode + by, refs.start, refs.length)


def _fingerprint(episodes: Episodes) -> str:
    """Equal for equal episodes."""
    digest = hashlib.sha256(np.ascontiguousarray(episodes.observations).data)
    digest.update(np.ascontiguousarray(episodes.actions).data)
    return digest.hexdigest()


def _state(answers: Preferences) -> dict[str, Any]:
    """Preferences as tensors and plain values."""
    sides = (answers.first, answers.second)
    places = np.stack([getattr(refs, part) for refs in sides for part in ("episode", "start", "length")], axis=1)
    columns = {"places": places, "p_first": answers.p_first, "rater": answers.rater, "time": answers.time}
    return {name: torch.from_numpy(column) for name, column in columns.items()} | {"teacher": list(answers.teacher)}


def _preferences(state: dict[str, Any]) -> Preferences:
    places = state["places"].numpy().T
    columns = {name: state[name].numpy() for name in ("p_first", "rater", "time")}
    return Preferences(SegmentRefs(*places[:3]), SegmentRefs(*places[3:]), teacher=tuple(state["teacher"]), **columns)
