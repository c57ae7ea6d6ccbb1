"""Laws of labeling: who asks again with the same seed gets further answers, not the same ones twice."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from strategies import make_episodes

import envs
from prefrl.cli import main
from prefrl.data.collect import BehaviorGroup, collect_episodes
from prefrl.data.labeling import answer_generator, label
from prefrl.data.preferences import Preferences, append_preferences, read_preferences
from prefrl.data.query import UniformQuery
from prefrl.data.storage import write_dataset
from prefrl.errors import InvalidData
from prefrl.teachers import SimulatedTeacher

DATA = make_episodes([30, 40, 50])


def ask(rng: np.random.Generator, teacher: SimulatedTeacher | None = None, **changed: int) -> Preferences:
    numbers = {"comparisons": 20, "segment_length": 5, **changed}
    return label(DATA, teacher=teacher or SimulatedTeacher(), query=UniformQuery(), rng=rng, **numbers)


def pairs(answers: Preferences) -> list[tuple[int, ...]]:
    """(first episode, first start, second episode, second start) of each answer."""
    places = (answers.first.episode, answers.first.start, answers.second.episode, answers.second.start)
    return list(zip(*(place.tolist() for place in places), strict=True))


def test_every_comparison_is_answered_by_the_true_return():
    """The oracle prefers the segment with the higher true return, for exactly as many pairs as asked for."""
    answers = ask(np.random.default_rng(0))
    first, second = (DATA.segments(refs).true_reward.sum(1).numpy() for refs in (answers.first, answers.second))
    assert answers.p_first.tolist() == (first > second).astype(float).tolist()
    assert len(answers) == 20


def test_the_generator_depends_on_seed_and_answers():
    """Equal seeds and equal numbers of answers ask for equal pairs; if either differs, for others."""
    asked = [pairs(ask(answer_generator(seed, answered))) for seed, answered in [(0, 0), (0, 0), (0, 20), (1, 0)]]
    assert asked[0] == asked[1]
    assert not set(asked[0]) & set(asked[2])
    assert not set(asked[0]) & set(asked[3])


def test_labeling_twice_with_one_seed_asks_for_further_pairs(tmp_path, capsys):
    """`prefrl label` run twice with the same words stores different comparisons; a third dataset repeats both."""
    for name in ("a", "b"):
        write_dataset(tmp_path / name, DATA)
        for _ in range(2):
            assert main(["label", str(tmp_path / name), "comparisons=20", "segment_length=5", "seed=3"]) == 0
    assert "20 answers added, 40 in all" in capsys.readouterr().out
    once, again = (pairs(read_preferences(tmp_path / name)) for name in ("a", "b"))
    assert once == again
    assert len(once) == 40
    assert not set(once[:20]) & set(once[20:])


def test_each_teacher_has_its_own_rater_number(tmp_path):
    """`prefrl label` takes the next free number for another teacher, and the same one for the same teacher again."""
    write_dataset(tmp_path, DATA)
    people = ask(np.random.default_rng(0))
    told = (json.dumps({"name": "people"}),) * 20
    append_preferences(tmp_path, replace(people, teacher=told, rater=np.arange(20) % 3))
    for teacher in ("oracle", "mistake", "oracle"):
        assert main(["label", str(tmp_path), f"teacher={teacher}", "comparisons=4", "segment_length=5"]) == 0
    assert read_preferences(tmp_path).rater.tolist()[20:] == [3] * 4 + [4] * 4 + [3] * 4


def test_a_teacher_that_skips_everything_is_an_error():
    """Nothing is stored for pairs without an answer; the message says which knob to turn."""
    shifted = make_episodes([20, 20])
    object.__setattr__(shifted, "true_reward", np.ones_like(shifted.true_reward))
    with pytest.raises(InvalidData, match=r"Lower teacher\.skip"):
        label(
            shifted,
            teacher=SimulatedTeacher(skip=2.0),
            query=UniformQuery(),
            comparisons=5,
            segment_length=5,
            rng=np.random.default_rng(0),
        )


@pytest.mark.parametrize("changed", [{"comparisons": 0}, {"segment_length": 0}])
def test_impossible_numbers_are_refused(changed):
    """No comparisons, or segments without steps, are errors at once."""
    with pytest.raises(InvalidData, match="must be >= 1"):
        ask(np.random.default_rng(0), **changed)


@pytest.fixture
def deliveries(tmp_path):
    """A dataset of random walks on the delivery board."""
    make = functools.partial(envs.make, "prefrl/Delivery-v0")
    episodes = collect_episodes(make, [BehaviorGroup("random", 30, envs.RandomBehavior())], max_steps=20, seed=0)
    write_dataset(tmp_path / "walks", episodes)
    return str(tmp_path / "walks")


def test_a_teacher_by_values_labels_with_the_environment(deliveries):
    """Answers differ with the preference model; each says oracle, model, gamma and sign; ties can be skipped."""
    words = ["label", deliveries, "teacher=regret_tabular", "env=delivery", "query=whole_episodes", "segment_length=5"]
    for model in ("regret", "partial_return"):
        assert main([*words, "comparisons=40", f"teacher.model={model}", "teacher.ties=false"]) == 0
    answers = read_preferences(deliveries)
    stored = [json.loads(text) for text in answers.teacher]
    assert [answer["model"] for answer in stored] == ["regret"] * 40 + ["partial_return"] * 40
    assert {(answer["oracle"], answer["gamma"], answer["env"]) for answer in stored} == {
        ("tabular", 0.999, "prefrl/Delivery-v0")
    }
    assert all("P(first is preferred)" in answer["sign"] for answer in stored)
    assert set(answers.p_first.tolist()) == {0.0, 1.0}


def test_env_is_required_where_it_is_asked_and_refused_where_not(deliveries, capsys):
    """A teacher by values without an environment, and one by rewards with it, are errors that name the key."""
    assert main(["label", deliveries, "teacher=regret_tabular"]) != 0
    assert "env is required: teacher 'regret_tabular' asks the environment" in capsys.readouterr().err
    assert main(["label", deliveries, "env=delivery"]) != 0
    assert "env has no effect: teacher 'oracle'" in capsys.readouterr().err
    assert main(["label", deliveries, "teacher=regret_tabular", "env=point_reach"]) != 0
    assert "needs an environment with tables()" in capsys.readouterr().err
