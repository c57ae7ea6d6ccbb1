"""Laws of alignment: what is minimized, what is kept, that it learns; and of the reward that it is compared with."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from prefrl.data.triplets import Triplets, VideoPairs, simulated_triplets
from prefrl.data.videos import Videos
from prefrl.errors import ConfigError, InvalidData
from prefrl.representation.backbones import IdentityBackbone, PCABackbone
from prefrl.representation.encoder import Encoder
from prefrl.representation.features import VideoFeatures
from prefrl.representation.ot_reward import OTReward
from prefrl.train.align import align
from prefrl.train.align_distance import VideoDistance
from prefrl.train.align_metrics import ordering
from prefrl.train.align_rlhf import as_segments, fit_rlhf, return_scores


def dots(V, *, seed, size=16, T=8, delayed=0):
    """V videos of a dot that moves to the right over a picture, and the user's scores (V,).

    It starts and stops at random, in an arc: what enters the zone, a disc in the middle, is worth less, and so is what
    stops before the end. A block of any brightness lies anywhere, which means nothing to the user, but is most of what
    differs between pictures.
    """
    rng = np.random.default_rng(seed)
    arc, stop = rng.uniform(-0.4, 0.4, V), np.where(rng.random(V) < 0.6, 1, rng.uniform(0.2, 1, V))
    wait = rng.integers(delayed + 1, size=V)[:, None]
    time = np.clip((np.arange(T) + 1 - wait) / (T - wait), 0, 1) * stop[:, None]  # (V, T)
    x, y = 0.1 + 0.8 * time, 0.5 + arc[:, None] * np.sin(np.pi * time) + rng.normal(0, 0.02, (V, 1))
    inside = np.hypot(x - 0.5, y - 0.5) < 0.2
    row, column = np.mgrid[:size, :size] / (size - 1)
    background = 40 + 60 * (np.hypot(column - 0.5, row - 0.5) < 0.2) + 30 * column
    dot = np.exp(-((column - x[..., None, None]) ** 2 + (row - y[..., None, None]) ** 2) / (2 * 0.06**2))
    left, top, gray = (rng.uniform(0, high, V)[:, None, None, None] for high in (0.8, 0.8, 40))
    block = gray * ((np.abs(column - left - 0.1) < 0.12) & (np.abs(row - top - 0.1) < 0.12))  # (V, 1, H, W)
    background = background + block * np.ones_like(dot)
    frames = np.stack([background + 150 * dot, background + 20 * dot, background], -1)
    frames += rng.normal(0, 4, frames.shape)
    videos = Videos(np.clip(frames, 0, 255).astype(np.uint8).reshape(-1, size, size, 3), np.full(V, T))
    return videos, -2 * (1 - stop) - 3 * inside.mean(1)


def vectors(*videos):
    """Videos of vectors, (T, K) each, as their own features."""
    return VideoFeatures.compute(IdentityBackbone(), Videos.from_list([np.asarray(v, dtype=float) for v in videos]))


def random_vectors(V=9, T=5, K=3, seed=0):
    return vectors(*np.random.default_rng(seed).normal(size=(V, T, K)))


@pytest.fixture(scope="module")
def walks():
    """Features of 120 videos of dots, and the user's scores."""
    videos, scores = dots(120, seed=0)
    return VideoFeatures.compute(PCABackbone.fit(videos, components=32, iterations=2), videos), scores


def demo_scores(encoder, videos, demos, **options):
    """(V,): minus the distance to the closest demo."""
    reward = OTReward(
        backbone=IdentityBackbone(), encoder=encoder, demos=demos.features, demo_mask=demos.mask, **options
    )
    return reward.scores(videos.features, videos.mask)


def triplets(*rows, kind="contrastive"):
    return Triplets(*np.array(rows).T, [kind] * len(rows))


def mean_cost(x, y):
    """Of a uniform plan: the mean distance over all pairs of frames."""
    return np.linalg.norm(x[:, None] - y[None], axis=-1).mean()


def untrained(features, labels=None, **options):
    """The loss before training, all labels in it, of features as they are and the uniform plan."""
    settings = {"plan": "uniform", "holdout": 0.0, "max_epochs": 0, "seed": 0, **options}
    return align(IdentityEncoder(features), features, labels, **settings).train_loss[0]


class IdentityEncoder(nn.Linear):
    """The identity, with weights that an optimizer can hold."""

    def __init__(self, features):
        super().__init__(features.feature_size, features.feature_size, bias=False)
        nn.init.eye_(self.weight)


# --- what is minimized


@pytest.mark.parametrize("loss", ["log", "one_minus_p"])
def test_a_triplet_costs_what_the_paper_says(loss):
    """P = e^−d(p,u) / (e^−d(p,u) + e^−d(p,n)) by hand; −log P, or 1 − P."""
    features = random_vectors()
    x = features.features.numpy()
    near, far = mean_cost(x[4], x[1]), mean_cost(x[4], x[7])
    p = math.exp(-near) / (math.exp(-near) + math.exp(-far))
    expected = -math.log(p) if loss == "log" else 1 - p
    assert untrained(features, triplets((4, 1, 7)), loss=loss) == pytest.approx(expected, rel=1e-5)


def test_an_equal_triplet_costs_how_far_p_is_from_a_half():
    """Weight times (P − ½)², in the mean with the others."""
    features = random_vectors()
    x = features.features.numpy()
    gap = mean_cost(x[0], x[2]) - mean_cost(x[0], x[1])
    expected = 3 * (1 / (1 + math.exp(-gap)) - 0.5) ** 2
    assert untrained(features, triplets((0, 1, 2), kind="equal"), equal_weight=3.0) == pytest.approx(expected, rel=1e-4)
    both = Triplets([4, 0], [1, 1], [7, 2], ["contrastive", "equal"])
    half = untrained(features, triplets((4, 1, 7)))
    assert untrained(features, both, equal_weight=3.0) == pytest.approx((half + expected) / 2, rel=1e-5)


def test_a_pair_is_scored_by_its_closest_demo():
    """−log σ(s₁ − s₂) with s = −min over demos of the distance; soft labels mix both sides."""
    features, demos = random_vectors(), random_vectors(V=3, T=4, seed=1)
    x, y = features.features.numpy(), demos.features.numpy()
    s = [-min(mean_cost(x[v], demo) for demo in y) for v in range(9)]
    for p in (1.0, 0.3):
        found = untrained(features, pairs=VideoPairs([5], [2], [p]), demos=demos)
        sigmoid = 1 / (1 + math.exp(s[2] - s[5]))
        assert found == pytest.approx(-p * math.log(sigmoid) - (1 - p) * math.log(1 - sigmoid), rel=1e-5)


@pytest.mark.parametrize("plan", ["entropic", "exact", "uniform", "identity", "banded"])
def test_padding_changes_nothing(plan):
    """Longer rows in the same set of videos: neither losses nor distances nor entropies move."""
    rows = list(np.random.default_rng(0).normal(size=(3, 5, 2)))
    plain, padded = vectors(*rows), vectors(*rows, np.zeros((9, 2)))
    assert padded.features.shape[1] == 9
    for options in ({}, {"loss": "one_minus_p"}):
        one, two = (untrained(f, triplets((0, 1, 2)), plan=plan, **options) for f in (plain, padded))
        assert one == pytest.approx(two, rel=1e-4)
    distance = VideoDistance(plan=plan)
    one, two = (distance.entropy(f.subset([0]), f.subset([1])) for f in (plain, padded))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("plan", ["entropic", "exact", "banded"])
def test_training_and_reward_measure_the_same_distance(plan):
    """What pairs are trained by, the distance to the closest demo, is minus the sum of the reward's per-step split."""
    features, demos = random_vectors(), random_vectors(V=3, T=4, seed=1)
    ours = VideoDistance("cosine", plan, 0.2).to_demos(features, demos)
    expected = demo_scores(nn.Identity(), features, demos, metric="cosine", plan=plan, epsilon=0.2)
    torch.testing.assert_close(-ours.amin(1), expected)


# --- training


def test_alignment_orders_unseen_videos_better(walks):
    """60 rankings raise the accuracy on videos that no ranking names; the share of aligned triplets rises."""
    features, scores = walks
    seen, unseen = np.arange(80), np.arange(80, 120)
    demos = features.subset(np.argsort(-scores[seen])[:4])
    labels = simulated_triplets(scores[seen], 60, np.random.default_rng(0))
    encoder, found = Encoder(features.feature_size), []
    for epochs in (0, 25):
        align(encoder, features, labels, max_epochs=epochs, seed=0)
        ours = demo_scores(encoder, features.subset(unseen), demos)
        found.append(ordering(ours, scores[unseen], threshold=0.3).accuracy)
    assert found[1] > found[0]
    assert found[1] > 0.8


def test_pairs_align_too(walks):
    """Comparisons of two videos, judged by their distance to demos, raise the accuracy of unseen ones."""
    features, scores = walks
    demos = features.subset(np.argsort(-scores[:80])[:3])
    first, second = np.random.default_rng(0).integers(80, size=(2, 80))
    keep = first != second
    pairs = VideoPairs(first[keep], second[keep], (scores[first] > scores[second])[keep].astype(float))
    encoder, found = Encoder(features.feature_size), []
    for epochs in (0, 12):
        align(encoder, features, pairs=pairs, demos=demos, max_epochs=epochs, seed=0)
        ours = demo_scores(encoder, features.subset(slice(80, None)), demos)
        found.append(ordering(ours, scores[80:], threshold=0.3).accuracy)
    assert found[1] > found[0]


def test_the_best_weights_are_kept(walks):
    """The history's best entry is the lowest held-out loss, and the encoder that is left has it."""
    features, scores = walks
    labels = simulated_triplets(scores, 25, np.random.default_rng(1))
    encoder = Encoder(features.feature_size)
    history = align(encoder, features, labels, max_epochs=12, learning_rate=0.1, patience=4, seed=3)
    assert history.best == int(np.argmin(history.heldout_loss))
    assert len(history.heldout_loss) == len(history.train_loss) == min(13, history.best + 5)
    again = align(encoder, features, labels, max_epochs=0, seed=3)
    assert again.heldout_loss[0] == pytest.approx(history.heldout_loss[history.best], rel=1e-5)
    assert history.alignment_score[history.best] == again.alignment_score[0]
    assert (history.train_labels, history.heldout_labels) == (20, 5)
    assert all(0 < entropy < 1 for entropy in history.entropy)


def test_equal_seeds_align_equally(walks):
    """Weights and history are the seed's, whatever torch's own generator."""
    features, scores = walks
    labels = simulated_triplets(scores, 20, np.random.default_rng(1))
    found = []
    for own, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(own)
        encoder = Encoder(features.feature_size)
        found.append((align(encoder, features, labels, max_epochs=2, seed=seed), encoder.layers[0].weight.detach()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][1], found[2][1])


def test_equal_triplets_draw_distances_together(walks):
    """Trained on equal triplets alone, P comes nearer to ½; with weight 0 nothing moves."""
    features, _ = walks
    rows = np.random.default_rng(0).permutation(120).reshape(40, 3)
    labels = triplets(*rows, kind="equal")
    options = {"learning_rate": 1e-2, "holdout": 0.0, "seed": 0}
    history = align(Encoder(features.feature_size), features, labels, max_epochs=8, **options)
    assert history.heldout_loss[-1] < 0.5 * history.heldout_loss[0]
    assert history.alignment_score[-1] is None
    encoder = Encoder(features.feature_size)
    align(encoder, features, labels, max_epochs=2, equal_weight=0.0, **options)
    assert torch.equal(encoder.layers[0].weight, Encoder(features.feature_size).layers[0].weight)


def test_progress_ends_at_the_total(walks):
    """It is told after each epoch, and the total when it ends early."""
    features, scores = walks
    labels, seen = simulated_triplets(scores, 6, np.random.default_rng(1)), []
    options = {"patience": 1, "learning_rate": 10.0, "seed": 0}
    align(Encoder(32), features, labels, max_epochs=50, progress=lambda *told: seen.append(told), **options)
    assert seen[-1] == (50, 50)
    assert len(seen) < 50


# --- what is refused


@pytest.mark.parametrize(
    ("labels", "options", "error", "named"),
    [
        (None, {}, InvalidData, "no labels"),
        ([(0, 1, 9)], {}, InvalidData, "names video 9"),
        ([(0, 1, 2)], {"pairs": VideoPairs([0], [1], [1.0])}, ConfigError, "demos"),
        ([(0, 1, 2)], {"loss": "hinge"}, ConfigError, "loss must be"),
        ([(0, 1, 2)], {"holdout": 1.0}, ConfigError, "holdout must be"),
        ([(0, 1, 2)], {"holdout": 0.9}, InvalidData, "leaves none of 1"),
        ([(0, 1, 2)], {"patience": 0}, ConfigError, "patience must be"),
        ([(0, 1, 2)], {"learning_rate": 0.0}, ConfigError, "learning_rate must be"),
        ([(0, 1, 2)], {"plan": "sinkhorn"}, ConfigError, "plan"),
    ],
)
def test_impossible_alignments_are_refused(labels, options, error, named):
    """No labels, unknown videos, pairs without demos, options out of range: each error names its argument."""
    features = random_vectors()
    with pytest.raises(error, match=named):
        align(Encoder(3), features, None if labels is None else triplets(*labels), **{"seed": 0, **options})


def test_demos_need_the_features_of_the_videos():
    """Another backbone's demos are refused."""
    demos = random_vectors(K=4)
    with pytest.raises(InvalidData, match="3 features, demos 4"):
        align(Encoder(3), random_vectors(), pairs=VideoPairs([0], [1], [1.0]), demos=demos, seed=0)


def test_a_loss_that_is_not_finite_is_an_error():
    """It says what to do, and no broken encoder is returned as if it were trained."""
    with pytest.raises(InvalidData, match="Lower learning_rate"):
        align(Encoder(3, hidden=(8,)), random_vectors(), triplets(*[(0, 1, 2)] * 4), learning_rate=1e30, seed=0)


# --- the reward from the same labels


def test_videos_are_segments_without_actions():
    """A return of the first number of a frame is its sum over the frames that are there."""
    features = vectors([[1.0, 0], [2, 0]], [[3.0, 0], [4, 0], [5, 0]])
    segments = as_segments(features)
    assert segments.observations[0, :, 0].tolist() == [1, 2, 2, 2]
    assert segments.actions.shape == (2, 3, 0)
    score, _ = fit_rlhf(features, VideoPairs([0], [1], [1.0]), epochs=1, holdout=0.0, seed=0)
    with torch.no_grad():
        score.weights[0].copy_(torch.tensor([[[2.0, 0.0]]]))
        score.biases[0].fill_(0.5)
    torch.testing.assert_close(return_scores(score, features), torch.tensor([6 + 1.0, 24 + 1.5]))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_reward_from_rankings_orders_videos(walks, head):
    """60 rankings, all pairs of each, teach a return that orders unseen videos; some pairs are held out."""
    features, scores = walks
    labels = simulated_triplets(scores[:80], 60, np.random.default_rng(0))
    score, report = fit_rlhf(features, labels, head=head, epochs=40, seed=0)
    assert report.train_comparisons + report.heldout_comparisons == 180
    assert report.heldout_comparisons == 36
    assert ordering(return_scores(score, features)[80:], scores[80:], threshold=0.3).accuracy > 0.7


def test_rewards_refuse_other_heads_and_videos(walks):
    """An unknown head and an unknown video are named."""
    features, _ = walks
    with pytest.raises(ConfigError, match="head must be"):
        fit_rlhf(features, triplets((0, 1, 2)), head="cubic", seed=0)
    with pytest.raises(InvalidData, match="names video 999"):
        fit_rlhf(features, triplets((0, 1, 999)), seed=0)


# --- how well scores order


def test_orderings_are_counted_as_by_hand():
    """Perfect, reversed and constant scores; only pairs apart by more than the threshold count."""
    truth = np.array([0.0, 1.0, 1.1, 3.0])
    assert ordering(2 * truth + 1, truth) == (1.0, 1.0, 6)
    assert ordering(-truth, truth) == (0.0, -1.0, 6)
    assert ordering(np.zeros(4), truth) == (0.5, None, 6)
    assert ordering([0.0, 2.0, 1.0, 3.0], truth, threshold=0.5) == (1.0, pytest.approx(0.8), 5)
    assert ordering(truth, np.zeros(4)) == (None, None, 0)
    with pytest.raises(InvalidData, match="scores"):
        ordering([0.0, np.nan], [0.0, 1.0])


# --- how it grows with the number of labels


@pytest.mark.slow
def test_more_rankings_align_better():
    """700 videos of 20 frames, PCA of 128: accuracy at 15 < 50 < 150 rankings, the last far above the first metric."""
    videos, scores = dots(700, seed=0, size=32, T=20)
    others, truth = dots(300, seed=1, size=32, T=20)
    backbone = PCABackbone.fit(videos)
    features, unseen = (VideoFeatures.compute(backbone, part) for part in (videos, others))
    demos = features.subset(np.argsort(-scores)[:6])
    accuracy = []
    for n in (0, 15, 50, 150):
        encoder = Encoder(features.feature_size) if n else nn.Identity()
        if n:
            align(encoder, features, simulated_triplets(scores, n, np.random.default_rng(0)), seed=0)
        accuracy.append(ordering(demo_scores(encoder, unseen, demos), truth, threshold=0.5).accuracy)
    assert accuracy[1] < accuracy[2] < accuracy[3]
    assert accuracy[3] > accuracy[0] + 0.08
