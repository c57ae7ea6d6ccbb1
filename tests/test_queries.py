"""Laws of active queries: what a question tells, how unlike questions are, and that none comes twice."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import expit

from prefrl.core import SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.labeling import label
from prefrl.data.query import NOTHING_ASKED, UniformQuery, WholeEpisodes
from prefrl.errors import ConfigError, InvalidData
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.queries import (
    ActiveQuery,
    Questions,
    determinantal,
    disagreement,
    entropy,
    greedy_determinantal,
    greedy_k_center,
    information_gain,
    k_center,
    pair_logits,
    same_stage,
    uncertain,
)
from prefrl.queries.acquisition import ACQUISITIONS
from prefrl.queries.active import Pool
from prefrl.queries.clustering import medoids
from prefrl.queries.diversity import similarity
from prefrl.scores import ReturnEnsemble
from prefrl.teachers import SimulatedTeacher

LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=5).map(torch.tensor)
KEEPS = {
    "disagreement": uncertain,
    "entropy": partial(uncertain, by="entropy"),
    "information_gain": partial(uncertain, by="information_gain"),
    "k_center": k_center,
    "determinantal": determinantal,
    "medoids": medoids,
    "same_stage": partial(same_stage, updates=2),
}


def walks(seed, lengths=(12, 3, 20, 9), D=3):
    """Episodes of noise, one of them shorter than a segment of 4 steps."""
    rng, lengths = np.random.default_rng(seed), np.array(lengths)
    E, N = len(lengths), int(lengths.sum())
    return Episodes(
        observations=rng.normal(size=(N + E, D)), actions=rng.normal(size=(N, 2)), true_reward=rng.random(N),
        success=np.zeros(N, dtype=bool), lengths=lengths, terminated=np.zeros(E, dtype=bool), behavior=("walk",) * E,
        seeds=np.arange(E), env={"id": "walks"}, fps=10.0,
    )  # fmt: skip


def ensemble(episodes, **options):
    o, a = torch.from_numpy(episodes.observations[:9]), torch.from_numpy(episodes.actions[:9])
    return ReturnEnsemble.for_data(observations=o, actions=a, **{"seed": 0, "hidden": (8,), **options})


EPISODES = walks(0)
SCORE = ensemble(EPISODES)


def rows(pairs):
    """(n, 6): all that says what was asked."""
    return np.stack([getattr(refs, part) for refs in pairs for part in ("episode", "start", "length")], axis=1)


def questions(pairs):
    return [frozenset([tuple(row[:3]), tuple(row[3:])]) for row in rows(pairs).tolist()]


def binary_entropy(p):
    return 0.0 if p in (0.0, 1.0) else -p * math.log(p) - (1 - p) * math.log(1 - p)


@given(LOGITS)
def test_acquisitions_are_their_formulas(logits):
    """Disagreement, entropy and information gain by the probabilities of each pair, in double precision."""
    P = expit(logits.double().numpy())  # (N, M)
    for m in range(P.shape[1]):
        p = P[:, m]
        mean = p.sum() / len(p)
        expected = math.sqrt(((p - mean) ** 2).sum() / len(p))
        assert disagreement(logits)[m].item() == pytest.approx(expected, abs=1e-5)
        assert entropy(logits)[m].item() == pytest.approx(binary_entropy(mean), abs=1e-5)
        gain = binary_entropy(mean) - np.mean([binary_entropy(x) for x in p])
        assert information_gain(logits)[m].item() == pytest.approx(gain, abs=1e-5)


@given(LOGITS)
def test_acquisitions_do_not_know_which_is_first(logits):
    """The other way round a question is worth as much; and so it is for members in any order."""
    for value in ACQUISITIONS.values():
        torch.testing.assert_close(value(logits), value(-logits), atol=1e-6, rtol=0)
        torch.testing.assert_close(value(logits), value(logits.flip(0)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", ACQUISITIONS.values(), ids=ACQUISITIONS)
def test_acquisitions_are_finite_and_bounded_for_any_logit(value):
    """At ±1e4 too, where σ is 0 or 1 and its logarithm would not be finite."""
    logits = torch.tensor([[1e4, -1e4, 1e4, 0.0], [1e4, -1e4, -1e4, 0.0]])
    found = value(logits)
    assert torch.isfinite(found).all()
    assert ((found >= 0) & (found <= math.log(2) + 1e-6)).all()
    assert found[:2].abs().max() < 1e-6


def test_only_information_gain_leaves_out_coin_tosses():
    """Where every member is undecided nothing is learnt: entropy would ask, information gain and disagreement not."""
    logits = torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    assert entropy(logits).tolist() == pytest.approx([math.log(2)] * 2)
    assert information_gain(logits)[0] == disagreement(logits)[0] == 0
    assert information_gain(logits)[1] > 0.1


@pytest.mark.parametrize("query", [UniformQuery(), WholeEpisodes()], ids=["uniform", "whole"])
def test_logits_are_differences_of_scores_however_they_are_split(query):
    """Each pair on its own is the oracle; repeated, overlapping and shorter segments, any batch size."""
    pairs = query(EPISODES.lengths, 40, 5, np.random.default_rng(0))
    with torch.no_grad():
        expected = [
            SCORE(EPISODES.segments(pairs[0][i : i + 1])) - SCORE(EPISODES.segments(pairs[1][i : i + 1]))
            for i in range(40)
        ]
    for batch_size in (1, 7, 64, 4096):
        found = pair_logits(SCORE, EPISODES, pairs, batch_size=batch_size)
        torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)


def test_a_score_that_is_not_a_number_is_found():
    """Nothing is asked by a score that diverged."""
    broken = ensemble(EPISODES)
    broken.biases[0].data[:] = math.nan
    with pytest.raises(InvalidData, match="scores of segments holds"):
        ActiveQuery(keep=uncertain)(EPISODES.lengths, 2, 4, np.random.default_rng(0), episodes=EPISODES, score=broken)


@pytest.mark.parametrize("by", ACQUISITIONS)
def test_the_order_of_questions_does_not_depend_on_the_split(by):
    """Whatever number of steps is scored at a time, the same pairs come first."""
    pairs = UniformQuery()(EPISODES.lengths, 60, 4, np.random.default_rng(0), labelled=NOTHING_ASKED)
    orders = [
        torch.argsort(-ACQUISITIONS[by](pair_logits(SCORE, EPISODES, pairs, batch_size=size)), stable=True).tolist()
        for size in (1, 12, 100, 4096)
    ]
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("by", ACQUISITIONS)
def test_the_most_uncertain_candidates_are_kept(by):
    """Nothing that is left out is worth more than what is kept; and the best comes first."""
    pairs = UniformQuery()(EPISODES.lengths, 60, 4, np.random.default_rng(0), labelled=NOTHING_ASKED)
    pool = Pool(EPISODES, pairs, SCORE, NOTHING_ASKED)
    kept = uncertain(pool, 10, np.random.default_rng(0), by=by)
    values = ACQUISITIONS[by](pair_logits(SCORE, EPISODES, pairs)).numpy()
    assert (values[kept] == np.sort(values)[::-1][:10]).all()


def farthest(x, k, covered):
    """K-center by brute force: all distances anew for each pick."""
    picked = []
    for _ in range(k):
        centers = np.concatenate([covered, x[picked]])
        nearest = cdist(x, centers).min(1) if len(centers) else np.ones(len(x))
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return picked


@pytest.mark.parametrize("covered", [0, 1, 20])
def test_k_center_is_that_by_brute_force(covered):
    """The same picks in the same order, with and without points that are covered already, far from the origin too."""
    rng = np.random.default_rng(covered)
    for offset in (0, 1000):
        x, c = (offset + rng.normal(size=(n, 6)).astype(np.float32) for n in (60, covered))
        found = greedy_k_center(torch.from_numpy(x), 25, torch.from_numpy(c))
        assert found.tolist() == farthest(x.astype(np.float64), 25, c.astype(np.float64))


def test_k_center_is_at_most_twice_the_best_radius():
    """The bound of Gonzalez 1985: by enumeration of all sets of 3 of 10."""
    x = np.random.default_rng(0).normal(size=(10, 2))
    distance = cdist(x, x)

    def radius(chosen):
        return distance[:, list(chosen)].min(1).max()

    best = min(radius(chosen) for chosen in itertools.combinations(range(10), 3))
    assert best <= radius(greedy_k_center(torch.from_numpy(x), 3)) <= 2 * best


def test_equal_candidates_are_picked_once_each():
    """Where nothing is left to cover, rows still differ."""
    assert sorted(greedy_k_center(torch.zeros(5, 2), 5).tolist()) == list(range(5))
    assert sorted(greedy_determinantal(np.ones((5, 5)), 5).tolist()) == list(range(5))


def test_determinantal_picks_add_most_to_the_determinant():
    """The greedy choice by brute force: the determinant of every set with one more."""
    for seed in range(5):
        root = np.random.default_rng(seed).normal(size=(12, 12))
        kernel, picked = root @ root.T, []
        for _ in range(8):
            others = [i for i in range(12) if i not in picked]
            picked.append(max(others, key=lambda i: np.linalg.slogdet(kernel[np.ix_([*picked, i], [*picked, i])])[1]))
        assert greedy_determinantal(kernel, 8).tolist() == picked


def test_similarity_is_one_of_equals_and_e_to_the_minus_one_at_the_median():
    """A kernel: symmetric, positive semi-definite, on the scale of the data whatever their unit."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    S = similarity(x)
    assert np.allclose(S, S.T)
    assert np.allclose(S, similarity(100 * x))
    assert np.linalg.eigvalsh(S).min() > -1e-9
    assert np.median(S[~np.eye(20, dtype=bool)]) == pytest.approx(math.exp(-1), rel=0.05)
    assert (similarity(torch.ones(3, 2)) == 1).all()


def test_the_weight_of_a_determinantal_query_trades_worth_for_difference():
    """With a large weight the most uncertain pair comes first and the mean worth is higher than with none."""
    pairs = UniformQuery()(EPISODES.lengths, 60, 4, np.random.default_rng(0), labelled=NOTHING_ASKED)
    pool, rng = Pool(EPISODES, pairs, SCORE, NOTHING_ASKED), np.random.default_rng(0)
    values = disagreement(pair_logits(SCORE, EPISODES, pairs)).numpy()
    plain, worth = (determinantal(pool, 8, rng, weight=weight) for weight in (0.0, 4.0))
    assert values[worth].mean() > values[plain].mean()
    assert worth[0] == values.argmax()


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 30), st.booleans())
def test_questions_fit_differ_and_are_new(keep, seed, n, old, scored):
    """Every pick lies in its episode, has two segments, and was not asked before; equal seeds, equal picks."""
    rng, lengths = np.random.default_rng(seed), EPISODES.lengths
    asked = UniformQuery()(lengths, old, 4, rng, labelled=NOTHING_ASKED)
    known = {"episodes": EPISODES, "score": SCORE if scored else None, "labelled": asked}
    query = ActiveQuery(keep=keep, oversample=4)
    pairs, again = (query(lengths, n, 4, np.random.default_rng(seed), **known) for _ in range(2))
    assert (rows(pairs) == rows(again)).all()
    found = questions(pairs)
    assert len(set(found)) == len(found) == n
    assert all(len(question) == 2 for question in found)
    assert not set(found) & set(questions(asked))
    for refs in pairs:
        assert (refs.start + refs.length <= lengths[refs.episode]).all()


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_a_query_asks_all_there_is_and_no_more(keep):
    """With few segments the pool is smaller than told; when every question was asked, one more is an error."""
    episodes = walks(0, lengths=(4, 5))
    query = ActiveQuery(keep=keep, candidates=ActiveQuery(keep=keep), oversample=10)  # filters one behind the other
    known = {"episodes": episodes, "score": ensemble(episodes)}
    total = query.remaining(episodes.lengths, 3, NOTHING_ASKED)
    pairs = query(episodes.lengths, total, 3, np.random.default_rng(0), **known)
    assert len(set(questions(pairs))) == total == 10
    with pytest.raises(InvalidData, match="1 pairs are asked for, but of 5 segments only 0 different pairs are left"):
        query(episodes.lengths, 1, 3, np.random.default_rng(0), **known, labelled=pairs)


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_segments_longer_than_episodes_are_refused(keep):
    """The message says how long episodes are."""
    with pytest.raises(InvalidData, match="There are 0 segments of 21 steps in episodes of at most 20 steps"):
        ActiveQuery(keep=keep)(EPISODES.lengths, 2, 21, np.random.default_rng(0), episodes=EPISODES, score=SCORE)


@pytest.mark.parametrize("keep", [KEEPS["disagreement"], KEEPS["k_center"]], ids=["disagreement", "k_center"])
def test_every_start_can_be_asked(keep):
    """The last start of an episode too, in an active query."""
    query, seen = ActiveQuery(keep=keep, oversample=2), set()
    for seed in range(12):
        first, second = query(EPISODES.lengths, 20, 4, np.random.default_rng(seed), episodes=EPISODES, score=SCORE)
        for refs in (first, second):
            seen |= set(zip(refs.episode.tolist(), refs.start.tolist(), strict=True))
    assert seen == {(e, s) for e, T in enumerate(EPISODES.lengths) for s in range(T - 3)}


def test_a_first_session_is_uniform():
    """Without episodes the pairs are the candidates' own; without a score uncertainty picks as they were drawn."""
    query = ActiveQuery(keep=uncertain, oversample=3)
    plain = UniformQuery()(EPISODES.lengths, 9, 4, np.random.default_rng(3), labelled=NOTHING_ASKED)
    assert (rows(query(EPISODES.lengths, 9, 4, np.random.default_rng(3))) == rows(plain)).all()
    many = UniformQuery()(EPISODES.lengths, 27, 4, np.random.default_rng(3), labelled=NOTHING_ASKED)
    unscored = query(EPISODES.lengths, 9, 4, np.random.default_rng(3), episodes=EPISODES)
    assert (rows(unscored) == rows(many)[:9]).all()


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_queries_read_no_true_reward_and_change_no_score(keep):
    """Other rewards give the same questions; the weights stay as they were."""
    other, before = walks(0), {key: value.clone() for key, value in SCORE.state_dict().items()}
    object.__setattr__(other, "true_reward", -5 * other.true_reward)
    one, two = (
        ActiveQuery(keep=keep)(e.lengths, 8, 4, np.random.default_rng(0), episodes=e, score=SCORE)
        for e in (EPISODES, other)
    )
    assert (rows(one) == rows(two)).all()
    assert all(torch.equal(value, before[key]) for key, value in SCORE.state_dict().items())


def test_k_center_of_disagreement_is_one_filter_after_the_other():
    """B-Pref's order: of 10 n candidates the 5 n most uncertain, of those n by k-center, away from what was asked."""
    asked = UniformQuery()(EPISODES.lengths, 6, 4, np.random.default_rng(9), labelled=NOTHING_ASKED)
    query = ActiveQuery(keep=k_center, oversample=5, candidates=ActiveQuery(keep=uncertain, oversample=2))
    known = {"episodes": EPISODES, "score": SCORE, "labelled": asked}
    found = query(EPISODES.lengths, 4, 4, np.random.default_rng(0), **known)
    pairs = UniformQuery()(EPISODES.lengths, 40, 4, np.random.default_rng(0), labelled=asked)
    order = np.argsort(-disagreement(pair_logits(SCORE, EPISODES, pairs)).numpy(), kind="stable")[:20]
    both = [np.concatenate([side[order].episode, old.episode]) for side, old in zip(pairs, asked, strict=True)]
    starts = [np.concatenate([side[order].start, old.start]) for side, old in zip(pairs, asked, strict=True)]
    x = [
        EPISODES.observations[EPISODES.observation_offsets[e][:, None] + s[:, None] + np.arange(4)].astype(np.float64)
        for e, s in zip(both, starts, strict=True)
    ]  # (26, 4, D) of each side
    flat = np.concatenate([side.reshape(-1, side.shape[-1]) for side in x])
    features = np.concatenate([((side - flat.mean(0)) / flat.std(0)).reshape(26, -1) for side in x], axis=1)
    picked = order[farthest(features[:20], 4, features[20:])]
    assert (rows(found) == rows((pairs[0][picked], pairs[1][picked]))).all()


def test_standardizing_makes_units_irrelevant():
    """In other units of one observation k-center picks the same pairs, and without it others."""
    other = walks(0)
    other.observations[:, 1] *= 1000

    def picks(episodes, standardize):
        query = ActiveQuery(keep=partial(k_center, standardize=standardize))
        return rows(query(episodes.lengths, 8, 4, np.random.default_rng(0), episodes=episodes, score=SCORE))

    assert (picks(EPISODES, True) == picks(other, True)).all()
    assert not (picks(EPISODES, False) == picks(other, False)).all()


def test_medoids_are_the_middles_of_clusters():
    """Four heaps of pairs, four questions: one of each heap; all pairs can be asked, heaps or not."""
    episodes = walks(0, lengths=(1,) * 40, D=1)
    episodes.observations[:] = np.repeat([0.0, 10.0], 40)[:, None] + 0.01 * episodes.observations
    heap, rng = np.arange(32) % 4, np.random.default_rng(0)
    sides = [SegmentRefs(20 * side + rng.integers(20, size=32), np.zeros(32), np.ones(32)) for side in divmod(heap, 2)]
    pool = Pool(episodes, (sides[0], sides[1]), None, NOTHING_ASKED)
    assert set(heap[medoids(pool, 4, rng)]) == {0, 1, 2, 3}
    assert sorted(medoids(pool, 32, rng).tolist()) == list(range(32))


def test_a_query_of_other_episodes_is_refused():
    """Lengths must be those of the episodes that are given."""
    with pytest.raises(InvalidData, match="lengths differ"):
        ActiveQuery(keep=k_center)(np.array([9, 9]), 1, 4, np.random.default_rng(0), episodes=EPISODES)


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda: ActiveQuery(keep=k_center, oversample=0), "oversample must be >= 1"),
     (lambda: uncertain(Pool(EPISODES, NOTHING_ASKED, None, NOTHING_ASKED), 0, None, by="doubt"),
      "disagreement, entropy, information_gain, but is 'doubt'"),
     (lambda: determinantal(Pool(EPISODES, NOTHING_ASKED, None, NOTHING_ASKED), 0, None, weight=-1.0),
      "weight must be >= 0")],
)  # fmt: skip
def test_wrong_options_are_named(make, said):
    """The message says what is allowed."""
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_run_of_sessions_never_repeats_itself_and_resumes_to_the_same_questions(tmp_path):
    """Skipped questions count as asked; what was asked comes back from a checkpoint, and the rest is the same."""

    def session(memory, number):
        known = (EPISODES, SCORE) if number else ()
        label(
            EPISODES, teacher=SimulatedTeacher(skip=1.0), query=memory.about(*known), comparisons=6,
            segment_length=4, rng=np.random.default_rng(number),
        )  # fmt: skip

    query, file = ActiveQuery(keep=uncertain, oversample=3), tmp_path / "asked.safetensors"
    memory = Questions(query)
    for number in range(4):
        session(memory, number)
        if number == 1:
            save_checkpoint(file, memory.state_dict())
    assert len(memory) == len(set(questions(memory.asked))) > 4 * 6
    again = Questions(query)
    again.load_state_dict(load_checkpoint(file))
    for number in (2, 3):
        session(again, number)
    assert (rows(again.asked) == rows(memory.asked)).all()
