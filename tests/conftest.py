"""Settings of all tests: hypothesis is deterministic and has no deadline (a busy machine is no failure)."""

from hypothesis import settings

settings.register_profile("prefrl", deadline=None, derandomize=True)
settings.load_profile("prefrl")
