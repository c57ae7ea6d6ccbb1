r"""Multi-layer perceptrons, single or N stacked in one tensor, with the initializations of the field.

Stacking: the N members of an ensemble (twin critics, say) are one set of parameters, and so one step of Adam.
Initializations: "orthogonal", gain √2 and zero bias (Saxe et al. 2014, arXiv 1312.6120; the authors' IQL has
it), or "uniform", U(−1/√fan_in, 1/√fan_in) (PyTorch's own for linear layers).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from prefrl.errors import ConfigError
from prefrl.linear import linear, stacked_mlp

__all__ = ["MLP", "StackedMLP", "initialize_", "polyak_"]


def initialize_(weight: Tensor, bias: Tensor, init: str, generator: torch.Generator) -> None:
    """Fill ``weight`` (out, in) and ``bias`` (out,) in place.

    >>> w, b = torch.empty(2, 2), torch.empty(2)
    >>> initialize_(w, b, "orthogonal", torch.Generator().manual_seed(0))
    >>> torch.allclose(w @ w.T, 2 * torch.eye(2), atol=1e-6), b.tolist()
    (True, [0.0, 0.0])
    """
    bound = 1 / math.sqrt(weight.shape[1])
    with torch.no_grad():
        if init == "orthogonal":
            nn.init.orthogonal_(weight, gain=math.sqrt(2), generator=generator)
            bias.zero_()
        elif init == "uniform":
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        else:
            raise ConfigError(f"init must be 'orthogonal' or 'uniform', but is {init!r}.")


class MLP(nn.Module):
    """x (…, sizes[0]) → (…, sizes[-1]): linear layers with ReLU between them, layer norm before it if wished.

    sizes: layer widths, input and output included.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        generator: torch.Generator,
        layer_norm: bool = False,
        init: str = "orthogonal",
    ) -> None:
        super().__init__()
        # skip_init: nn.Linear would draw from the global random state
        layers: list[nn.Linear] = [nn.utils.skip_init(nn.Linear, i, o) for i, o in pairwise(sizes)]
        self.norms = nn.ModuleList(nn.LayerNorm(o) for o in sizes[1:-1] if layer_norm)
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            initialize_(layer.weight, layer.bias, init, generator)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = linear(x, *layer.parameters()) if x.ndim == 2 else layer(x)
            if i < len(self.layers) - 1:
                x = torch.relu_(self.norms[i](x) if self.norms else x)
        return x


class StackedMLP(nn.Module):
    """N independent MLPs: x (B, sizes[0]), or (N, B, sizes[0]) with one input each, → (N, B, sizes[-1])."""

    def __init__(
        self,
        members: int,
        sizes: Sequence[int],
        *,
        generator: torch.Generator,
        layer_norm: bool = False,
        init: str = "orthogonal",
    ) -> None:
        super().__init__()
        layers = list(pairwise(sizes))
        self.members = members
        self.weights = nn.ParameterList(torch.empty(members, o, i) for i, o in layers)  # (N, out, in), as nn.Linear
        self.biases = nn.ParameterList(torch.empty(members, 1, o) for _, o in layers)
        hidden = [o for _, o in layers[:-1]] if layer_norm else []
        self.norm_weights = nn.ParameterList(torch.ones(members, 1, o) for o in hidden)
        self.norm_biases = nn.ParameterList(torch.zeros(members, 1, o) for o in hidden)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            for member in range(members):
                initialize_(weight[member], bias[member, 0], init, generator)

    def forward(self, x: Tensor) -> Tensor:
        norms = zip(self.norm_weights, self.norm_biases, strict=True)
        return stacked_mlp(
            x.expand(self.members, *x.shape[-2:]),
            list(self.weights),
            [bias.squeeze(1) for bias in self.biases],
            activation=torch.relu_,
            norms=[(weight.squeeze(1), bias.squeeze(1)) for weight, bias in norms],
        )


def polyak_(target: Sequence[Tensor], source: Sequence[Tensor], rate: float) -> None:
    """target ← (1 − rate) target + rate source, in place, for all tensors at once.

    >>> t = [torch.zeros(1)]; polyak_(t, [torch.ones(1)], 0.25); t
    [tensor([0.2500])]
    """
    with torch.no_grad():
        torch._foreach_lerp_(list(target), list(source), rate)
