"""Videos of episodes: render, put side by side, write as H.264 mp4 or as a small gif.

Frames are (T, H, W, 3) uint8, RGB. The encoder is the ffmpeg that imageio-ffmpeg carries: nothing to install.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prefrl.errors import InvalidData, PrefrlError
from prefrl.files import atomic_path
from prefrl.protocols import Behavior, MakeEnv
from prefrl.spaces import to_env

__all__ = [
    "VideoUnavailable", "film_side_by_side", "frame_of", "on_camera", "render_episode", "side_by_side", "write_gif",
    "write_video",
]  # fmt: skip

INK, BAR, GAP = (240, 243, 246), (27, 31, 36), (13, 17, 23)
SUCCESS, FAILURE = (
    (64, 196, 153),
    (240, 140, 75),
)  # told apart by the color-blind, and by the words beside them
MARK = {True: ("success", SUCCESS), False: ("no success", FAILURE), None: ("", BAR)}


class VideoUnavailable(PrefrlError):
    """No renderer draws, or there is no ffmpeg: results are unharmed, there is only nothing to watch."""


def render_episode(
    behavior: Behavior,
    make_env: MakeEnv,
    *,
    seed: int,
    max_steps: int,
    every: int = 1,
    after_success: int | None = None,
) -> tuple[np.ndarray, bool | None]:
    """One episode from ``env.reset(seed=seed)``: frames (T, H, W, 3), and whether it succeeded at any step.

    None where the environment does not say. The start, every ``every``-th step and the end are shown;
    ``after_success`` ends the episode so many steps after its first success (None: never). A trained policy takes
    part as ``rollout.PolicyBehavior(policy)``, and with a seed of ``Rollouts.seeds`` the episode is the evaluated one.
    """
    with on_camera(make_env, seed=seed) as env:
        observation, _ = env.reset(seed=seed)
        behavior.reset(env, np.random.default_rng(seed))
        frames: list[np.ndarray] = [frame_of(env)]
        success: bool | None = None
        for step in range(1, max_steps + 1):
            observation, _, terminated, truncated, info = env.step(to_env(env.action_space, behavior.act(observation)))
            if "success" in info:
                success = bool(success) or bool(info["success"])
            if success and after_success is not None:
                max_steps = min(max_steps, step + after_success)
            last = terminated or truncated or step >= max_steps
            if last or step % every == 0:
                frames.append(frame_of(env))
            if last:
                break
    return np.stack(frames), success


@contextmanager
def on_camera(make_env: MakeEnv, *, seed: int) -> Iterator[gym.Env]:
    """An environment that can be rendered, closed at the end; ``VideoUnavailable`` where there is none."""
    try:
        env = make_env(seed=seed, render_mode="rgb_array")
    except (RuntimeError, gym.error.Error) as error:
        raise VideoUnavailable(f"No video: {error} `prefrl doctor` says what is missing.") from error
    try:
        yield env
    finally:
        env.close()


def frame_of(env: gym.Env) -> np.ndarray:
    """(H, W, 3) uint8: what an environment looks like now; ``VideoUnavailable`` where it cannot be drawn."""
    try:
        frame = np.asarray(env.render())
    except (RuntimeError, gym.error.Error) as error:
        raise VideoUnavailable(f"No video: {error} `prefrl doctor` says what is missing.") from error
    if frame.ndim != 3 or frame.dtype != np.uint8:
        raise VideoUnavailable(f"No video: env.render() gave {frame.dtype} {frame.shape}, expected uint8 (H, W, 3).")
    return frame


def side_by_side(
    sequences: Sequence[np.ndarray], labels: Sequence[str], *, success: Sequence[bool | None] | None = None
) -> np.ndarray:
    """N sequences (T_i, H, W, 3) -> (max T_i, H + bar, N·W + gaps, 3): tiles in a row, a label above each.

    The last frame of a shorter one is held. ``success`` marks each tile in words and color; None leaves it
    open.
    """
    marks = [None] * len(sequences) if success is None else list(success)
    if not sequences or not len(sequences) == len(labels) == len(marks):
        raise ValueError(f"{len(sequences)} sequences, {len(labels)} labels and {len(marks)} marks do not fit.")
    for frames in sequences:
        _require_frames(frames)
    if len({frames.shape[1:] for frames in sequences}) > 1:
        raise InvalidData(f"Tiles must have one size, but are {[frames.shape[1:3] for frames in sequences]}.")
    _, H, W, _ = sequences[0].shape
    bar, gap, T = max(18, H // 9), max(2, W // 100), max(map(len, sequences))
    canvas = np.empty((T, H + bar, len(sequences) * (W + gap) - gap, 3), dtype=np.uint8)
    canvas[:] = GAP
    texts = [label + MARK[mark][0] for label, mark in zip(labels, marks, strict=True)]
    font = _font(texts, width=W - bar, height=bar)
    for i, (frames, label, mark) in enumerate(zip(sequences, labels, marks, strict=True)):
        left = i * (W + gap)
        canvas[:, :bar, left : left + W] = _label_bar(label, mark, font, width=W, height=bar)
        canvas[:, bar:, left : left + W] = frames[np.minimum(np.arange(T), len(frames) - 1)]
    return canvas


def _font(texts: Sequence[str], *, width: float, height: int) -> Any:
    """The largest font in which every text fits ``width``: all tiles share it."""
    size = 0.62 * height
    font = ImageFont.load_default(size)
    while size > 7 and max(font.getlength(text) for text in texts) > width:
        size *= 0.93
        font = ImageFont.load_default(size)
    return font


def _label_bar(label: str, mark: bool | None, font: Any, *, width: int, height: int) -> np.ndarray:
    """(height, width, 3): the label on the left, success in words on the right, over a line in its color."""
    words, color = MARK[mark]
    image = Image.new("RGB", (width, height), BAR)
    draw = ImageDraw.Draw(image)
    line, margin = max(2, height // 12), height // 4
    middle = (height - line) / 2
    draw.text((margin, middle), label, fill=INK, font=font, anchor="lm")
    draw.text((width - margin, middle), words, fill=color, font=font, anchor="rm")
    draw.rectangle((0, height - line, width, height), fill=color)
    return np.asarray(image)


def film_side_by_side(
    path: Path, behaviors: Mapping[str, Behavior], make_env: MakeEnv, *, fps: float, **episode: Any
) -> Path:
    """The same episode of each behavior, labelled by its name, as ``path`` (mp4) and as a gif beside it.

    ``episode``: seed, max_steps and further arguments of :func:`render_episode`.
    """
    filmed = [render_episode(behavior, make_env, **episode) for behavior in behaviors.values()]
    frames = side_by_side([f for f, _ in filmed], list(behaviors), success=[s for _, s in filmed])
    write_video(path, frames, fps=fps)
    write_gif(path.with_suffix(".gif"), frames, fps=fps)
    return path


def write_video(path: Path | str, frames: np.ndarray, fps: float) -> None:
    """Write frames (T, H, W, 3) as mp4 (H.264, yuv420p: plays in every browser), atomically.

    yuv420p needs even sizes: an odd last row or column is doubled.
    """
    _require_frames(frames)
    if not fps > 0:
        raise ValueError(f"fps must be > 0, but is {fps}.")
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise VideoUnavailable(
            f"Cannot write {path}: no ffmpeg found. Install it with `pip install imageio-ffmpeg`, or "
            "name yours in the variable IMAGEIO_FFMPEG_EXE."
        ) from error
    with atomic_path(path) as temporary:
        _encode(temporary, np.ascontiguousarray(frames), fps)


def _encode(path: Path, frames: np.ndarray, fps: float) -> None:
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (frames.shape[2], frames.shape[1]),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=1,  # no silent rescaling
        ffmpeg_log_level="error",
        quality=None,
        output_params=["-crf", "23", "-movflags", "+faststart", "-f", "mp4"],
    )
    writer.send(None)  # starts ffmpeg
    try:
        for frame in frames:
            writer.send(frame)
    finally:
        writer.close()
    if path.stat().st_size == 0:
        raise OSError("ffmpeg wrote nothing (is the disk full?)")


def write_gif(path: Path | str, frames: np.ndarray, fps: float, *, max_width: int = 720, colors: int = 64) -> None:
    """Write frames (T, H, W, 3) as a small looping gif, atomically: at most ``max_width`` wide."""
    _require_frames(frames)
    _, H, W, _ = frames.shape
    width = min(W, max_width)
    size = (width, max(1, round(H * width / W)))
    images = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames]
    sample = np.concatenate([np.asarray(image) for image in images[:: max(1, len(images) // 8)]])
    palette = Image.fromarray(sample).quantize(colors)  # of frames all over the episode: no flicker
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with atomic_path(path) as temporary:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=1000 / fps,
            loop=0,
            optimize=True,
        )


def _require_frames(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise InvalidData(f"Frames must be uint8 (T, H, W, 3), T >= 1, but are {frames.dtype} {frames.shape}.")
