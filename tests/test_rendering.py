"""Laws of ``envs.rendering``: frames are drawn, upright, independent; no GL where none is asked for."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

import envs
from envs import rendering

FAUCET = "prefrl/MetaWorld-faucet-open-v0"


@pytest.fixture(scope="module")
def backend():
    """A backend that draws; without one the tests of frames are skipped, and say so."""
    name = rendering.select_backend()
    if name == "off":
        pytest.skip(f"NO GL BACKEND DRAWS A FRAME HERE: {rendering.probe_backends()}")
    return name


@pytest.fixture
def clean(monkeypatch):
    """No MUJOCO_GL and no remembered probe; undone afterwards."""
    for key in ("MUJOCO_GL", "PREFRL_GL_PROBED"):
        monkeypatch.setenv(key, "")  # so that monkeypatch also restores what the test makes of it
        monkeypatch.delenv(key)
    return monkeypatch


def make(**kwargs):
    return envs.make(FAUCET, seed=0, render_mode="rgb_array", width=84, height=84, **kwargs)


def fake_probe(works):
    return lambda name, timeout=0.0: (name in works, "draws frames" if name in works else "broken driver")


@pytest.mark.parametrize("camera", ["corner2", "corner", "topview"])
def test_a_frame_is_drawn(backend, camera):
    """A frame has the asked size and is not of one color."""
    frame = make(camera=camera).render()
    assert frame.shape == (84, 84, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 10


@pytest.mark.parametrize("fast", [True, False])
def test_the_default_camera_is_upright(backend, fast):
    """The empty room above, table and floor below; the base left of the hand: no flip is left."""
    frame = make(fast=fast).render().astype(float)
    red = (frame[..., 0] > 100) & (frame[..., 1] < 60)  # the arm
    rows, columns = np.nonzero(red)
    assert frame[:15].std() < 5  # the empty room
    assert frame[-15:].std() > 20
    base = columns[rows > np.quantile(rows, 0.8)].mean()
    hand = columns[(rows < np.quantile(rows, 0.5))].max()
    assert base < hand


def test_several_environments_render_in_turn(backend):
    """A second environment in the process does not blacken or change the frames of the first."""
    for id in (FAUCET, "HalfCheetah-v5"):
        first = envs.make(id, seed=0, render_mode="rgb_array", width=84, height=84)
        before = first.render()
        second = envs.make(id, seed=1, render_mode="rgb_array", width=64, height=64)
        assert second.render().std() > 10
        np.testing.assert_array_equal(first.render(), before)
        second.close()
        np.testing.assert_array_equal(first.render(), before)
        first.close()


def test_frames_follow_the_simulation(backend):
    """After steps of the script the frame differs."""
    env = make()
    before = env.render()
    for _ in range(20):
        env.step(np.array([1, 1, 0, 0], np.float32))
    assert np.abs(env.render().astype(int) - before).max() > 50


def test_gymnasium_robots_stay_in_the_frame(backend):
    """The camera follows: after the robot is moved 20 m away, there are as many of its pixels as before."""
    env = envs.make("HalfCheetah-v5", seed=0, render_mode="rgb_array", width=84, height=84)

    def robot_pixels():
        frame = env.render().astype(int)
        return int((frame[..., 0] - frame[..., 2] > 40).sum())

    before = robot_pixels()
    simulator = env.unwrapped
    simulator.set_state(simulator.data.qpos + 20.0 * (np.arange(9) == 0), simulator.data.qvel)
    assert before > 50
    assert robot_pixels() == pytest.approx(before, rel=0.2)


def test_rendering_is_fast(backend):
    """At least 40 frames per CPU second at 84 x 84."""
    env = make()
    env.render()
    start = time.process_time()
    for _ in range(20):
        env.render()
    assert 20 / (time.process_time() - start) >= 40


def test_rendering_does_not_change_the_episode(backend):
    """Equal seeds give equal episodes with and without frames."""
    seen, blind = make(), envs.make(FAUCET, seed=0)
    np.testing.assert_array_equal(seen.reset(seed=2)[0], blind.reset(seed=2)[0])
    for _ in range(30):
        action = seen.action_space.sample()
        seen.render()
        np.testing.assert_array_equal(seen.step(action)[0], blind.step(action)[0])


def test_point_reach_draws_without_gl(clean):
    """The toy's frame shows the point and the preferred site at their places, with rendering off."""
    clean.setenv("MUJOCO_GL", "off")
    env = envs.make("prefrl/PointReach-v0", seed=0, render_mode="rgb_array", target="left", start_noise=0.0)
    frame = env.render()
    assert frame.shape == (128, 128, 3)
    height, width = frame.shape[:2]
    pixel = lambda x, y: tuple(frame[round((1 - y) / 2 * (height - 1)), round((x + 1) / 2 * (width - 1))])  # noqa: E731
    assert pixel(-0.7, 0.6) == (60, 150, 80)
    assert pixel(0.7, 0.6) == (190, 80, 70)
    assert pixel(0.0, -0.7) == (40, 60, 160)


def test_no_render_mode_touches_no_gl():
    """Making and stepping environments without a render_mode loads no GL library and probes nothing."""
    code = (
        "import sys, envs, subprocess\n"
        "subprocess.run = None\n"
        f"env = envs.make({FAUCET!r}, seed=0); env.step(env.action_space.sample())\n"
        "assert env.render() is None\n"
        "print([m for m in sys.modules if m.startswith(('OpenGL', 'mujoco.egl', 'mujoco.osmesa'))])"
    )
    assert run_python(code, MUJOCO_GL=None).stdout.strip() == "[]"


def run_python(code, *, MUJOCO_GL):
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PREFRL_GL_PROBED")}
    if MUJOCO_GL is not None:
        environment["MUJOCO_GL"] = MUJOCO_GL
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def test_an_invalid_backend_does_not_stop_training_and_is_reported():
    """With a misspelt MUJOCO_GL, on which `import mujoco` fails, environments are made, with a message."""
    done = run_python(f"import envs; envs.make({FAUCET!r}, seed=0)", MUJOCO_GL="elg")
    assert "MUJOCO_GL=elg is ignored: it is not one of egl, osmesa, glfw, off" in done.stderr


def test_an_invalid_backend_falls_back_with_a_message(clean, caplog):
    """MUJOCO_GL=elg: the first working backend is taken and set, and a warning says why."""
    clean.setattr(rendering, "_probe", fake_probe({"osmesa", "glfw"}))
    clean.setattr(rendering, "BACKENDS", ("egl", "osmesa"))
    clean.setenv("MUJOCO_GL", "elg")
    assert rendering.select_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "MUJOCO_GL=elg is not one of" in record.message
    assert "egl: broken driver" in record.message


def test_a_requested_backend_is_respected_if_it_draws(clean):
    """MUJOCO_GL comes first among the candidates; one that does not draw is left for one that does."""
    clean.setattr(rendering, "BACKENDS", ("egl", "osmesa"))
    clean.setattr(rendering, "_probe", fake_probe({"egl", "osmesa"}))
    clean.setenv("MUJOCO_GL", "osmesa")
    assert rendering.select_backend() == "osmesa"
    clean.delenv("PREFRL_GL_PROBED")
    clean.setattr(rendering, "_probe", fake_probe({"egl"}))
    assert rendering.select_backend() == "egl"


def test_a_choice_is_probed_once(clean):
    """The second call, also of a child process, does not probe again."""
    clean.setattr(rendering, "_probe", fake_probe({rendering.BACKENDS[0]}))
    name = rendering.select_backend()
    clean.setattr(rendering, "_probe", None)
    assert rendering.select_backend() == name


def test_without_a_backend_rendering_is_off_and_says_what_to_do(clean, caplog):
    """No backend draws: "off", with every reason and a fix; frames asked for are then a named error."""
    clean.setattr(rendering, "_probe", fake_probe(set()))
    assert rendering.select_backend() == "off"
    assert "broken driver" in caplog.text
    assert "apt install" in caplog.text
    with pytest.raises(rendering.RenderingUnavailable, match="apt install"):
        make()


def test_probes_report_every_backend(clean):
    """One (name, works, message) per candidate, whatever is broken."""
    clean.setattr(rendering, "_probe", fake_probe({"osmesa"}))
    clean.setattr(rendering, "BACKENDS", ("egl", "osmesa"))
    assert rendering.probe_backends() == [("egl", False, "broken driver"), ("osmesa", True, "draws frames")]


def test_a_real_probe_of_a_missing_backend_fails_with_its_reason():
    """A backend that MuJoCo does not know cannot draw, and the message is MuJoCo's own."""
    works, message = rendering._probe("nonsense")
    assert not works
    assert "MUJOCO_GL" in message
