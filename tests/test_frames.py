"""Laws of envs.frames: a picture of every state in ``info``, of any environment, at any size."""

import numpy as np
import pytest

import envs
from agents.env_state import load_env_state, save_env_state
from envs.frames import FramesInInfo

TABLETOP = "prefrl/Tabletop-avoid-short-v0"
DRAWN_AT_ANY_SIZE = [TABLETOP, "prefrl/PointReach-v0", "prefrl/DoubleIntegrator-v0"]
RESIZED = ["prefrl/Delivery-v0"]
WITH_GL = ["Hopper-v5", "prefrl/MetaWorld-push-v0", "prefrl/Arm-group-slim-v0"]


@pytest.mark.parametrize("id", [*DRAWN_AT_ANY_SIZE, *RESIZED, *WITH_GL])
def test_every_state_has_a_frame(id):
    """One at reset and one a step, square, (size, size, 3) uint8, and not all the same; else infos are as they were."""
    env, plain = envs.make(id, seed=0, frames=40), envs.make(id, seed=0)
    steps = [env.reset(seed=1)[1]]
    expected = [plain.reset(seed=1)[1]]
    env.action_space.seed(0)
    for _ in range(8):
        action = env.action_space.sample()
        steps.append(env.step(action)[-1])
        expected.append(plain.step(action)[-1])
    frames = [info.pop("frame") for info in steps]
    assert all(frame.shape == (40, 40, 3) and frame.dtype == np.uint8 for frame in frames)
    assert any((frame != frames[0]).any() for frame in frames)
    assert frames[0].std() > 1
    for found, wanted in zip(steps, expected, strict=True):
        assert repr(found) == repr(wanted)
    env.close()
    plain.close()


@pytest.mark.parametrize("id", DRAWN_AT_ANY_SIZE)
def test_frames_are_drawn_at_their_size(id):
    """The environment's own size is that of the frames, whatever else the user said of it: nothing is resized."""
    size = {"size": 100} if id == TABLETOP else {"width": 100, "height": 80}
    env = envs.make(id, seed=0, frames=36, **size)
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["frame"], env.render())
    assert env.render().shape == (36, 36, 3)


def test_other_sizes_are_box_filtered():
    """A pixel is the mean of what it covers: by numpy's mean of blocks, rounded along each axis."""
    env = envs.make("prefrl/Delivery-v0", seed=0, frames=32, cell_size=16)
    _, info = env.reset(seed=0)
    full = env.render()
    assert full.shape[0] % 32 == 0
    blocks = full.reshape(32, full.shape[0] // 32, 32, full.shape[1] // 32, 3).mean(axis=(1, 3))
    assert np.abs(info["frame"] - blocks).max() <= 1.0 + 1e-9


def test_without_frames_there_are_none():
    """``frames=None`` draws nothing."""
    env = envs.make(TABLETOP, seed=0)
    assert "frame" not in env.reset()[1]
    assert env.render_mode is None


def test_frames_do_not_change_what_happens():
    """Observations and rewards are those of the environment without frames."""
    env, plain = (envs.make(TABLETOP, seed=0, frames=frames) for frames in (24, None))
    for one, other in zip(env.reset(seed=3)[0], plain.reset(seed=3)[0], strict=True):
        assert one == other
    for _ in range(20):
        found, expected = env.step(np.array([0.2, 1.0])), plain.step(np.array([0.2, 1.0]))
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1:4] == expected[1:4]


def test_the_wrapper_keeps_the_state_of_what_it_wraps():
    """A run with frames goes on in the middle of an episode, where the environment can."""
    env, new = (envs.make("prefrl/PointReach-v0", seed=seed, frames=16) for seed in (0, 1))
    env.step(np.ones(2))
    load_env_state(new, save_env_state(env))
    np.testing.assert_array_equal(env.step(np.zeros(2))[-1]["frame"], new.step(np.zeros(2))[-1]["frame"])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"frames": 0}, r"frames must be at least 1 px, got 0"),
        ({"frames": 16, "render_mode": "human"}, "frames=16 are drawn with render_mode 'rgb_array', not 'human'"),
    ],
)
def test_wrong_frames_are_refused(kwargs, words):
    """With the value."""
    with pytest.raises(ValueError, match=words):
        envs.make("prefrl/PointReach-v0", seed=0, **kwargs)


def test_an_environment_without_pictures_is_refused():
    """One whose render_mode is not rgb_array."""
    with pytest.raises(ValueError, match="render_mode 'rgb_array'"):
        FramesInInfo(envs.make("prefrl/PointReach-v0", seed=0), 16)
