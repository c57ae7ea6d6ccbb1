"""Videos in memory and on disk: what RAPL compares (arXiv 2310.07932), frames alone, without actions or rewards.

Axes: V videos, F frames of all videos together, T frames of one video, H and W pixels, K numbers of a vector.

On disk frames are arrays in npz files: bit for bit what they were on every machine, read without a decoder, and each
with a checksum by which damage is found. An mp4 is a tenth as large, but its colors are rounded.
"""

from __future__ import annotations

import re
import subprocess
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from prefrl.core import require_finite
from prefrl.errors import ConfigError, DamagedFile, InvalidData, PrefrlError
from prefrl.files import atomic_path, read_json, write_json

__all__ = ["Videos", "every_kth", "read_video_files", "read_videos", "write_videos"]

FORMAT_VERSION = 1
FOLDER, INFO, FILE = "videos", "info.json", "file-{:03d}.npz"
FILE_BYTES = 64 * 2**20  # of frames before compression


@dataclass(frozen=True)
class Videos:
    """V >= 1 videos of one frame size, one after the other.

    frames: (F, H, W, 3) uint8 RGB; or (F, K) float32, vectors in the place of images · lengths: (V,) int64, frames of
    each, >= 1. Raises ``InvalidData`` on other shapes, on none at all, and on NaN.
    """

    frames: np.ndarray
    lengths: np.ndarray

    def __post_init__(self) -> None:
        frames = np.asarray(self.frames)
        if frames.dtype != np.uint8 and frames.ndim == 2:
            frames = frames.astype(np.float32, copy=False)
            require_finite("Videos: frames", frames)
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "lengths", np.asarray(self.lengths, dtype=np.int64))
        image = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
        if not (image or (frames.dtype == np.float32 and frames.ndim == 2)) or 0 in frames.shape[1:]:
            raise InvalidData(
                "Videos: frames must be images (F, H, W, 3) uint8 or vectors (F, K) float32, but are "
                f"{frames.dtype} {frames.shape}. Videos.from_list takes a list of videos, also of float images."
            )
        if self.lengths.ndim != 1 or len(self.lengths) == 0 or (self.lengths < 1).any():
            raise InvalidData("Videos: lengths must name at least one video, each of at least one frame.")
        if self.lengths.sum() != len(frames):
            raise InvalidData(f"Videos: lengths sum to {self.lengths.sum()} frames, but there are {len(frames)}.")

    @staticmethod
    def from_list(videos: Sequence[Any]) -> Videos:
        """Of videos (T, H, W, 3), uint8 or float in [0, 1], or (T, K) float; all of one frame size.

        >>> len(Videos.from_list([np.zeros((2, 4, 4, 3)), np.ones((5, 4, 4, 3))]).frames)
        7
        """
        if len(videos) == 0:
            raise InvalidData("Videos: there is no video. Collect some, or check the list or the set that is empty.")
        arrays = [_as_frames(f"video {i}", np.asarray(video)) for i, video in enumerate(videos)]
        for i, array in enumerate(arrays):
            if array.shape[1:] != arrays[0].shape[1:] or array.dtype != arrays[0].dtype:
                raise InvalidData(
                    f"Videos must have one frame size, but video 0 has frames {arrays[0].dtype} {arrays[0].shape[1:]} "
                    f"and video {i} has {array.dtype} {array.shape[1:]}. Render or resize them to one size."
                )
        return Videos(np.concatenate(arrays), np.array([len(array) for array in arrays]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """(T, H, W, 3), or (T, K): one video."""
        start = self.offsets[range(len(self))[index]]  # a range knows negative numbers, and what is outside
        return self.frames[start : start + self.lengths[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.frames[start:end] for start, end in pairwise(self.offsets))

    @property
    def offsets(self) -> np.ndarray:
        """(V+1,) int64: video v holds the frames from entry v up to entry v + 1."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def subset(self, index: Any) -> Videos:
        """The videos at an index array, a boolean mask or a slice, in its order."""
        chosen = np.arange(len(self))[index].reshape(-1)
        if len(chosen) == 0:
            raise InvalidData(f"Videos.subset: none of {len(self)} videos is chosen.")
        return Videos(np.concatenate([self[v] for v in chosen]), self.lengths[chosen])


def every_kth(frames: np.ndarray, k: int) -> np.ndarray:
    """Every k-th frame (or number), and the last: of each group of k that follow each other, the last one.

    >>> every_kth(np.array([1, 2, 3, 4, 5, 6, 7, 8]), 3)
    array([3, 6, 8])
    """
    if k < 1:
        raise ConfigError(f"every must be at least 1 (frame), but is {k}.")
    T = len(frames)
    return frames[np.minimum(np.arange(k, T + k, k), T) - 1]


def write_videos(folder: Path | str, videos: Videos) -> None:
    """Write to ``folder/videos``, where ``folder`` may be that of a dataset (:func:`prefrl.data.write_dataset` first).

    ``info.json`` comes last: without it there are no videos, so a killed write can be done again. Others are not
    overwritten.
    """
    path = Path(folder) / FOLDER
    if (path / INFO).exists():
        raise PrefrlError(f"{path} holds videos already. Choose another folder, or remove it first.")
    frame_bytes = videos.frames[0].nbytes
    starts = np.flatnonzero(np.diff(videos.offsets[:-1] * frame_bytes // FILE_BYTES, prepend=-1))  # first of each file
    for number, (start, end) in enumerate(pairwise([*starts, len(videos)])):
        part = videos.subset(slice(start, end))
        with atomic_path(path / FILE.format(number)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, frames=part.frames, lengths=part.lengths)
    info = {
        "format_version": FORMAT_VERSION,
        "files": len(starts),
        "videos": len(videos),
        "frames": len(videos.frames),
        "frame_shape": list(videos.frames.shape[1:]),
        "dtype": str(videos.frames.dtype),
    }
    write_json(path / INFO, info)


def read_videos(folder: Path | str) -> Videos:
    """What :func:`write_videos` wrote, bit for bit; ``DamagedFile`` if a part is missing, cut or foreign."""
    path = Path(folder) / FOLDER
    info = read_json(path / INFO)
    found = info.get("format_version") if isinstance(info, dict) else None
    if found != FORMAT_VERSION:
        raise DamagedFile(
            f"{path / INFO} has format_version {found!r}, expected {FORMAT_VERSION}. It describes no videos of this "
            "version of prefrl."
        )
    parts = [_read_part(path / FILE.format(number)) for number in range(info.get("files", 0))]
    if not parts:
        raise DamagedFile(f"{path / INFO} names no files. Make the videos anew.")
    kinds = {(str(frames.dtype), frames.shape[1:]) for frames, _ in parts}
    counts = sum(len(lengths) for _, lengths in parts), sum(len(frames) for frames, _ in parts)
    promised = info.get("videos"), info.get("frames")
    if counts != promised or kinds != {(info.get("dtype"), tuple(info.get("frame_shape", ())))}:
        raise DamagedFile(
            f"{path}: its files hold {counts[0]} videos with {counts[1]} frames of {sorted(kinds)}, but {INFO} "
            f"promises {promised[0]} with {promised[1]} of {info.get('dtype')} {info.get('frame_shape')}. Restore the "
            "missing or changed file, or make the videos anew."
        )
    return Videos(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def read_video_files(paths: Sequence[Path | str], *, size: tuple[int, int] | None = None, every: int = 1) -> Videos:
    """A user's own recordings (mp4, mov, webm, gif …), decoded by the ffmpeg that imageio-ffmpeg carries.

    Args:
        size: (H, W) that frames are scaled to; None: as recorded, which must then be one size for all.
        every: keep every so many frames, and the last (:func:`every_kth`).
    """
    if not paths:
        raise InvalidData("read_video_files: there is no file. Name at least one video.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigError(f"read_video_files: size must be (height, width) in pixels, or None, but is {size}.")
    videos = [every_kth(_decoded(Path(path), size), every) for path in paths]
    for path, video in zip(paths, videos, strict=True):
        if video.shape[1:] != videos[0].shape[1:]:
            (H, W), (h, w) = videos[0].shape[1:3], video.shape[1:3]
            raise InvalidData(
                f"{paths[0]} has frames of {H} x {W} pixels, but {path} of {h} x {w}. Give size=(height, width)."
            )
    return Videos.from_list(videos)


def _decoded(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """(T, H, W, 3) uint8, from ffmpeg's PPM pictures: a header with the size, then the bytes, of every frame."""
    if not path.is_file():
        raise DamagedFile(f"{path} is missing. Is the path right?")
    scale = [] if size is None else ["-vf", f"scale={size[1]}:{size[0]}"]
    decode = ["-i", str(path.resolve()), *scale, "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-xerror", *decode]
    done = subprocess.run(program, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    header = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", done.stdout)
    if done.returncode or header is None:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it holds no frame"]
        raise DamagedFile(f"{path} is not a video that can be read ({reason[0]}). Is it complete?")
    W, H = int(header[1]), int(header[2])
    pictures = np.frombuffer(done.stdout, dtype=np.uint8).reshape(-1, header.end() + H * W * 3)
    return pictures[:, header.end() :].reshape(-1, H, W, 3)


def _as_frames(name: str, video: np.ndarray) -> np.ndarray:
    """uint8 images as they are, float images in [0, 1] as uint8, vectors as float32."""
    if video.dtype == np.uint8 or video.dtype.kind != "f":
        return video.astype(np.float32) if video.ndim == 2 else video
    finite = np.isfinite(video).reshape(len(video), -1).all(1)
    if not finite.all():
        raise InvalidData(
            f"Videos: {name} holds NaN or infinity, first in frame {int(np.argmin(finite))} of {len(video)}. Find out "
            "where it came from, or leave the video out."
        )
    if video.ndim == 2:
        return video.astype(np.float32)
    if video.size and not (video.min() >= 0 and video.max() <= 1):
        raise InvalidData(
            f"Videos: float images must be in [0, 1], but {name} is in [{video.min():g}, {video.max():g}]. Scale them, "
            "or give uint8."
        )
    return np.rint(255 * video).astype(np.uint8)


def _read_part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return file["frames"], file["lengths"]
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing. Is the folder complete?") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedFile(f"{path} is damaged ({error}). Restore it, or make the videos anew.") from error
