"""Aligns policies with preferences: a score of a segment, a loss on differences of scores, a better policy.

Map, from what depends on nothing to what depends on all (a module imports only from lines above it):

    errors  core  protocols  files  runs    data that passes between the parts, and where it is kept
    losses/  preference_models  returns     every preference loss, pure torch; what a rater compares; n-step returns
    scores  teachers/  data/  queries/      what explains answers, who answers, data on disk, what is asked
    solvers/  value_oracles/  transfer/     exact values, regret's statistics, labels carried to another task
    transport/  representation/             couplings of tasks and of videos; videos to rewards
    train/  evaluation/  progress           fit a score, relabel, train; rollouts, intervals, plots, videos
    recipes/  benchmarks/                   one file a system, readable top to bottom; what is measured
    signatures  catalog  schemas  config    composing and checking; only ``config`` knows Hydra
    launch  commands  doctor  completion    what each command does
    cli                                     reads the words

Environments are in ``envs``, learners in ``agents``: configs name them, nothing here imports them.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
