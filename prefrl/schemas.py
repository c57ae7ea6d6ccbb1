"""Schemas of the run-level keys: one dataclass a
command. Names and types are here, values in configs/<command>.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from prefrl.errors import ConfigError

__all__ = ["SCHEMAS", "CommandConfig", "RunConfig"]


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """Base of all: checks the ranges of the keys that several commands share."""

    def __post_init__(self) -> None:
        for name in ("threads", "workers", "comparisons", "segment_length", "episodes"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, but is {value}.")
        seed = getattr(self, "seed", 0)
        if seed < 0:
            raise ConfigError(f"seed must be 0 or larger, but is {seed}.")


@dataclass(frozen=True, kw_only=True)
class RunConfig(CommandConfig):
    """Run-level keys of ``prefrl train``."""

    seed: int
    out: str | None
    dataset: str | None
    device: str
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
    """``prefrl report RUN`` has no keys."""


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

    rows: list[str] | None
    seeds: int | list[int] | None
    out: str | None
    fresh: bool
    make_sides: bool


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CommandConfig):
    """Keys of ``prefrl doctor``."""

    out: str


SCHEMAS: dict[str, type[CommandConfig]] = {
    "train": RunConfig,
    "collect": CollectConfig,
    "label": LabelConfig,
    "evaluate": EvaluateConfig,
    "render": RenderConfig,
    "report": ReportConfig,
    "resume": ResumeConfig,
    "import": ImportConfig,
    "bench": BenchConfig,
    "doctor": DoctorConfig,
}
