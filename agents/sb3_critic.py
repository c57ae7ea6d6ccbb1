r"""The critics of a trained Stable-Baselines3 model as Q and V: whose advantage A = Q − V can teach (arXiv 2310.13639).

    critic = SB3Critic(SAC("MlpPolicy", env).learn(100_000))
    critic.q(observations, actions);  critic.v(observations);  critic.save("sac.safetensors")

Q is the minimum of the critics (Fujimoto et al. 2018, arXiv 1802.09477), and V a mean over actions of the policy:

- entropy=True: V(s) = E[Q(s, a) − α log π(a|s)], the soft value that SAC learns (arXiv 1812.05905); of an optimal
  policy, Q − V = α log π
- entropy=False: V(s) = E Q(s, a), as the code of contrastive preference learning has it, with 64 actions
- TD3, DDPG: V(s) = Q(s, π(s)), of the one action without noise

The same noise is used for every state, so V is a function of the state alone: no answer depends on what else is asked.
Log-probs are those of actions in [−1, 1], as Stable-Baselines3 has them when it learns. Where a model was trained under
``VecNormalize``, give it observations that are normalized alike, and know that Q is of normalized rewards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.sb3 import policy_from_state, policy_state, require_supported
from prefrl.errors import ConfigError, DamagedFile, InvalidData
from prefrl.files import load_checkpoint, save_checkpoint

__all__ = ["SB3Critic"]

ROWS = 1024  # states at a time in V: what fits into a processor's cache is 1.5 times as fast


class SB3Critic:
    """Q and V of a SAC, TD3 or DDPG model (``prefrl.value_oracles.Critic``).

    model: of Stable-Baselines3, or the ``policy`` of one · samples: actions per state in V, >= 1; 1 for TD3 and DDPG
    seed: of their noise · entropy: whether V counts the entropy of SAC
    temperature: α, >= 0; None takes what the model has, which a bare policy has not
    env: id of the environment that it was trained in, recorded only; None takes what the model has.
    """

    policy: Any
    file: str | None = None  # name of the file that it was read from

    def __init__(
        self,
        model: Any,
        *,
        samples: int = 64,
        seed: int = 0,
        entropy: bool = True,
        temperature: float | None = None,
        env: str | None = None,
    ) -> None:
        self.policy = getattr(model, "policy", model)
        require_supported(self.policy)
        self.kind = type(self.policy).__name__
        if not hasattr(self.policy, "critic"):
            raise ConfigError(f"SB3Critic: a {self.kind} has no Q(s, a); use a model of SAC, TD3 or DDPG.")
        if samples < 1:
            raise ConfigError(f"SB3Critic: samples must be >= 1, but is {samples}.")
        self.policy.set_training_mode(False)
        self.low, self.high = (
            torch.as_tensor(bound, device=self.policy.device)
            for bound in (self.policy.action_space.low, self.policy.action_space.high)
        )
        self.entropy, self.seed = entropy, seed
        self.env = _env_id(model) if env is None else env
        self.samples = samples if self.is_random else 1
        self.temperature = _temperature(model) if temperature is None else temperature
        if self.temperature is None and self.is_random and entropy:
            raise ConfigError(
                "SB3Critic: entropy=True needs α, which a bare policy has not: give the model, or temperature=…"
            )
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.samples, len(self.low), generator=generator)  # (samples, A)
        self.noise = noise.to(self.policy.device)

    @property
    def is_random(self) -> bool:
        """Whether the policy draws its actions."""
        return self.kind == "SACPolicy"

    @torch.no_grad()
    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(M, D), (M, A) in the action box → (M,)."""
        _require_size("observations", observations, self.policy.observation_space)
        _require_size("actions", actions, self.policy.action_space)
        units = (2 * (actions - self.low) / (self.high - self.low) - 1).clamp(-1, 1)
        return self._least(observations, units)

    @torch.no_grad()
    def v(self, observations: Tensor) -> Tensor:
        """(M, D) → (M,)."""
        _require_size("observations", observations, self.policy.observation_space)
        return torch.cat([self._mean_value(states) for states in observations.split(ROWS)])

    def _mean_value(self, observations: Tensor) -> Tensor:
        actor = self.policy.actor
        if not self.is_random:
            return self._least(observations, actor(observations))
        mean, log_std, _ = actor.get_action_dist_params(observations)
        distribution = actor.action_dist.proba_distribution(mean, log_std)
        total = torch.zeros(len(observations), device=observations.device)
        for noise in self.noise:  # one by one: all at once would need samples times the memory
            drawn = mean + log_std.exp() * noise  # (M, A)
            units = torch.tanh(drawn)
            total += self._least(observations, units)
            if self.entropy and self.temperature:
                total -= self.temperature * distribution.log_prob(units, drawn)
        return total / len(self.noise)

    def describe(self) -> dict[str, Any]:
        """How its values are made, as JSON."""
        options: dict[str, Any] = {"critic": f"minimum of {self.policy.critic.n_critics} of a {self.kind}"}
        if self.is_random:
            options |= {"samples": self.samples, "seed": self.seed, "entropy": self.entropy}
        if self.is_random and self.entropy:
            options["temperature"] = self.temperature
        origin = {"env": self.env, "file": self.file}
        return options | {name: value for name, value in origin.items() if value is not None}

    def ineffective(self, key: str) -> str | None:
        """Why an option does nothing: a deterministic policy has one action per state, and no entropy."""
        if key in ("samples", "seed", "entropy") and not self.is_random:
            return f"V of a {self.kind} is Q of its one action"
        return None

    def save(self, path: Path | str) -> None:
        """Write tensors and constructor arguments as one safetensors file."""
        options = {name: getattr(self, name) for name in ("samples", "seed", "entropy", "temperature", "env")}
        save_checkpoint(path, {**policy_state(self.policy), "critic": options})

    @classmethod
    def load(
        cls, path: Path | str, *, samples: int | None = None, seed: int | None = None, entropy: bool | None = None
    ) -> SB3Critic:
        """Read what ``save`` wrote; what is given replaces what it was saved with."""
        state = load_checkpoint(path)
        policy = policy_from_state(state, path)
        if "critic" not in state:
            raise DamagedFile(f"{path} holds a policy without what a critic needs. Write it by SB3Critic(model).save.")
        given = {"samples": samples, "seed": seed, "entropy": entropy}
        critic = cls(policy, **(state["critic"] | {name: value for name, value in given.items() if value is not None}))
        critic.file = Path(path).name
        return critic

    def _least(self, observations: Tensor, units: Tensor) -> Tensor:
        return torch.cat(self.policy.critic(observations, units), dim=1).amin(1)


def _temperature(model: Any) -> float | None:
    """α of a SAC model, learned or fixed."""
    if getattr(model, "log_ent_coef", None) is not None:
        return float(model.log_ent_coef.detach().exp())
    fixed = getattr(model, "ent_coef_tensor", None)
    return None if fixed is None else float(fixed)


def _env_id(model: Any) -> str | None:
    """Id of the environment that a model was trained in, where its environment is at hand and has one."""
    made = getattr(getattr(model, "env", None), "envs", None)  # of Stable-Baselines3's DummyVecEnv
    return made[0].spec.id if made and made[0].spec is not None else None


def _require_size(what: str, values: Tensor, space: Any) -> None:
    if values.shape[-1:] != space.shape:
        raise InvalidData(
            f"SB3Critic: the model was trained with {what} of size {space.shape[0]}, but these have size "
            f"{values.shape[-1]}. Give the critic of this environment."
        )
