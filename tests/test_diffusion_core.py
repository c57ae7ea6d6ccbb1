"""Laws of diffusion: schedules, parametrizations, samplers and denoisers."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.diffusion.denoisers import MLPDenoiser, TransformerDenoiser, UNetDenoiser, time_features
from agents.diffusion.samplers import ddim_step, ddpm_step, sample, sampling_times
from agents.diffusion.schedules import PARAMETRIZATIONS, alpha_bars, betas, noised, to_noise, to_target, to_x0
from prefrl.errors import ConfigError

SCHEDULES = ["linear", "squared_cosine"]
DENOISERS = [MLPDenoiser, UNetDenoiser, TransformerDenoiser]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# schedules and parametrizations


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_marginal_is_that_of_the_chain(schedule):
    """S steps x ← √(1 − β) x + √β ε from x_0 = 1 have mean √ᾱ_t and variance 1 − ᾱ_t: those of ``noised``."""
    mean, variance = 1.0, 0.0
    for beta, bar in zip(betas(schedule, 50).tolist(), alpha_bars(schedule, 50).tolist(), strict=True):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        assert noised(one, zero, bar).item() == pytest.approx(mean, rel=1e-9)
        assert noised(zero, one, bar).item() ** 2 == pytest.approx(variance, rel=1e-9)


def test_the_cosine_schedule_is_a_cosine():
    """ᾱ_t = f((t + 1)/S) / f(0), f(u) = cos²((u + .008)/1.008 · π/2), up to the clip at its end."""
    f = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    expected = torch.tensor([value / f[0] for value in f[1:-1]], dtype=torch.float64)
    torch.testing.assert_close(alpha_bars("squared_cosine", 100)[:-1], expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [30, 100, 1000])
def test_nothing_but_noise_is_left_at_the_end(schedule, steps):
    """However many steps: ᾱ falls from almost 1 to less than 10⁻³."""
    bar = alpha_bars(schedule, steps)
    assert bool((bar.diff() < 0).all())
    assert bar[-1] < 1e-3
    assert 1 - bar[0] < 4 / steps


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("each", [True, False])
def test_conversions_invert_each_other(parametrization, each):
    """From what the network should predict and x_t follow x_0 and ε, with an ᾱ for each row or one for all."""
    x_0, noise = normal(6, 4, 3), normal(6, 4, 3, seed=1)
    bar = torch.linspace(0.05, 0.95, 6, dtype=torch.float64) if each else 0.3
    x_t = noised(x_0, noise, bar)
    found = to_x0(to_target(x_0, noise, bar, parametrization), x_t, bar, parametrization)
    torch.testing.assert_close(found, x_0)
    torch.testing.assert_close(to_noise(found, x_t, bar), noise)


def test_v_is_the_rotation_of_data_and_noise():
    """(x_t, v) is (x_0, ε) turned: lengths stay."""
    x_0, noise = normal(5, 3), normal(5, 3, seed=1)
    v = to_target(x_0, noise, 0.3, "v")
    torch.testing.assert_close(noised(x_0, noise, 0.3).square() + v.square(), x_0.square() + noise.square())


# samplers


@settings(max_examples=50)
@given(train_steps=st.integers(1, 300), share=st.floats(0, 1))
def test_times_fall_from_pure_noise(train_steps, share):
    """As many as asked for, all different, within 0 … S − 1, the first S − 1."""
    steps = max(1, round(share * train_steps))
    times = sampling_times(train_steps, steps)
    assert times[0] == train_steps - 1
    assert len(times) == steps
    assert all(a > b for a, b in zip(times, [*times[1:], -1], strict=True))
    assert times[-1] >= 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_with_eta_one_is_ddpm(schedule):
    """Mean and std of every step agree, of single steps, of jumps, and of the last one."""
    bars = [*reversed(alpha_bars(schedule, 40).tolist()), 1.0]
    x_t, x_0 = normal(3, 2), normal(3, 2, seed=1)
    for stride in (1, 7):
        for bar, after in zip(bars, bars[stride:], strict=False):
            (mean, std), (other, spread) = ddim_step(x_t, x_0, bar, after, 1.0), ddpm_step(x_t, x_0, bar, after)
            torch.testing.assert_close(mean, other)
            assert std == pytest.approx(spread, abs=1e-12)


MEAN, VARIANCE = 0.7, 0.25


def gaussian(alpha_bar, parametrization):
    """The exact denoiser of data N(MEAN, VARIANCE)."""

    def predict(x, t):
        bar = alpha_bar[t][:, None, None]
        gain = bar.sqrt() * VARIANCE / (bar * VARIANCE + 1 - bar)
        x_0 = MEAN + gain * (x - bar.sqrt() * MEAN)
        return to_target(x_0, to_noise(x_0, x, alpha_bar[t]), alpha_bar[t], parametrization)

    return predict


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"eta": 0.0}, {"eta": 1.0}], ids=str)
def test_a_gaussian_comes_back(parametrization, options):
    """With its exact score, the samples have the data's mean and variance within 2 %.

    A sample is then linear in its draws. Row i gets 1 as draw i and 0 else, the last row only 0: that is the mean, and
    the squared differences of the others to it sum to the variance, exactly.
    """
    steps = 1000
    bar, units = alpha_bars("squared_cosine", steps), iter(torch.eye(steps + 1, steps, dtype=torch.float64).unbind(1))
    found = sample(
        gaussian(bar, parametrization), lambda: next(units)[:, None, None], alpha_bar=bar, steps=steps,
        parametrization=parametrization, **options,
    )  # fmt: skip
    assert found[-1].item() == pytest.approx(MEAN, rel=0.02)
    assert (found - found[-1]).square().sum().item() == pytest.approx(VARIANCE, rel=0.02)


def test_ddim_without_noise_is_a_function_of_the_start():
    """η = 0 draws once; ancestral sampling draws at every step but the last."""
    bar = alpha_bars("squared_cosine", 20)
    for options, expected in (({"eta": 0.0}, 1), ({"eta": 0.5}, 10), ({"sampler": "ddpm"}, 10)):
        drawn = []
        sample(
            gaussian(bar, "x0"), lambda made=drawn: made.append(1) or normal(4, 1, 1), alpha_bar=bar, steps=10,
            parametrization="x0", **options,
        )  # fmt: skip
        assert len(drawn) == expected


def test_known_values_stay():
    """What is known is in the sample, and in everything that the denoiser sees."""
    bar, values = alpha_bars("squared_cosine", 20), normal(2, 5, 3)
    mask = torch.zeros(2, 5, 3, dtype=torch.bool)
    mask[:, 0] = True
    seen = []

    def predict(x, t):
        seen.append(x)
        return 0.1 * x

    found = sample(
        predict, lambda: normal(2, 5, 3, seed=1), alpha_bar=bar, steps=5, parametrization="x0", known=(mask, values)
    )
    assert len(seen) == 5
    for x in (*seen, found):
        assert torch.equal(x[mask], values[mask])
        assert not torch.equal(x[~mask], values[~mask])


def test_clipping_keeps_samples_in_the_box():
    """A prediction out of range is taken for the edge."""
    bar = alpha_bars("squared_cosine", 20)
    options = {"alpha_bar": bar, "steps": 5, "parametrization": "x0"}
    clipped = sample(lambda x, t: 9 * x, lambda: normal(50, 1, 1), clip=1.0, **options)
    assert clipped.abs().max() <= 1
    assert sample(lambda x, t: 9 * x, lambda: normal(50, 1, 1), **options).abs().max() > 1


# denoisers


def made(kind, seed=0):
    return kind(horizon=8, channels=3, condition_dim=5, seed=seed)


def given_inputs():
    return normal(4, 8, 3, dtype=torch.float32), torch.tensor([0, 3, 50, 99]), normal(4, 5, dtype=torch.float32)


@pytest.mark.parametrize("kind", DENOISERS)
def test_a_denoiser_reads_all_that_it_is_given(kind):
    """Its output has the shape of x_t, and depends on x_t, time and condition; a row only on its own."""
    denoiser, (x, t, condition) = made(kind), given_inputs()
    out = denoiser(x, t, condition)
    assert out.shape == x.shape
    for changed in ((x + 1, t, condition), (x, t + 1, condition), (x, t, condition + 1)):
        assert bool(((denoiser(*changed) - out).abs().flatten(1).amax(1) > 1e-5).all())
    other = x.clone()
    other[0] += 1
    torch.testing.assert_close(denoiser(other, t, condition)[1:], out[1:])


@pytest.mark.parametrize("kind", DENOISERS)
def test_every_weight_learns(kind):
    """No parameter is left without a gradient."""
    denoiser = made(kind)
    denoiser(*given_inputs()).square().sum().backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@pytest.mark.parametrize("kind", DENOISERS)
def test_weights_follow_from_the_seed_alone(kind):
    """Equal seeds give equal weights, others others; torch's own random state is left alone."""
    before = torch.get_rng_state()
    first, second, third = made(kind), made(kind), made(kind, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    outputs = [denoiser(*given_inputs()) for denoiser in (first, second, third)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize("kind", DENOISERS)
def test_a_frozen_copy_answers_bitwise_alike(kind):
    """With and without a gradient: what a reference is compared by."""
    denoiser = made(kind)
    with torch.no_grad():
        frozen = copy.deepcopy(denoiser).requires_grad_(False)(*given_inputs())
    assert torch.equal(denoiser(*given_inputs()), frozen)


def test_times_have_different_features():
    """No two of 1000 times look alike."""
    features = time_features(torch.arange(1000), 32)
    distances = torch.cdist(features, features) + 9 * torch.eye(1000)
    assert distances.min() > 0.1


# bad input


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: betas("cosine", 100), "schedule must be 'linear' or 'squared_cosine', but is 'cosine'"),
        (lambda: betas("linear", 20), "steps of the linear schedule must be > 20, but is 20"),
        (lambda: betas("squared_cosine", 0), "steps .* must be >= 1, but is 0"),
        (lambda: sampling_times(100, 101), r"sampling_steps must be in 1 … 100, .* but is 101"),
        (lambda: sampling_times(100, 0), "sampling_steps must be"),
        (
            lambda: sample(None, None, alpha_bar=torch.ones(3), steps=1, parametrization="x0", eta=2.0),
            r"eta in \[0, 1\], but is 'ddim' with 2",
        ),
        (lambda: UNetDenoiser(horizon=7, channels=1, condition_dim=1, seed=0), "horizon must be a multiple of 2"),
        (lambda: TransformerDenoiser(horizon=7, channels=1, condition_dim=1, seed=0, width=6), "width must be"),
    ],
)
def test_bad_input_is_named(call, said):
    """Which argument, its value, and what is allowed."""
    with pytest.raises(ConfigError, match=said):
        call()
