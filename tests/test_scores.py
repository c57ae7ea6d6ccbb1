"""Laws of the return ensemble."""

import pytest
import torch
from hypothesis import given, settings
from strategies import segment_batches
from torch import nn

from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, InvalidData
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.scores import ReturnEnsemble


def make_score(**changed):
    settings = {"observation_size": 3, "action_size": 2, "hidden": (8, 6), "seed": 0}
    return ReturnEnsemble(**{**settings, **changed})


def random_segments(B=4, T=5, D=3, A=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    observations, actions = torch.randn(B, T + 1, D, generator=g), torch.randn(B, T, A, generator=g)
    return SegmentBatch(observations, actions, torch.ones(B, T, dtype=torch.bool))


def member_as_modules(score, member):
    """The same network, from torch's own layers."""
    layers = []
    for weight, bias in zip(score.weights, score.biases, strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1])
        linear.weight.data, linear.bias.data = weight.data[member], bias.data[member]
        layers += [linear, nn.LeakyReLU()]
    return nn.Sequential(*layers[:-1], nn.Tanh())


def test_one_batched_model_equals_separate_networks():
    """Member i of the ensemble is the i-th network of torch's own layers, in value and gradient."""
    score, segments = make_score(normalize=False), random_segments()
    inputs = torch.cat([segments.observations[:, :-1], segments.actions], -1)
    with torch.no_grad():
        score.biases[-1][1] -= 1  # below zero, where an activation after the last layer would show
    scores = score(segments)
    for member in range(3):
        network = member_as_modules(score, member)
        rewards = network(inputs).squeeze(-1)
        expected = rewards.sum(1)
        assert (rewards < 0).all() == (member == 1)
        torch.testing.assert_close(scores[member], expected)
        gradient = torch.autograd.grad(scores[member].sum(), list(score.weights), retain_graph=True)
        expected.sum().backward()
        for stacked, layer in zip(gradient, network[::2], strict=True):
            torch.testing.assert_close(stacked[member], layer.weight.grad)


@given(segments=segment_batches(D=3, A=2))
@settings(max_examples=25, deadline=None)
def test_padding_does_not_change_a_score(segments):
    """Two more columns of padding, filled with anything, leave every score as it was."""
    B = len(segments)
    padded = SegmentBatch(
        torch.cat([segments.observations, torch.full((B, 2, 3), 7.0)], 1),
        torch.cat([segments.actions, torch.full((B, 2, 2), -9.0)], 1),
        torch.cat([segments.mask, torch.zeros(B, 2, dtype=torch.bool)], 1),
    )
    score = make_score()
    torch.testing.assert_close(score(padded), score(segments))


def test_a_score_is_the_sum_of_its_rewards():
    """s(segment) = Σ_t r(o_t, a_t); the end state does not enter."""
    score, segments = make_score(), random_segments(B=1)
    rewards = score.reward(segments.observations[0, :-1], segments.actions[0])  # (N, T)
    torch.testing.assert_close(score(segments)[:, 0], rewards.sum(1))


def test_members_are_independent():
    """∂ s_i / ∂ (parameters of j) = 0 for i ≠ j."""
    score = make_score()
    gradients = torch.autograd.grad(score(random_segments())[1].sum(), list(score.parameters()))
    for gradient in gradients:
        assert gradient[1].abs().sum() > 0
        assert gradient[0].abs().sum() == gradient[2].abs().sum() == 0


def test_initial_weights_are_those_of_linear_layers():
    """Uniform in ±1/√fan_in, different for each member and seed, equal for equal seeds."""
    score = make_score(hidden=(64, 64))
    for weight in score.weights:
        bound = weight.shape[2] ** -0.5
        assert 0.9 * bound < weight.abs().max() <= bound
        assert not torch.equal(weight[0], weight[1])
    assert torch.equal(score.weights[1], make_score(hidden=(64, 64)).weights[1])
    assert not torch.equal(score.weights[1], make_score(hidden=(64, 64), seed=1).weights[1])


def test_the_global_random_state_is_left_alone():
    """Building an ensemble draws nothing from torch's global generator."""
    before = torch.get_rng_state()
    make_score()
    assert torch.equal(torch.get_rng_state(), before)


def test_normalization_makes_scores_blind_to_units():
    """Inputs in other units (x → a x + b) give the same scores after statistics were taken in those units."""
    segments = random_segments(B=20)
    scaled = SegmentBatch(0.01 * segments.observations + 5, 30 * segments.actions - 1, segments.mask)
    scores = []
    for batch in (segments, scaled):
        score = make_score(std_floor=1e-6)
        score.fit_normalization(batch.observations[:, :-1], batch.actions)
        scores.append(score(batch))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)


def test_constant_inputs_are_not_blown_up():
    """A dimension that never varied is divided by std_floor, not by zero."""
    observations = torch.zeros(10, 3)
    score = ReturnEnsemble.for_data(observations=observations, actions=torch.randn(10, 2), seed=0)
    assert torch.equal(score.std[:3], torch.full((3,), 1e-3))
    assert torch.isfinite(score.reward(observations, torch.zeros(10, 2))).all()


def test_statistics_of_data_with_nan_are_refused():
    """NaN in the data is an error that names it."""
    with pytest.raises(InvalidData, match="NaN or infinite"):
        make_score().fit_normalization(torch.full((4, 3), torch.nan), torch.zeros(4, 2))


def test_each_option_changes_the_output():
    """No ghost options: output, activation and normalize all act."""
    segments = random_segments()
    usual = make_score()
    usual.fit_normalization(segments.observations[:, :-1], segments.actions)
    for changed in (
        {"output": "linear"},
        {"activation": "relu"},
        {"activation": "tanh"},
        {"normalize": False},
    ):
        other = make_score(**changed)
        other.fit_normalization(segments.observations[:, :-1], segments.actions)
        assert not torch.allclose(other(segments), usual(segments)), changed


def test_a_tanh_reward_is_bounded_and_a_linear_one_is_not():
    """|r| ≤ 1 with output=tanh, at any input."""
    far = 1e4 * torch.ones(1, 3), torch.ones(1, 2)
    assert make_score(normalize=False).reward(*far).abs().max() <= 1
    assert make_score(normalize=False, output="linear").reward(*far).abs().max() > 1


def test_a_stored_score_is_the_same_score(tmp_path):
    """state_dict → file → a new ensemble of another seed: equal to the bit, statistics too."""
    segments = random_segments()
    score = make_score()
    score.fit_normalization(segments.observations[:, :-1], segments.actions)
    save_checkpoint(tmp_path / "score.safetensors", score.state_dict())
    other = make_score(seed=9)
    other.load_state_dict(load_checkpoint(tmp_path / "score.safetensors"))
    assert torch.equal(other(segments), score(segments))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": 0}, "must be >= 1"),
        ({"hidden": (8, 0)}, "must be >= 1"),
        ({"activation": "gelu"}, "one of leaky_relu, relu"),
        ({"output": "sigmoid"}, "one of tanh, linear"),
        ({"std_floor": 0.0}, "std_floor must be > 0"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_the_allowed_set(changed, message):
    """Constructors validate."""
    with pytest.raises(ConfigError, match=message):
        make_score(**changed)
