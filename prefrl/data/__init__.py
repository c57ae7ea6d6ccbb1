"""Data: episodes in memory and on disk, segments by reference, preferences, labels, import, queries."""

from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences, append_preferences, read_preferences
from prefrl.data.query import UniformQuery
from prefrl.data.storage import append_episodes, read_dataset, write_dataset

__all__ = [
    "Episodes",
    "Preferences",
    "UniformQuery",
    "append_episodes",
    "append_preferences",
    "read_dataset",
    "read_preferences",
    "write_dataset",
]
