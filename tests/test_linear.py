"""Laws of the linear layer."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrl import linear as module
from prefrl.linear import linear


def random_arguments(M, inputs, outputs, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    shapes = ((M, inputs), (outputs, inputs), (outputs,))
    return [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes]


@given(st.integers(0, 70), st.integers(1, 70), st.integers(1, 70), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_it_is_torchs_linear_layer(M, inputs, outputs, seed):
    """Equal values, and equal gradients of all three arguments, at any size."""
    arguments = random_arguments(M, inputs, outputs, seed)
    found, expected = linear(*arguments), F.linear(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    gradients = (torch.autograd.grad(y, arguments, direction) for y in (found, expected))
    for mine, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)


def test_gradients_equal_finite_differences():
    """In float64, where torch's own layer is used."""
    assert torch.autograd.gradcheck(linear, random_arguments(4, 3, 2, dtype=torch.float64))


def test_it_works_without_onednn(monkeypatch):
    """A torch without the operator falls back to its own layer."""
    arguments = random_arguments(5, 3, 2)
    monkeypatch.setattr(module, "ONEDNN", None)
    assert torch.equal(linear(*arguments), F.linear(*arguments))


def test_it_takes_views():
    """Transposed and expanded arguments and gradients give what their contiguous copies give."""
    x, weight, bias = random_arguments(6, 4, 3)
    views = [x.t().contiguous().t(), weight.t().contiguous().t(), bias[:1].expand(3)]
    for arguments in (views, [x[:1].expand(6, 4), weight[:1].expand(3, 4), bias]):
        found, expected = linear(*arguments), linear(*(view.contiguous() for view in arguments))
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(found.sum(), [x, weight, bias], retain_graph=True)]
        gradients.append(torch.autograd.grad(expected, [x, weight, bias], torch.ones(6, 3), retain_graph=True))
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two)


def test_it_is_repeatable():
    """The same call gives the same bits."""
    arguments = random_arguments(500, 43, 256)
    once, again = linear(*arguments), linear(*arguments)
    assert torch.equal(once, again)
    gradients = [torch.autograd.grad(y.square().sum(), arguments) for y in (once, again)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.skipif(module.ONEDNN is None, reason="torch was built without oneDNN")
def test_a_second_derivative_is_refused():
    """Better an error than a silently missing term."""
    x, weight, bias = random_arguments(3, 2, 2)
    (gradient,) = torch.autograd.grad(linear(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
