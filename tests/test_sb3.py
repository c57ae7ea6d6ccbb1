"""Laws of agents.sb3: a Stable-Baselines3 model and its adapter agree."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution

from agents.sb3 import SB3Policy
from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, DamagedFile
from prefrl.files import save_checkpoint
from prefrl.protocols import Policy

LOW, HIGH = np.array([-2.0, 1.0], dtype=np.float32), np.array([2.0, 4.0], dtype=np.float32)
ALGORITHMS = [SAC, TD3, DDPG, PPO, A2C]


class Still(gym.Env):
    """Three random numbers to see, a box of two actions, nothing to do."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(LOW, HIGH)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        return self.np_random.normal(size=3).astype(np.float32), 0.0, False, False, {}


def model(algorithm, **options):
    arguments = {"policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu", **options}
    return algorithm("MlpPolicy", Still(), **arguments)


def observations(n=6):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


def actions(n=6):
    units = torch.rand(n, 2, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    return torch.as_tensor(LOW) + (units + 1) / 2 * torch.as_tensor(HIGH - LOW)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_acts_as_the_model(algorithm):
    """act equals model.predict(deterministic=True)."""
    trained = model(algorithm)
    policy = SB3Policy(trained)
    expected, _ = trained.predict(observations().numpy(), deterministic=True)
    np.testing.assert_allclose(policy.act(observations()).numpy(), expected, atol=1e-6)
    assert isinstance(policy, Policy)


def test_sac_log_prob_is_a_squashed_gaussian():
    """SAC: an affine map of tanh of a Gaussian; Stable-Baselines3's own density up to the box's volume."""
    trained = model(SAC)
    policy = SB3Policy(trained)
    mean, log_std, _ = trained.actor.get_action_dist_params(observations())
    low, high = torch.as_tensor(LOW), torch.as_tensor(HIGH)
    transforms = [TanhTransform(), AffineTransform((low + high) / 2, (high - low) / 2, event_dim=1)]
    oracle = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), transforms).log_prob(actions())
    found = policy.step_log_prob(observations(), actions())
    torch.testing.assert_close(found, oracle, atol=1e-4, rtol=1e-4)
    units = 2 * (actions() - low) / (high - low) - 1
    own = trained.actor.action_dist.proba_distribution(mean, log_std).log_prob(units)
    torch.testing.assert_close(found, own - np.log(2 * 1.5), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_on_policy_log_prob_is_the_models(algorithm):
    """PPO, A2C: what evaluate_actions says."""
    trained = model(algorithm)
    _, expected, _ = trained.policy.evaluate_actions(observations(), actions())
    torch.testing.assert_close(SB3Policy(trained).step_log_prob(observations(), actions()), expected)


def test_deterministic_regression_is_the_squared_error():
    """TD3: −log π is the squared error in box units, plus a constant."""
    trained = model(TD3)
    policy = SB3Policy(trained)
    half = torch.as_tensor(HIGH - LOW) / 2
    error = ((actions() - policy.act(observations())) / half).square().sum(-1)
    gap = -policy.step_log_prob(observations(), actions()) - error
    torch.testing.assert_close(gap, gap[:1].expand(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_survives_a_file_without_pickle(algorithm, tmp_path):
    """save → load gives bitwise the same policy, as safetensors; the global random state is left alone."""
    policy = SB3Policy(model(algorithm))
    path = tmp_path / "policy.safetensors"
    policy.save(path)
    assert path.read_bytes()[8:9] == b"{"  # safetensors: eight bytes of length, then JSON; no zip, no pickle
    before = torch.random.get_rng_state()
    again = SB3Policy.load(path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(again.act(observations()), policy.act(observations()))
    log_probs = [p.step_log_prob(observations(), actions()) for p in (again, policy)]
    assert torch.equal(*log_probs)


def test_segments_and_gradients():
    """log_prob is (B, T), 0 on padding, and differentiable in the actor's parameters."""
    policy = SB3Policy(model(SAC))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    segments = SegmentBatch(observations(8).view(2, 4, 3), actions(6).view(2, 3, 2), mask)
    log_prob = policy.log_prob(segments)
    assert log_prob.shape == (2, 3)
    assert not log_prob[~mask].any()
    log_prob.sum().backward()
    assert policy.policy.actor.mu.weight.grad.abs().sum() > 0


def test_refusals(tmp_path):
    """State-dependent exploration, discrete actions and foreign files are named errors."""
    with pytest.raises(ConfigError, match="use_sde=False"):
        SB3Policy(model(SAC, use_sde=True))
    with pytest.raises(ConfigError, match="action_space must be a Box"):
        SB3Policy(PPO("MlpPolicy", "CartPole-v1", device="cpu"))
    save_checkpoint(tmp_path / "other.safetensors", {"kind": "other", "w": torch.zeros(1)})
    with pytest.raises(DamagedFile, match=r"other\.safetensors holds 'other'"):
        SB3Policy.load(tmp_path / "other.safetensors")
