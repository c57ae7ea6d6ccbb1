"""Laws of videos: what they hold, that files give back every bit, that damage is found, and how they are collected."""

import json

import gymnasium as gym
import numpy as np
import pytest
from strategies import same_episodes

from prefrl.data.collect import BehaviorGroup, collect_episodes, collect_videos
from prefrl.data.videos import Videos, every_kth, read_video_files, read_videos, write_videos
from prefrl.errors import ConfigError, DamagedFile, InvalidData, PrefrlError
from prefrl.evaluation.video import write_video


def images(*lengths, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(256, size=(T, size, size, 3), dtype=np.uint8) for T in lengths]


def same(one, two):
    frames = one.frames.dtype == two.frames.dtype and np.array_equal(one.frames, two.frames)
    return frames and np.array_equal(one.lengths, two.lengths)


def test_videos_are_given_back_one_by_one():
    """By number, from the end too, and by iteration; a subset has its own order."""
    parts = images(3, 1, 5)
    videos = Videos.from_list(parts)
    assert len(videos) == 3
    for v in (0, 1, 2, -1):
        np.testing.assert_array_equal(videos[v], parts[v])
    assert all(np.array_equal(a, b) for a, b in zip(videos, parts, strict=True))
    assert same(videos.subset([2, 0]), Videos.from_list([parts[2], parts[0]]))
    assert same(videos.subset(np.array([False, True, False])), Videos.from_list([parts[1]]))
    with pytest.raises(IndexError):
        videos[3]


def test_float_images_are_bytes_to_the_nearest():
    """x in [0, 1] becomes round(255 x); vectors stay numbers."""
    found = Videos.from_list([np.linspace(0, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)])
    assert found.frames.dtype == np.uint8
    assert np.abs(found.frames.ravel() / 255 - np.linspace(0, 1, 96)).max() <= 0.5 / 255 + 1e-9
    vectors = Videos.from_list([np.ones((2, 5)), 7 * np.ones((1, 5))])
    assert (vectors.frames.dtype, vectors.frames[-1, 0]) == (np.float32, 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(3, 4, 4, 3), (3, 5)])
def test_nan_in_a_frame_is_named(bad, shape):
    """The error says which video and which frame."""
    broken = np.zeros(shape)
    broken[2].flat[0] = bad
    with pytest.raises(InvalidData, match="video 1 holds NaN or infinity, first in frame 2 of 3"):
        Videos.from_list([np.zeros(shape), broken])


@pytest.mark.parametrize(
    ("videos", "named"),
    [
        ([], "there is no video"),
        ([images(2)[0], images(2, size=9)[0]], r"one frame size.*\(8, 8, 3\).*video 1 has uint8 \(9, 9, 3\)"),
        ([images(2)[0], np.zeros((2, 5))], "one frame size"),
        ([np.full((1, 4, 4, 3), 255.0)], r"in \[0, 1\], but video 0 is in \[255, 255\]"),
        ([images(0)[0]], "at least one frame"),
        ([np.zeros((2, 4, 4), dtype=np.uint8)], r"images \(F, H, W, 3\)"),
        ([np.zeros((2, 4, 4, 4), dtype=np.uint8)], r"images \(F, H, W, 3\)"),
    ],
)
def test_what_is_no_set_of_videos_is_refused(videos, named):
    """None, different sizes, a wrong range, no frames, no color."""
    with pytest.raises(InvalidData, match=named):
        Videos.from_list(videos)


def test_lengths_must_fit_the_frames():
    """As many frames as the lengths say; a subset of none is refused."""
    with pytest.raises(InvalidData, match="sum to 3 frames, but there are 2"):
        Videos(images(2)[0], [3])
    with pytest.raises(InvalidData, match="none of 1"):
        Videos.from_list(images(2)).subset([])


@pytest.mark.parametrize("parts", [images(3, 1, 5), [np.random.default_rng(0).normal(size=(4, 3))]])
def test_files_give_back_every_bit(parts, tmp_path):
    """What was written is read: images and vectors."""
    videos = Videos.from_list(parts)
    write_videos(tmp_path, videos)
    assert same(read_videos(tmp_path), videos)


def test_many_videos_take_several_files(tmp_path, monkeypatch):
    """A file is begun when one is full; a video larger than a file has one of its own; none is lost."""
    monkeypatch.setattr("prefrl.data.videos.FILE_BYTES", 5 * 8 * 8 * 3)
    videos = Videos.from_list(images(3, 3, 11, 1, 1, 1, 2, 9))
    write_videos(tmp_path, videos)
    assert len(list((tmp_path / "videos").glob("file-*.npz"))) > 3
    assert same(read_videos(tmp_path), videos)


def test_videos_are_not_overwritten_but_a_cut_write_is_done_again(tmp_path):
    """Without info.json nothing was written; with it, the folder is taken."""
    videos = Videos.from_list(images(2, 2))
    write_videos(tmp_path, videos)
    with pytest.raises(PrefrlError, match="holds videos already"):
        write_videos(tmp_path, videos)
    (tmp_path / "videos" / "info.json").unlink()
    with pytest.raises(DamagedFile, match=r"info\.json is missing"):
        read_videos(tmp_path)
    write_videos(tmp_path, videos)
    assert same(read_videos(tmp_path), videos)


def flip_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-50]),
    "changed": flip_byte,
    "foreign": lambda file: file.write_text("no zip"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_named(damage, tmp_path):
    """A file that is missing, cut or changed by one byte: the error names it."""
    write_videos(tmp_path, Videos.from_list(images(4, 4)))
    DAMAGE[damage](tmp_path / "videos" / "file-000.npz")
    with pytest.raises(DamagedFile, match=r"file-000\.npz"):
        read_videos(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"videos": 3}, "hold 2 videos with 8 frames.*promises 3"),
        ({"format_version": 9}, "format_version 9"),
        ({"frame_shape": [9, 9, 3]}, r"promises 2 with 8 of uint8 \[9, 9, 3\]"),
        ({"files": 0}, "names no files"),
    ],
)
def test_files_must_hold_what_the_info_promises(change, named, tmp_path):
    """Another number, version or size is damage."""
    write_videos(tmp_path, Videos.from_list(images(4, 4)))
    info = tmp_path / "videos" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | change))
    with pytest.raises(DamagedFile, match=named):
        read_videos(tmp_path)


def gradient(T, H=32, W=48):
    """Smooth frames that get brighter: a lossy codec keeps them within a few values."""
    frame = np.linspace(0, 150, H)[:, None] + np.linspace(0, 50, W)
    return np.stack([np.repeat((frame + 3 * t)[..., None], 3, axis=2) for t in range(T)]).astype(np.uint8)


def test_recordings_are_read(tmp_path):
    """As many frames as were written, in their order, up to the codec's error; every k-th, and at another size."""
    write_video(tmp_path / "a.mp4", gradient(7), fps=10)
    write_video(tmp_path / "b.mp4", gradient(4), fps=30)
    found = read_video_files([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    assert found.lengths.tolist() == [7, 4]
    assert np.abs(found[0].astype(int) - gradient(7)).max() < 12
    thinned = read_video_files([tmp_path / "a.mp4"], every=3)
    np.testing.assert_array_equal(thinned.frames, found[0][[2, 5, 6]])
    small = read_video_files([tmp_path / "a.mp4"], size=(16, 24))
    assert small.frames.shape == (7, 16, 24, 3)
    assert abs(small[0].mean() - found[0].mean()) < 3


def test_recordings_of_different_sizes_are_refused(tmp_path):
    """The error names both files and both sizes; size=… joins them."""
    write_video(tmp_path / "a.mp4", gradient(3), fps=10)
    write_video(tmp_path / "b.mp4", gradient(3, 20, 20), fps=10)
    files = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    with pytest.raises(InvalidData, match=r"a\.mp4 has frames of 32 x 48.*b\.mp4 of 20 x 20.*size="):
        read_video_files(files)
    assert read_video_files(files, size=(16, 16)).frames.shape == (6, 16, 16, 3)


def test_what_is_no_recording_is_named(tmp_path):
    """A missing file, a text, half a video, no file at all."""
    write_video(tmp_path / "whole.mp4", gradient(5), fps=10)
    (tmp_path / "half.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:600])
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("half", "text", "none"):
        with pytest.raises(DamagedFile, match=rf"{name}\.mp4"):
            read_video_files([tmp_path / f"{name}.mp4"])
    with pytest.raises(InvalidData, match="no file"):
        read_video_files([])
    with pytest.raises(ConfigError, match="size must be"):
        read_video_files([tmp_path / "whole.mp4"], size=(0, 4))


def test_the_last_frame_is_always_kept():
    """Frames k, 2k, … and the last, of any length."""
    for T in range(1, 9):
        for k in range(1, 10):
            kept = every_kth(np.arange(T), k)
            assert kept[-1] == T - 1
            assert len(kept) == -(-T // k)
            assert kept[:-1].tolist() == [k * (i + 1) - 1 for i in range(len(kept) - 1)]
    with pytest.raises(ConfigError, match="every"):
        every_kth(np.arange(3), 0)


class Counter(gym.Env):
    """Its picture shows in every pixel how many steps were made; drawn into one array, as renderers do."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, *, frames=4):
        self.canvas = None if frames is None else np.zeros((frames, frames, 3), dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.end = 0, int(self.np_random.integers(5, 9))
        return self._observation(), self._info()

    def step(self, action):
        self.steps += 1
        return self._observation(), float(action[0]), self.steps == self.end, False, self._info()

    def _observation(self):
        return np.array([self.steps], dtype=np.float32)

    def _info(self):
        if self.canvas is None:
            return {}
        self.canvas[:] = self.steps
        return {"frame": self.canvas}


class Noise:
    def reset(self, env, rng):
        self.rng = rng

    def act(self, observation):
        return self.rng.uniform(-1, 1, size=1)


GROUPS = [BehaviorGroup("noise", 3, Noise())]


@pytest.mark.parametrize("every", [1, 3])
def test_a_video_shows_what_each_step_led_to(every):
    """Frame t is that after step t + 1; the picture of the reset is not among them; the last step always is."""
    episodes, videos = collect_videos(lambda *, seed: Counter(), GROUPS, max_steps=7, seed=0, every=every)
    assert len(videos) == len(episodes) == 3
    for length, video in zip(episodes.lengths, videos, strict=True):
        assert video[:, 0, 0, 0].tolist() == every_kth(np.arange(1, length + 1), every).tolist()


def test_filming_changes_no_episode():
    """The episodes are those that are collected without pictures."""
    filmed, _ = collect_videos(lambda *, seed: Counter(), GROUPS, max_steps=7, seed=0)
    assert same_episodes(filmed, collect_episodes(lambda *, seed: Counter(frames=None), GROUPS, max_steps=7, seed=0))


def test_an_environment_without_pictures_is_named():
    """The error says how to make it with pictures."""
    with pytest.raises(InvalidData, match=r"Counter gives no pictures.*frames=SIZE"):
        collect_videos(lambda *, seed: Counter(frames=None), GROUPS, max_steps=7, seed=0)
    with pytest.raises(ConfigError, match="every must be"):
        collect_videos(lambda *, seed: Counter(), GROUPS, max_steps=7, seed=0, every=0)
