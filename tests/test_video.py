"""Laws of videos: what goes in comes out, at its size; the episode shown is the episode evaluated."""

import re
import subprocess
from pathlib import Path

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from prefrl.errors import InvalidData, PrefrlError
from prefrl.evaluation.rollout import PolicyBehavior, rollout
from prefrl.evaluation.video import VideoUnavailable, render_episode, side_by_side, write_gif, write_video


class Dot(gym.Env):
    """A dot on a line that must reach 1; its frame is bright where the dot is."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own style)

    def __init__(self, *, seed: int, render_mode: str | None = None, broken: str = ""):
        if broken == "make" and render_mode:
            raise RuntimeError("no GL backend draws.")
        self.render_mode, self.broken, self.open = render_mode, broken, True
        self.observation_space = gym.spaces.Box(-2, 2, (1,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.x, self.t = self.x + 0.1 * float(action[0]), self.t + 1
        return np.array([self.x], np.float32), 0.0, self.t == 25, False, {"success": self.x > 0.8}

    def render(self):
        if self.broken == "render":
            return None
        frame = np.zeros((33, 41, 3), np.uint8)
        frame[:, int(np.clip(20 + 10 * self.x, 0, 40))] = 255
        return frame


class Right:
    """A policy: full speed to the right; from x > 0.9 on, back again."""

    def act(self, observations):
        return torch.where(observations > 0.9, -1.0, 1.0)


def decode(path: Path) -> tuple[np.ndarray, str]:
    """Frames (T, H, W, 3) and ffmpeg's description of the stream."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    text = done.stderr.decode()
    width, height = map(int, re.search(r"Video: h264.*?yuv420p.*? (\d+)x(\d+)", text).groups())
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3), text


def moving_square(frames=12, height=48, width=64):
    video = np.full((frames, height, width, 3), 40, np.uint8)
    for t in range(frames):
        video[t, 8:24, 2 * t : 2 * t + 16] = (220, 60, 30)
    return video


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63), (1, 1)])
def test_video_round_trip(tmp_path, size):
    """As many frames as given, H.264 in yuv420p, the size rounded up to even, pictures recognizable."""
    frames = moving_square(height=size[0], width=size[1])
    write_video(tmp_path / "a.mp4", frames, fps=10)
    back, text = decode(tmp_path / "a.mp4")
    assert back.shape == (12, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert " 10 fps" in text
    assert np.abs(back[:, : size[0], : size[1]].astype(int) - frames).mean() < 8


def test_odd_edges_are_doubled_not_rescaled(tmp_path):
    """The added row is a copy of the last one: no pixel moves."""
    frames = np.zeros((3, 33, 33, 3), np.uint8)
    frames[:, 16:] = 200
    write_video(tmp_path / "a.mp4", frames, fps=5)
    back, _ = decode(tmp_path / "a.mp4")
    assert np.abs(back[:, :14].astype(int)).max() < 40
    assert np.abs(back[:, 19:].astype(int) - 200).max() < 40


def test_video_is_written_whole_or_not_at_all(tmp_path):
    """An encoder that fails leaves the old file and no temporary one."""
    target = tmp_path / "a.mp4"
    write_video(target, moving_square(), fps=10)
    before = target.read_bytes()
    with pytest.raises(ValueError, match="fps"):
        write_video(target, moving_square(), fps=0)
    with pytest.raises(PrefrlError, match=re.escape(str(target))):
        write_video(target, np.broadcast_to(np.uint8(0), (2, 40000, 40000, 3))[:, :2, :], fps=10)
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_missing_ffmpeg_says_what_to_do(tmp_path, monkeypatch):
    """Without ffmpeg the error names the file and the fix."""

    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(VideoUnavailable, match=r"a\.mp4.*pip install imageio-ffmpeg"):
        write_video(tmp_path / "a.mp4", moving_square(), fps=10)
    assert list(tmp_path.iterdir()) == []


def test_gif_keeps_frames_colors_and_pace(tmp_path):
    """As many frames as given, at most max_width wide, the right time per frame, looping."""
    write_gif(tmp_path / "a.gif", moving_square(), fps=10, max_width=32)
    with Image.open(tmp_path / "a.gif") as image:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
        assert (image.size, image.info["duration"], image.info["loop"]) == ((32, 24), 100, 0)
    assert len(frames) == 12
    assert np.abs(frames[0][6, 4].astype(int) - (220, 60, 30)).max() < 12


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    height=st.integers(8, 60),
    width=st.integers(30, 90),
)
def test_side_by_side_holds_the_last_frame(lengths, height, width):
    """Every tile shows its own frames, then its last one, under a bar that covers no pixel of it."""
    tiles = [
        np.arange(1, 1 + T, dtype=np.uint8)[:, None, None, None] * 10 + np.full((T, height, width, 3), i, np.uint8)
        for i, T in enumerate(lengths)
    ]
    shown = side_by_side(tiles, [f"policy {i}" for i in range(len(tiles))])
    bar, gap = shown.shape[1] - height, max(2, width // 100)
    assert shown.shape == (max(lengths), height + bar, len(tiles) * width + (len(tiles) - 1) * gap, 3)
    for i, tile in enumerate(tiles):
        left = i * (width + gap)
        for t in range(max(lengths)):
            assert np.array_equal(shown[t, bar:, left : left + width], tile[min(t, len(tile) - 1)])


def test_labels_and_success_are_drawn():
    """Other labels give other bars, and success looks different from failure and from no mark."""
    tile = np.zeros((1, 90, 160, 3), np.uint8)

    def bar(label, mark):
        return side_by_side([tile], [label], success=[mark])[0, :-90].tobytes()

    drawn = {bar("BC", None), bar("aligned", None), bar("BC", True), bar("BC", False)}
    assert len(drawn) == 4


def test_tiles_of_different_sizes_are_refused():
    """Rescaling silently would misrepresent; so would losing a label."""
    a, b = np.zeros((1, 10, 10, 3), np.uint8), np.zeros((1, 10, 12, 3), np.uint8)
    with pytest.raises(InvalidData, match="one size"):
        side_by_side([a, b], ["a", "b"])
    with pytest.raises(ValueError, match="do not fit"):
        side_by_side([a, a], ["a"])


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_wrong_frames_are_refused(tmp_path, frames):
    """Floats, a single picture, no frames: an error that says what was expected."""
    for write in (write_video, write_gif):
        with pytest.raises(InvalidData, match=r"uint8 \(T, H, W, 3\)"):
            write(tmp_path / "a", frames, 10)


def test_rendered_episode_is_the_evaluated_one():
    """With a seed of the evaluation, the video has its length and its success."""
    judged = rollout(Right(), Dot, episodes=8, seed=0, max_steps=12)
    assert 0 < judged.success.sum() < 8
    for seed, success, length in zip(judged.seeds.tolist(), judged.success, judged.lengths, strict=True):
        frames, shown = render_episode(PolicyBehavior(Right()), Dot, seed=seed, max_steps=12)
        assert (len(frames), shown) == (length + 1, success)


@pytest.mark.parametrize("every", [1, 2, 7, 100])
def test_start_and_end_are_always_shown(every):
    """Skipping frames keeps the first and the last one."""
    full, _ = render_episode(PolicyBehavior(Right()), Dot, seed=1, max_steps=25)
    some, _ = render_episode(PolicyBehavior(Right()), Dot, seed=1, max_steps=25, every=every)
    assert len(some) == 1 + -(-25 // every)
    assert np.array_equal(some[0], full[0])
    assert np.array_equal(some[-1], full[-1])


@pytest.mark.parametrize("broken", ["make", "render"])
def test_no_picture_is_a_clear_error(broken):
    """Where nothing draws, the error says so and points to the doctor; it is not a crash of the run."""
    with pytest.raises(VideoUnavailable, match="No video"):
        render_episode(PolicyBehavior(Right()), lambda **k: Dot(broken=broken, **k), seed=0, max_steps=5)


def test_an_environment_that_never_says_so_has_neither_succeeded_nor_failed():
    """Without ``info["success"]`` an episode is not marked as a failure."""

    class Silent(Dot):
        def step(self, action):
            return *super().step(action)[:4], {}

    assert render_episode(PolicyBehavior(Right()), Silent, seed=1, max_steps=25)[1] is None


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_episode_can_end_after_its_success(after):
    """The frames are those of the whole episode, up to so many steps after the first success."""
    whole, _ = render_episode(PolicyBehavior(Right()), Dot, seed=3, max_steps=30)
    shown, success = render_episode(PolicyBehavior(Right()), Dot, seed=3, max_steps=30, after_success=after)
    env = Dot(seed=3)
    env.reset(seed=3)
    first = next(step for step in range(1, 26) if env.step(np.ones(1))[4]["success"])
    assert success
    assert len(shown) == 1 + first + after
    assert (shown == whole[: len(shown)]).all()
