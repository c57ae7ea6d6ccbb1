"""Settings of all tests: hypothesis is deterministic and has no deadline (a busy machine is no failure)."""

import signal

from hypothesis import settings

settings.register_profile("prefrl", deadline=None, derandomize=True)
settings.load_profile("prefrl")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: tests press Ctrl-C all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)
