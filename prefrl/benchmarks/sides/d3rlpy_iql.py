"""Speed of d3rlpy's IQL on one thread, batch sampling included; imports nothing of ours.

    python -m venv SIDE && SIDE/bin/pip install -r requirements-d3rlpy.txt
    SIDE/bin/python d3rlpy_iql.py [--updates 300] [--warmup 30] …

prints one line of JSON for synthetic episodes: updates per second of wall-clock and of processor time.
"""

import argparse
import json
import logging
import time

import d3rlpy
import numpy as np
import structlog
import torch


def make_buffer(arguments: argparse.Namespace) -> d3rlpy.dataset.ReplayBuffer:
    """Random transitions in episodes of 150 steps, in memory, as d3rlpy keeps them."""
    rng = np.random.default_rng(0)
    steps = arguments.transitions
    timeouts = (np.arange(steps) % 150 == 149).astype(np.float32)
    return d3rlpy.dataset.MDPDataset(
        observations=rng.standard_normal((steps, arguments.observation_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, arguments.action_dim)).astype(np.float32),
        rewards=rng.standard_normal((steps, 1)).astype(np.float32),
        terminals=np.zeros(steps, dtype=np.float32),
        timeouts=timeouts,
    )


def make_iql(buffer: d3rlpy.dataset.ReplayBuffer, arguments: argparse.Namespace) -> d3rlpy.algos.IQL:
    """Its default networks are 256-256 with ReLU; expectile and temperature as in the paper."""
    iql = d3rlpy.algos.IQLConfig(batch_size=arguments.batch, expectile=0.7, weight_temp=3.0).create(device="cpu:0")
    iql.build_with_dataset(buffer)
    return iql


def run(iql: d3rlpy.algos.IQL, buffer: d3rlpy.dataset.ReplayBuffer, updates: int, batch: int) -> None:
    for _ in range(updates):
        iql.update(buffer.sample_transition_batch(batch))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"updates": 300, "warmup": 30, "batch": 256, "transitions": 30_000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--observation-dim", type=int, default=39)
    parser.add_argument("--action-dim", type=int, default=4)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # keep stdout for JSON
    torch.set_num_threads(1)
    buffer = make_buffer(arguments)
    iql = make_iql(buffer, arguments)
    run(iql, buffer, arguments.warmup, arguments.batch)
    wall, cpu = time.perf_counter(), time.process_time()
    run(iql, buffer, arguments.updates, arguments.batch)
    result = {
        "updates_per_s": arguments.updates / (time.perf_counter() - wall),
        "updates_per_cpu_s": arguments.updates / (time.process_time() - cpu),
        "updates": arguments.updates,
        "version": d3rlpy.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
