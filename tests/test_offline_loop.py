"""Laws of the offline training loop, on transitions and on comparisons."""

import signal

import pytest
import torch

from prefrl.core import Comparisons, SegmentBatch, Transitions
from prefrl.errors import ConfigError, InvalidData, RunDirectoryError
from prefrl.files import load_checkpoint
from prefrl.runs import read_metrics
from prefrl.train.offline import train_offline

SETTINGS = {
    "updates": 60,
    "batch_size": 8,
    "seed": 0,
    "log_every": 5,
    "checkpoint_every": 25,
    "tensorboard": False,
}


def make_data(n=40):
    g = torch.Generator().manual_seed(0)
    observations = torch.randn(n, 2, generator=g)
    rewards = observations @ torch.tensor([1.0, -1.0])
    return Transitions(observations, torch.zeros(n, 1), rewards, observations, torch.zeros(n))


class Regression:
    """Learns w in r = w·o. ``stop_at`` presses Ctrl-C between its two half steps."""

    def __init__(self, stop_at=None, broken_at=None):
        self.policy = None
        self.weight = torch.zeros(2, requires_grad=True)
        self.half_steps, self.stop_at, self.broken_at = 0, stop_at, broken_at
        self.optimizer = torch.optim.Adam([self.weight], lr=0.05)

    def update(self, batch):
        self.half_steps += 1
        if self.half_steps == 2 * (self.stop_at or 0) - 1:
            signal.raise_signal(signal.SIGINT)
        loss = (batch.observations @ self.weight - batch.rewards).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.half_steps += 1
        broken = self.half_steps == 2 * (self.broken_at or 0)
        return {"loss": loss.detach() * (torch.nan if broken else 1.0)}

    def state_dict(self):
        return {
            "weight": self.weight.detach(),
            "optimizer": self.optimizer.state_dict(),
            "half_steps": self.half_steps,
        }

    def load_state_dict(self, state):
        self.weight.data.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.half_steps = state["half_steps"]


def test_the_loop_learns(tmp_path):
    """On a regression with a known optimum, w → (1, −1)."""
    learner = Regression()
    train_offline(learner, make_data(), **{**SETTINGS, "updates": 400}, folder=tmp_path)
    torch.testing.assert_close(learner.weight.detach(), torch.tensor([1.0, -1.0]), atol=1e-2, rtol=0)
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < 1e-3 * rows[0]["loss"]


@pytest.mark.parametrize("stop_at", [7, 25, 43, 60])
def test_a_run_stopped_by_ctrl_c_ends_as_the_uninterrupted_one(tmp_path, stop_at):
    """Ctrl-C in the middle of an update: that update is finished and kept; the rest is bitwise the same."""
    whole = Regression()
    train_offline(whole, make_data(), **SETTINGS, folder=tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_offline(Regression(stop_at=stop_at), make_data(), **SETTINGS, folder=tmp_path / "cut")
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / "cut" / "checkpoint.safetensors")["update"] == stop_at
    resumed = Regression()
    train_offline(resumed, make_data(), **SETTINGS, folder=tmp_path / "cut")
    assert torch.equal(resumed.weight, whole.weight)
    assert resumed.half_steps == 2 * SETTINGS["updates"]
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")


def test_a_killed_run_ends_as_the_uninterrupted_one(tmp_path):
    """What dies between checkpoints continues from the last one."""
    whole = Regression()
    train_offline(whole, make_data(), **SETTINGS, folder=tmp_path / "whole")

    def die(update):
        if update == 40:
            raise MemoryError

    with pytest.raises(MemoryError):
        train_offline(Regression(), make_data(), **SETTINGS, folder=tmp_path / "cut", progress=die)
    resumed = Regression()
    train_offline(resumed, make_data(), **SETTINGS, folder=tmp_path / "cut")
    assert torch.equal(resumed.weight, whole.weight)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")


def test_equal_seeds_give_equal_runs(tmp_path):
    """The seed is the only randomness of the loop."""
    learners = [Regression() for _ in range(3)]
    for i, seed in enumerate((0, 0, 1)):
        train_offline(learners[i], make_data(), **{**SETTINGS, "seed": seed}, folder=tmp_path / str(i))
    assert torch.equal(learners[0].weight, learners[1].weight)
    assert not torch.equal(learners[0].weight, learners[2].weight)


def test_a_finished_run_is_left_alone(tmp_path):
    """Once more is no further update; more updates continue, fewer are an error."""
    learner = Regression()
    train_offline(learner, make_data(), **SETTINGS, folder=tmp_path)
    again = Regression()
    train_offline(again, make_data(), **SETTINGS, folder=tmp_path)
    assert torch.equal(again.weight, learner.weight)
    with pytest.raises(RunDirectoryError, match="60 updates already"):
        train_offline(again, make_data(), **{**SETTINGS, "updates": 30}, folder=tmp_path)
    train_offline(again, make_data(), **{**SETTINGS, "updates": 61}, folder=tmp_path)
    assert again.half_steps == 122


def test_resuming_with_other_settings_is_an_error(tmp_path):
    """The message names what differs."""
    train_offline(Regression(), make_data(), **SETTINGS, folder=tmp_path)
    with pytest.raises(RunDirectoryError, match=r"batch_size=8, but now batch_size=4"):
        train_offline(Regression(), make_data(), **{**SETTINGS, "batch_size": 4}, folder=tmp_path)
    with pytest.raises(RunDirectoryError, match=r"transitions=40, but now transitions=39"):
        train_offline(Regression(), make_data(39), **SETTINGS, folder=tmp_path)


def test_the_curve_is_measured_on_time(tmp_path):
    """``evaluate`` is called at its multiples and at the end, and its values are logged there."""
    seen = []

    def curve(update):
        seen.append(update)
        return {"success": update / 100}

    train_offline(Regression(), make_data(), **SETTINGS, folder=tmp_path, evaluate=curve, evaluate_every=25)
    assert seen == [25, 50, 60]
    rows = {row["step"]: row.get("success") for row in read_metrics(tmp_path) if "success" in row}
    assert rows == {25: 0.25, 50: 0.5, 60: 0.6}


def test_nan_in_the_data_is_an_error_before_any_update(tmp_path):
    """One NaN reward is named, and nothing is trained or written."""
    data, learner = make_data(), Regression()
    data.rewards[3] = torch.nan
    with pytest.raises(InvalidData, match=r"rewards holds 1 value.*\(3,\)"):
        train_offline(learner, data, **SETTINGS, folder=tmp_path / "run")
    assert learner.half_steps == 0
    assert not (tmp_path / "run").exists()


def test_nan_in_the_metrics_is_an_error_at_once(tmp_path):
    """A diverged learner does not train on, and its state is not kept."""
    with pytest.raises(InvalidData, match="loss became nan at step 25"):
        train_offline(Regression(broken_at=25), make_data(), **SETTINGS, folder=tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("name", ["updates", "batch_size", "log_every", "checkpoint_every"])
def test_counts_must_be_positive(tmp_path, name):
    """Validated before anything is trained."""
    with pytest.raises(ConfigError, match="must be >= 1"):
        train_offline(Regression(), make_data(), **{**SETTINGS, name: 0}, folder=tmp_path)


def test_no_data_is_an_error(tmp_path):
    """An empty dataset is named as such."""
    with pytest.raises(InvalidData, match="no transitions"):
        train_offline(Regression(), make_data(0), **SETTINGS, folder=tmp_path)


def make_comparisons(n=30):
    """The larger sum of observations is preferred."""
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(n, 3, dtype=torch.bool)
    first, second = (SegmentBatch(torch.randn(n, 4, 2, generator=g), torch.zeros(n, 3, 1), mask) for _ in "ab")
    p_first = (first.observations[:, :3].sum((1, 2)) > second.observations[:, :3].sum((1, 2))).to(torch.float32)
    return Comparisons(first, second, p_first)


class Choice(Regression):
    """Learns w in P(first ≻ second) = σ(w·(Σ o_first − Σ o_second)), from comparisons."""

    def update(self, batch):
        sums = [side.observations[:, :3].sum(1) for side in (batch.first, batch.second)]
        logit = (sums[0] - sums[1]) @ self.weight
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.p_first)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


def test_the_loop_learns_from_comparisons(tmp_path):
    """The same loop, on pairs: w → a multiple of (1, 1), and a resumed run is bitwise the uninterrupted one."""
    whole = Choice()
    train_offline(whole, make_comparisons(), **{**SETTINGS, "updates": 400}, folder=tmp_path / "whole")
    direction = torch.nn.functional.normalize(whole.weight.detach(), dim=0)
    assert float(direction @ torch.tensor([0.5, 0.5]).sqrt()) > 0.99
    train_offline(Choice(), make_comparisons(), **{**SETTINGS, "updates": 150}, folder=tmp_path / "cut")
    resumed = Choice()
    train_offline(resumed, make_comparisons(), **{**SETTINGS, "updates": 400}, folder=tmp_path / "cut")
    assert torch.equal(resumed.weight, whole.weight)


def test_comparisons_are_checked_like_transitions(tmp_path):
    """NaN is named by side, none at all is an error, and a resumed run has as many."""
    broken = make_comparisons()
    broken.second.actions[3, 1] = torch.nan
    with pytest.raises(InvalidData, match=r"second.actions holds 1 value.*\(3, 1, 0\)"):
        train_offline(Choice(), broken, **SETTINGS, folder=tmp_path / "broken")
    with pytest.raises(InvalidData, match="no comparisons"):
        train_offline(Choice(), make_comparisons()[:0], **SETTINGS, folder=tmp_path)
    train_offline(Choice(), make_comparisons(), **SETTINGS, folder=tmp_path)
    with pytest.raises(RunDirectoryError, match=r"comparisons=30, but now comparisons=20"):
        train_offline(Choice(), make_comparisons(20), **SETTINGS, folder=tmp_path)
