"""Laws of the reward that optimal transport to preferred demonstrations gives."""

import numpy as np
import ot
import pytest
import torch

from prefrl.errors import ConfigError, InvalidData
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.representation.ot_reward import PRESETS, OTReward


def numbers(frames):
    """A backbone of vectors."""
    return torch.as_tensor(np.asarray(frames), dtype=torch.float32)


def walks(count, steps, seed, size=3):
    return np.random.default_rng(seed).normal(size=(count, steps, size)).cumsum(1).astype(np.float32)


def reward_of(demos, **options):
    options = {"plan": "exact", **options}
    return OTReward(backbone=numbers, encoder=lambda features: features, demos=numbers(demos), **options)


def test_steps_sum_to_the_distance():
    """Over an episode: minus the transport cost that POT finds."""
    [demo], [video] = walks(1, 7, 0), walks(1, 10, 1)
    found = reward_of(demo[None]).reward(np.concatenate([np.full((1, 3), 99.0), video]))
    assert found.shape == (10,)
    assert found.dtype == np.float32
    cost = np.linalg.norm(video[:, None] - demo, axis=-1)
    expected = ot.emd2(np.full(10, 1 / 10), np.full(7, 1 / 7), cost.astype(np.float64))
    assert found.sum() == pytest.approx(-expected, rel=1e-5)


def test_each_step_bears_its_row():
    """With a uniform plan: minus the mean distance of the step's frame to the demonstration's, over T."""
    [demo], [video] = walks(1, 7, 0), walks(1, 10, 1)
    found = reward_of(demo[None], plan="uniform").reward(np.concatenate([video[:1], video]))
    np.testing.assert_allclose(found, -np.linalg.norm(video[:, None] - demo, axis=-1).mean(1) / 10, rtol=1e-5)


def test_the_closest_demonstration_is_followed():
    """The reward is that of the demonstration with the largest sum, whichever place it has; padding is none."""
    demos, video = walks(3, 8, 0), numbers(walks(1, 8, 0)[0] + 0.1)
    single = torch.stack([reward_of(demo[None]).per_step(video[None])[0] for demo in demos])
    best = int(single.sum(1).argmax())
    padded = np.concatenate([demos, np.full((3, 2, 3), 7.0)], axis=1)
    mask = torch.arange(10).expand(3, 10) < 8
    for order in ([0, 1, 2], [2, 0, 1]):
        reward = reward_of(padded[order], demo_mask=mask)
        torch.testing.assert_close(reward.per_step(video[None])[0], single[best])
        assert reward.plan(video).shape == (8, 8)
        torch.testing.assert_close(reward.plan(video).sum(1), torch.full((8,), 1 / 8))


def test_a_batch_of_padded_videos_is_as_each_alone():
    """Scores rank videos of any lengths; padding has no reward."""
    reward = reward_of(walks(2, 6, 0), plan="entropic")
    videos, lengths = numbers(walks(4, 9, 1)), torch.tensor([9, 4, 7, 1])
    mask = torch.arange(9) < lengths[:, None]
    found, scores = reward.per_step(videos, mask), reward.scores(videos, mask)
    assert (found[~mask] == 0).all()
    for video, length, steps, score in zip(videos, lengths, found, scores, strict=True):
        alone = reward.per_step(video[None, :length])[0]
        torch.testing.assert_close(steps[:length], alone, rtol=1e-4, atol=1e-5)
        assert score.item() == pytest.approx(alone.sum().item(), abs=1e-5)


def test_a_demonstration_itself_is_best():
    """Nothing is nearer than the demonstration: its reward is 0, any other's below."""
    demos = walks(2, 6, 0)
    reward = reward_of(demos)
    scores = reward.scores(numbers(np.concatenate([demos, walks(3, 6, 1)])))
    assert (scores[:2] == 0).all()
    assert (scores[2:] < 0).all()


def test_steps_share_the_reward_of_their_frame():
    """With every = 3, the frames after steps 3, 6, 9 and 10 are compared, and their sum is kept."""
    reward, video = reward_of(walks(1, 4, 0), every=3), walks(1, 11, 1)[0]
    found = reward.reward(video)
    compared = reward.per_step(numbers(video[[3, 6, 9, 10]])[None])[0].numpy()
    np.testing.assert_allclose(found, np.repeat(compared, [3, 3, 3, 1]) / [*[3] * 9, 1], rtol=1e-5)


def test_squared_is_the_published_transform():
    """−10 000 r² of cosine costs."""
    demo, video = walks(1, 6, 0), walks(1, 7, 1)[0]
    reward = reward_of(demo, preset="squared", plan=None)
    assert reward.options == PRESETS["squared"]
    steps = reward.per_step(numbers(video[1:])[None])[0].numpy()
    np.testing.assert_allclose(reward.reward(video), -10_000 * steps**2, rtol=1e-4)


@pytest.mark.parametrize("preset", ["rot", "temporal_ot"])
def test_the_first_episode_settles_the_scale(preset, tmp_path):
    """Its absolute sum is 10; later episodes have the same factor, also after a resume."""
    demos, videos = walks(1, 6, 0), walks(2, 7, 1)
    reward = reward_of(demos, preset=preset, plan=None)
    fresh = reward.state_dict()
    first, second = (reward.reward(video) for video in videos)
    raw = [reward.scores(numbers(video[1:])[None]).item() for video in videos]
    assert first.sum() == pytest.approx(-10, rel=1e-4)
    assert second.sum() == pytest.approx(-10 * raw[1] / raw[0], rel=1e-4)
    save_checkpoint(tmp_path / "reward.safetensors", reward.state_dict())
    resumed = reward_of(demos, preset=preset, plan=None)
    resumed.load_state_dict(load_checkpoint(tmp_path / "reward.safetensors"))
    np.testing.assert_array_equal(resumed.reward(videos[1]), second)
    resumed.load_state_dict(fresh)
    assert resumed.reward(videos[1]).sum() == pytest.approx(-10, rel=1e-4)


def test_an_episode_at_no_distance_settles_no_scale():
    """The scale waits for the next."""
    demos = walks(1, 6, 0)
    reward = reward_of(demos, preset="rot", metric="euclidean", plan="exact")
    assert not reward.reward(np.concatenate([demos[0, :1], demos[0]])).any()
    assert reward.reward(walks(1, 7, 1)[0]).sum() == pytest.approx(-10, rel=1e-4)


def test_the_encoder_is_what_measures():
    """Features that the encoder drops do not count."""

    def first(features):
        return features[..., :1]

    demos = numbers(walks(1, 6, 0))
    reward = OTReward(backbone=numbers, encoder=first, demos=demos, plan="exact")
    moved = demos + torch.tensor([0.0, 5.0, -3.0])
    assert reward.scores(moved).item() == 0
    assert reward_of(demos).scores(moved).item() < -1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"demos": np.zeros((0, 4, 3))}, InvalidData, "one video at least"),
        ({"demos": np.full((1, 4, 3), np.nan)}, InvalidData, "NaN"),
        ({"preset": "best"}, ConfigError, "plain, squared, rot, temporal_ot"),
        ({"transform": "cubed"}, ConfigError, "first_episode"),
        ({"scale": -1.0}, ConfigError, "above 0"),
        ({"every": 0}, ConfigError, "at least 1 step"),
    ],
)
def test_bad_options_are_named(options, error, words):
    """What is given, and what is allowed."""
    with pytest.raises(error, match=words):
        reward_of(**{"demos": np.zeros((1, 4, 3)), **options})


def test_an_episode_without_steps_is_refused():
    """A reward belongs to a step."""
    with pytest.raises(InvalidData, match="at least 2 frames"):
        reward_of(walks(1, 4, 0)).reward(np.zeros((1, 3)))
