"""Laws of every query that there is, as its file in configs/query composes it: against brute force, on small pools."""

import functools
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from test_queries import ensemble, farthest, questions, rows, walks
from test_query_stages import LENGTH, purity, staged

from prefrl.catalog import options
from prefrl.config import build, compose
from prefrl.data.query import NOTHING_ASKED, UniformQuery, joined
from prefrl.queries import Questions, determinantal, disagreement, entropy, pair_logits
from prefrl.queries.active import Pool
from prefrl.queries.clustering import medoids
from prefrl.recipes.online_answers import Recent

ALL = sorted(options("query"))
WHOLE = ("whole_episodes", "triplets")  # segments begin where episodes do
SEEDS = st.integers(0, 2**32 - 1)
EPISODES = walks(1, lengths=(4, 11, 3, 7, 5))  # one is as long as a segment, one is shorter
SCORE = ensemble(EPISODES)
T = 4


@functools.cache
def of_config(option, *more):
    """The query of that file; what it learns from anew at each call is cut short."""
    quick = ["query.candidates.keep.updates=2"] if option == "stage_aligned" else []
    return build(compose("train", ["recipe=online", f"query={option}", *(more or quick)]).components["query"], key="")


def covering(episodes, pairs, old):
    """(M + L, F): standardized observations of both segments of each pair, and then of each old one, by hand."""
    both = [joined(one, two) for one, two in zip(pairs, old, strict=True)]
    rows = [(episodes.observation_offsets[b.episode] + b.start)[:, None] + np.arange(T) for b in both]
    sides = [episodes.observations[each].astype(np.float64) for each in rows]  # (M + L, T, D)
    flat = np.concatenate([side.reshape(-1, side.shape[-1]) for side in sides])
    return np.concatenate([((x - flat.mean(0)) / flat.std(0)).reshape(len(x), -1) for x in sides], axis=1)


@pytest.mark.parametrize(
    ("option", "value"), [("k_center", None), ("k_center_disagreement", disagreement), ("k_center_entropy", entropy)]
)
@given(seed=SEEDS, n=st.integers(1, 6), old=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_each_k_center_query_is_that_by_brute_force(option, value, seed, n, old):
    """Of ten candidates a question, those that are worth it, the farthest each time; in the same order."""
    lengths = EPISODES.lengths
    asked = UniformQuery()(lengths, old, T, np.random.default_rng([seed, 1]), labelled=NOTHING_ASKED)
    known = {"episodes": EPISODES, "score": SCORE, "labelled": asked}
    found = of_config(option)(lengths, n, T, np.random.default_rng(seed), **known)
    left = UniformQuery().remaining(lengths, T, asked)
    drawn = min(10 * n, left)
    pairs = UniformQuery()(lengths, drawn, T, np.random.default_rng(seed), labelled=asked)
    order = np.arange(drawn)
    if value is not None:
        worth = value(pair_logits(SCORE, EPISODES, pairs)).numpy()
        order = np.argsort(-worth, kind="stable")[: min(5 * n, left)]
    x = covering(EPISODES, (pairs[0][order], pairs[1][order]), asked)
    picked = order[farthest(x[: len(order)], n, x[len(order) :])]
    np.testing.assert_array_equal(rows(found), rows((pairs[0][picked], pairs[1][picked])))


@pytest.mark.parametrize("option", [option for option in ALL if option != "stage_aligned"])
def test_every_start_of_every_episode_can_be_asked(option):
    """The first and the last too, of episodes of unequal lengths, by some score; of whole episodes the first alone.

    A stage-aligned query leaves out, by design, a segment that no other one is near to.
    """
    places = {(e, s) for e, length in enumerate(EPISODES.lengths) for s in range(length - T + 1)}
    places, seen = places if option not in WHOLE else {(e, 0) for e in range(len(EPISODES))}, set()
    for seed in range(60):
        known = {"episodes": EPISODES, "score": ensemble(EPISODES, seed=seed)}
        for refs in of_config(option)(EPISODES.lengths, 3, T, np.random.default_rng(seed), **known):
            seen |= set(zip(refs.episode.tolist(), refs.start.tolist(), strict=True))
        if seen == places:
            return
    assert seen == places


@pytest.mark.parametrize("option", [option for option in ALL if option != "triplets"])  # of three episodes there is one
def test_sessions_of_a_growing_run_ask_nothing_twice_and_only_of_recent_episodes(option):
    """As an online run asks: the first session knows no score, later ones more episodes; every pair fits and is new."""
    memory, whole, asked = Questions(Recent(of_config(option), last=3)), walks(2, lengths=(6, 9, 5, 8, 12, 7, 4)), []
    for session, (known, n) in enumerate([(3, 2), (5, 2), (6, 3), (7, 1)]):
        episodes = whole.select(np.arange(known))
        query = memory.about(episodes, SCORE) if session else memory.about()
        if option == "whole_episodes" and session == 2:
            n = 2  # of three episodes there are three pairs
        pairs = query(episodes.lengths, n, T, np.random.default_rng(session))
        for refs in pairs:
            assert (refs.episode >= known - 3).all()
            assert (refs.start + refs.length <= episodes.lengths[refs.episode]).all()
        asked += questions(pairs)
        assert len(asked[-n:]) == n
        assert all(len(question) == 2 for question in asked[-n:])
    assert len(set(asked)) == len(asked) == len(memory)


@pytest.mark.parametrize("option", ["disagreement", "entropy", "information_gain", "determinantal", "medoids"])
@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_what_is_asked_does_not_depend_on_how_many_steps_are_scored_at_once(option, seed):
    """Scored in one piece or step by step, a query picks the same pairs."""
    found = []
    for size in (1, 9, 4096):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prefrl.queries.active.pair_logits", partial(pair_logits, batch_size=size))
            found.append(
                of_config(option)(EPISODES.lengths, 4, T, np.random.default_rng(seed), episodes=EPISODES, score=SCORE)
            )
    for other in found[1:]:
        np.testing.assert_array_equal(rows(found[0]), rows(other))


def pool_of(seed, M):
    pairs = UniformQuery()(EPISODES.lengths, M, T, np.random.default_rng(seed), labelled=NOTHING_ASKED)
    return Pool(EPISODES, pairs, SCORE, NOTHING_ASKED)


def kernel_of(pool, weight):
    """L of a determinantal query by its formula: worth, similarity, worth."""
    x = covering(EPISODES, pool.pairs, NOTHING_ASKED)
    squared = cdist(x, x) ** 2
    S = np.exp(-squared / np.median(squared[~np.eye(len(x), dtype=bool)]))
    worth = disagreement(pair_logits(SCORE, EPISODES, pool.pairs)).double().numpy() ** weight
    return worth[:, None] * S * worth


@given(seed=SEEDS, weight=st.sampled_from([0.0, 1.0, 2.0]))
@settings(max_examples=20, deadline=None)
def test_a_determinantal_query_is_near_the_best_batch_of_all(seed, weight):
    """Against all sets of three of nine: each pick is the best there is, and the set keeps the greedy bound (1/k!)²."""
    pool = pool_of(seed, 9)
    L = kernel_of(pool, weight)

    def volume(chosen):
        return np.linalg.det(L[np.ix_(chosen, chosen)])

    found = determinantal(pool, 3, np.random.default_rng(0), weight=weight).tolist()
    for k in range(1, 3 + 1):
        best = max(volume([*found[: k - 1], i]) for i in range(9) if i not in found[: k - 1])
        assert volume(found[:k]) == pytest.approx(best, rel=1e-4)
    best = max(volume(list(chosen)) for chosen in itertools.combinations(range(9), 3))
    assert best * (1 + 1e-6) >= volume(found) >= best / math.factorial(3) ** 2


@given(seed=SEEDS, n=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_medoids_stay_where_they_are_and_are_near_the_best_of_all(seed, n):
    """Each is the middle of what is nearest to it; together they are within twice the best of all sets of ten."""
    pool = pool_of(seed, 10)
    x = covering(EPISODES, pool.pairs, NOTHING_ASKED)
    distances = cdist(x, x)
    found = medoids(pool, n, np.random.default_rng(seed))
    assert len(set(found.tolist())) == n
    nearest = found[distances[:, found].argmin(1)]
    for center in found:
        own = np.flatnonzero(nearest == center)
        sums = distances[np.ix_(own, own)].sum(1)
        assert sums[own.tolist().index(center)] <= sums.min() * (1 + 1e-6)

    def cost(chosen):
        return distances[:, list(chosen)].min(1).sum()

    best = min(cost(chosen) for chosen in itertools.combinations(range(10), n))
    assert best * (1 - 1e-9) <= cost(found) <= 2 * best


def test_the_stage_aligned_query_asks_within_a_stage():
    """The file as it is, disagreement and all: of three stages three quarters of the pairs are of one and the same."""
    episodes, stages = staged(np.random.default_rng(3))
    query, known = of_config("stage_aligned", "seed=0"), {"episodes": episodes, "score": ensemble(episodes)}
    pairs = query(episodes.lengths, 60, LENGTH, np.random.default_rng(1), **known)
    plain = UniformQuery()(episodes.lengths, 60, LENGTH, np.random.default_rng(1), labelled=NOTHING_ASKED)
    assert purity(plain, stages) < 0.4
    assert purity(pairs, stages) > 0.75


def test_every_query_leaves_torchs_generator_alone():
    """All randomness is the argument's, so that a resumed run draws the same."""
    before = torch.get_rng_state()
    for option in ALL:
        query = of_config(option)
        given = {} if option in ("uniform", "whole_episodes") else {"episodes": EPISODES, "score": SCORE}
        one, two = (query(EPISODES.lengths, 5, T, np.random.default_rng(7), **given) for _ in range(2))
        np.testing.assert_array_equal(rows(one), rows(two))
    assert torch.equal(before, torch.get_rng_state())
