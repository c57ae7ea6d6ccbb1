"""Evaluation: rollouts, statistics with intervals, videos, plots, and the one-file report.

``rollout`` measures a policy, ``intervals`` says how sure the measurement is, ``video`` and ``plots`` show
it, and ``report`` puts it all on one page. The modules are imported by name, so that no command pays for
what it does not use.
"""

__all__: list[str] = []
