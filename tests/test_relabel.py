"""Laws of relabeling and of reward normalization."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrl.errors import ConfigError, InvalidData
from prefrl.scores import GaussianReward, ReturnEnsemble
from prefrl.train.relabel import normalize_rewards, relabel

LENGTHS = np.array([3, 5, 2])


def random_rewards(seed=0, n=10):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def make_data(n=50):
    g = torch.Generator().manual_seed(0)
    score = ReturnEnsemble(observation_size=3, action_size=2, hidden=(8, 8), seed=0)
    return score, torch.randn(n, 3, generator=g), torch.randn(n, 2, generator=g)


def returns(rewards):
    return np.add.reduceat(rewards.double().numpy(), [0, 3, 8])


@given(batch_size=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_the_batch_size_does_not_change_rewards(batch_size):
    """Rewards are those of the score, member mean, in any batches, in order."""
    score, observations, actions = make_data()
    rewards = relabel(score, observations, actions, batch_size=batch_size)
    torch.testing.assert_close(rewards, score.reward(observations, actions).mean(0).detach())
    assert not rewards.requires_grad


def test_the_pessimistic_reward_is_the_smallest_of_the_members():
    """reduce=min."""
    score, observations, actions = make_data()
    rewards = relabel(score, observations, actions, reduce="min")
    torch.testing.assert_close(rewards, score.reward(observations, actions).amin(0).detach())
    assert (rewards < relabel(score, observations, actions)).all()


@pytest.mark.parametrize("k", [0.0, 0.5, 3.0])
def test_pessimism_takes_deviations_of_the_members_off_the_mean(k):
    """mean − k · std over members, where each is certain of its own."""
    score, observations, actions = make_data()
    members = score.reward(observations, actions).detach().numpy()
    rewards = relabel(score, observations, actions, reduce="pessimistic", pessimism=k, batch_size=7)
    np.testing.assert_allclose(rewards, members.mean(0) - k * members.std(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("members", [1, 3])
def test_pessimism_knows_what_a_score_is_uncertain_of(members):
    """The std of draws from the mixture of members; of one member alone μ − k σ."""
    _, observations, actions = make_data()
    score = GaussianReward(observation_size=3, action_size=2, hidden=(8, 8), members=members, seed=0)
    with torch.no_grad():
        score.weights[-1][:, 1] = 1.0
    mean, std = (f(observations, actions).detach() for f in (score.reward, score.uncertainty))
    rewards = relabel(score, observations, actions, reduce="pessimistic", pessimism=2.0)
    if members == 1:
        torch.testing.assert_close(rewards, (mean - 2 * std)[0])
    g = torch.Generator().manual_seed(0)
    draws = (mean + std * torch.randn(4000, members, 50, generator=g)).flatten(0, 1)
    torch.testing.assert_close(rewards, draws.mean(0) - 2 * draws.std(0), rtol=0.05, atol=0.1)


def test_a_certain_member_alone_cannot_be_pessimistic():
    """There would be nothing to take off."""
    _, observations, actions = make_data()
    alone = ReturnEnsemble(observation_size=3, action_size=2, hidden=(8,), members=1, seed=0)
    with pytest.raises(ConfigError, match="2 members or more"):
        relabel(alone, observations, actions, reduce="pessimistic")


def test_a_reward_that_is_nan_is_an_error():
    """A broken score does not reach a learner."""
    score, observations, actions = make_data()
    score.biases[0].data.fill_(torch.nan)
    with pytest.raises(InvalidData, match="learned rewards holds 50"):
        relabel(score, observations, actions)


def test_bad_arguments_are_errors():
    """Lengths must agree; names and sizes are validated."""
    score, observations, actions = make_data()
    with pytest.raises(InvalidData, match="50 observations, but 49 actions"):
        relabel(score, observations, actions[1:])
    with pytest.raises(ConfigError, match="one of mean, min, pessimistic"):
        relabel(score, observations, actions, reduce="max")
    with pytest.raises(ConfigError, match=r"pessimism must be in \[0, inf\)"):
        relabel(score, observations, actions, reduce="pessimistic", pessimism=-1.0)
    with pytest.raises(ConfigError, match="batch_size"):
        relabel(score, observations, actions, batch_size=0)
    with pytest.raises(ConfigError, match="one of none, std, return_range"):
        normalize_rewards(random_rewards(), LENGTHS, method="iql")
    with pytest.raises(InvalidData, match="9 rewards do not fit episodes of 10 steps"):
        normalize_rewards(random_rewards(n=9), LENGTHS)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_std_gives_mean_zero_and_the_wanted_deviation(seed, scale):
    """mean 0, deviation ``scale``."""
    rewards = normalize_rewards(5 + random_rewards(seed), LENGTHS, method="std", scale=scale).double()
    assert rewards.mean().item() == pytest.approx(0, abs=1e-4 * scale)
    assert rewards.std(correction=0).item() == pytest.approx(scale, rel=1e-4)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_return_range_gives_best_and_worst_episode_a_distance_of_1000(seed, scale):
    """max return − min return = 1000 · scale, and no shift: a zero reward stays zero."""
    before = random_rewards(seed)
    before[0] = 0.0
    rewards = normalize_rewards(before, LENGTHS, method="return_range", scale=scale)
    assert np.ptp(returns(rewards)) == pytest.approx(1000 * scale, rel=1e-4)
    assert rewards[0] == 0


@pytest.mark.parametrize("method", ["none", "std", "return_range"])
def test_normalizing_keeps_the_order_of_rewards(method):
    """A monotone map, with every method."""
    before = random_rewards()
    after = normalize_rewards(before, LENGTHS, method=method, scale=2.0)
    assert torch.equal(before.argsort(), after.argsort())
    assert after.dtype == before.dtype


@pytest.mark.parametrize("method", ["std", "return_range"])
def test_normalizing_is_blind_to_the_scale_of_rewards(method):
    """a · r gives the same as r, for a > 0."""
    one, two = (normalize_rewards(a * random_rewards(), LENGTHS, method=method) for a in (1.0, 37.0))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("method", ["none", "std", "return_range"])
def test_no_reward_stays_no_reward(method):
    """Zero everywhere is the control without reward."""
    assert torch.equal(normalize_rewards(torch.zeros(10), LENGTHS, method=method), torch.zeros(10))


def test_rewards_without_spread_are_an_error():
    """A constant cannot be normalized; NaN is refused."""
    with pytest.raises(InvalidData, match="no spread"):
        normalize_rewards(torch.full((10,), 0.3), LENGTHS, method="std")
    with pytest.raises(InvalidData, match="no spread"):
        normalize_rewards(torch.full((10,), 0.3), np.array([5, 5]), method="return_range")
    with pytest.raises(InvalidData, match="NaN"):
        normalize_rewards(torch.full((10,), torch.nan), LENGTHS)
