"""Laws of the reward with its own uncertainty."""

import math

import pytest
import torch
from hypothesis import given, settings
from strategies import segment_batches

from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError
from prefrl.losses import preference_nll, reward_mae
from prefrl.runs import read_metrics
from prefrl.scores import GaussianReward, ReturnEnsemble
from prefrl.train.fit_score import fit_score

SIZES = {"observation_size": 3, "action_size": 2, "hidden": (8, 6), "seed": 0}
QUICK = {"epochs": 6, "batch_size": 16, "learning_rate": 3e-3, "seed": 0, "tensorboard": False}


def make_score(**changed):
    return GaussianReward(**{**SIZES, "entropy_floor": 1.0, **changed})


def shaken(score):
    """The score with a σ that depends on the step."""
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        score.weights[-1][:, 1] = torch.randn(score.weights[-1][:, 1].shape, generator=g)
    return score


def random_segments(B=4, T=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    observations, actions = torch.randn(B, T + 1, 3, generator=g), torch.randn(B, T, 2, generator=g)
    return SegmentBatch(observations, actions, torch.ones(B, T, dtype=torch.bool))


def separable(n=80, T=5):
    """Comparisons that a linear reward explains without noise."""
    first, second = random_segments(n, T, 1), random_segments(n, T, 2)
    returns = [s.observations[:, :-1, 0].sum(1) - s.actions[..., 1].sum(1) for s in (first, second)]
    return Comparisons(first, second, (returns[0] > returns[1]).float())


def per_member(score, segments):
    encoded = score.encode(segments)
    return encoded.expand(score.members, *encoded.shape)


def entropy_of(score, segments):
    """Mean entropy of the rewards of steps, by torch's own normal distribution: (N,)."""
    std = score.uncertainty(segments.observations[:, :-1].flatten(0, 1), segments.actions.flatten(0, 1))
    return torch.distributions.Normal(torch.zeros_like(std), std).entropy().mean(1)


def equal_states(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("output", ["tanh", "linear"])
def test_new_means_are_those_of_a_return_ensemble(output):
    """Equal seeds: equal means, scores and rewards; and one σ everywhere, whose entropy is the floor."""
    score, ensemble, segments = make_score(output=output), ReturnEnsemble(**SIZES, output=output), random_segments()
    torch.testing.assert_close(score(segments), ensemble(segments))
    steps = segments.observations[:, 0], segments.actions[:, 0]
    torch.testing.assert_close(score.reward(*steps), ensemble.reward(*steps))
    torch.testing.assert_close(entropy_of(score, segments), torch.ones(3))


def test_without_its_terms_it_trains_as_a_return_ensemble():
    """λ_s = λ_r = 0: the means after training are those of the deterministic reward, up to rounding."""
    plain, score = ReturnEnsemble(**SIZES), make_score(sample_weight=0.0, entropy_weight=0.0)

    def in_order(score):  # whose noise would change the order of the minibatches
        return fit_score(score, separable(), **{**QUICK, "batch_size": 80, "holdout": 0.0})

    reports = [in_order(plain), in_order(score)]
    assert reports[0].train_nll == pytest.approx(reports[1].train_nll, rel=1e-4)
    torch.testing.assert_close(plain(random_segments()), score(random_segments()), rtol=1e-3, atol=1e-3)


def test_without_spread_a_sample_is_the_mean():
    """σ → 0: both scores of a segment agree, and so do their losses."""
    score = make_score()
    with torch.no_grad():
        score.biases[-1][:, 1] = -20.0
    drawn = score.training_scores(per_member(score, random_segments()), None, torch.Generator())
    torch.testing.assert_close(drawn.scores[..., 0], drawn.scores[..., 1], rtol=0, atol=1e-3)


def test_samples_have_the_moments_of_a_sum_of_normal_rewards():
    """Over 4000 draws: mean Σ μ_t and variance Σ σ_t², by what the score says of single steps; padding is left out."""
    score, segments = shaken(make_score()), random_segments(B=2)
    segments.mask[1, 3:] = False
    steps = segments.observations[:, :-1].flatten(0, 1), segments.actions.flatten(0, 1)
    mean, std = (f(*steps).view(3, 2, 5) * segments.mask for f in (score.reward, score.uncertainty))
    many, generator = per_member(score, segments).repeat(1, 4000, 1, 1), torch.Generator().manual_seed(0)
    sampled = score.training_scores(many, segments.mask.repeat(4000, 1), generator).scores[..., 1].view(3, 4000, 2)
    expected = std.square().sum(-1)
    assert ((sampled.mean(1) - mean.sum(-1)).abs() < 4 * (expected / 4000).sqrt()).all()
    torch.testing.assert_close(sampled.var(1), expected, rtol=0.1, atol=0)


@given(segments=segment_batches(D=3, A=2))
@settings(max_examples=25, deadline=None)
def test_padding_changes_nothing_in_training_either(segments):
    """Two more columns of padding leave mean, sample and penalty as they were."""
    B = len(segments)
    padded = SegmentBatch(
        torch.cat([segments.observations, torch.full((B, 2, 3), 7.0)], 1),
        torch.cat([segments.actions, torch.full((B, 2, 2), -9.0)], 1),
        torch.cat([segments.mask, torch.zeros(B, 2, dtype=torch.bool)], 1),
    )
    score = shaken(make_score(entropy_floor=3.0))
    drawn, same = (
        score.training_scores(per_member(score, s), s.mask, torch.Generator().manual_seed(0))
        for s in (segments, padded)
    )
    torch.testing.assert_close(drawn, same)


def test_evaluation_draws_nothing():
    """Scores are the same in training and in evaluation mode, and twice."""
    score, segments = make_score(), random_segments()
    assert torch.equal(score.train()(segments), score.eval()(segments))


def test_the_penalty_is_the_lack_of_entropy():
    """λ_r max(0, η − H̄), by torch's own entropy; nothing above the floor."""
    segments = random_segments()
    for floor, above in ((3.0, False), (-3.0, True)):
        score = shaken(make_score(entropy_weight=0.5))
        score.entropy_floor = floor
        penalty = score.training_scores(per_member(score, segments), segments.mask, torch.Generator()).penalty
        expected = 0.5 * (floor - entropy_of(score, segments)).clamp_min(0)
        torch.testing.assert_close(penalty, expected)
        assert not penalty.any() if above else (penalty > 0).all()


@pytest.mark.parametrize("term", ["sample", "penalty"])
def test_gradient_reaches_the_spread(term):
    """Of the samples and of the penalty, each alone; of the mean there is none."""
    score, segments = shaken(make_score()), random_segments()
    score.entropy_floor = 9.0
    drawn = score.training_scores(per_member(score, segments), None, torch.Generator().manual_seed(0))
    value = preference_nll(drawn.scores[..., 1], torch.ones(3, 4)).sum() if term == "sample" else drawn.penalty.sum()
    gradient = torch.autograd.grad(value, score.weights[-1], retain_graph=True)[0]
    assert (gradient[:, 1].abs().sum(-1) > 0).all()
    of_mean = torch.autograd.grad(drawn.scores[..., 0].sum(), score.weights[-1])[0]
    assert not of_mean[:, 1].any()


def test_the_floor_holds_the_entropy():
    """On separable data samples want σ → 0: entropy stays at the floor with the hinge, and falls without it."""
    data, held = separable(), {"epochs": 60, "learning_rate": 1e-2, "batch_size": 80}
    scores = [make_score(output="linear", entropy_weight=weight) for weight in (10.0, 0.0)]
    for score in scores:
        fit_score(score, data, **{**QUICK, **held})
    kept, lost = (entropy_of(score, data.first) for score in scores)
    assert (kept > 1.0 - 0.15).all(), kept
    assert (lost < 0.7).all(), lost


@pytest.mark.parametrize("loss", [None, reward_mae])
def test_a_resumed_fit_draws_what_the_uninterrupted_one_draws(tmp_path, loss):
    """Ctrl-C in epoch 5, then once more with a fresh score: weights, report and metrics equal to the bit."""
    data, options = separable(), {**QUICK, "loss": loss, "checkpoint_every": 2}
    whole = make_score()
    expected = fit_score(whole, data, **options, folder=tmp_path / "whole")

    def stop(epoch, _epochs):
        if epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_score(make_score(), data, **options, folder=tmp_path / "cut", progress=stop)
    resumed = make_score(seed=7)
    assert fit_score(resumed, data, **options, folder=tmp_path / "cut") == expected
    assert equal_states(resumed, whole)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")


def test_noise_is_that_of_the_fit():
    """The global generator is left alone; another seed of the fit is another result."""
    before, data = torch.get_rng_state(), separable()
    scores = [make_score() for _ in range(3)]
    for score, seed in zip(scores, (0, 0, 1), strict=True):
        fit_score(score, data, **{**QUICK, "seed": seed})
    assert equal_states(scores[0], scores[1])
    assert not equal_states(scores[0], scores[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_each_option_changes_the_result():
    """No ghost options."""
    data, usual = separable(), make_score()
    fit_score(usual, data, **QUICK)
    for changed in (
        {"sample_weight": 0.5}, {"entropy_weight": 0.3}, {"entropy_floor": 2.0}, {"output": "linear"},
        {"activation": "silu"},
    ):  # fmt: skip
        other = make_score(**changed)
        fit_score(other, data, **QUICK)
        assert not equal_states(other, usual), changed


def test_members_are_independent():
    """No term of member 1 has a gradient in the parameters of the others."""
    score, segments = shaken(make_score()), random_segments()
    score.entropy_floor = 9.0
    drawn = score.training_scores(per_member(score, segments), None, torch.Generator())
    gradients = torch.autograd.grad(drawn.scores[1].sum() + drawn.penalty[1], list(score.parameters()))
    assert all(g[1].any() and not g[0].any() and not g[2].any() for g in gradients)


def test_for_data_takes_sizes_and_statistics():
    """Inputs are standardized by the data."""
    g = torch.Generator().manual_seed(0)
    observations, actions = 5 + 2 * torch.randn(500, 3, generator=g), torch.randn(500, 2, generator=g)
    score = GaussianReward.for_data(observations=observations, actions=actions, hidden=(8,), seed=0)
    inputs = score.standardize(observations, actions)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    assert score.uncertainty(observations, actions).shape == (3, 500)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sample_weight": -1.0}, r"sample_weight must be in \[0, inf\)"),
        ({"entropy_weight": math.inf}, r"entropy_weight must be in \[0, inf\)"),
        ({"entropy_floor": math.nan}, "entropy_floor must be in"),
        ({"entropy_floor": 40.0}, "entropy_floor must be in"),
        ({"members": 0}, "members"),
        ({"output": "sigmoid"}, "output must be one of"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_allowed_set(changed, message):
    """As those of the ensemble."""
    with pytest.raises(ConfigError, match=message):
        make_score(**changed)
