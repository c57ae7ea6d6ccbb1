"""Laws of agents.bc."""

import numpy as np
import pytest
import torch

from agents.bc import BC
from prefrl.core import Transitions
from prefrl.errors import InvalidData
from prefrl.files import load_checkpoint, save_checkpoint

BOX = {"action_low": np.array([-1.2]), "action_high": np.array([1.2])}


def noisy_data(n=2048):
    """Actions a = 0.8 tanh(s₀) + noise of std 0.6."""
    g = torch.Generator().manual_seed(0)
    s = torch.randn(n, 2, generator=g)
    actions = 0.8 * torch.tanh(s[:, :1]) + 0.6 * torch.randn(n, 1, generator=g)
    return Transitions(s, actions, torch.zeros(n), s, torch.zeros(n))


def train(learner, data, updates, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        metrics = learner.update(data[torch.randint(len(data), (256,), generator=g)])
    return metrics


@pytest.mark.parametrize("policy", ["gaussian", "deterministic"])
def test_it_clones(policy):
    """The mean action approaches E[a|s]; the Gaussian's std approaches that of the data."""
    data = noisy_data()
    learner = BC(data=data, **BOX, seed=0, policy=policy, hidden=(32, 32), lr=3e-3)
    train(learner, data, 450)
    error = learner.policy.act(data.observations) - 0.8 * torch.tanh(data.observations[:, :1])
    assert error.square().mean().sqrt() < 0.15  # a constant action is 0.5 off
    if policy == "gaussian":
        assert learner.policy.log_std.exp().item() == pytest.approx(0.6 / 1.2, rel=0.05)  # half the range is 1.2


def test_rewards_are_ignored():
    """Other rewards, next observations and ends give bitwise the same policy."""
    data = noisy_data()
    other = Transitions(data.observations, data.actions, torch.ones(2048), torch.ones(2048, 2), torch.ones(2048))
    one, two = (BC(data=d, **BOX, seed=0, hidden=(8,)) for d in (data, other))
    train(one, data, 5)
    train(two, other, 5)
    assert all(torch.equal(p, q) for p, q in zip(one.policy.parameters(), two.policy.parameters(), strict=True))


def test_resume_is_bitwise(tmp_path):
    """Save at 5, load into a learner of another seed, continue to 10: as if never stopped."""
    data = noisy_data()
    whole, first, second = (BC(data=data, **BOX, seed=seed, hidden=(8,)) for seed in (0, 0, 1))
    batches = [data[torch.arange(i, i + 64)] for i in range(10)]
    for batch in batches:
        whole.update(batch)
    for batch in batches[:5]:
        first.update(batch)
    save_checkpoint(tmp_path / "bc.safetensors", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "bc.safetensors"))
    for batch in batches[5:]:
        second.update(batch)
    assert all(torch.equal(p, q) for p, q in zip(whole.policy.parameters(), second.policy.parameters(), strict=True))


def test_nan_is_refused():
    """NaN in the data is an error at construction that names the field."""
    data = noisy_data()
    data.actions[3, 0] = float("nan")
    with pytest.raises(InvalidData, match="actions holds 1 value"):
        BC(data=data, **BOX, seed=0)
