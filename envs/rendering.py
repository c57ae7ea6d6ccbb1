"""Rendering without a display: finds a MuJoCo GL backend that really draws a frame.

MuJoCo offers three off-screen GL backends (``MUJOCO_GL``: egl, osmesa, glfw;
https://mujoco.readthedocs.io/en/stable/programming/index.html#using-opengl). Whether one works is known only
after drawing a frame, and a failed attempt can end the process, so each is probed in a process of its own.
"""

from __future__ import annotations

import ctypes.util
import logging
import os
import re
import subprocess
import sys

__all__ = [
    "BACKENDS",
    "RenderingUnavailable",
    "drop_unusable_backend",
    "probe_backends",
    "require_backend",
    "select_backend",
]

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
"""Tried in this order; none of the Linux ones needs a display."""

_KNOWN = ("egl", "osmesa", "glfw")
_OFF = ("off", "disable", "disabled", "false", "0")
_LIBRARY = {"egl": "EGL", "osmesa": "OSMesa"}
_FIX = (
    "To render, install a software renderer (Debian/Ubuntu: `apt install libegl1 libgl1-mesa-dri`, or "
    "`libosmesa6`); training needs none."
)
_PROBED = "PREFRL_GL_PROBED"  # set beside MUJOCO_GL once a probe has drawn; inherited by worker processes

_PROBE = """
import mujoco, os
box = '<light pos="0 0 3"/><geom type="box" size=".3 .3 .3" rgba="1 0 0 1"/>'
model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{box}</worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
print("spread", float(renderer.render().std()), flush=True)
os._exit(0)  # some drivers fail while shutting down, after a perfect frame
"""


class RenderingUnavailable(RuntimeError):
    """Frames were asked for and no GL backend draws any."""


def _requested() -> str:
    return os.environ.get("MUJOCO_GL", "").lower().strip()


def _missing_library(name: str) -> str | None:
    """The shared library without which MuJoCo cannot even import backend ``name``, if it is missing."""
    library = _LIBRARY.get(name)
    return f"lib{library}" if library and ctypes.util.find_library(library) is None else None


def drop_unusable_backend() -> None:
    """Unset ``MUJOCO_GL`` when ``import mujoco`` would fail on it: training must not need a renderer.

    Checks the spelling and that the library exists; touches no GL. Called once when ``envs`` is imported.
    """
    name = _requested()
    if not name or name in _OFF or "mujoco" in sys.modules:
        return
    library = _missing_library(name)
    if name not in _KNOWN:
        reason = f"it is not one of {', '.join(_KNOWN)}, off"
    elif library is not None:
        reason = f"{library} is not installed"
    else:
        return
    del os.environ["MUJOCO_GL"]
    logger.warning("MUJOCO_GL=%s is ignored: %s.", name, reason)


def _probe(name: str, timeout: float = 120.0) -> tuple[bool, str]:
    """Draw a red box with backend ``name`` in a fresh process: (it drew, what happened)."""
    library = _missing_library(name)
    if library is not None:
        return False, f"{library} is not installed"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYOPENGL_PLATFORM", _PROBED)}
    environment["MUJOCO_GL"] = name
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no frame within {timeout:.0f} s"
    key, _, spread = done.stdout.strip().partition(" ")
    if key == "spread":
        drew = float(spread) > 0
        return drew, "draws frames" if drew else "draws only black frames"
    cause = _first_error(done.stderr)
    return False, cause or f"ended with status {done.returncode}"


def _first_error(stderr: str) -> str | None:
    """The exception that ended a probe; later ones, raised while cleaning up, hide it.

    >>> _first_error("Traceback ...\\nImportError: no device\\nException ignored in: x\\nAttributeError: y")
    'ImportError: no device'
    """
    found = re.search(r"^[\w.]*(Error|Exception)\b.*", stderr, flags=re.MULTILINE)
    return found.group() if found else None


def probe_backends() -> list[tuple[str, bool, str]]:
    """(name, works, message) for every backend that :func:`select_backend` would try, in its order."""
    return [(name, *_probe(name)) for name in _candidates(_requested())]


def _candidates(requested: str) -> tuple[str, ...]:
    """The requested backend first, if it is one, then the others.

    >>> _candidates("glfw")[0]
    'glfw'
    >>> _candidates("nonsense") == BACKENDS
    True
    """
    first = (requested,) if requested in _KNOWN else ()
    return first + tuple(name for name in BACKENDS if name != requested)


def select_backend() -> str:
    """Choose a GL backend that draws: ``MUJOCO_GL`` if set and working, else egl → osmesa → "off".

    The choice is written to ``MUJOCO_GL``, so it holds for this process and those it starts, and is probed
    once. Works after ``import mujoco`` too: :mod:`envs.offscreen` binds the backend at the first frame. What
    was chosen, and why, is logged: a warning if it is not what was asked for.
    """
    requested = _requested()
    if requested in _OFF:
        return "off"
    if requested and os.environ.get(_PROBED) == requested:
        return requested
    failures = []
    if requested and requested not in _KNOWN:
        failures.append(f"MUJOCO_GL={requested} is not one of {', '.join(_KNOWN)}, off")
    for name in _candidates(requested):
        works, message = _probe(name)
        if works:
            _announce(name, requested, failures)
            os.environ["MUJOCO_GL"] = os.environ[_PROBED] = name
            return name
        failures.append(f"{name}: {message}")
    logger.warning("Rendering is off: no GL backend draws (%s). %s", "; ".join(failures), _FIX)
    os.environ["MUJOCO_GL"] = "off"
    return "off"


def _announce(name: str, requested: str, failures: list[str]) -> None:
    why = f" ({'; '.join(failures)})" if failures else ""
    level = logging.WARNING if requested and requested != name else logging.INFO
    logger.log(level, "Rendering with %s%s.", name, why)


def require_backend() -> None:
    """Select a backend, or raise :class:`RenderingUnavailable` that says what to do."""
    if select_backend() == "off":
        raise RenderingUnavailable(
            f"render_mode needs a GL backend and rendering is off (MUJOCO_GL={os.environ.get('MUJOCO_GL')}). "
            f"Unset MUJOCO_GL to try {', '.join(BACKENDS)} again. {_FIX}"
        )


# MuJoCo reads MUJOCO_GL when it is imported; ``envs`` imports this module before any that needs MuJoCo.
drop_unusable_backend()
if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame, which draws classic control, asks for no display then
