"""Speed of imitation's reward learning on one thread. Runs in a side environment; imports nothing of ours.

    python -m venv SIDE && SIDE/bin/pip install -r requirements-imitation.txt
    SIDE/bin/python imitation_rewards.py fit|relabel|sample [--hidden 32 32] [--pairs 256] …

prints one line of JSON with ``per_s`` of processor time: comparisons per second for the whole ensemble (fit),
steps per second (relabel), or pairs of segments per second (sample), on synthetic episodes with the shapes of
Meta-World.
"""

import argparse
import json
import logging
import time

import gymnasium as gym
import imitation
import numpy as np
import torch
from imitation.algorithms import preference_comparisons as pc
from imitation.data.types import TrajectoryWithRew
from imitation.rewards import reward_nets
from imitation.util import logger as imit_logger

OBSERVATION, ACTION = 39, 4


def make_episodes(count: int, length: int, rng: np.random.Generator) -> list[TrajectoryWithRew]:
    return [
        TrajectoryWithRew(
            obs=rng.standard_normal((length + 1, OBSERVATION)).astype(np.float32),
            acts=rng.uniform(-1, 1, (length, ACTION)).astype(np.float32),
            infos=None,
            terminal=False,
            rews=rng.standard_normal(length).astype(np.float32),
        )
        for _ in range(count)
    ]


def make_ensemble(hidden: list[int], members: int) -> reward_nets.RewardEnsemble:
    observation = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action = gym.spaces.Box(-1, 1, (ACTION,), np.float32)
    nets = [reward_nets.BasicRewardNet(observation, action, hid_sizes=hidden) for _ in range(members)]
    return reward_nets.RewardEnsemble(observation, action, nets)


def fit(arguments: argparse.Namespace) -> float:
    """Comparisons per second: each is counted once, although every member of the ensemble trains on it."""
    rng = np.random.default_rng(0)
    segments = make_episodes(2 * arguments.pairs, arguments.segment, rng)
    dataset = pc.PreferenceDataset()
    labels = rng.integers(0, 2, arguments.pairs).astype(np.float32)
    dataset.push(list(zip(segments[::2], segments[1::2], strict=True)), labels)
    model = pc.PreferenceModel(make_ensemble(arguments.hidden, arguments.members))
    trainer = pc.EnsembleTrainer(
        model,
        pc.CrossEntropyRewardLoss(),
        rng=rng,
        batch_size=arguments.batch,
        epochs=arguments.epochs,
        lr=3e-4,
        custom_logger=imit_logger.configure(format_strs=[]),
    )
    trainer.train(dataset, epoch_multiplier=1 / arguments.epochs)  # warm up: one epoch
    start = time.process_time()
    trainer.train(dataset)
    return arguments.pairs * arguments.epochs / (time.process_time() - start)


def relabel(arguments: argparse.Namespace) -> float:
    """Steps per second at its best batch size: 1024, 8192, or all at once."""
    rng = np.random.default_rng(0)
    steps = arguments.steps
    observations = rng.standard_normal((steps + 1, OBSERVATION)).astype(np.float32)
    actions = rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32)
    dones = np.zeros(steps, dtype=bool)
    ensemble = make_ensemble(arguments.hidden, arguments.members)

    def seconds(batch: int) -> float:
        start = time.process_time()
        for i in range(0, steps, batch):
            rows = slice(i, min(i + batch, steps))
            ensemble.predict_processed(observations[:-1][rows], actions[rows], observations[1:][rows], dones[rows])
        return time.process_time() - start

    seconds(8192)  # warm up
    return steps / min(seconds(batch) for batch in (1024, 8192, steps))


def sample(arguments: argparse.Namespace) -> float:
    rng = np.random.default_rng(0)
    episodes = make_episodes(100, 150, rng)
    fragmenter = pc.RandomFragmenter(rng, warning_threshold=0, custom_logger=imit_logger.configure(format_strs=[]))
    fragmenter(episodes, arguments.segment, 100)  # warm up
    start = time.process_time()
    fragmenter(episodes, arguments.segment, arguments.pairs)
    return arguments.pairs / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["fit", "relabel", "sample"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 32])
    defaults = {
        "members": 3,
        "pairs": 256,
        "segment": 50,
        "batch": 32,
        "epochs": 2,
        "steps": 50_000,
        "threads": 1,
    }
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    measure = {"fit": fit, "relabel": relabel, "sample": sample}[arguments.what]
    versions = {"imitation": imitation.__version__, "torch": torch.__version__}
    print(json.dumps({"per_s": measure(arguments), "versions": versions}))


if __name__ == "__main__":
    main()
