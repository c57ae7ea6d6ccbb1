"""Parts for the command line's tests: a recipe that notes what it was given, and the configs that name it."""

import json
import shutil
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import pytest

from prefrl import catalog, config
from prefrl.files import write_json
from prefrl.runs import RunDirectory

MAIN = """\
defaults:
  - recipe: toy
  - env: toy
  - agent: fast
  - agent@baseline: slow
  - score: unused
  - data: toy
  - _self_
  - optional experiment: null
seed: 0
out: null
dataset: null
threads: 1
workers: null
deterministic: true
tensorboard: true
"""

CONFIGS = {
    "train": MAIN,
    "recipe/toy": "# A toy.\n_target_: toy_parts.ToyRecipe\n_partial_: true\nsteps: 3\nmode: plain\n",
    "recipe/slow": "_target_: toy_parts.SlowRecipe\n_partial_: true\n",
    "recipe/failing": "_target_: toy_parts.FailingRecipe\n_partial_: true\nkind: disk\n",
    "env/toy": "_target_: toy_parts.make_env\n_partial_: true\nsize: 1\n",
    "agent/fast": "_target_: toy_parts.Agent\nlr: 0.1\nhidden: [8, 8]\n",
    "agent/slow": "_target_: toy_parts.Agent\nlr: 0.01\nhidden: [8, 8]\n",
    "agent/misspelt": "_target_: toy_parts.Agent\n_partial_: true\nlearningrate: 0.01\n",
    "agent/gone": "_target_: toy_parts.Nothing\n",
    "agent/evil": "_target_: os.system\ncommand: 'true'\n",
    "agent/alias": "_target_: toy_parts.shutil.rmtree\npath: here\n",
    "agent/torch": "_target_: torch.load\nf: evil.pt\n",
    "agent/numpy": "_target_: numpy.load\nfile: evil.npy\nallow_pickle: true\n",
    "score/unused": "_target_: toy_parts.Agent\nlr: 0.1\n",
    "data/toy": "_target_: toy_parts.Agent\nlr: 0.1\n",
    "experiment/quick": "# @package _global_\n# Less of everything.\nseed: 5\nrecipe:\n  steps: 1\n",
    "evaluate": "seed: 1000\narm: aligned\nepisodes: 50\n",
    "render": "arms: null\nout: null\n",
    "report": "# no keys\n",
    "resume": "workers: null\n",
    "import": "out: ???\n",
    "doctor": "out: .\nrendering: toy_parts.probe\n",
    "collect": "defaults:\n  - env: toy\n  - data: toy\n  - _self_\nseed: 0\nout: ???\n",
    "bench": "defaults:\n  - bench: ???\n  - _self_\n"
    "rows: null\npairs: null\nseeds: null\nout: null\nfresh: false\nmake_sides: false\ndata: null\n",
    "bench/toy": "_target_: toy_parts.bench\nrows: [first, second]\nscale: 2\n",
}


class Agent:
    """A toy learner."""

    def __init__(self, *, lr: float, hidden: list[int] | None = None) -> None:
        if lr <= 0:
            raise ValueError(f"lr must be positive, but is {lr}.")
        self.lr, self.hidden = lr, hidden


class AllEffective:
    """No key is without effect."""

    def ineffective(self, key: str) -> str | None:
        return None


class ToyRecipe(AllEffective):
    """Notes what it was given."""

    arms = ("aligned", "baseline", "dark")

    def __init__(
        self, *, env: Any, agent: Agent, baseline: Agent, steps: int, data: Any,
        mode: Literal["plain", "odd"] = "plain", seed: int = 0, workers: int = 1, dataset: str | None = None,
    ) -> None:  # fmt: skip
        self.given = {
            "agent": agent.lr,
            "baseline": baseline.lr,
            "steps": steps,
            "seed": seed,
            "workers": workers,
            "dataset": dataset,
        }

    def train(self, run: RunDirectory) -> None:
        write_json(run.path / "given.json", self.given)

    def evaluate(self, run: RunDirectory, *, arm: str, episodes: int, seed: int) -> dict[str, Any]:
        return {"success": [True] * episodes, "returns": [1.5] * episodes, "lengths": [seed] * episodes}

    def render(self, run: RunDirectory, *, arms: list[str] | None) -> Path | None:
        (run.path / "video.mp4").write_text(str(arms))
        (run.path / "video.gif").write_text(f"gif of {arms}")
        return run.path / "video.mp4" if arms != ["dark"] else None

    def report(self, run: RunDirectory) -> Path:
        return run.path / "report.html"


class FailingRecipe(AllEffective):
    """Raises what the operating system raises in the middle of a run."""

    def __init__(self, *, kind: Literal["disk", "copy", "worker"]) -> None:
        self.kind = kind

    def train(self, run: RunDirectory) -> None:
        full = OSError(28, "No space left on device", str(run.path / "metrics.jsonl"))
        copied = shutil.Error([("from", "to", "[Errno 28] No space left on device")])
        raise {"disk": full, "copy": copied, "worker": BrokenProcessPool("A child process terminated abruptly")}[
            self.kind
        ]


class SlowRecipe(AllEffective):
    """Waits to be stopped."""

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def train(self, run: RunDirectory) -> None:
        print("ready", flush=True)
        time.sleep(60)


def probe() -> list[tuple[str, bool, str]]:
    """One GL backend that draws."""
    return [("toy", True, "draws frames")]


class ToyEnv(gym.Env):
    """Nothing but a shape."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))


def make_env(*, seed: int, size: int, render_mode: str | None = None) -> gym.Env:
    if size < 1:
        raise ValueError(f"size must be positive, but is {size}.")
    return ToyEnv()


def bench(*, rows: list[str], scale: int, seeds: int | list[int] = 1, fresh: bool = False) -> list[dict[str, Any]]:
    results = {"first": (scale, 1.0, True), "second": (0.5, 1.0, False)}
    return [
        {"id": row, "what": "a toy", "value": value, "low": None, "high": None, "bar": bar, "holds": holds,
         "seeds": seeds, "seconds": 0.1}
        for row, (value, bar, holds) in results.items() if row in rows
    ]  # fmt: skip


def write_configs(folder: Path) -> Path:
    """The toy configs as a configs folder."""
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def use_configs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    write_configs(folder)
    for module in (catalog, config):
        monkeypatch.setattr(module, "config_root", lambda: folder)


def given(run: Path) -> dict[str, Any]:
    return json.loads((run / "given.json").read_text())
