r"""A trained Stable-Baselines3 model (SAC, TD3, DDPG, PPO, A2C) as a policy of ours.

    policy = SB3Policy(SAC("MlpPolicy", env).learn(100_000))
    policy.act(observations);  policy.log_prob(segments);  policy.save("sac.safetensors")

log π(a|s) is differentiable, in the units of the action space, with Stable-Baselines3's own distributions:

- SAC: u = tanh(x), x Gaussian, a = low + (u + 1)(high − low)/2, so
  log π(a|s) = log N(x) − Σ log(1 − u²) − Σ log((high − low)/2)  (Haarnoja et al. 2018, arXiv 1812.05905)
- PPO, A2C: the unclipped Gaussian
- TD3, DDPG: a Gaussian of fixed std around the action, as ``DeterministicPolicy``

A file holds tensors and constructor arguments, never Stable-Baselines3's zip of pickles. It is for acting and
for aligning the policy; optimizer and replay buffer stay behind. Where a model was trained under
``VecNormalize``, give it observations that are normalized alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from agents.policies import masked_log_prob, normal_log_prob
from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, DamagedFile
from prefrl.files import load_checkpoint, save_checkpoint

__all__ = ["SB3Policy", "policy_from_state", "policy_state", "require_supported"]

# the classes that a file may name
ACTIVATIONS = {f.__name__: f for f in (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU)}


class SB3Policy(nn.Module):
    """Implements ``prefrl.protocols.Policy`` by a Stable-Baselines3 model, or by the ``policy`` of one.

    std: of the Gaussian that stands in for a deterministic policy, in units of half the action range.
    """

    low: Tensor
    high: Tensor
    policy: Any

    def __init__(self, model: Any, *, std: float = math.sqrt(0.5)) -> None:
        super().__init__()
        self.policy = getattr(model, "policy", model)
        self.kind = type(self.policy).__name__
        self.std = std
        require_supported(self.policy)
        self.register_buffer("low", torch.as_tensor(self.policy.action_space.low, device=self.policy.device))
        self.register_buffer("high", torch.as_tensor(self.policy.action_space.high, device=self.policy.device))

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """(B, D) → (B, A): as ``model.predict(…, deterministic=True)``."""
        self.policy.set_training_mode(False)
        actions = self.policy._predict(observations, deterministic=True)
        if self.policy.squash_output:
            actions = self.low + 0.5 * (actions + 1) * (self.high - self.low)
        return torch.clamp(actions, self.low, self.high)

    def step_log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, D), (B, A) → (B,): log π(a | s)."""
        return KINDS[self.kind].log_prob(self, observations, actions)

    def log_prob(self, segments: SegmentBatch) -> Tensor:
        """(B, T): log π(a_t | s_t); 0 on padding."""
        return masked_log_prob(self, segments)

    def save(self, path: Path | str) -> None:
        """Write tensors and constructor arguments as one safetensors file."""
        save_checkpoint(path, {**policy_state(self.policy), "std": self.std})

    @classmethod
    def load(cls, path: Path | str) -> SB3Policy:
        """Read what ``save`` wrote."""
        state = load_checkpoint(path)
        return cls(policy_from_state(state, path), std=state["std"])

    def _to_units(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The action box as [−1, 1]^A, and Σ log((high − low)/2)."""
        half_range = (self.high - self.low) / 2
        return (actions - self.low) / half_range - 1, half_range.log().sum()


def policy_state(policy: Any) -> dict[str, Any]:
    """Tensors and constructor arguments of a supported policy, for ``prefrl.files.save_checkpoint``."""
    kind = type(policy).__name__
    arguments = KINDS[kind].arguments(policy)
    arguments["activation_fn"] = arguments["activation_fn"].__name__
    spaces = {name: _box_state(getattr(policy, name)) for name in ("observation_space", "action_space")}
    tensors = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    return {"kind": kind, **spaces, "arguments": arguments, "tensors": tensors}


def policy_from_state(state: dict[str, Any], path: Path | str) -> Any:
    """The inverse of ``policy_state``, for what a file at ``path`` held."""
    if state.get("kind") not in KINDS:
        raise DamagedFile(f"{path} holds {state.get('kind')!r}, expected a policy of {', '.join(KINDS)}.")
    arguments = {**state["arguments"], "activation_fn": ACTIVATIONS[state["arguments"]["activation_fn"]]}
    spaces = {name: _box(state[name]) for name in ("observation_space", "action_space")}
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global random state
        policy = KINDS[state["kind"]].make(**spaces, lr_schedule=lambda _: 0.0, **arguments)
    policy.load_state_dict({name.removeprefix("policy."): tensor for name, tensor in state["tensors"].items()})
    return policy


def _squashed_gaussian(self: SB3Policy, observations: Tensor, actions: Tensor) -> Tensor:
    actor = self.policy.actor
    mean, log_std, _ = actor.get_action_dist_params(observations)
    units, log_volume = self._to_units(actions)
    return actor.action_dist.proba_distribution(mean, log_std).log_prob(units) - log_volume


def _gaussian(self: SB3Policy, observations: Tensor, actions: Tensor) -> Tensor:
    return self.policy.get_distribution(observations).log_prob(actions)


def _around_action(self: SB3Policy, observations: Tensor, actions: Tensor) -> Tensor:
    units, log_volume = self._to_units(actions)
    mean = self.policy.actor(observations)
    return normal_log_prob(units, mean, torch.full_like(mean, math.log(self.std))) - log_volume


@dataclass(frozen=True)
class _Kind:
    """How one of Stable-Baselines3's policy classes is made, kept and asked."""

    make: Callable[..., BasePolicy]
    log_prob: Callable[[SB3Policy, Tensor, Tensor], Tensor]
    arguments: Callable[[Any], dict[str, Any]]  # constructor arguments that shape the networks


def _network(policy: Any) -> dict[str, Any]:
    return {
        "net_arch": policy.net_arch,
        "activation_fn": policy.net_args["activation_fn"],
        "n_critics": policy.critic_kwargs["n_critics"],
    }


def _actor(policy: Any) -> dict[str, Any]:
    return {**_network(policy), "clip_mean": policy.actor_kwargs["clip_mean"]}


def _actor_critic(policy: Any) -> dict[str, Any]:
    return {"net_arch": policy.net_arch, "activation_fn": policy.activation_fn}


KINDS = {
    "SACPolicy": _Kind(SACPolicy, _squashed_gaussian, _actor),
    "TD3Policy": _Kind(TD3Policy, _around_action, _network),
    "ActorCriticPolicy": _Kind(ActorCriticPolicy, _gaussian, _actor_critic),
}


def require_supported(policy: Any) -> None:
    """Raise ``ConfigError`` for what could not be kept in a file, or asked for densities."""
    kind = type(policy).__name__
    if kind not in KINDS:
        raise ConfigError(f"SB3Policy: a policy of class {kind} is not supported; these are: {', '.join(KINDS)}.")
    for name in ("observation_space", "action_space"):
        space = getattr(policy, name)
        if type(space) is not gym.spaces.Box or len(space.shape) != 1:
            raise ConfigError(f"SB3Policy: {name} must be a Box of shape (n,), but is {space}.")
    if getattr(policy, "use_sde", False) or getattr(policy, "actor_kwargs", {}).get("use_sde", False):
        raise ConfigError("SB3Policy: state-dependent exploration is not supported; train with use_sde=False.")
    if policy.features_extractor_class is not FlattenExtractor:
        raise ConfigError(
            "SB3Policy: only policies without a feature extractor of their own are supported (MlpPolicy)."
        )
    activation = policy.net_args["activation_fn"] if hasattr(policy, "net_args") else policy.activation_fn
    if activation.__name__ not in ACTIVATIONS:
        raise ConfigError(f"SB3Policy: activation {activation.__name__} is not one of {', '.join(ACTIVATIONS)}.")


def _box_state(space: Any) -> dict[str, Any]:
    return {"low": torch.as_tensor(space.low), "high": torch.as_tensor(space.high), "dtype": str(space.dtype)}


def _box(state: dict[str, Any]) -> gym.spaces.Box:
    return gym.spaces.Box(state["low"].numpy(), state["high"].numpy(), dtype=np.dtype(state["dtype"]).type)
