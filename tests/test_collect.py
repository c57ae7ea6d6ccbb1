"""Laws of collecting, on a corridor whose episodes can be computed by hand."""

import gymnasium as gym
import numpy as np
import pytest
from strategies import same_episodes

from prefrl.data.collect import BehaviorGroup, collect_episodes, episode_seeds, try_behaviors
from prefrl.data.dataset import Episodes
from prefrl.errors import InvalidData


class Corridor(gym.Env):
    """A point starts at random in [-1, 1] and moves by its action; at 3 it ends with success."""

    metadata = {"render_modes": [], "render_fps": 12}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, *, discrete: bool = False, broken: bool = False) -> None:
        self.position, self.closed, self.broken = np.zeros(1, dtype=np.float32), False, broken
        if discrete:
            self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position[:] = self.np_random.uniform(-1, 1)
        return self.position, {}

    def step(self, action):
        self.position += action
        done = bool(self.position[0] >= 3)
        reward = np.nan if self.broken else float(self.position[0])
        return self.position, reward, done, False, {"success": float(done)}

    def close(self):
        self.closed = True


class Walker:
    """Walks at a pace, with noise from its own generator."""

    def __init__(self, pace: float, noise: float = 0.1) -> None:
        self.pace, self.noise = pace, noise

    def reset(self, env, rng):
        self.rng = rng

    def act(self, observation):
        return np.array([self.pace + self.noise * self.rng.normal()])


def make_env(*, seed, render_mode=None):
    return Corridor()


def group(name: str, episodes: int, pace: float) -> BehaviorGroup:
    return BehaviorGroup(name, episodes, Walker(pace))


def collect(*groups: BehaviorGroup, seed: int = 0, max_steps: int = 6) -> Episodes:
    return collect_episodes(make_env, groups, max_steps=max_steps, seed=seed)


def test_episodes_obey_the_dynamics():
    """Each observation is the one before plus the stored action, which is clipped; rewards fit to steps."""
    data = collect(group("right", 4, 0.9), group("wild", 2, -5.0))
    for e in range(len(data)):
        states = data.observations[data.observation_offsets[e] : data.observation_offsets[e + 1], 0]
        steps = slice(data.step_offsets[e], data.step_offsets[e + 1])
        np.testing.assert_allclose(states[1:], states[:-1] + data.actions[steps, 0], rtol=1e-5)
        np.testing.assert_allclose(data.true_reward[steps], states[1:], rtol=1e-6)
    assert (np.abs(data.actions) <= 1).all()
    assert data.actions.min() == -1


def test_episodes_end_at_termination_or_after_max_steps():
    """Those that reach the goal are terminated and successful there; the others take max_steps."""
    data = collect(group("right", 3, 0.9), group("left", 2, -0.5))
    assert data.behavior == ("right",) * 3 + ("left",) * 2
    assert data.terminated.tolist() == [True] * 3 + [False] * 2
    assert data.succeeded().tolist() == data.terminated.tolist()
    assert (data.lengths[:3] < 6).all()
    assert data.lengths[3:].tolist() == [6, 6]
    assert data.success.sum() == 3


def test_equal_seeds_give_equal_episodes_and_other_seeds_others():
    """The seed decides everything."""
    groups = group("right", 2, 0.5), group("left", 2, -0.5)
    assert same_episodes(collect(*groups, seed=3), collect(*groups, seed=3))
    assert not same_episodes(collect(*groups, seed=3), collect(*groups, seed=4))


def test_an_episode_does_not_depend_on_the_others():
    """The order of the groups, and how many episodes another group has, change nothing."""
    both = collect(group("right", 2, 0.5), group("left", 3, -0.5))
    turned = collect(group("left", 3, -0.5), group("right", 4, 0.5))
    assert same_episodes(both.select([0, 1]), turned.select([3, 4]))
    assert same_episodes(both.select([2, 3, 4]), turned.select([0, 1, 2]))


def test_stored_seeds_make_the_episodes_again():
    """``env.reset(seed=...)`` with the stored seed gives the stored first observation."""
    data, env = collect(group("right", 3, 0.5)), Corridor()
    for e, seed in enumerate(data.seeds):
        np.testing.assert_array_equal(env.reset(seed=int(seed))[0], data.observations[data.observation_offsets[e]])
    assert len(set(data.seeds.tolist())) == 3


def test_seeds_differ_between_episodes_groups_and_runs():
    """10 groups × 10 episodes × 10 runs have a thousand different seeds, which fit into 31 bits."""
    seeds = {episode_seeds(run, f"group{g}", k)[0] for run in range(10) for g in range(10) for k in range(10)}
    assert len(seeds) == 1000
    assert min(seeds) >= 0
    assert max(seeds) < 2**31


def test_the_environment_is_described_and_closed():
    """The dataset knows the environment's id, arguments and frame rate; it is closed at the end."""
    made = []

    def registered(*, seed, render_mode=None):
        made.append(gym.make("prefrl-test/Corridor-v0", broken=False))
        return made[-1]

    gym.register("prefrl-test/Corridor-v0", entry_point=Corridor, max_episode_steps=4, disable_env_checker=True)
    try:
        data = collect_episodes(registered, [group("left", 1, -0.5)], max_steps=9, seed=0)
    finally:
        del gym.registry["prefrl-test/Corridor-v0"]
    assert data.env == {"id": "prefrl-test/Corridor-v0", "kwargs": {"broken": False}, "max_steps": 9}
    assert data.fps == 12
    assert data.lengths.tolist() == [4]
    assert not data.terminated[0]
    assert made[0].unwrapped.closed


def test_progress_is_told_after_each_episode():
    """(1, 3), (2, 3), (3, 3)."""
    seen = []
    groups = [group("right", 1, 0.5), group("left", 2, -0.5)]
    collect_episodes(make_env, groups, max_steps=2, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_nan_of_the_environment_names_its_behavior():
    """An environment that gives NaN rewards is found out, with the behavior that led there."""
    with pytest.raises(InvalidData, match="behavior 'right'"):
        collect_episodes(
            lambda *, seed, render_mode=None: Corridor(broken=True),
            [group("right", 1, 0.5)],
            max_steps=2,
            seed=0,
        )


@pytest.mark.parametrize(
    ("groups", "max_steps", "named"),
    [
        ([group("a", 1, 0.1), group("a", 1, 0.2)], 5, "different names"),
        ([group("a", 0, 0.1)], 5, "no episode"),
        ([], 5, "no episode"),
        ([group("a", 1, 0.1)], 0, "max_steps"),
    ],
)
def test_impossible_requests_are_refused(groups, max_steps, named):
    """Groups that would repeat episodes, nothing to collect, no steps: refused before anything is made."""
    with pytest.raises(InvalidData, match=named):
        collect_episodes(make_env, groups, max_steps=max_steps, seed=0)


class Picky(Walker):
    """Raises at the start of an episode, or at its third step."""

    def __init__(self, error: Exception, *, at_start: bool) -> None:
        super().__init__(0.1)
        self.error, self.at_start, self.steps = error, at_start, 0

    def reset(self, env, rng):
        super().reset(env, rng)
        if self.at_start:
            raise self.error

    def act(self, observation):
        self.steps += 1
        if self.steps == 3:
            raise self.error
        return super().act(observation)


@pytest.mark.parametrize("error", [ValueError("39 observations"), RuntimeError("diverged"), FloatingPointError("nan")])
@pytest.mark.parametrize("at_start", [True, False])
def test_a_failing_behavior_is_named(error, at_start):
    """What a behavior or an environment raises, who cannot know our errors, says whose episode it was."""
    groups = [group("right", 1, 0.5), BehaviorGroup("picky", 1, Picky(error, at_start=at_start))]
    with pytest.raises(InvalidData, match=rf"'picky' failed in Corridor: {error}.*data="):
        collect_episodes(make_env, groups, max_steps=5, seed=0)


def test_behaviors_are_tried_without_a_trace():
    """A trial finds a behavior that cannot begin; where all can, the episodes are those without the trial."""
    groups = [group("right", 2, 0.5), group("left", 1, -0.5)]
    try_behaviors(Corridor(), groups, seed=0)
    assert same_episodes(collect(*groups), collect(group("right", 2, 0.5), group("left", 1, -0.5)))
    with pytest.raises(InvalidData, match="'picky'"):
        try_behaviors(Corridor(), [BehaviorGroup("picky", 1, Picky(ValueError("no"), at_start=True))], seed=0)


def test_discrete_actions_are_refused():
    """Only continuous actions can be stored."""
    with pytest.raises(InvalidData, match="Discrete"):
        collect_episodes(
            lambda *, seed, render_mode=None: Corridor(discrete=True),
            [group("a", 1, 0.1)],
            max_steps=2,
            seed=0,
        )


def test_numbers_of_episodes_can_be_replaced():
    """``episodes`` in place of the groups' own: as groups of those sizes; another length is refused."""
    sizes = {"own": (1, 4), "asked": (3, 2)}
    own, asked = (
        [BehaviorGroup("slow", slow, Walker(0.1)), BehaviorGroup("fast", fast, Walker(0.9))]
        for slow, fast in sizes.values()
    )
    make = lambda *, seed: Corridor()  # noqa: E731
    found = collect_episodes(make, own, max_steps=5, seed=0, episodes=[3, 2])
    assert found.behavior == ("slow",) * 3 + ("fast",) * 2
    assert same_episodes(found, collect_episodes(make, asked, max_steps=5, seed=0))
    with pytest.raises(InvalidData, match=r"one number for each of \['slow', 'fast'\], but is \[3\]"):
        collect_episodes(make, own, max_steps=5, seed=0, episodes=[3])
