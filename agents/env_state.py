"""An environment's state as tensors and plain JSON, so that a killed run goes on in the middle of an episode.

Gymnasium has no interface for this. What an environment is made of is walked through, attribute by attribute, with its
wrappers and the Python objects inside: numbers, texts, arrays, random generators and containers of them are kept
(``_elapsed_steps`` of a time limit, ``state`` of classic control, what Meta-World's tasks remember of their reset). Of
MuJoCo's simulation everything that enters a step is kept (``mjSTATE_INTEGRATION``: also the solver's warm start), what
it derived, because some environments read positions before they step, and the arrays of the model that a reset may
write.

An environment with anything else inside (a Box2D world, a simulator in another process) cannot be kept in the middle
of an episode: ``save_env_state`` gives None, and the caller saves where an episode happens to be over. There all that
can be kept is, random generators above all, and the reset that follows has to make the rest anew.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.envs.registration import EnvSpec

from prefrl.errors import DamagedFile

__all__ = ["env_description", "load_env_state", "pack", "save_env_state", "unpack", "why_not_kept"]

PLAIN = (type(None), bool, int, float, str)
CODE = (BuiltinFunctionType, FunctionType, MethodType, ModuleType, partial, type)
CONSTANT = (gym.Space, EnvSpec, MujocoRenderer, *CODE)  # made by the constructor, untouched since
ARGUMENTS = {"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}  # of the constructor
FRAMES = {"_screen", "screen", "clock", "surf", "viewer", "renderer"}  # attributes that only draw
INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
OF_A_STEP = ("contact", "efc_", "island", "map_")  # in names of MjData: of the contacts, which each step makes anew
MEMORY = ("maxuse", "plugin_data")  # likewise: counts of bytes, and pointers
LARGE = ("bvh_", "flex", "hfield_", "mesh_", "names", "paths", "skin_", "tex_", "text_")  # of MjModel: never written


class _NotKept(Exception):
    """Names what cannot be written down."""


def save_env_state(env: gym.Env, *, between_episodes: bool = False) -> dict[str, Any] | None:
    """The state of ``env`` for ``prefrl.files.save_checkpoint``; None where it cannot be kept.

    between_episodes: an episode has ended and the next has not begun: what cannot be kept is left to the reset.
    """
    try:
        return {**env_description(env), "attributes": _pack_object(env, set(), lenient=between_episodes)}
    except _NotKept:
        return None


def why_not_kept(env: gym.Env) -> str | None:
    """Which attribute keeps ``env`` from being saved in the middle of an episode; None if nothing does.

    >>> why_not_kept(gym.make("Pendulum-v1"))
    """
    try:
        _pack_object(env, set(), lenient=False)
    except _NotKept as found:
        return str(found)
    return None


def load_env_state(env: gym.Env, state: dict[str, Any]) -> None:
    """Put an environment, made by the same constructor and reset once, into a saved state.

    One that was saved between two episodes is to be reset next.
    """
    here, there = env_description(env), {key: state.get(key) for key in ("id", "kwargs")}
    if here != there:
        raise DamagedFile(f"The saved state is of the environment {there}, but this one is {here}. Make that one.")
    _unpack_object(env, state["attributes"])


def env_description(env: gym.Env) -> dict[str, Any]:
    """``{"id", "kwargs"}`` as plain JSON, by which a state is known to fit; of other objects, their type."""
    if env.spec is None:
        return {"id": type(env.unwrapped).__name__, "kwargs": {}}
    kwargs = {key: value for key, value in env.spec.kwargs.items() if key not in ("seed", "render_mode")}
    return {"id": env.spec.id, "kwargs": json.loads(json.dumps(kwargs, default=lambda value: type(value).__name__))}


def pack(value: Any) -> Any:
    """A value as plain JSON and tensors.

    >>> pack((1, "a"))
    {'tuple': [1, 'a']}
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return {_kind(value): _tensor(value)}
    if isinstance(value, np.random.Generator):
        return {"generator": pack(value.bit_generator.state)}
    if type(value) is dict:
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, deque):
        return {"deque": [pack(item) for item in value], "longest": value.maxlen}
    if type(value) in (list, tuple, set):
        return {type(value).__name__: [pack(item) for item in value]}
    raise _NotKept(f"a {type(value).__module__}.{type(value).__name__}")


def unpack(packed: Any, now: Any = None) -> Any:
    """The inverse of ``pack``. A generator that is there ``now`` goes on in place, because others may share it."""
    if not isinstance(packed, dict):
        return packed
    (kind, content), *_ = packed.items()
    if kind == "generator":
        return _unpack_generator(unpack(content), now)
    return UNPACK[kind](packed)


UNPACK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "array": lambda packed: packed["array"].numpy().copy(),
    "scalar": lambda packed: packed["scalar"].numpy()[()],
    "dict": lambda packed: {unpack(key): unpack(item) for key, item in packed["dict"]},
    "deque": lambda packed: deque(map(unpack, packed["deque"]), maxlen=packed["longest"]),
    "list": lambda packed: [unpack(item) for item in packed["list"]],
    "tuple": lambda packed: tuple(unpack(item) for item in packed["tuple"]),
    "set": lambda packed: {unpack(item) for item in packed["set"]},
}


def _kind(value: np.ndarray | np.generic) -> str:
    return "array" if isinstance(value, np.ndarray) else "scalar"


def _tensor(value: Any) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except TypeError as error:
        raise _NotKept(f"an array of {value.dtype}") from error


def _unpack_generator(state: dict[str, Any], now: np.random.Generator | None) -> np.random.Generator:
    if now is None or now.bit_generator.state["bit_generator"] != state["bit_generator"]:
        now = np.random.Generator(getattr(np.random, state["bit_generator"])())
    now.bit_generator.state = state
    return now


def _pack_object(value: Any, seen: set[int], *, lenient: bool) -> dict[str, Any]:
    """Attribute by attribute; an object inside this one likewise, where it is met first."""
    seen.add(id(value))
    packed = {}
    for name, part in vars(value).items():
        if _is_left_out(name, part) or id(part) in seen:
            continue
        try:
            packed[name] = _pack_part(part, seen, lenient=lenient)
        except _NotKept as found:
            if not lenient:
                raise _NotKept(f"{type(value).__name__}.{name} has {found}") from None
    return packed


def _pack_part(value: Any, seen: set[int], *, lenient: bool) -> dict[str, Any]:
    if isinstance(value, mujoco.MjModel):
        return {"model": {name: _tensor(array) for name, array in _arrays(value, LARGE)}}
    if isinstance(value, mujoco.MjData):
        numbers = np.empty(mujoco.mj_stateSize(value.model, INTEGRATION))
        mujoco.mj_getState(value.model, value, numbers, INTEGRATION)
        arrays = {name: _tensor(array) for name, array in _arrays(value, OF_A_STEP + MEMORY)}
        return {"data": arrays, "state": torch.from_numpy(numbers)}
    if _is_its_attributes(value):
        return {"object": _pack_object(value, seen, lenient=lenient)}
    return {"value": pack(tuple(value) if hasattr(value, "_fields") else value)}


def _unpack_object(value: Any, packed: dict[str, Any]) -> None:
    attributes = vars(value)
    for name, part in packed.items():
        now = attributes.get(name)
        if "object" in part:
            _unpack_object(now, part["object"])
        elif "model" in part:
            _write_arrays(now, part["model"])
        elif "data" in part:
            mujoco.mj_setState(now.model, now, part["state"].numpy(), INTEGRATION)
            _write_arrays(now, part["data"])
        else:
            new = unpack(part["value"], now)
            attributes[name] = now._make(new) if hasattr(now, "_fields") else new  # a NamedTuple stays one


def _is_left_out(name: str, value: Any) -> bool:
    """What the constructor makes for good, what only draws, and views into MuJoCo's memory, which is kept itself."""
    return name in ARGUMENTS | FRAMES or isinstance(value, CONSTANT) or _is_view_of_mujoco(value)


def _is_its_attributes(value: Any) -> bool:
    """Whether an object of a Python class has all its state in ``vars(value)``, nothing behind it in C or in slots."""
    if isinstance(value, gym.Env):
        return True
    kind = type(value)
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return False
    try:
        state = value.__reduce_ex__(2)[2]
    except TypeError:
        return False
    return hasattr(value, "__dict__") and type(state) in (dict, type(None))


def _is_view_of_mujoco(value: Any) -> bool:
    while isinstance(value, np.ndarray):
        value = value.base
    return type(value).__name__ == "PyCapsule"


def _arrays(struct: Any, without: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and memory of each array of MuJoCo's MjData or MjModel, but for names with a part that is left out."""
    for name in dir(struct):
        if not name.startswith("_") and not any(part in name for part in without):
            value = getattr(struct, name)
            if isinstance(value, np.ndarray):
                yield name, value


def _write_arrays(struct: Any, arrays: dict[str, torch.Tensor]) -> None:
    for name, tensor in arrays.items():
        getattr(struct, name)[...] = tensor.numpy()
