"""Known optimum of diffusion policies: a point that goes left or right at random, then is told that right is better."""

import functools

import numpy as np
import pytest
import torch

from agents.diffusion.bc import DiffusionBC
from agents.diffusion.collapse import DemonstrationError
from agents.diffusion.denoisers import MLPDenoiser
from agents.diffusion.policy import DiffusionPolicy
from agents.diffusion.preference import DiffusionPreference
from prefrl.core import Comparisons, SegmentBatch, Transitions
from prefrl.losses import diffusion_dpo

T, SPEED, NOISE = 4, 0.6, 0.05
BOX = {"action_low": -np.ones(1, np.float32), "action_high": np.ones(1, np.float32)}


def walks(n, seed, side=None):
    """n episodes from near 0, T steps of ±SPEED, all to one side: a random one, or the given."""
    g = torch.Generator().manual_seed(seed)
    sides = 2.0 * torch.randint(2, (n, 1), generator=g) - 1 if side is None else torch.full((n, 1), float(side))
    actions = sides * SPEED + NOISE * torch.randn(n, T, generator=g)
    x = 0.1 * torch.randn(n, 1, generator=g) + torch.cat([torch.zeros(n, 1), actions.cumsum(1)], 1)
    return SegmentBatch(x[..., None], actions[..., None], torch.ones(n, T, dtype=torch.bool))


def roll(policy, n, seed):
    """n episodes of the policy, all at once."""
    g = torch.Generator().manual_seed(seed)
    positions = [0.1 * torch.randn(n, 1, generator=g)] * policy.n_obs
    actions = []
    while len(actions) < T:
        chunk = policy.sample(torch.stack(positions[-policy.n_obs :], 1), g)[:, : policy.executed]
        for action in chunk.unbind(1):
            actions.append(action)
            positions.append(positions[-1] + action)
    x = torch.stack(positions[policy.n_obs - 1 :], 1)
    return SegmentBatch(x, torch.stack(actions, 1), torch.ones(n, T, dtype=torch.bool))


def shares(segments):
    """Shares of episodes that go right and left, with every action within 5 standard deviations of the data's."""
    a = segments.actions[..., 0]
    right, left = (((a - side * SPEED).abs() < 5 * NOISE).all(1).double().mean().item() for side in (1, -1))
    return right, left


@pytest.fixture(scope="module")
def cloned():
    """Behavior cloning of 400 walks: 1200 updates of 512 chunks."""
    data, n, updates = walks(400, 0), 400, 1200
    nothing = torch.zeros(n * T)
    steps = Transitions(
        data.observations[:, :-1].flatten(0, 1), data.actions.flatten(0, 1), nothing,
        data.observations[:, 1:].flatten(0, 1), nothing,
    )  # fmt: skip
    policy = functools.partial(
        DiffusionPolicy, horizon=T, executed=T, denoiser=functools.partial(MLPDenoiser, hidden=(64, 64)),
        parametrization="x0", train_steps=50, sampling_steps=16,
    )  # fmt: skip
    learner = DiffusionBC(data=steps, **BOX, seed=0, policy=policy, lr=3e-3, warmup_steps=20, decay_steps=updates)
    chunks, g = learner.prepare(steps, np.full(n, T)), torch.Generator().manual_seed(0)
    for _ in range(updates):
        learner.update(chunks[torch.randint(len(chunks), (512,), generator=g)])
    return learner.policy


def test_behavior_cloning_keeps_both_modes(cloned):
    """Half of the episodes go to each side, and few to neither, where the mean action would lead."""
    right, left = shares(roll(cloned, 500, 1))
    assert right == pytest.approx(0.5, abs=0.1)
    assert left == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def tuned(cloned):
    """The learner and its last metrics after 200 updates on pairs of the policy's own episodes, right before left."""
    own = roll(cloned, 400, 2)
    right = own.observations[:, -1, 0] > 0
    n = int(min(right.sum(), (~right).sum()))
    pairs = Comparisons(own[right.nonzero()[:n, 0]], own[(~right).nonzero()[:n, 0]], torch.ones(n))
    learner = DiffusionPreference(
        comparisons=pairs, **BOX, seed=0, policy=cloned, demonstrations=walks(100, 3, side=1),
        loss=functools.partial(diffusion_dpo, beta=10.0), anchor=1.0, draws=2, lr=1e-3,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        metrics = learner.update(pairs[torch.randint(n, (64,), generator=g)])
    return learner, metrics


def test_preferences_move_the_mass_and_stay_on_the_data(tuned):
    """At least .9 of the episodes go right, and what was demonstrated there is still explained."""
    learner, metrics = tuned
    assert shares(roll(learner.policy, 500, 1))[0] >= 0.9
    assert metrics["demo_error_ratio"] < 1.2
    assert metrics["accuracy"] > 0.9


def test_a_rejected_mode_looks_like_a_collapse(tuned, cloned):
    """The same policy on demonstrations of both sides: why those that preferences reject must be left out."""
    both = DemonstrationError(cloned, walks(100, 4), chunks=256, limit=0.2, seed=0)
    assert both.collapsed(both.ratio(tuned[0].policy))
