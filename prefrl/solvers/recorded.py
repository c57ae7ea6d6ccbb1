"""Recorded segments of a tabular environment as traces: what they did, checked against the environment's own tables.

The statistics that preference models read (Knox et al. 2022, arXiv 2206.02231) are those of a trace. Data hold states
and actions as float32 of size 1, and may come from elsewhere: another board would give wrong values without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefrl.core import SegmentBatch
from prefrl.errors import InvalidData
from prefrl.solvers.segments import Trace, trace_segments
from prefrl.solvers.tabular import TabularMDP, rewards

__all__ = ["recorded_trace"]


def recorded_trace(mdp: TabularMDP, segments: SegmentBatch, *, weights: Tensor | None = None) -> Trace:
    """The trace of B segments whose observations (B, T+1, 1) are states and actions (B, T, 1) are action numbers.

    Which outcome happened is read from the recorded next state. InvalidData names the first segment that goes on after
    a terminal state, that does what the process cannot, or whose outcomes cannot be told apart though they differ in
    features.

    weights: (F,) of the true reward, for teachers alone: the true reward of the segments tells outcomes apart, and
        without one it is enough that outcomes are rewarded alike
    """
    S, A, _, _ = mdp.sizes
    mask = segments.mask
    states = _indices("observations", segments, segments.observations, S)  # (B, T+1)
    actions = _indices("actions", segments, segments.actions, A)  # (B, T)
    before, after = states[:, :-1], states[:, 1:]
    crossed = mask & mdp.terminal[before]
    if bool(crossed.any()):
        i, t = crossed.nonzero()[0].tolist()
        raise InvalidData(
            f"{_name(segments, i)} has an action in step {t}, after it reached state {int(before[i, t])}, which is "
            f"terminal: nothing happens there. Cut it to {t} steps in the data (importers of prefrl do so)."
        )
    possible = mdp.probability[before, actions] > 0  # (B, T, K)
    fits = possible & (mdp.next_state[before, actions] == after[..., None])
    wrong = mask & ~fits.any(-1)
    if bool(wrong.any()):
        i, t = wrong.nonzero()[0].tolist()
        known = sorted(set(mdp.next_state[before[i, t], actions[i, t]][possible[i, t]].tolist()))
        raise InvalidData(
            f"{_name(segments, i)} contradicts the environment: in step {t}, action {int(actions[i, t])} leads from "
            f"state {int(before[i, t])} to {' or '.join(map(str, known))}, but the data say {int(after[i, t])}. They "
            "are of another board or task: choose the one that they were recorded in with env=…"
        )
    if weights is None:
        outcomes = _first_that_fits(mdp.features[before, actions], segments, fits, states, actions)
    else:
        earned = rewards(mdp, weights)[before, actions]  # (B, T, K)
        outcomes = _as_rewarded(earned, segments, fits, states, actions)
    return trace_segments(mdp, before[:, 0], actions, mask=mask, outcomes=outcomes)


def _indices(what: str, segments: SegmentBatch, values: Tensor, limit: int) -> Tensor:
    """(B, T, 1) float32 -> (B, T) int64 in [0, limit), 0 on padding; observations have one column more."""
    if values.shape[-1] != 1:
        raise InvalidData(
            f"The data do not fit the environment: {what} have size {values.shape[-1]}, not 1 (a number)."
        )
    numbers = values[..., 0].clone()
    numbers[:, numbers.shape[1] - segments.mask.shape[1] :][~segments.mask] = 0  # a start state is always real
    wrong = (numbers != numbers.round()) | (numbers < 0) | (numbers >= limit)
    if bool(wrong.any()):
        i, t = wrong.nonzero()[0].tolist()
        raise InvalidData(
            f"{_name(segments, i)} has {numbers[i, t]:g} among its {what}, which must be integers in [0, {limit})."
        )
    return numbers.long()


def _as_rewarded(earned: Tensor, segments: SegmentBatch, fits: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    """(B, T) int64: of the outcomes that fit, the one whose reward in earned (B, T, K) is nearest to the true one."""
    if segments.true_reward is None:
        return _first_that_fits(earned[..., None], segments, fits, states, actions)
    gap = (earned - segments.true_reward[..., None]).abs()
    return gap.masked_fill(~fits, torch.inf).argmin(-1)


def _first_that_fits(marks: Tensor, segments: SegmentBatch, fits: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    """(B, T) int64 of fits (B, T, K), if all outcomes that fit have equal marks (B, T, K, F): features, or rewards."""
    outcomes = fits.to(torch.int64).argmax(-1)
    taken = marks.take_along_dim(outcomes[..., None, None], -2)
    unlike = segments.mask & (fits & (marks != taken).any(-1)).any(-1)
    if bool(unlike.any()):
        i, t = unlike.nonzero()[0].tolist()
        raise InvalidData(
            f"{_name(segments, i)}: in step {t}, action {int(actions[i, t])} in state {int(states[i, t])} may reach "
            "the recorded next state with different features or rewards, and the data do not say with which. Leave it "
            "out, or record the true reward, by which a teacher can tell."
        )
    return outcomes


def _name(segments: SegmentBatch, i: int) -> str:
    if segments.refs is None:
        return f"Segment {i}"
    return f"Segment {i} (episode {segments.refs.episode[i]}, from step {segments.refs.start[i]})"
