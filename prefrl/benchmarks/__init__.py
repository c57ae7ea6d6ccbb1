"""Benchmarks: ``prefrl bench NAME``. ``sides/`` holds what runs in other environments, to race peers."""
