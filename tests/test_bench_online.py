"""Laws of ``prefrl bench online``: shares, and learning from a pool by questions of different kinds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from envs import RandomBehavior, make
from prefrl.benchmarks.online_learning import share_of_true
from prefrl.benchmarks.online_queries import Asking, Pool, accuracies, gains
from prefrl.config import compose
from prefrl.data.collect import BehaviorGroup, collect_episodes
from prefrl.data.query import UniformQuery
from prefrl.data.storage import write_dataset
from prefrl.queries import ActiveQuery, uncertain
from prefrl.scores import ReturnEnsemble
from prefrl.teachers import SimulatedTeacher
from prefrl.train.fit_score import fit_score

QUERIES = {"uniform": UniformQuery(), "disagreement": ActiveQuery(keep=uncertain, oversample=3)}
ASKING = Asking(
    answers=40, sessions=4, segment_length=5, teacher=SimulatedTeacher(),
    score=partial(ReturnEnsemble.for_data, members=2, hidden=[16]),
    fit=partial(fit_score, epochs=20, learning_rate=1e-2, holdout=0.0, tensorboard=False),
)  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    place = tmp_path_factory.mktemp("pool") / "data"
    group = BehaviorGroup("acts at random", 24, RandomBehavior(hold=5))
    write_dataset(place, collect_episodes(partial(make, "prefrl/PointReach-v0"), [group], max_steps=25, seed=0))
    return Pool("point", 0, place)


def test_random_actions_have_no_share_and_the_true_reward_has_all():
    """(J − J_random) / (J_true − J_random) is 0 and 1 there, and does not change with the returns' zero and unit."""
    scores = np.array([[-300.0, -100.0, -1100.0], [-100.0, -200.0, -900.0]])
    ends = np.array([[scores[:, 2].mean(), *scores[:, 1:].mean(0)], [scores[:, 1].mean(), *scores[:, 1:].mean(0)]])
    np.testing.assert_allclose([share_of_true(row[None]) for row in ends], [0, 1], atol=1e-12)
    assert share_of_true(scores) == pytest.approx(float(share_of_true(3 * scores + 7)))


@pytest.mark.parametrize("name", QUERIES)
def test_the_reward_of_a_pool_learns_what_is_asked(pool: Pool, name: str):
    """After the answers unseen pairs are ordered better than by a coin, and equal seeds give equal numbers."""
    found = accuracies(pool, query=QUERIES[name], asking=ASKING)
    assert len(found) == ASKING.sessions
    assert found[-1] > 0.75
    assert found == accuracies(pool, query=QUERIES[name], asking=ASKING)


def test_the_first_session_is_uniform_for_all(pool: Pool):
    """So strategies differ from the second session on only."""
    first = [
        accuracies(pool, query=query, asking=replace(ASKING, answers=10, sessions=1)) for query in QUERIES.values()
    ]
    assert first[0] == first[1]


def test_a_gain_is_over_uniform_questions_on_the_same_pools():
    """Of two pools, .1 and .2 better on average over sessions: .15, which keeps a bar of 0; the negative does not."""
    pools = [Pool("point", seed, Path()) for seed in (0, 1)]
    curves = {(pool, "uniform"): [0.5, 0.7] for pool in pools}
    curves |= {(pools[0], "better"): [0.6, 0.8], (pools[1], "better"): [0.7, 0.9]}
    curves |= {(pool, "worse"): [0.5, 0.6] for pool in pools}
    found = gains(curves, answers={"point": 10}, bars={"better": ["point"], "worse": ["point"]})
    values = {finding.id: (pytest.approx(finding.value), finding.holds) for finding in found}
    assert values["queries.point.better-uniform"] == (0.15, True)
    assert values["queries.point.worse-uniform"] == (-0.05, False)


@pytest.mark.parametrize("experiment", ["online_pendulum", "online_halfcheetah", "online_door_close"])
def test_rows_queries_fit_as_the_experiments_do(experiment: str):
    """The same reward, trained in the same way, but for the epochs and the answers that are held out."""
    asking = compose("bench", ["bench=online"]).components["bench"]["queries"]["asking"]["pendulum"]
    run = compose("train", [f"experiment={experiment}"]).components
    own, of_bench = dict(run["recipe"]["fit"]), dict(asking["fit"])
    compared = ("batch_size", "learning_rate", "weight_decay", "loss")
    assert [own[key] for key in compared] == [of_bench[key] for key in compared]
    assert [run["score"][key] for key in ("members", "hidden")] == [
        asking["score"][key] for key in ("members", "hidden")
    ]
