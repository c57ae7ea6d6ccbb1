r"""Scores of a segment: the return of a learned reward, by an ensemble of MLPs computed as one batched model.

s_i(segment) = Σ_t r_i(o_t, a_t), where r_i is member i. The defaults are B-Pref's (Lee et al. 2021,
arXiv 2111.03026, after PEBBLE, arXiv 2106.05091): 3 members, 3 hidden layers of 256, leaky ReLU, tanh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrl.errors import ConfigError
from prefrl.scores.inference import stacked_values
from prefrl.scores.standardized import StandardizedScore

__all__ = ["ReturnEnsemble"]

# each overwrites its input: activations are most of the memory traffic of a wide network
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu_,
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "silu": F.silu,
}
OUTPUTS = ("tanh", "linear")


class ReturnEnsemble(StandardizedScore):
    r"""Score of a segment: the sum of a learned reward r_i(o, a) over its real steps; N independent members.

    All members are one model: weights are stacked (N, out, in), and one call computes and trains them all.
    Inputs are standardized with statistics from ``fit_normalization``.

    Args:
        observation_size, action_size: D and A.
        members: N >= 1. hidden: width of each hidden layer. activation: leaky_relu | relu | silu | tanh.
        output: "tanh" bounds the reward to (−1, 1), which fixes its scale; "linear" does not.
        normalize: standardize inputs. std_floor: smallest divisor, so that constant inputs do not explode.
        seed: of the initial weights (those of ``nn.Linear``, drawn for each member on its own).
    """

    additive = True  # a score is the sum of the rewards of its steps, whatever stands around them

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        members: int = 3,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "leaky_relu",
        output: Literal["tanh", "linear"] = "tanh",
        normalize: bool = True,
        std_floor: float = 1e-3,
        seed: int,
    ) -> None:
        _validate(members, hidden, activation, output)
        sizes = [observation_size + action_size, *hidden, 1]
        super().__init__(input_size=sizes[0], members=members, normalize=normalize, std_floor=std_floor)
        self.output = output
        self._activation = activation
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5  # the initialization of nn.Linear
            self.weights.append(_uniform((members, fan_out, fan_in), bound, generator))
            self.biases.append(_uniform((members, fan_out), bound, generator))

    @classmethod
    def for_data(
        cls,
        *,
        observations: Tensor,
        actions: Tensor,
        seed: int,
        members: int = 3,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "leaky_relu",
        output: Literal["tanh", "linear"] = "tanh",
        normalize: bool = True,
        std_floor: float = 1e-3,
    ) -> ReturnEnsemble:
        """A new ensemble with sizes and input statistics from steps (..., D), (..., A)."""
        score = cls(
            observation_size=observations.shape[-1],
            action_size=actions.shape[-1],
            members=members,
            hidden=hidden,
            activation=activation,
            output=output,
            normalize=normalize,
            std_floor=std_floor,
            seed=seed,
        )
        score.fit_normalization(observations, actions)
        return score

    def reward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(N, B): each member's reward of (B, D), (B, A)."""
        inputs = self.standardize(observations, actions)
        return self._rewards(inputs.expand(self.members, *inputs.shape))

    def score_encoded(self, encoded: Tensor, mask: Tensor | None) -> Tensor:
        """(N, B): sums of the rewards over the real steps of encoded segments (N, B, T, D + A)."""
        N, B, T, size = encoded.shape
        rewards = self._rewards(encoded.reshape(N, B * T, size)).view(N, B, T)
        return (rewards if mask is None else rewards * mask).sum(-1)

    def _rewards(self, inputs: Tensor) -> Tensor:
        """(N, M, D + A) -> (N, M)."""
        weights, biases, name = list(self.weights), list(self.biases), self._activation
        rewards = stacked_values(inputs, weights, biases, name=name, activation=ACTIVATIONS[name])
        return torch.tanh(rewards) if self.output == "tanh" else rewards


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * bound)


def _validate(members: int, hidden: Sequence[int], activation: str, output: str) -> None:
    if members < 1 or any(width < 1 for width in hidden):
        raise ConfigError(f"score: members and every hidden width must be >= 1, but are {members} and {list(hidden)}.")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"score: activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}.")
    if output not in OUTPUTS:
        raise ConfigError(f"score: output must be one of {', '.join(OUTPUTS)}, but is {output!r}.")
