"""Laws of agents.sb3 and agents.sb3_critic: a Stable-Baselines3 model and its adapters agree."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution

from agents.sb3 import SB3Policy
from agents.sb3_critic import SB3Critic
from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, DamagedFile, InvalidData
from prefrl.files import save_checkpoint
from prefrl.protocols import Policy
from prefrl.value_oracles import CriticOracle

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


@pytest.fixture(scope="module")
def trained():
    """SAC after some hundred steps, so that no weight is as it was made and α has moved."""
    sac = model(SAC, learning_starts=50, buffer_size=500)
    return sac.learn(250)


def test_q_is_the_least_critic(trained):
    """Stable-Baselines3's own critics at its own scaling of actions; actions outside the box count as at its edge."""
    scaled = torch.as_tensor(trained.policy.scale_action(actions().numpy()))
    expected = torch.cat(trained.critic(observations(), scaled), 1).min(1).values
    critic = SB3Critic(trained)
    torch.testing.assert_close(critic.q(observations(), actions()), expected)
    edge = torch.as_tensor(HIGH).expand(6, 2)
    assert torch.equal(critic.q(observations(), edge + 1), critic.q(observations(), edge))
    assert not torch.allclose(*trained.critic(observations(), scaled))


@pytest.mark.parametrize("entropy", [True, False])
def test_v_is_the_mean_over_the_policy(entropy, trained):
    """E Q − α log π, or E Q alone, as an independent estimate with Stable-Baselines3's sampling has it."""
    one = observations()[:1]
    torch.manual_seed(0)
    drawn, log_prob = trained.actor.action_log_prob(one.expand(20_000, 3))
    alpha = trained.log_ent_coef.exp() if entropy else 0.0
    each = torch.cat(trained.critic(one.expand(20_000, 3), drawn), 1).min(1).values - alpha * log_prob
    found = SB3Critic(trained, samples=5000, entropy=entropy).v(one)
    assert (found - each.mean()).abs() < 5 * each.std() / 5000**0.5
    assert abs(SB3Critic(trained).v(one) - SB3Critic(trained, entropy=False).v(one)) > 0.1


def test_v_is_its_closed_form_where_q_is_linear():
    """Q = 2 u₀ and a narrow Gaussian around tanh⁻¹ 0.5: E Q = 1; with entropy, α (½ log 2πe σ² + log(1 − u²)) more."""
    linear = model(SAC, policy_kwargs={"net_arch": []}, ent_coef=0.1)
    std, mean = 0.01, torch.tensor([np.arctanh(0.5), 0.0], dtype=torch.float32)
    with torch.no_grad():
        for parameter in linear.policy.parameters():
            parameter.zero_()
        linear.actor.mu.bias.copy_(mean)
        linear.actor.log_std.bias.fill_(np.log(std))
        for network in linear.critic.q_networks:
            network[0].weight[0, 3] = 2.0  # of u₀, behind three observations
    plain = SB3Critic(linear, samples=5000, entropy=False).v(observations())
    torch.testing.assert_close(plain, torch.ones(6), atol=2e-3, rtol=0)
    entropy = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(std)) + np.log(1 - 0.5**2)
    soft = SB3Critic(linear, samples=5000).v(observations())
    torch.testing.assert_close(soft, torch.full((6,), 1 + 0.1 * entropy), atol=1e-2, rtol=0)


@pytest.mark.parametrize("algorithm", [TD3, DDPG])
def test_v_of_a_deterministic_policy_is_q_of_its_action(algorithm):
    """TD3, DDPG: the advantage of the policy's own action is 0."""
    acting = model(algorithm)
    critic = SB3Critic(acting)
    own = SB3Policy(acting).act(observations())
    torch.testing.assert_close(critic.q(observations(), own), critic.v(observations()), atol=1e-5, rtol=1e-5)


def test_v_is_a_function_of_the_state_and_the_seed(trained):
    """Whatever else is asked, a state has one value; equal seeds give equal values, other seeds others."""
    critic = SB3Critic(trained)
    each = torch.cat([critic.v(state[None]) for state in observations()])
    torch.testing.assert_close(critic.v(observations()), each)
    assert torch.equal(critic.v(observations()), SB3Critic(trained).v(observations()))
    assert not torch.equal(critic.v(observations()), SB3Critic(trained, seed=1).v(observations()))


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_critics_survive_a_file_without_pickle(algorithm, tmp_path):
    """save → load gives bitwise the same Q and V, with α; what load is given replaces what was saved."""
    critic = SB3Critic(model(algorithm, **({"ent_coef": 0.3} if algorithm is SAC else {})), samples=8, seed=2)
    critic.save(tmp_path / "critic.safetensors")
    again = SB3Critic.load(tmp_path / "critic.safetensors")
    assert torch.equal(again.q(observations(), actions()), critic.q(observations(), actions()))
    assert torch.equal(again.v(observations()), critic.v(observations()))
    assert again.describe() == {**critic.describe(), "file": "critic.safetensors"}
    assert SB3Critic.load(tmp_path / "critic.safetensors", entropy=False).entropy is False
    assert (again.temperature == pytest.approx(0.3)) if algorithm is SAC else again.temperature is None


def test_critics_teach(trained):
    """As a value oracle: Σ(Q − V) of the steps, and what made it in the parameters."""
    segments = SegmentBatch(observations(8).view(2, 4, 3), actions(6).view(2, 3, 2), torch.ones(2, 3).bool())
    segments = SegmentBatch(segments.observations, segments.actions, segments.mask, torch.zeros(2, 3))
    critic = SB3Critic(trained)
    found = CriticOracle(critic=critic, gamma=0.99).statistics(segments).advantage
    steps = segments.observations[:, :-1].reshape(6, 3)
    expected = (critic.q(steps, actions(6)) - critic.v(steps)).view(2, 3).sum(1)
    torch.testing.assert_close(found.float(), expected)
    stored = CriticOracle(critic=critic, gamma=0.99).parameters()
    assert (stored["critic"], stored["samples"], stored["entropy"]) == ("minimum of 2 of a SACPolicy", 64, True)
    assert stored["temperature"] == pytest.approx(trained.log_ent_coef.exp().item())


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_critics_say_where_they_are_from(algorithm, tmp_path):
    """The id of the environment survives a file, whose name is added; the oracle records both."""
    pendulum = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, buffer_size=10, device="cpu")
    SB3Critic(pendulum).save(tmp_path / "pendulum.safetensors")
    critic = SB3Critic.load(tmp_path / "pendulum.safetensors")
    stored = CriticOracle(critic=critic, gamma=0.99).parameters()
    assert (stored["env"], stored["file"]) == ("Pendulum-v1", "pendulum.safetensors")
    assert "env" not in SB3Critic(model(algorithm)).describe()  # it has no id
    assert SB3Critic(model(algorithm), env="mine").describe()["env"] == "mine"


def test_critics_of_another_environment_are_refused(trained):
    """Other sizes of observations or actions are a named error, in Q and V."""
    critic = SB3Critic(trained)
    with pytest.raises(InvalidData, match="observations of size 3, but these have size 4"):
        critic.q(torch.zeros(5, 4), torch.zeros(5, 2))
    with pytest.raises(InvalidData, match="actions of size 2, but these have size 1"):
        critic.q(torch.zeros(5, 3), torch.zeros(5, 1))
    with pytest.raises(InvalidData, match="observations of size 3, but these have size 1"):
        critic.v(torch.zeros(5, 1))


@pytest.mark.parametrize(("algorithm", "idle"), [(SAC, []), (TD3, ["samples", "seed", "entropy"])])
def test_options_without_effect_are_told(algorithm, idle):
    """A deterministic policy has one action per state: how many are drawn, and their entropy, are nothing."""
    critic = SB3Critic(model(algorithm))
    oracle = CriticOracle(critic=critic, gamma=0.99)
    assert [key for key in ("samples", "seed", "entropy", "path") if oracle.ineffective(f"critic.{key}")] == idle
    assert oracle.ineffective("gamma") is None
    other = SB3Critic(model(algorithm), samples=3, seed=1, entropy=False)
    assert torch.equal(critic.v(observations()), other.v(observations())) == bool(idle)


def test_refusals_of_critics(tmp_path):
    """No Q, no α, no samples, a file of a policy alone: named errors."""
    with pytest.raises(ConfigError, match=r"has no Q\(s, a\); use a model of SAC, TD3 or DDPG"):
        SB3Critic(model(PPO))
    with pytest.raises(ConfigError, match="needs α"):
        SB3Critic(model(SAC).policy)
    assert SB3Critic(model(SAC).policy, entropy=False).temperature is None
    with pytest.raises(ConfigError, match="samples must be >= 1"):
        SB3Critic(model(SAC), samples=0)
    SB3Policy(model(SAC)).save(tmp_path / "policy.safetensors")
    with pytest.raises(DamagedFile, match=r"policy\.safetensors holds a policy without what a critic needs"):
        SB3Critic.load(tmp_path / "policy.safetensors")
