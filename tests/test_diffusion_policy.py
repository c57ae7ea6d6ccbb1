"""Laws of the diffusion policy: chunks, errors, acting, behavior cloning."""

import functools
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.diffusion.bc import DiffusionBC
from agents.diffusion.chunks import chunk_transitions, chunks_of
from agents.diffusion.denoisers import MLPDenoiser
from agents.diffusion.optimization import average_rate, rate_share
from agents.diffusion.policy import DiffusionPolicy
from agents.diffusion.schedules import PARAMETRIZATIONS, to_target
from prefrl.core import Segment, SegmentBatch, Transitions
from prefrl.errors import ConfigError, InvalidData
from prefrl.evaluation.rollout import PolicyBehavior, rollout
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.protocols import StatefulPolicy
from prefrl.spaces import to_env

D, A = 3, 2
BOX = {"action_low": np.array([-1.0, 0.0], np.float32), "action_high": np.array([1.0, 4.0], np.float32)}
SMALL = functools.partial(MLPDenoiser, hidden=(32,))
make_policy = functools.partial(
    DiffusionPolicy, observation_mean=torch.tensor([1.0, 0, 0]), observation_std=torch.tensor([2.0, 1, 1]), n_obs=2,
    horizon=4, executed=3, denoiser=SMALL, train_steps=20, sampling_steps=4, **BOX,
)  # fmt: skip


def random_segments(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(BOX["action_low"]), torch.tensor(BOX["action_high"])
    return SegmentBatch.from_segments(
        [
            Segment(torch.randn(n + 1, D, generator=g), low + (high - low) * torch.rand(n, A, generator=g))
            for n in lengths
        ]
    )


def transitions(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    s, a = torch.randn(n, D, generator=g), torch.rand(n, A, generator=g)
    return Transitions(s, a, torch.zeros(n), s, torch.zeros(n))


# chunks


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3), n_obs=st.integers(1, 4), horizon=st.integers(1, 5))
def test_chunks_are_those_of_a_loop(lengths, n_obs, horizon):
    """The history is padded by the first observation, the actions by the last one, which the mask leaves out."""
    segments = random_segments(lengths)
    T = max(lengths)
    found = chunks_of(segments, torch.arange(T).expand(len(lengths), T), n_obs=n_obs, horizon=horizon)
    for b, length in enumerate(lengths):
        for s in range(length):
            row = b * T + s
            history = [segments.observations[b, max(s - n_obs + 1 + i, 0)] for i in range(n_obs)]
            actions = [segments.actions[b, min(s + i, length - 1)] for i in range(horizon)]
            assert torch.equal(found.history[row], torch.stack(history))
            assert torch.equal(found.actions[row], torch.stack(actions))
            assert found.mask[row].tolist() == [s + i < length for i in range(horizon)]


def test_chunks_of_data_do_not_cross_episodes():
    """Those of episodes in a row are those of each episode as a segment."""
    lengths = np.array([5, 1, 3])
    data = transitions(lengths)
    made = chunk_transitions(data, lengths, n_obs=2, horizon=4)
    begin = 0
    for length in lengths.tolist():
        s, a = data.observations[begin : begin + length], data.actions[begin : begin + length]
        segment = SegmentBatch.from_segments([Segment(torch.cat([s, s[-1:]]), a)])
        chunks = chunks_of(segment, torch.arange(length)[None], n_obs=2, horizon=4)
        assert torch.equal(made.observations[begin : begin + length], chunks.history.flatten(1))
        assert torch.equal(made.actions[begin : begin + length], chunks.actions.flatten(1))
        begin += length


# denoising errors


def draws(B, n, policy, seed=1):
    g = torch.Generator().manual_seed(seed)
    t = torch.randint(policy.train_steps, (B, n), generator=g)
    return torch.randn(B, n, policy.horizon, A, generator=g), t


def test_errors_are_those_of_single_chunks():
    """(B, T), each step the mean over its real actions, 0 on padding."""
    policy, segments = make_policy(), random_segments([5, 2])
    noise, t = draws(2, 5, policy)
    errors = policy.denoising_error(segments, noise, t)
    assert errors.shape == (2, 5)
    assert bool((errors[1, 2:] == 0).all())
    for b, s in [(0, 0), (0, 3), (1, 1)]:
        left = min(4, [5, 2][b] - s)
        actions = policy.to_units(torch.stack([segments.actions[b, min(s + i, [5, 2][b] - 1)] for i in range(4)]))
        history = torch.stack([segments.observations[b, max(s - 1, 0)], segments.observations[b, s]])
        bar = policy.alpha_bar[t[b, s]].float()
        x_t = bar.sqrt() * actions + (1 - bar).sqrt() * noise[b, s]
        seen = (history - policy.mean) / policy.std
        prediction = policy.denoiser(x_t[None], t[b, s][None], seen.flatten()[None])[0]
        expected = (prediction - noise[b, s])[:left].square().mean()
        torch.testing.assert_close(errors[b, s], expected)


def test_errors_at_some_steps_are_those_of_all():
    """``starts`` chooses columns."""
    policy, segments = make_policy(), random_segments([5, 2])
    noise, t = draws(2, 5, policy)
    starts = torch.tensor([[4, 1], [0, 1]])
    rows = torch.arange(2)[:, None]
    some = policy.denoising_error(segments, noise[rows, starts], t[rows, starts], starts=starts)
    torch.testing.assert_close(some, policy.denoising_error(segments, noise, t)[rows, starts])


class Knowing(torch.nn.Module):
    """A denoiser that is told what it should predict."""

    def forward(self, x, t, condition):
        return self.target.clone()


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_a_perfect_denoiser_has_no_error_and_samples_the_data(parametrization):
    """Whatever is predicted, in units where the action box is [−1, 1]."""
    knowing = Knowing()
    policy = make_policy(denoiser=lambda **_: knowing, parametrization=parametrization)
    segments = random_segments([4])
    noise, t = draws(1, 4, policy)
    chunks = chunks_of(segments, torch.arange(4)[None], n_obs=2, horizon=4)
    units = (chunks.actions - torch.tensor([0.0, 2.0])) / torch.tensor([1.0, 2.0])
    knowing.target = to_target(units, noise[0], policy.alpha_bar[t[0]], parametrization)
    assert policy.denoising_error(segments, noise, t).max() < 1e-10
    if parametrization == "x0":
        drawn = policy.sample(chunks.history, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn, chunks.actions)


# acting


def test_act_is_a_function_of_the_observation():
    """The same every time, for each row alone, inside the box; another seed's fixed noise gives other actions."""
    policy, s = make_policy(), 3 * torch.randn(6, D, generator=torch.Generator().manual_seed(0))
    actions = policy.act(s)
    assert torch.equal(actions, policy.act(s))
    torch.testing.assert_close(actions[2:3], policy.act(s[2:3]))
    assert bool(((actions >= policy.low) & (actions <= policy.high)).all())
    assert not torch.allclose(actions, make_policy(seed=1).act(s))


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "ddpm", "sampling_steps": 20}], ids=str)
def test_samples_follow_from_the_generator(options):
    """Equal seeds give equal chunks, others others; all inside the box."""
    policy, history = make_policy(**options), torch.zeros(5, 2, D)
    one, same, other = (policy.sample(history, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.shape == (5, 4, A)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert bool(((one >= policy.low) & (one <= policy.high)).all())


def test_an_actor_executes_chunks():
    """``executed`` actions of each chunk; its history begins with the first observation repeated."""
    policy = make_policy()
    actor, generator = policy.episode(5), torch.Generator().manual_seed(5)
    seen = np.random.default_rng(0).normal(size=(7, D)).astype(np.float32)
    found = np.stack([actor.act(s) for s in seen])
    expected = [
        policy.sample(torch.tensor(seen[[max(s - 1, 0), s]])[None], generator)[0, :3].numpy() for s in (0, 3, 6)
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected)[:7])


class Drift(gym.Env):
    """x += a₀; its length depends on the reset seed; the reward is x."""

    def __init__(self, *, seed, render_mode=None):
        self.observation_space = gym.spaces.Box(-100, 100, (D,))
        self.action_space = gym.spaces.Box(BOX["action_low"], BOX["action_high"])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.left = self.np_random.normal(size=D).astype(np.float32), int(self.np_random.integers(2, 12))
        return self.x.copy(), {}

    def step(self, action):
        self.x[0] += action[0]
        self.left -= 1
        return self.x.copy(), float(self.x[0]), self.left == 0, False, {}


def test_a_rollout_does_not_depend_on_its_neighbors():
    """One environment or many: bitwise the same episodes, whose actions are drawn anew for each."""
    policy = make_policy()
    assert isinstance(policy, StatefulPolicy)
    one, many = (rollout(policy, Drift, episodes=9, seed=3, max_steps=10, num_envs=n) for n in (1, 5))
    np.testing.assert_array_equal(one.returns, many.returns)
    np.testing.assert_array_equal(one.end_observations, many.end_observations)
    assert not np.allclose(one.returns, rollout(policy, Drift, episodes=9, seed=4, max_steps=10).returns)


def test_a_behavior_shows_the_episode_that_was_evaluated():
    """``PolicyBehavior`` with the generator of an episode's seed acts as in ``rollout``, every time."""
    policy = make_policy()
    judged = rollout(policy, Drift, episodes=2, seed=3, max_steps=10)
    behavior, env = PolicyBehavior(policy), Drift(seed=0)
    for episode in (1, 0, 1):
        seed = int(judged.seeds[episode])
        observation, _ = env.reset(seed=seed)
        behavior.reset(env, np.random.default_rng(seed))
        for _ in range(judged.lengths[episode]):
            observation, *_ = env.step(to_env(env.action_space, behavior.act(observation)))
        np.testing.assert_array_equal(observation, judged.end_observations[episode])


# behavior cloning

LENGTHS = np.array([20, 20])


def learner(seed=0, **options):
    policy = functools.partial(DiffusionPolicy, horizon=4, executed=3, denoiser=SMALL, train_steps=20, sampling_steps=4)
    return DiffusionBC(data=transitions(LENGTHS), **BOX, seed=seed, policy=policy, **{"warmup_steps": 3, **options})


def train(trained, updates, begin=0):
    data = trained.prepare(transitions(LENGTHS), LENGTHS)
    for i in range(begin, begin + updates):
        metrics = trained.update(data[torch.arange(i, i + 8)])
    return metrics


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_resume_is_bitwise(tmp_path):
    """Save at 5, load into a learner of another seed, continue to 10: as if never stopped."""
    whole, first, second = (learner(seed) for seed in (0, 0, 1))
    train(whole, 10)
    train(first, 5)
    save_checkpoint(tmp_path / "bc.safetensors", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "bc.safetensors"))
    train(second, 5, begin=5)
    assert torch.equal(weights(whole.policy), weights(second.policy))
    assert torch.equal(weights(whole.trained), weights(second.trained))
    assert torch.equal(whole.policy.act_noise, second.policy.act_noise)


def test_equal_seeds_give_equal_policies():
    """And other seeds others."""
    one, same, other = (learner(seed) for seed in (0, 0, 1))
    for trained in (one, same, other):
        train(trained, 3)
    assert torch.equal(weights(one.policy), weights(same.policy))
    assert not torch.allclose(weights(one.policy), weights(other.policy))


def test_the_policy_is_the_moving_average():
    """After update n = 1, 2, …: average + (1 − d)(weights − average) with the authors' d = 1 − (1 + (n − 1))^(−¾)."""
    trained = learner()
    average = weights(trained.policy)
    for n in range(1, 8):
        train(trained, 1, begin=n)
        decay = 1 - (1 + (n - 1)) ** -0.75
        average = decay * average + (1 - decay) * weights(trained.trained)
    torch.testing.assert_close(weights(trained.policy), average)
    assert average_rate(10**9, 0.75) == 1e-4


def test_the_rate_rises_and_falls():
    """Linear over the warm-up, 1 there, a cosine to 0 at its end, and 0 from then on."""
    shares = [rate_share(step, warmup_steps=4, decay_steps=20) for step in range(30)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[12] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(shares[4:21]))
    assert shares[20:] == [0] * 10
    assert rate_share(10**6, warmup_steps=4, decay_steps=None) == 1


def test_the_range_of_actions_can_be_that_of_the_data():
    """±1 are the extremes of the data, within the bounds; a constant coordinate is in the middle of a small box."""
    data = transitions(LENGTHS)
    data.actions[:, 1] = 3.0
    data.actions[0, 0] = -5.0
    policy = DiffusionBC(data=data, **BOX, seed=0, action_range="data").policy
    assert policy.low.tolist() == pytest.approx([-1.0, 2.999])
    assert policy.high.tolist() == pytest.approx([data.actions[:, 0].max().item(), 3.001])


# bad input


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: make_policy(executed=5), ConfigError, r"executed in \[1, horizon\], .* executed 5 and horizon 4"),
        (lambda: make_policy(parametrization="eps"), ConfigError, "must be one of epsilon, x0, v, but is 'eps'"),
        (lambda: make_policy(sampling_steps=21), ConfigError, "sampling_steps must be in 1 … 20"),
        (lambda: make_policy(action_high=BOX["action_low"]), InvalidData, "action box must be finite"),
        (lambda: learner(action_range="box"), ConfigError, "'bounds' or 'data', but is 'box'"),
        (lambda: learner(lr=0.0), ConfigError, "lr must be > 0, but is 0"),
        (lambda: learner(decay_steps=3), ConfigError, "decay_steps must be > warmup_steps=3"),
        (lambda: learner(average_power=0.0), ConfigError, "average_power must be > 0"),
    ],
)
def test_bad_input_is_named(call, error, said):
    """Which argument, its value, and what is allowed."""
    with pytest.raises(error, match=said):
        call()
