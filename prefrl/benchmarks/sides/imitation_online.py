"""What parts of online preference learning cost with imitation. Runs in a side environment; imports nothing of ours.

    SIDE/bin/python imitation_online.py fit|relabel|select|pendulum [--hidden 32 32] [--seed 0] …

prints one line of JSON with ``work``, what was done, so that nobody races unequal work. Its other numbers are of
processor time: comparisons, steps or candidate pairs per second (``per_s``), or the ``seconds`` of a whole run, the
steps that its environments have taken (``stepped``) and the ``return`` of the policy that it leaves (pendulum). All but
the last are on synthetic episodes with the shapes of Meta-World.
"""

import argparse
import json
import logging
import sys
import time
from typing import Any

import gymnasium as gym
import imitation
import numpy as np
import torch
from imitation.algorithms import preference_comparisons as pc
from imitation.policies.base import FeedForward32Policy, NormalizeFeaturesExtractor
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util import logger as imit_logger
from imitation.util.networks import RunningNorm
from imitation.util.util import make_vec_env
from imitation_rewards import ACTION, OBSERVATION, fit, make_ensemble, make_episodes, relabel
from stable_baselines3 import PPO

SHAPES = {"observation": OBSERVATION, "action": ACTION}


def networks(arguments: argparse.Namespace) -> dict[str, object]:
    return {**SHAPES, "members": arguments.members, "hidden": arguments.hidden}


def measure_fit(arguments: argparse.Namespace) -> dict[str, object]:
    names = ("pairs", "epochs", "batch", "segment")
    work = networks(arguments) | {name: getattr(arguments, name) for name in names}
    return {"per_s": fit(arguments), "work": work}


def measure_relabel(arguments: argparse.Namespace) -> dict[str, object]:
    """per_s: all at once, after a warm-up of the same · best_per_s: at the best of three batch sizes, or so."""
    rng, steps = np.random.default_rng(arguments.seed), arguments.steps
    observations = rng.standard_normal((steps, OBSERVATION)).astype(np.float32)
    actions = rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32)
    ensemble = make_ensemble(arguments.hidden, arguments.members)
    for _ in range(2):
        start = time.process_time()
        rewards = ensemble.predict_processed(observations, actions, observations, np.zeros(steps, dtype=bool))
        seconds = time.process_time() - start
    work = networks(arguments) | {"steps": len(rewards)}
    at_once = steps / seconds
    return {"per_s": at_once, "best_per_s": max(at_once, relabel(arguments)), "work": work}


def measure_select(arguments: argparse.Namespace) -> dict[str, object]:
    """Candidate pairs per second: drawn, scored by the variance of the answer's probability, and the best kept."""
    rng = np.random.default_rng(arguments.seed)
    episodes = make_episodes(arguments.episodes, arguments.length, rng)
    silent = imit_logger.configure(format_strs=[])
    fragmenter = pc.ActiveSelectionFragmenter(
        pc.PreferenceModel(make_ensemble(arguments.hidden, arguments.members)),
        pc.RandomFragmenter(rng, warning_threshold=0, custom_logger=silent),
        fragment_sample_factor=arguments.pairs / arguments.kept,
        uncertainty_on="probability",
        custom_logger=silent,
    )
    fragmenter(episodes, arguments.segment, arguments.kept // 10)  # warm up
    start = time.process_time()
    kept = fragmenter(episodes, arguments.segment, arguments.kept)
    seconds = time.process_time() - start
    work = networks(arguments) | {"pairs": arguments.pairs, "kept": len(kept), "segment": len(kept[0][0])}
    work |= {"episodes": len(episodes), "length": len(episodes[0])}
    return {"per_s": arguments.pairs / seconds, "work": work}


def measure_pendulum(arguments: argparse.Namespace) -> dict[str, object]:
    """Preference comparisons as in imitation's tutorial; then the true return of the policy, without its noise."""
    warm_up()
    start = time.process_time()
    rng = np.random.default_rng(arguments.seed)
    torch.manual_seed(arguments.seed)
    venv = make_vec_env("Pendulum-v1", rng=rng)
    net = BasicRewardNet(
        venv.observation_space, venv.action_space, hid_sizes=arguments.hidden, normalize_input_layer=RunningNorm
    )
    agent = PPO(
        policy=FeedForward32Policy,
        policy_kwargs={
            "features_extractor_class": NormalizeFeaturesExtractor,
            "features_extractor_kwargs": {"normalize_class": RunningNorm},
        },
        env=venv, seed=arguments.seed, n_steps=arguments.rollout // venv.num_envs, batch_size=64, ent_coef=0.01,
        learning_rate=2e-3, clip_range=0.1, gae_lambda=0.95, gamma=0.97, n_epochs=10,
    )  # fmt: skip
    generator = pc.AgentTrainer(algorithm=agent, reward_fn=net, venv=venv, exploration_frac=0.05, rng=rng)
    stepped = count_steps(generator.buffering_wrapper)
    learner = pc.PreferenceComparisons(
        generator, net,
        num_iterations=arguments.iterations,
        fragmenter=pc.RandomFragmenter(warning_threshold=0, rng=rng),
        preference_gatherer=pc.SyntheticGatherer(rng=rng),
        reward_trainer=pc.BasicRewardTrainer(
            preference_model=pc.PreferenceModel(net), loss=pc.CrossEntropyRewardLoss(), epochs=3, rng=rng
        ),
        fragment_length=arguments.segment, transition_oversampling=1, initial_comparison_frac=0.1,
        allow_variable_horizon=False, initial_epoch_multiplier=4, query_schedule="hyperbolic",
        custom_logger=imit_logger.configure(format_strs=[]),
    )  # fmt: skip
    learner.train(total_timesteps=arguments.steps, total_comparisons=arguments.pairs)
    seconds = time.process_time() - start
    work: dict[str, object] = {"comparisons": len(learner.dataset), "segment": len(learner.dataset[0][0][0])}
    work |= {"steps": agent.num_timesteps, "rollout": agent.n_steps * agent.n_envs}
    work |= {"reward_hidden": arguments.hidden, "policy_hidden": agent.policy.net_arch, "evaluated": arguments.episodes}
    work |= {"epochs": agent.n_epochs, "batch": agent.batch_size}
    return {"seconds": seconds, "return": evaluate(agent, arguments), "stepped": len(stepped), "work": work}


def warm_up() -> None:
    """What torch imports at the first step of an optimizer is not timed."""
    number = torch.zeros(1, requires_grad=True)
    number.sum().backward()
    torch.optim.Adam([number]).step()


def count_steps(venv: Any) -> list[int]:
    """Its ``step_wait`` adds an entry for each step of each environment to the list from now on."""
    stepped: list[int] = []
    wait = venv.step_wait

    def counted() -> Any:
        stepped.extend(range(venv.num_envs))
        return wait()

    venv.step_wait = counted
    return stepped


def evaluate(agent: PPO, arguments: argparse.Namespace) -> float:
    """Mean true return of episodes from given states, without noise."""
    env, returns = gym.make("Pendulum-v1"), []
    for seed in arguments.eval_seeds[: arguments.episodes]:
        observation, done, total = env.reset(seed=seed)[0], False, 0.0
        while not done:
            observation, reward, terminated, truncated, _ = env.step(agent.predict(observation, deterministic=True)[0])
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


MEASURES = {"fit": measure_fit, "relabel": measure_relabel, "select": measure_select, "pendulum": measure_pendulum}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=list(MEASURES))
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 32])
    parser.add_argument("--eval_seeds", type=int, nargs="*", default=[])
    defaults = {"members": 3, "pairs": 256, "segment": 50, "batch": 32, "epochs": 2, "steps": 100_000}
    defaults |= {"kept": 100, "episodes": 100, "length": 150, "rollout": 2048, "iterations": 5, "seed": 0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    real, sys.stdout = sys.stdout, sys.stderr  # the library prints
    found = MEASURES[arguments.what](arguments)
    sys.stdout = real
    print(json.dumps({**found, "versions": {"imitation": imitation.__version__, "torch": torch.__version__}}))


if __name__ == "__main__":
    main()
