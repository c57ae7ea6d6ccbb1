"""Laws of the races of ``prefrl bench online``: equal work, verdicts, and speed-ups that must not change results."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefrl.benchmarks import online_races
from prefrl.benchmarks.online_races import BARS, RACE_ROWS, Race, Row, brute_force_picks, rows_of_races
from prefrl.core import SegmentRefs
from prefrl.errors import ConfigError, PrefrlError
from prefrl.linear import stacked_mlp
from prefrl.queries import greedy_k_center, pair_logits
from prefrl.scores import ReturnEnsemble
from prefrl.scores.return_ensemble import ACTIVATIONS

SHOW = lambda *_: None  # noqa: E731
PENDULUM = SimpleNamespace(what="a race", measure=lambda seed: {}, arguments=lambda documented: ("pendulum",))
PARTS = online_races.Parts(pendulum=PENDULUM, seeds=[0], pendulum_seeds=[0])
RATIO = Row("reward_32", "a ratio", lambda ours, peer: ours["per_s"] / peer["per_s"])


def against(monkeypatch, peer):
    monkeypatch.setattr(online_races, "run_side", lambda side, sides, script, arguments: peer)


def test_without_the_side_environment_rows_are_skipped(tmp_path):
    """They say why, keep their bars, and never that these hold."""
    found = rows_of_races(PARTS, rows=["reward_32", "select_256", "pendulum_return"], sides=tmp_path, show=SHOW)
    assert [(finding.id, finding.bar) for finding in found] == [
        ("reward_32", 7.0), ("select_256", None), ("pendulum_return", 0.0),
    ]  # fmt: skip
    assert all(finding.value is None and "make_sides=true" in finding.holds for finding in found)


def test_an_unknown_row_is_an_error(tmp_path):
    """It names those that there are."""
    with pytest.raises(ConfigError, match="relabel_32_best"):
        rows_of_races(PARTS, rows=["relabel"], sides=tmp_path, show=SHOW)


def test_every_row_is_raced_and_every_bar_is_of_a_row():
    """A misspelt bar would be kept by nothing."""
    raced = [row.id for race in online_races._races(PARTS) for row in race.rows]
    assert sorted([*raced, "k_center", "k_center_picks"]) == sorted(RACE_ROWS)
    assert set(BARS) <= set(RACE_ROWS)


def test_unequal_work_is_no_race(monkeypatch):
    """But for what is said to differ."""
    against(monkeypatch, {"per_s": 1.0, "work": {"pairs": 9, "steps": 1}})
    ours = {"per_s": 1.0, "work": {"pairs": 9, "steps": 2}}
    with pytest.raises(PrefrlError, match="unequal work"):
        Race((RATIO,), lambda seed: ours, ()).turn(0, Path())
    assert Race((RATIO,), lambda seed: ours, (), differs=("steps",)).turn(0, Path())[0] == ours


def test_the_verdict_is_the_median_s():
    """With the extremes beside it."""
    turns = [({"per_s": speed}, {"per_s": 1.0}) for speed in (6.0, 30.0, 8.0)]
    finding = RATIO.finding(turns, [0, 1, 2])
    assert (finding.value, finding.low, finding.high, finding.holds) == (8.0, 6.0, 30.0, True)
    assert RATIO.finding(turns[:1], [0]).holds is False


@pytest.mark.parametrize("measure", [online_races._fit, online_races._select, online_races._relabel])
def test_ours_says_what_it_has_done(measure):
    """The sizes in its work are those that it was asked for."""
    more = {"_fit": {"pairs": 4, "epochs": 2}, "_select": {"kept": 3}, "_relabel": {"steps": 10}}[measure.__name__]
    found = measure((8,), seed=0, **more)
    assert found["work"]["hidden"] == [8]
    assert found["per_s"] > 0
    for name, value in more.items():
        assert found["work"][name] == value


def test_brute_force_picks_are_those_of_the_fast_one():
    """With labelled ones that lie apart."""
    features, labelled = torch.randn(2, 60, 20, generator=torch.Generator().manual_seed(0))
    fast = greedy_k_center(features, 25, labelled[:10])
    assert (brute_force_picks(features.numpy(), labelled[:10].numpy(), 25) == fast).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (5,), (7, 6)])
def test_values_without_gradients_are_those_with_them(activation, hidden):
    """Layers in one pass change no more than the last digits."""
    score = ReturnEnsemble(observation_size=3, action_size=2, hidden=hidden, activation=activation, seed=0)
    observations, actions = torch.randn(50, 3), torch.randn(50, 2)
    with torch.no_grad():
        fast = score.reward(observations, actions)
    assert fast.grad_fn is None
    torch.testing.assert_close(fast, score.reward(observations, actions).detach(), rtol=1e-5, atol=1e-6)
    inputs = torch.cat([observations, actions], 1).expand(3, 50, 5)
    slow = stacked_mlp(inputs, list(score.weights), list(score.biases), activation=ACTIVATIONS[activation])
    torch.testing.assert_close(fast, slow.squeeze(-1).tanh().detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 4096])
def test_logits_by_steps_are_those_by_segments(batch_size):
    """Overlapping segments of different lengths, some steps in none; each step is rewarded once."""
    episodes, rng = online_races._episodes(5, 30, 0), np.random.default_rng(0)
    score = online_races._ensemble((8,), 0)
    length = rng.integers(1, 12, 24)
    refs = SegmentRefs(rng.integers(0, 4, 24), rng.integers(0, 30 - length + 1), length)
    pairs = refs[:12], refs[12:]
    by_steps = pair_logits(score, episodes, pairs, batch_size=batch_size)
    score.additive = False
    by_segments = pair_logits(score, episodes, pairs)
    torch.testing.assert_close(by_steps, by_segments, rtol=1e-4, atol=1e-5)
