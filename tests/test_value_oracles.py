"""Laws of value oracles: they agree with the solvers, with formulas worked by hand, and say who they are."""

import functools
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_mdps import CONDITIONS, DATA, TRUE_WEIGHTS, corridor, delivery, delivery_pairs, needs_board, random_mdp

import envs
from prefrl.core import SegmentBatch, SegmentRefs
from prefrl.data.collect import BehaviorGroup, collect_episodes
from prefrl.data.query import UniformQuery
from prefrl.errors import ConfigError, InvalidData
from prefrl.preference_models import PREFERENCE_MODELS, label, segment_score
from prefrl.solvers import (
    LinearQuadratic,
    TabularMDP,
    sample_segments,
    segment_statistics,
    solve_linear_quadratic,
)
from prefrl.value_oracles import CriticOracle, LinearQuadraticOracle, ScriptedOracle, TabularOracle

DELIVERY = functools.partial(envs.make, "prefrl/Delivery-v0")
LQR = functools.partial(envs.make, "prefrl/DoubleIntegrator-v0")
FAUCET = functools.partial(envs.make, "prefrl/MetaWorld-faucet-open-v0", max_episode_steps=40)
POINT = functools.partial(envs.make, "prefrl/PointReach-v0")


class Board(gym.Env):
    """A tabular process as an environment that knows its tables; it need not be acted in."""

    def __init__(self, mdp, weights):
        self.mdp, self.true_weights = mdp, weights.numpy()

    def tables(self):
        return tuple(getattr(self.mdp, name).numpy() for name in TabularMDP.__dataclass_fields__)


def board(mdp, weights):
    return lambda *, seed, render_mode=None: Board(mdp, weights)


def as_segments(trace, A, rewards=None):
    """Segments with the numbers of states and actions of a trace in a process without chance."""
    states = torch.where(trace.mask, trace.visits // A, trace.end[:, None])
    observations = torch.cat([states, trace.end[:, None]], 1)[..., None].float()
    actions = torch.where(trace.mask, trace.visits % A, 0)[..., None].float()
    return SegmentBatch(observations, actions, trace.mask, rewards)


def walk(mdp, weights, *, seed, count=60, length=4):
    """Random segments of a process with chance: the batch, with rewards, and the outcomes that were drawn."""
    _, A, K, _ = mdp.sizes
    rng = np.random.default_rng(seed)
    states, actions = np.zeros((count, length + 1), int), rng.integers(A, size=(count, length))
    outcomes, mask = np.zeros((count, length), int), np.ones((count, length), bool)
    rewards = np.zeros((count, length))
    for b in range(count):
        states[b, 0] = rng.choice(np.flatnonzero(~mdp.terminal.numpy()))
        for t in range(length):
            s, a = states[b, t], actions[b, t]
            mask[b, t] = not mdp.terminal[s]
            k = outcomes[b, t] = rng.choice(K, p=mdp.probability[s, a].numpy())
            states[b, t + 1] = mdp.next_state[s, a, k]
            rewards[b, t] = float(mdp.features[s, a, k] @ weights)
    segments = SegmentBatch(
        torch.tensor(states)[..., None].float(),
        torch.tensor(actions)[..., None].float(),
        torch.tensor(mask),
        torch.tensor(rewards, dtype=torch.float32),
    )
    return segments, torch.tensor(outcomes)


def assert_equal_statistics(found, expected):
    for name, one, two in zip(found._fields, found, expected, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_the_tabular_oracle_is_the_solver(seed):
    """States and actions as float32 vectors give the statistics of the solver, which knows the outcomes."""
    mdp, weights = random_mdp(seed), torch.linspace(-1, 1, 4, dtype=torch.float64)
    segments, outcomes = walk(mdp, weights, seed=seed)
    found = TabularOracle(env=board(mdp, weights), gamma=0.9).statistics(segments)
    actions, start = segments.actions[..., 0].long(), segments.observations[:, 0, 0].long()
    _, expected = segment_statistics(
        mdp, start, actions, weights=weights, gamma=0.9, mask=segments.mask, outcomes=outcomes
    )
    assert_equal_statistics(found, expected)
    assert not segments.mask.all()


def test_nothing_is_lost_on_the_best_way():
    """Regret is 0 on an optimal segment and above 0 on every other; both regrets are one where nothing is random."""
    mdp, weights = corridor(6, step=-1.0, goal=3.0)
    oracle = TabularOracle(env=board(mdp, weights), gamma=1.0)
    trace = sample_segments(mdp, count=300, length=3, generator=torch.Generator().manual_seed(0))
    statistics = oracle.statistics(as_segments(trace, 2))
    loss = -segment_score(statistics, "regret")
    always_right = ((trace.visits % 2 == 1) | ~trace.mask).all(1)
    assert loss[always_right].abs().max() < 1e-9
    assert loss[~always_right].min() >= 1
    torch.testing.assert_close(loss, -segment_score(statistics, "regret_deterministic"), rtol=0, atol=1e-9)


@needs_board
@pytest.mark.parametrize("condition", CONDITIONS)
def test_noiseless_labels_of_the_delivery_board_are_those_of_the_files(condition):
    """Our environment's oracle answers every published pair as the authors' own labels do."""
    oracle = TabularOracle(env=DELIVERY, gamma=1.0)
    one, two = (oracle.statistics(as_segments(trace, 4)) for trace in delivery_pairs(delivery(), condition)[:2])
    for model, name in (("partial_return", "pr"), ("regret_deterministic", "regret"), ("regret", "regret")):
        second = np.load(DATA / "human_data" / f"{condition}_gt_det_{name}_prefs_Y.npy")
        assert (label(segment_score(one, model), segment_score(two, model)).numpy() == 1 - second).all()


def test_the_delivery_oracle_reads_what_the_environment_gives():
    """On collected episodes Σr is the recorded reward, and who entered an end has no value left."""
    episodes = collect_episodes(DELIVERY, [BehaviorGroup("random", 30, envs.RandomBehavior())], max_steps=30, seed=0)
    lengths = episodes.lengths.clip(max=20)
    places = SegmentRefs(np.arange(30), episodes.lengths - lengths, lengths)
    segments = episodes.segments(places)
    found = TabularOracle(env=DELIVERY).statistics(segments)
    np.testing.assert_allclose(found.reward, segments.true_reward.sum(1), atol=1e-6)
    assert segments.terminal.any()
    assert not found.end_value[segments.terminal].any()
    assert (found.advantage < 1e-9).all()
    best = TabularOracle(env=DELIVERY)
    assert (best.tables[0] * torch.from_numpy(envs.Delivery().tables().start)).sum().item() == pytest.approx(
        41.208, abs=0.001
    )


@pytest.mark.parametrize("kind", ["deterministic", "risk", "teleport"])
def test_every_kind_of_grid_is_understood(kind):
    """Episodes of random grids, with chance or without: Σr is the recorded reward, and nobody beats the optimum."""

    def make(*, seed, render_mode=None):
        return envs.random_grid(np.random.default_rng(7), kind)

    episodes = collect_episodes(make, [BehaviorGroup("random", 40, envs.RandomBehavior())], max_steps=8, seed=0)
    segments = episodes.segments(SegmentRefs(np.arange(40), np.zeros(40), episodes.lengths))
    found = TabularOracle(env=make, gamma=0.99).statistics(segments)
    np.testing.assert_allclose(found.reward, segments.true_reward.sum(1), atol=1e-4)
    assert (found.advantage <= 1e-9).all()
    assert found.advantage.min() < -0.1


def lottery(loss=-50.0, win=10.0):
    """One decision: stay, or take a lottery of two outcomes that lead to the same end with different rewards."""
    next_state = np.array([[[0, 0], [1, 1]], [[1, 1], [1, 1]]])
    probability = np.array([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0]]])
    features = np.zeros((2, 2, 2, 2))
    features[0, 1, 0, 0] = features[0, 1, 1, 1] = 1
    mdp = TabularMDP.from_arrays(next_state, probability, features, [False, True], [1, 0])
    return mdp, torch.tensor([loss, win], dtype=torch.float64)


def test_the_reward_tells_outcomes_apart_that_lead_to_one_state():
    """Luck counts in Σr and not in Σ A; without a reward the two cannot be told apart, which is an error."""
    mdp, weights = lottery()
    oracle = TabularOracle(env=board(mdp, weights), gamma=0.9)
    observations = torch.tensor([[0.0, 1.0]] * 2)[..., None]
    rewards = torch.tensor([[-50.0], [10.0]])
    segments = SegmentBatch(observations, torch.ones(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), rewards)
    found = oracle.statistics(segments)
    assert found.reward.tolist() == [-50, 10]
    assert found.advantage.tolist() == [-20, -20]
    with pytest.raises(InvalidData, match="different features or rewards"):
        oracle.statistics(segments.without_true_reward())
    fair = TabularOracle(env=board(mdp, torch.tensor([5.0, 5.0])), gamma=0.9)
    assert fair.statistics(segments.without_true_reward()).reward.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("states", "actions", "message"),
    [
        ([0.0, 1.5], [1.0], r"Segment 0 has 1.5 among its observations, which must be integers in \[0, 4\)"),
        ([0.0, 4.0], [1.0], r"has 4 among its observations, .* \[0, 4\)"),
        ([-1.0, 1.0], [1.0], "has -1 among its observations"),
        ([0.0, 1.0], [2.0], r"has 2 among its actions, .* \[0, 2\)"),
        ([0.0, 3.0], [1.0], "Segment 0 contradicts .* in step 0, action 1 leads from state 0 to 1, but the data say 3"),
        ([3.0, 3.0], [0.0], "has an action in step 0, after it reached state 3, which is terminal"),
    ],
)
def test_segments_of_another_world_are_refused(states, actions, message):
    """States and actions that are no numbers of this board, and moves that it does not know."""
    mdp, weights = corridor(3)
    segments = SegmentBatch(
        torch.tensor(states)[None, :, None], torch.tensor(actions)[None, :, None], torch.ones(1, 1, dtype=torch.bool)
    )
    with pytest.raises(InvalidData, match=message):
        TabularOracle(env=board(mdp, weights)).statistics(segments)


def test_observations_of_several_numbers_are_no_states():
    """The number of a state is one number."""
    segments = SegmentBatch(torch.zeros(1, 2, 2), torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(InvalidData, match="observations have size 2, not 1"):
        TabularOracle(env=board(*corridor(3))).statistics(segments)


def test_a_loop_without_discount_is_a_named_error():
    """With gamma = 1 and a step that earns, the value diverges."""
    segments = as_segments(
        sample_segments(corridor(3)[0], count=2, length=2, generator=torch.Generator().manual_seed(0)), 2
    )
    with pytest.raises(InvalidData, match=r"diverges.*Use gamma < 1"):
        TabularOracle(env=board(*corridor(3, step=1.0)), gamma=1.0).statistics(segments)


def test_other_values_come_near_the_exact_ones():
    """Cold soft values are the optimal ones; those of a pool are at most these, and equal where it holds the best."""
    mdp, weights = corridor(5, step=-1.0, goal=3.0)
    make = functools.partial(TabularOracle, env=board(mdp, weights), gamma=0.9)
    exact, soft, pool = (make(values=values).tables for values in ("exact", "soft", "successor_features"))
    for one, two, three in zip(exact, soft, pool, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=0.01)
        torch.testing.assert_close(three, one, rtol=0, atol=0.01)
    warm = make(values="soft", temperature=1.0).tables[0]
    assert (warm[:-1] > exact[0][:-1] + 0.1).all()
    poor = make(values="successor_features", pool_entries=[-1.0]).tables[0]  # goals cost: the way on is as long
    assert (poor <= exact[0] + 1e-9).all()


def test_pools_follow_their_seed():
    """Equal seeds give equal values of successor features, others may not; a small pool is worth less than a large."""
    mdp, weights = random_mdp(0, S=12), torch.linspace(-1, 1, 4, dtype=torch.float64)
    make = functools.partial(TabularOracle, env=board(mdp, weights), gamma=0.9, values="successor_features")
    one, again, other = (make(pool_size=2, seed=seed).tables[0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    many, best = make().tables[0], TabularOracle(env=board(mdp, weights), gamma=0.9).tables[0]
    assert one.mean() < many.mean() <= best.mean() + 1e-9


def lqr_segments(terminal=None):
    episodes = collect_episodes(LQR, [BehaviorGroup("random", 5, envs.RandomBehavior())], max_steps=20, seed=0)
    first, _ = UniformQuery()(episodes.lengths, 30, 6, np.random.default_rng(0))
    segments = episodes.segments(first)
    return SegmentBatch(segments.observations, segments.actions, segments.mask, segments.true_reward, terminal)


def test_the_advantage_of_the_regulator_is_its_closed_form():
    """ΣA = Σ −(a + Ks)'H(a + Ks), which is also r + γ V(s') − V(s); Σr is the recorded reward; an end is worth 0."""
    segments = lqr_segments()
    found = LinearQuadraticOracle(env=LQR).statistics(segments)
    task = LinearQuadratic.from_arrays(*envs.DoubleIntegrator().matrices())
    best = solve_linear_quadratic(task)
    states, actions = segments.observations.double(), segments.actions.double()
    push = actions + states[:, :-1] @ best.gain.mT
    torch.testing.assert_close(found.advantage, -((push @ best.curvature) * push).sum(-1).sum(-1))
    bellman = task.reward(states[:, :-1], actions) + 0.99 * best.value(states[:, 1:]) - best.value(states[:, :-1])
    torch.testing.assert_close(found.advantage, bellman.sum(1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.reward, segments.true_reward.double().sum(1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.start_value, best.value(states[:, 0]))
    ended = LinearQuadraticOracle(env=LQR).statistics(lqr_segments(torch.arange(30) < 3))
    assert ended.end_value[:3].tolist() == [0, 0, 0]
    assert torch.equal(ended.end_value[3:], found.end_value[3:])


def test_the_regulator_refuses_other_sizes():
    """Segments of another task are named."""
    segments = SegmentBatch(torch.zeros(1, 2, 3), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(InvalidData, match=r"sizes \(4, 2\), but the segments of \(3, 2\)"):
        LinearQuadraticOracle(env=LQR).statistics(segments)


class Product:
    """Q(s, a) = 3 s a, V(s) = s."""

    def q(self, observations, actions):
        return 3 * observations[:, 0] * actions[:, 0]

    def v(self, observations):
        return observations[:, 0]


def counted(**changes):
    """Two segments: states 1, 2, 4 with actions 1, 2 and rewards 1, 10; and 5, 7 then padding, which is terminal."""
    given = {
        "observations": torch.tensor([[1.0, 2.0, 4.0], [5.0, 7.0, 99.0]])[..., None],
        "actions": torch.tensor([[1.0, 2.0], [1.0, 99.0]])[..., None],
        "mask": torch.tensor([[True, True], [True, False]]),
        "true_reward": torch.tensor([[1.0, 10.0], [2.0, 99.0]]),
        "terminal": torch.tensor([False, True]),
    }
    return SegmentBatch(**given | changes)


def test_critics_are_summed_over_real_steps():
    """Worked by hand: Σ(Q − V), V(start), V(end) with 0 for the terminal one; padding counts nothing."""
    found = CriticOracle(critic=Product(), gamma=0.99).statistics(counted())
    assert found.advantage.tolist() == [(3 - 1) + (12 - 2), 15 - 5]
    assert found.start_value.tolist() == [1, 5]
    assert found.end_value.tolist() == [4, 0]
    assert found.reward.tolist() == [11, 2]
    assert found.advantage.dtype == torch.float64


def test_critics_need_a_reward_and_finite_values():
    """Data without the true reward, and critics that diverged, are errors that say so."""
    with pytest.raises(InvalidData, match="carry none"):
        CriticOracle(critic=Product(), gamma=0.99).statistics(counted(true_reward=None))

    class Diverged(Product):
        def v(self, observations):
            return observations[:, 0] * torch.inf

    with pytest.raises(InvalidData, match="CriticOracle: start_value holds"):
        CriticOracle(critic=Diverged(), gamma=0.99).statistics(counted())


class Alternating:
    """+0.5, −0.5, +0.5, … in both coordinates, from the beginning of an episode."""

    def __init__(self):
        self.name, self._sign = "alternating", None

    def reset(self, env, rng):
        self._sign = 1.0

    def act(self, observation):
        action = np.full(2, 0.5 * self._sign, dtype=np.float32)
        self._sign = -self._sign
        return action


class Blank(gym.Env):
    """An environment with nothing to see."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, dtype=np.float32), {}


def moves(actions):
    actions = torch.as_tensor(actions, dtype=torch.float32)
    B, T, _ = actions.shape
    return SegmentBatch(torch.zeros(B, T + 1, 2), actions, torch.ones(B, T, dtype=torch.bool))


def test_a_script_begins_anew_with_each_segment():
    """A script that remembers its stage finds its own actions at distance 0 in every segment, steps in order."""
    own = [[[0.5, 0.5], [-0.5, -0.5], [0.5, 0.5]]] * 2
    found = ScriptedOracle(behavior=Alternating(), env=POINT).statistics(moves(own))
    assert found.advantage.tolist() == [0, 0]


def test_distance_is_squared_in_units_of_half_the_range():
    """Worked by hand, on a box that is not symmetric; actions are clipped to it first."""

    class Wide(Blank):
        action_space = gym.spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)

    class Still:
        def reset(self, env, rng):
            pass

        def act(self, observation):
            return np.array([0.0, 5.0])  # clipped to (0, 1)

    oracle = ScriptedOracle(behavior=Still(), env=lambda *, seed, render_mode=None: Wide())
    found = oracle.statistics(moves([[[1.0, 1.0]], [[0.0, 0.5]], [[7.0, 1.0]]]))
    assert found.advantage.tolist() == [-0.25, -1.0, -1.0]


@pytest.mark.parametrize("task", ["faucet-open", "drawer-open"])
def test_a_meta_world_script_has_no_regret_in_its_own_episodes(task):
    """ΣA is 0 on the episodes of the script without noise, and below it on others."""
    make = functools.partial(envs.make, f"prefrl/MetaWorld-{task}-v0")
    behaviors = [
        BehaviorGroup("expert", 1, envs.ScriptedExpert(task=task)),
        BehaviorGroup("noisy", 1, envs.ScriptedExpert(task=task, noise=0.5)),
    ]
    episodes = collect_episodes(make, behaviors, max_steps=40, seed=0)
    segments = episodes.segments(SegmentRefs(np.arange(2), np.zeros(2), np.full(2, 40)))
    expert, noisy = ScriptedOracle(behavior=envs.ScriptedExpert(task=task), env=make).statistics(segments).advantage
    assert abs(expert) < 1e-9
    assert noisy < -1


@pytest.mark.parametrize("model", [m for m in PREFERENCE_MODELS if m not in ("regret", "advantage")])
def test_a_script_knows_no_values(model):
    """A model that reads rewards or values of states is an error, never a number."""
    statistics = ScriptedOracle(behavior=Alternating(), env=POINT).statistics(moves([[[0.0, 0.0]]]))
    with pytest.raises(InvalidData, match="knows neither rewards nor values"):
        segment_score(statistics, model)
    assert segment_score(statistics, "regret").tolist() == segment_score(statistics, "advantage").tolist() == [-0.5]


def test_a_script_that_does_not_fit_is_refused():
    """Another environment's script, another size of actions, a box without bounds."""
    expert = envs.ScriptedExpert(task="faucet-open")
    with pytest.raises(ConfigError, match=r"cannot act in prefrl/PointReach-v0: .*teacher=regret_point"):
        ScriptedOracle(behavior=expert, env=POINT).statistics(moves([[[0.0, 0.0]]]))
    with pytest.raises(InvalidData, match="actions have size 4, but the segments' 2"):
        ScriptedOracle(behavior=expert, env=FAUCET).statistics(moves([[[0.0, 0.0]]]))

    class Endless(Blank):
        action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    with pytest.raises(ConfigError, match="bounded action space"):
        ScriptedOracle(behavior=expert, env=lambda *, seed: Endless()).statistics(moves([[[0.0, 0.0]]]))


@pytest.mark.parametrize(
    ("behavior", "env"),
    [
        (envs.PointBehavior(target="left", noise=0.1), POINT),
        (envs.PointBehavior(target="left", noise=[0.0, 0.0, 0.0, 0.1]), POINT),
        (envs.RandomBehavior(hold=5), POINT),
        (envs.RandomBehavior(), DELIVERY),
        (envs.ScriptedExpert(task=None, noise=0.3), FAUCET),
    ],
)
def test_a_script_that_draws_random_numbers_is_refused(behavior, env):
    """What acts otherwise under another generator is no optimal policy; the error names the key."""
    oracle = ScriptedOracle(behavior=behavior, env=env)
    with pytest.raises(ConfigError, match=r"draws random numbers.*noise=0"):
        oracle.check()
    with pytest.raises(ConfigError, match="noise=0"):
        oracle.statistics(moves([[[0.0, 0.0]]]))


def test_a_script_whose_actions_have_another_size_is_refused():
    """Before a comparison of its actions with those of the data would."""

    class Narrow(Blank):
        action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    with pytest.raises(ConfigError, match=r"actions have shape \(2,\), but those of Narrow \(3,\)"):
        ScriptedOracle(behavior=Alternating(), env=lambda *, seed: Narrow()).check()


def test_critics_are_checked_against_the_environment_that_is_given():
    """Its sizes are tried once; without an environment nothing is checked."""

    class Fixed(Product):
        def q(self, observations, actions):
            if (observations.shape[-1], actions.shape[-1]) != (2, 2):
                raise InvalidData("other sizes")
            return super().q(observations, actions)

    CriticOracle(critic=Fixed(), gamma=0.9).check()
    CriticOracle(critic=Fixed(), gamma=0.9, env=POINT).check()
    for env in (LQR, DELIVERY):
        with pytest.raises(ConfigError, match=r"CriticOracle cannot judge prefrl/.*other sizes"):
            CriticOracle(critic=Fixed(), gamma=0.9, env=env).check()


def test_padding_says_nothing():
    """Numbers behind the end of a segment need not be states or actions."""
    mdp, weights = corridor(3)
    short = SegmentBatch(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0]]]), torch.ones(1, 1, dtype=torch.bool))
    padded = SegmentBatch(
        torch.tensor([[[0.0], [1.0], [99.0]]]), torch.tensor([[[1.0], [0.5]]]), torch.tensor([[True, False]])
    )
    oracle = TabularOracle(env=board(mdp, weights))
    assert_equal_statistics(oracle.statistics(padded), oracle.statistics(short))


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ("exact", ["temperature", "pool_size", "pool_entries", "seed"]),
        ("soft", ["pool_size", "pool_entries", "seed"]),
        ("successor_features", []),
    ],
)
def test_options_without_effect_are_told(values, idle):
    """Each kind of values has options of its own; those that are not its own are not recorded either."""
    oracle = TabularOracle(env=DELIVERY, values=values)
    keys = ["gamma", "values", "temperature", "pool_size", "pool_entries", "seed"]
    assert [key for key in keys if oracle.ineffective(key)] == idle
    assert not set(idle) & set(oracle.parameters())


ORACLES = {
    "tabular": lambda env: TabularOracle(env=env, gamma=0.9),
    "linear_quadratic": lambda env: LinearQuadraticOracle(env=env),
    "critic": lambda env: CriticOracle(critic=Product(), gamma=0.95),
    "scripted": lambda env: ScriptedOracle(behavior=envs.PointBehavior(target="left"), env=env),
}
WORLDS = {"tabular": DELIVERY, "linear_quadratic": LQR, "critic": None, "scripted": POINT}


@pytest.mark.parametrize("kind", ORACLES)
def test_parameters_say_oracle_gamma_and_sign(kind):
    """Plain JSON, whose words are enough to know what a label means."""
    stored = json.loads(json.dumps(ORACLES[kind](WORLDS[kind]).parameters(), allow_nan=False))
    gamma = {"tabular": 0.9, "linear_quadratic": 0.99, "critic": 0.95, "scripted": None}[kind]
    assert (stored["oracle"], stored["gamma"]) == (kind, gamma)
    assert stored["values"]
    assert "p_first = P(first is preferred)" in stored["sign"]


def test_parameters_tell_how_values_were_made():
    """Options are recorded where they act; so are the task, the script and the critic."""
    make = functools.partial(TabularOracle, env=DELIVERY)
    assert "temperature" not in make().parameters()
    assert make(values="soft", temperature=0.5).parameters()["temperature"] == 0.5
    assert make(values="successor_features", pool_size=7).parameters()["pool_size"] == 7
    assert make().parameters()["env"] == "prefrl/Delivery-v0"
    assert make().parameters()["true_weights"] == TRUE_WEIGHTS.tolist()
    script = ScriptedOracle(behavior=envs.ScriptedExpert(task="drawer-open"), env=FAUCET).parameters()["script"]
    assert script == {"behavior": "ScriptedExpert", "task": "drawer-open"}
    own = ScriptedOracle(behavior=envs.ScriptedExpert(task=None), env=FAUCET).parameters()
    assert (own["script"]["task"], own["env"]) == (None, "prefrl/MetaWorld-faucet-open-v0")


@pytest.mark.parametrize("kind", ORACLES)
def test_an_oracle_that_fits_its_environment_passes_its_check(kind):
    """And goes on to answer."""
    ORACLES[kind](WORLDS[kind]).check()


@pytest.mark.parametrize("kind", ["tabular", "linear_quadratic", "scripted"])
def test_an_oracle_without_an_environment_is_an_error_when_asked(kind):
    """It can be made, for there may be no environment yet, but not asked; the message says what to give."""
    for ask in (lambda oracle: oracle.statistics(counted()), lambda oracle: oracle.check()):
        with pytest.raises(ConfigError, match="give env="):
            ask(ORACLES[kind](None))


@pytest.mark.parametrize(("kind", "method"), [("tabular", "tables"), ("linear_quadratic", "matrices")])
def test_an_environment_that_cannot_be_solved_is_refused_at_once(kind, method):
    """What an oracle is made of is checked when it is made."""
    with pytest.raises(ConfigError, match=rf"{method}\(\), but prefrl/PointReach-v0 has none"):
        ORACLES[kind](POINT)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\]"),
        ({"values": "best"}, "values must be one of exact, successor_features, soft"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"pool_size": 0}, "pool_size must be >= 1"),
        ({"pool_entries": []}, "pool_entries must hold"),
    ],
)
def test_options_out_of_range_are_errors(option, message):
    """Constructors validate, naming the value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        TabularOracle(env=None, **option)
