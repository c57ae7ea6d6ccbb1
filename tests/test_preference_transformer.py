"""Laws of the Preference Transformer: convex weights, causal rewards, padding, repeatable dropout."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from strategies import segment_batches
from torch import nn

from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.scores import PreferenceTransformer
from prefrl.train.fit_score import fit_score
from prefrl.train.relabel import relabel

QUICK = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "seed": 0, "tensorboard": False}


def make_score(**changed):
    settings = {"observation_size": 3, "action_size": 2, "members": 2, "embedding": 8, "heads": 2, "seed": 0}
    return PreferenceTransformer(**{**settings, **changed})


def random_segments(B=4, T=6, seed=0, mask=None):
    g = torch.Generator().manual_seed(seed)
    observations, actions = torch.randn(B, T + 1, 3, generator=g), torch.randn(B, T, 2, generator=g)
    return SegmentBatch(observations, actions, torch.ones(B, T, dtype=torch.bool) if mask is None else mask)


def comparisons(n=40, T=6):
    """Answers by a linear reward, without noise."""
    first, second = random_segments(n, T, seed=1), random_segments(n, T, seed=2)
    returns = [s.observations[:, :-1, 0].sum(1) - s.actions[:, :, 1].sum(1) for s in (first, second)]
    return Comparisons(first, second, (returns[0] > returns[1]).float())


def equal_states(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def oracle(network, inputs):
    """Rewards (T,) and the score of one segment (T, D + A), from torch's own encoder layer and a loop over queries."""
    E, T = network.embed.out_features, len(inputs)
    t = torch.arange(T)[:, None]
    angle = t / 10_000 ** (torch.arange(0, E, 2) / E)
    x = F.linear(inputs, network.embed.weight, network.embed.bias) + torch.cat([angle.sin(), angle.cos()], 1)
    x = network.norm_in(x)
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(E, block.heads, 4 * E, dropout=0.0, norm_first=True, batch_first=True)
        attention = layer.self_attn
        attention.in_proj_weight, attention.in_proj_bias = block.query_key_value.weight, block.query_key_value.bias
        attention.out_proj, layer.linear1, layer.linear2 = block.merge, block.mlp[0], block.mlp[2]
        layer.norm1, layer.norm2 = block.norm_attention, block.norm_mlp
        x = layer(x[None], src_mask=nn.Transformer.generate_square_subsequent_mask(T))[0]
    last = network.query_key_reward
    query, key, reward = F.linear(network.norm_out(x), last.weight, last.bias).split([E, E, 1], -1)
    z = [sum(torch.softmax(key @ query[i], 0)[t] * reward[t, 0] for t in range(T)) for i in range(T)]
    return reward[:, 0], sum(z) / T


def test_the_score_is_that_of_the_paper():
    """s = 1/T Σ_i z_i, z_i = Σ_t softmax_t ⟨q_i, k_t⟩ r̂_t, on embeddings of torch's own causal encoder layers."""
    score, segments = make_score(layers=2), random_segments()
    rewards = score.read(segments).rewards
    for member, network in enumerate(score.networks):
        for b in range(len(segments)):
            r, s = oracle(network, score.encode(segments)[b])
            torch.testing.assert_close(rewards[member, b], r, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(score(segments)[member, b], s, rtol=1e-4, atol=1e-5)


@given(segments=segment_batches(D=3, A=2))
@settings(max_examples=25, deadline=None)
def test_weights_are_convex_and_the_score_is_their_mean_reward(segments):
    """w ≥ 0, Σ_t w_t = 1, both 0 on padding, s = Σ_t w_t r̂_t."""
    score = make_score()
    rewards, weights = score.read(segments)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, len(segments)))
    assert not weights[:, ~segments.mask].any()
    assert not rewards[:, ~segments.mask].any()
    torch.testing.assert_close(score(segments), (weights * rewards).sum(-1))


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
    torch.testing.assert_close(score(padded), score(segments), rtol=1e-4, atol=1e-5)


def test_rewards_do_not_know_the_future():
    """∂ r̂_t / ∂ (step u) = 0 for u > t, and not for u ≤ t; the weight of the first step knows the last one."""
    score = make_score(layers=2)
    encoded = score.encode(random_segments(B=1)).expand(2, 1, 6, 5).clone().requires_grad_()
    rewards, weights = score._read(encoded, None)
    for t in range(6):
        gradient = torch.autograd.grad(rewards[:, 0, t].sum(), encoded, retain_graph=True)[0][:, 0]  # (N, T, D + A)
        assert (gradient[:, : t + 1].abs().sum(-1) > 0).all()
        assert not gradient[:, t + 1 :].any()
    assert torch.autograd.grad(weights[:, 0, 0].sum(), encoded)[0][:, 0, -1].any()


def test_a_reward_depends_on_the_past():
    """Non-Markovian: the same step after another past has another reward, and the order of steps matters."""
    score, segments = make_score(), random_segments()
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    swapped = SegmentBatch(segments.observations[:, [*order, 6]], segments.actions[:, order], segments.mask)
    before, after = score.read(segments).rewards, score.read(swapped).rewards
    assert not torch.isclose(before[..., -1], after[..., -1]).any()


def test_the_reward_of_a_step_is_the_score_of_a_segment_of_one_step():
    """T = 1: w = 1, so s = r̂ = reward(o, a)."""
    score, one = make_score(), random_segments(T=1)
    torch.testing.assert_close(score.reward(one.observations[:, 0], one.actions[:, 0]), score(one))
    steps = torch.randn(7, 3), torch.randn(7, 2)
    torch.testing.assert_close(relabel(score, *steps, batch_size=3), score.reward(*steps).mean(0))


@pytest.mark.parametrize("T", [1, 2, 100, 300])
def test_any_length_works(T):
    """Scores and gradients are finite from one step to hundreds."""
    score = make_score(dropout=0.0)
    scores = score(random_segments(T=T))
    scores.sum().backward()
    assert torch.isfinite(scores).all()
    assert all(torch.isfinite(p.grad).all() for p in score.parameters())


def test_members_are_independent():
    """∂ s_i / ∂ (parameters of j) = 0 for i ≠ j, and members begin with different weights."""
    score = make_score()
    score(random_segments())[1].sum().backward()
    assert not any(p.grad.any() for p in score.networks[0].parameters())
    assert all(p.grad.any() for p in score.networks[1].parameters())
    assert not torch.equal(score.networks[0].embed.weight, score.networks[1].embed.weight)


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    """Building and a pass with dropout draw nothing from torch's global generator."""
    before = torch.get_rng_state()
    one, two = make_score(), make_score()
    assert equal_states(one, two)
    assert not equal_states(one, make_score(seed=1))
    segments = random_segments()
    assert torch.equal(one.train()(segments), two.train()(segments))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_acts_in_training_only():
    """A new score evaluates: equal passes are equal; in training two passes differ, and fit_score leaves evaluation."""
    score, segments = make_score(dropout=0.5), random_segments()
    assert torch.equal(score(segments), score(segments))
    score.train()
    assert not torch.allclose(score(segments), score(segments))
    fit_score(score, comparisons(), **QUICK)
    assert not score.training
    assert torch.equal(score(segments), score(segments))


def test_dropout_keeps_the_mean():
    """Averaged over masks, the embedding that dropout leaves is the one without: inverted dropout."""
    score = make_score(dropout=0.3).train()
    score.networks[0].dropout.train()
    with score._dropout(torch.zeros(1)):
        dropped = score.networks[0].dropout(torch.ones(100_000))
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.01)


def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path):
    """Ctrl-C in epoch 3, then once more with a fresh score of another seed: equal to the bit, dropout included."""
    data, settings = comparisons(), {**QUICK, "checkpoint_every": 2}
    whole = make_score()
    expected = fit_score(whole, data, **settings, folder=tmp_path / "whole")

    def stop(epoch, _epochs):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_score(make_score(), data, **settings, folder=tmp_path / "cut", progress=stop)
    resumed = make_score(seed=7)
    assert fit_score(resumed, data, **settings, folder=tmp_path / "cut") == expected
    assert equal_states(resumed, whole)


def test_a_weighted_reward_is_learned():
    """Only the last step counts, which a sum of rewards of single steps cannot say: the transformer learns it."""
    first, second = random_segments(400, seed=1), random_segments(400, seed=2)
    last = [s.observations[:, -2, 0] for s in (first, second)]
    data = Comparisons(first, second, (last[0] > last[1]).float())
    score = make_score(members=1, embedding=16, dropout=0.0)
    report = fit_score(score, data, epochs=20, batch_size=32, learning_rate=1e-2, holdout=0.25, seed=0)
    assert report.heldout_accuracy > 0.85
    assert report.train_nll < math.log(2) / 2


def test_each_option_changes_the_output():
    """No ghost options."""
    segments = random_segments()
    settings = {"observations": segments.observations[:, :-1] * 3, "actions": segments.actions, "seed": 0}
    small = {"members": 2, "embedding": 8, "heads": 2, "dropout": 0.1}
    usual = PreferenceTransformer.for_data(**settings, **small).train()(segments)
    for changed in ({"heads": 4}, {"layers": 2}, {"embedding": 16}, {"dropout": 0.5}, {"normalize": False}, {"seed": 1},
                    {"std_floor": 9.0}):  # fmt: skip
        other = PreferenceTransformer.for_data(**{**settings, **small, **changed}).train()(segments)
        assert not torch.allclose(other, usual), changed


def test_a_stored_score_is_the_same_score(tmp_path):
    """state_dict → file → a new score of another seed: equal to the bit, statistics too."""
    segments, score = random_segments(), make_score()
    score.fit_normalization(segments.observations[:, :-1], segments.actions)
    save_checkpoint(tmp_path / "score.safetensors", score.state_dict())
    other = make_score(seed=9)
    other.load_state_dict(load_checkpoint(tmp_path / "score.safetensors"))
    assert torch.equal(other(segments), score(segments))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": 0}, "members must be >= 1"),
        ({"layers": 0}, "layers and heads must be >= 1"),
        ({"heads": 0}, "layers and heads must be >= 1"),
        ({"heads": 3}, "embedding must be a multiple of heads=3, but is 8"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"std_floor": 0.0}, "std_floor must be > 0"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_the_allowed_set(changed, message):
    """Constructors validate."""
    with pytest.raises(ConfigError, match=message):
        make_score(**changed)
