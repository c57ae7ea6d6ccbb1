"""Every answer of an online run says who gave it, when, and with which knobs: for every teacher that there is."""

import functools
import json
from itertools import pairwise

import numpy as np
import pytest
from tiny_online import POSITIVE, answers_of, places, words

from prefrl.catalog import options
from prefrl.config import compose
from prefrl.core import SegmentRefs
from prefrl.data.storage import read_dataset
from prefrl.launch import make_recipe
from prefrl.recipes.online_answers import AnswerBook
from prefrl.recipes.online_arm import run_online_arm
from prefrl.runs import RunDirectory
from prefrl.teachers import WeightedReward

pytestmark = pytest.mark.usefixtures("restored")

BY_VALUES = {
    "regret_point": {"env": "point_reach"},
    "regret_lqr": {"env": "double_integrator", "env__max_episode_steps": None, "env__horizon": 20},
}
ELSEWHERE = {  # in tests of their own, because a tiny run cannot hold what they ask
    "regret_sac": "a trained critic", "regret_scripted": "Meta-World", "regret_tabular": "a grid world",
}  # fmt: skip
EPISODES = (4, 8)  # that have ended at each session: 80 steps of 20 each


@functools.cache
def settings_of(option):
    """Of a tiny run with this teacher."""
    short = {"recipe__steps": 200, "recipe__fit__epochs": 1, "recipe__episodes": 1}
    env = BY_VALUES.get(option, {"env__id": POSITIVE})
    return make_recipe(compose("train", words("ppo", teacher=option, **short, **env))).settings


def run_of(option, path):
    """A tiny run with this teacher; its settings."""
    settings = settings_of(option)
    run = RunDirectory.create(path, config="")
    run_online_arm("aligned", path=run.path, settings=settings)
    return run, settings


def scale(rater, episodes):
    """What thresholds are shares of, by hand: the mean reward of a step, or the mean size of what is compared."""
    reward = getattr(rater, "reward", None)
    if reward is None:
        return float(np.mean(episodes.true_reward, dtype=np.float64))
    each = [episodes.segments(SegmentRefs([k], [0], [length])) for k, length in enumerate(episodes.lengths)]
    return sum(float(reward(batch).abs().sum()) for batch in each) / episodes.num_steps


@pytest.mark.parametrize("option", sorted(set(options("teacher")) - set(ELSEWHERE)))
def test_every_answer_says_who_gave_it(option, tmp_path):
    """All parameters of the very rater, the session, and a number by which its answers belong together."""
    run, settings = run_of(option, tmp_path / "run")
    raters = getattr(settings.teacher, "raters", (settings.teacher,))
    answers, episodes = answers_of(run), read_dataset(run.path / "arms/aligned/dataset")
    book = AnswerBook(run.path / "arms/aligned/answers.safetensors")
    assert [book.answered(sessions) for sessions in (0, 1, 2)] == [0, 7, 14]
    assert len(answers) == 14
    assert book.answers(2).teacher == answers.teacher  # in the book as in the dataset
    np.testing.assert_array_equal(book.answers(2).rater, answers.rater)
    np.testing.assert_array_equal(places(book.answers(2)), places(answers))
    for session, (begin, end) in enumerate(pairwise((0, 7, 14))):
        seen = episodes.select(np.arange(EPISODES[session]))
        for row in range(begin, end):
            rater, told = raters[answers.rater[row]], json.loads(answers.teacher[row])
            before = int((answers.rater[:begin] == answers.rater[row]).sum())
            calibrated = rater.calibrated(scale(rater, seen), session=session, answered=before)
            expected = json.loads(json.dumps({**calibrated.parameters(), "session": session}))
            if "reward_per_step" in expected:
                assert told.pop("reward_per_step") == pytest.approx(expected.pop("reward_per_step"), rel=1e-5)
            assert told == expected
    if len(raters) > 1:
        assert [json.loads(text)["rater"] for text in answers.teacher] == [raters[k].id for k in answers.rater]


def test_every_teacher_is_known_here():
    """A new option of the group is tried above, or its reason stands there."""
    assert set(ELSEWHERE) | set(BY_VALUES) <= set(options("teacher"))


KNOBS = {
    "mistake": "mistake", "skip": "skip", "equal": "equal", "myopic": "gamma", "boltzmann": "beta",
    "fatigue": "drift_mistake", "attribute": "attributes", "population": "group",
}  # fmt: skip


@pytest.mark.parametrize("option", KNOBS)
def test_the_knob_of_a_teacher_stands_with_its_answers(option):
    """What an option of the group changes is among the parameters, with the value of its file."""
    teacher = settings_of(option).teacher
    raters = getattr(teacher, "raters", (teacher,))
    told = [json.loads(json.dumps(rater.parameters())) for rater in raters]
    assert all(KNOBS[option] in parameters for parameters in told)
    if option in ("mistake", "skip", "equal", "myopic", "boltzmann"):
        assert told[0][KNOBS[option]] == getattr(teacher, KNOBS[option]) != getattr(type(teacher)(), KNOBS[option])
    if option == "fatigue":
        assert (told[0]["drift_answers"], told[0]["drift_mistake"], told[0]["answered"]) == (500, 0.2, 0)
    if option == "attribute":
        assert told[0]["attributes"]["energy"]["weight"] == -1.0
        assert isinstance(teacher.reward, WeightedReward)
    if option == "population":
        assert {parameters["group"] for parameters in told} == {"returns", "frugal", "careless"}
        assert {parameters["mistake"] for parameters in told if parameters["group"] == "careless"} == {0.2}
