"""Spaces of an environment as vectors: a discrete observation or action travels as one float32.

So data, files and policies have one form, (…, D) and (…, A), for grid worlds and robots alike.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from prefrl.errors import InvalidData

__all__ = ["action_bounds", "as_vector", "space_size", "to_env"]

LARGEST = 2**24  # integers up to here are exact in float32


def as_vector(observation: Any) -> np.ndarray:
    """(D,) float32 of what an environment observes, always a copy: some environments reuse their arrays.

    >>> as_vector(np.int64(3))
    array([3.], dtype=float32)
    """
    return np.array(observation, dtype=np.float32, ndmin=1)


def space_size(space: gym.Space) -> tuple[int, ...]:
    """Shape of an element as a vector: (1,) of a discrete space.

    >>> space_size(gym.spaces.Discrete(4))
    (1,)
    """
    return (1,) if isinstance(space, gym.spaces.Discrete) else tuple(space.shape or ())


def action_bounds(space: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    """(A,) lowest and highest action, both possible; raises ``InvalidData`` for other spaces.

    >>> action_bounds(gym.spaces.Discrete(4))
    (array([0.], dtype=float32), array([3.], dtype=float32))
    """
    if isinstance(space, gym.spaces.Discrete) and abs(space.start) + space.n <= LARGEST:
        return as_vector(space.start), as_vector(space.start + space.n - 1)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return space.low, space.high
    raise InvalidData(f"Actions must be of a one-dimensional Box or a Discrete space, but these are of {space}.")


def to_env(space: gym.Space, action: np.ndarray) -> Any:
    """What ``env.step`` takes for an action (A,): the integer of a discrete space, or the vector as it is.

    >>> to_env(gym.spaces.Discrete(4), np.array([3.0], dtype=np.float32))
    3
    """
    if not isinstance(space, gym.spaces.Discrete):
        return action
    number = float(np.asarray(action).item())
    if not number.is_integer() or not space.contains(int(number)):
        raise InvalidData(f"An action must be an integer that {space} contains, but is {number:g}.")
    return int(number)
