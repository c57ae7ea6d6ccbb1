"""The commands, and one dataclass each for its run-level keys; the values are in configs/<command>.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prefrl.errors import ConfigError

__all__ = ["COMMANDS", "KEY_VALUE", "SCHEMAS", "Command", "CommandConfig", "RunConfig"]

KEY_VALUE = re.compile(r"[+~]*[A-Za-z_][\w.@]*=")


class Command(NamedTuple):
    """arguments: the words before ``key=value`` ([OPTIONAL] in brackets) · configured: takes keys."""

    arguments: tuple[str, ...]
    summary: str
    configured: bool = True


COMMANDS = {
    "train": Command((), "run a recipe: from data and preferences to policies, videos and a report"),
    "resume": Command(("RUN",), "continue a stopped run at its last completed step"),
    "evaluate": Command(("RUN",), "roll a trained policy out on new seeds"),
    "render": Command(("RUN",), "make the video of a run's policies anew"),
    "report": Command(("RUN", "[RUN …]"), "make report.html of a run anew, or one of many runs: means over seeds"),
    "collect": Command((), "make a dataset of episodes"),
    "label": Command(("DATASET",), "let a simulated teacher compare segments of a dataset"),
    "transfer": Command(
        ("SOURCE", "[TARGET]"), "carry a dataset's preferences to another task's, or over its own, by optimal transport"
    ),
    "import": Command(("NAME", "FILE"), "make a dataset from a foreign file (prefrl list importers)"),
    "list": Command(("[GROUP]",), "what can be chosen: envs, agents, teachers, …", configured=False),
    "bench": Command(("NAME",), "measure, compare with the bars, write JSON (prefrl list benches)"),
    "doctor": Command((), "what works on this machine, and how to mend what does not"),
    "completion": Command(("SHELL",), "print a completion script for bash, zsh or fish", configured=False),
}


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """Base of all: checks the ranges of the keys that several commands share."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("threads", "workers", "comparisons", "segment_length", "episodes"), 1)
        for name, minimum in (least | {"grades": 1, "source_comparisons": 1, "windows": 2}).items():
            value = getattr(self, name, None)
            if value is not None and value < minimum:
                raise ConfigError(f"{name} must be at least {minimum}, but is {value}.")
        if not 0 < getattr(self, "share", 1) <= 1:
            raise ConfigError(f"share must be in (0, 1], but is {getattr(self, 'share', 1)}.")
        seed = getattr(self, "seed", 0)
        if seed < 0:
            raise ConfigError(f"seed must be 0 or larger, but is {seed}.")


@dataclass(frozen=True, kw_only=True)
class RunConfig(CommandConfig):
    """Run-level keys of ``prefrl train``."""

    seed: int
    out: str | None
    dataset: str | None
    source_dataset: str | None = None  # runs of before it was there have none
    threads: int
    workers: int | None
    deterministic: bool
    tensorboard: bool


@dataclass(frozen=True, kw_only=True)
class CollectConfig(CommandConfig):
    """Keys of ``prefrl collect``."""

    seed: int
    out: str


@dataclass(frozen=True, kw_only=True)
class LabelConfig(CommandConfig):
    """Keys of ``prefrl label DATASET``."""

    seed: int
    comparisons: int
    segment_length: int


@dataclass(frozen=True, kw_only=True)
class TransferConfig(CommandConfig):
    """Keys of ``prefrl transfer SOURCE [TARGET]``."""

    seed: int
    comparisons: int
    labels: Literal["soft", "hard"] | None
    share: float
    grades: int
    segment_length: int | None
    windows: int
    source_comparisons: int
    target_labels: bool
    orient: bool
    method: Literal["gromov", "fused", "wasserstein"]
    distance: Literal["euclidean", "cosine", "window"]
    solver: Literal["exact", "entropic", "proximal", "quantized"]
    epsilon: float | None
    alpha: float
    score_share: float

    def ineffective(self, key: str, *, within: bool) -> str | None:
        """With what a key changes nothing, another key's value or a single dataset; None if it does."""
        if within:
            between = ("target_labels", "orient", "method", "distance", "solver", "score_share")
            return "a single dataset" if key in between else None
        idle = {"gromov": ("alpha", "score_share"), "wasserstein": ("alpha", "score_share", "distance"), "fused": ()}
        if key in idle[self.method]:
            return f"method={self.method}"
        return "solver=exact" if key == "epsilon" and self.solver == "exact" else None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CommandConfig):
    """Keys of ``prefrl evaluate RUN``."""

    seed: int
    arm: str
    episodes: int


@dataclass(frozen=True, kw_only=True)
class RenderConfig(CommandConfig):
    """Keys of ``prefrl render RUN``."""

    arms: list[str] | None
    out: str | None


@dataclass(frozen=True, kw_only=True)
class ReportConfig(CommandConfig):
    """Keys of ``prefrl report RUN …``."""

    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResumeConfig(CommandConfig):
    """Keys of ``prefrl resume RUN``: only what cannot change a number."""

    workers: int | None


@dataclass(frozen=True, kw_only=True)
class ImportConfig(CommandConfig):
    """Keys of ``prefrl import NAME FILE``."""

    out: str


@dataclass(frozen=True, kw_only=True)
class BenchConfig(CommandConfig):
    """Keys of ``prefrl bench NAME``."""

    rows: list[str | int] | None
    pairs: list[str] | None
    seeds: int | list[int] | None
    out: str | None
    fresh: bool
    make_sides: bool
    data: str | None


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CommandConfig):
    """Keys of ``prefrl doctor``."""

    out: str
    rendering: str


SCHEMAS: dict[str, type[CommandConfig]] = {
    "train": RunConfig,
    "collect": CollectConfig,
    "label": LabelConfig,
    "transfer": TransferConfig,
    "evaluate": EvaluateConfig,
    "render": RenderConfig,
    "report": ReportConfig,
    "resume": ResumeConfig,
    "import": ImportConfig,
    "bench": BenchConfig,
    "doctor": DoctorConfig,
}
