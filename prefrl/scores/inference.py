"""Values of N networks without gradients, as fast as the processor: layer and activation in one pass of oneDNN.

Where rewards of a whole replay memory are computed (relabelling in PEBBLE, arXiv 2106.05091, §4.3) and thousands of
candidate questions are judged, narrow networks spend most of their time between the products, on activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prefrl.linear import ONEDNN, stacked_mlp

__all__ = ["stacked_values"]

FUSED: dict[str, tuple[str, list[float]]] = {"leaky_relu": ("leaky_relu", [0.01]), "relu": ("relu", [])}


def stacked_values(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    name: str,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """(N, B) from (N, B, in): :func:`prefrl.linear.stacked_mlp` of one output, equal but for the last digits.

    name: of the ``activation``, which may overwrite its input. Gradients flow where they are on; it is slower then.
    """
    plain = torch.is_grad_enabled() or inputs.device.type != "cpu" or inputs.numel() == 0
    if ONEDNN is None or plain or {x.dtype for x in (inputs, *weights, *biases)} != {torch.float32}:
        return stacked_mlp(inputs, weights, biases, activation=activation).squeeze(-1)
    fused, numbers = FUSED.get(name, ("none", []))
    values = inputs.new_empty(inputs.shape[:2])
    for n, x in enumerate(inputs.unbind(0)):
        x = x.contiguous()  # the operator misreads some views
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = ONEDNN(x, weight[n].contiguous(), bias[n].contiguous(), fused, numbers, "")  # (B, out)
            x = x if name in FUSED else activation(x)
        torch.addmv(biases[-1][n], x, weights[-1][n, 0], out=values[n])
    return values
