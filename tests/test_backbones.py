"""Laws of frozen backbones, of the head over them, of their files, and of training a small network without labels."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from prefrl.data.videos import Videos
from prefrl.errors import ConfigError, DamagedFile, InvalidData
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.representation.backbones import IdentityBackbone, ModuleBackbone, PCABackbone, load_backbone
from prefrl.representation.baselines import goal_distance, goal_rewards
from prefrl.representation.cnn import SmallCNN
from prefrl.representation.encoder import Encoder
from prefrl.representation.features import VideoFeatures
from prefrl.representation.pretraining import cycle_back_loss, pretrain_by_cycles, pretrain_by_reconstruction


def pictures(F, size=16, seed=0):
    return np.random.default_rng(seed).integers(256, size=(F, size, size, 3), dtype=np.uint8)


def moving(V=6, T=8, size=16):
    """A bright column walks to the right over a gray picture, at a height that differs between videos."""
    frames = np.full((V, T, size, size, 3), 60, dtype=np.uint8)
    for v in range(V):
        for t in range(T):
            frames[v, t, 2 * (v % 4) : 2 * (v % 4) + 6, t * (size - 4) // T : t * (size - 4) // T + 4] = 255
    return Videos.from_list(list(frames))


class Tiny(nn.Module):
    """As those of torchvision: convolution, normalization, mean over places, classifier."""

    def __init__(self, features=6, fc=False):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, features, 3), nn.BatchNorm2d(features)
        self.fc = nn.Linear(features, 10) if fc else nn.Identity()

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


def random_tiny(seed=0, **options):
    torch.manual_seed(seed)
    return Tiny(**options)


# --- principal components


def test_components_are_those_of_the_covariance():
    """Subspace and variances as by numpy's exact decomposition, on frames of rank 5 with a little noise."""
    rng = np.random.default_rng(0)
    x = (
        rng.normal(size=(300, 5)) * [16, 8, 4, 2, 1] @ rng.normal(size=(5, 40)) + 1e-3 * rng.normal(size=(300, 40))
    ).astype(np.float32)
    backbone = PCABackbone.fit(Videos(x, [300]), components=5)
    _, values, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
    ours = backbone.components.numpy()
    np.testing.assert_allclose(ours @ ours.T, np.eye(5), atol=1e-4)
    np.testing.assert_allclose(np.abs((ours * directions[:5]).sum(1)), 1, atol=1e-3)
    np.testing.assert_allclose(backbone(x).std(0, correction=0) * 300**0.5, values[:5], rtol=1e-3)


def test_all_components_keep_every_distance():
    """With as many components as numbers, features are a rotation of the frames."""
    frames = pictures(30, size=3)
    features = PCABackbone.fit(Videos(frames, [30]), components=99)(frames)
    assert features.shape == (30, 27)
    pixels = torch.from_numpy(frames).flatten(1).float() / 255
    torch.testing.assert_close(torch.pdist(features), torch.pdist(pixels))


def test_equal_seeds_give_equal_components():
    """The random start is the seed's; torch's own generator is not touched."""
    videos, state = Videos(pictures(50), [50]), torch.get_rng_state()
    one, two = (PCABackbone.fit(videos, components=4, sample=20, seed=3) for _ in range(2))
    assert torch.equal(one.components, two.components)
    assert torch.equal(state, torch.get_rng_state())


def test_other_frames_than_fitted_are_refused():
    """Another size, vectors for images, options out of range."""
    backbone = PCABackbone.fit(Videos(pictures(9), [9]), components=4)
    with pytest.raises(InvalidData, match=r"fitted to frames of 768 numbers.*\(9, 9, 3\)"):
        backbone(pictures(2, size=9))
    with pytest.raises(InvalidData, match="takes images"):
        backbone(np.zeros((2, 768), dtype=np.float32))
    with pytest.raises(ConfigError, match="components"):
        PCABackbone.fit(Videos(pictures(9), [9]), components=0)
    with pytest.raises(InvalidData, match="takes vectors"):
        IdentityBackbone()(pictures(2))


# --- a user's module


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_come_from_a_local_file(suffix, wrapped, tmp_path):
    """Features are the module's own in evaluation mode; some torch files hold the weights under ``state_dict``."""
    module, file = random_tiny(), tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": module.state_dict(), "epoch": 3} if wrapped else module.state_dict(), file)
    else:
        safetensors.torch.save_file(module.state_dict(), file)
    other = random_tiny(seed=1)
    backbone = ModuleBackbone.from_file(other, file, batch_size=3)
    frames = pictures(7)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(backbone(frames), expected)
    assert not torch.equal(other.conv.weight, module.conv.weight)  # the caller's module stays as it was


def test_frames_are_resized_and_standardized():
    """A constant picture of another size stays constant: (c / 255 − mean) / std for each color."""
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)

    class Mean(nn.Module):
        def forward(self, x):
            assert x.shape[2:] == (8, 10)
            return x.mean((2, 3))

    frames = np.full((2, 20, 30, 3), 51, dtype=np.uint8)
    found = ModuleBackbone(Mean(), image_size=(8, 10), mean=mean, std=std)(frames)
    torch.testing.assert_close(found, ((0.2 - torch.tensor(mean)) / torch.tensor(std)).expand(2, 3))


def test_a_frozen_module_has_no_gradients():
    """Neither its weights nor its features want one, and its running statistics do not move."""
    backbone = ModuleBackbone(random_tiny().train())
    before = backbone.module.bn.running_mean.clone()
    assert not backbone(pictures(4)).requires_grad
    assert not any(weight.requires_grad for weight in backbone.module.parameters())
    assert torch.equal(before, backbone.module.bn.running_mean)


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        (lambda: Tiny(features=7), r"of wrong shape \(conv.weight \(7, 3, 3, 3\), expected \(6, 3, 3, 3\)"),
        (lambda: Tiny(fc=True), r"2 unexpected \(fc.weight, fc.bias\)"),
        (lambda: Tiny().conv, r"missing \(conv.weight, .*2 unexpected \(weight, bias\)"),
    ],
)
def test_weights_that_do_not_fit_are_listed(saved, named, tmp_path):
    """Missing and unexpected names and wrong shapes; a classifier can be left in the file."""
    file = tmp_path / "weights.pt"
    torch.save(saved().state_dict(), file)
    with pytest.raises(InvalidData, match=rf"weights\.pt do not fit Tiny: .*{named}"):
        ModuleBackbone.from_file(Tiny(), file)
    if "fc" in named:
        ModuleBackbone.from_file(Tiny(), file, ignore=["fc."])


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("none.pt", None, "is missing. Nothing is downloaded"),
        ("text.pt", b"hello", "no readable weights"),
        ("text.safetensors", b"hello, these are no tensors", "no readable weights"),
        ("weights.h5", b"", "must be a .safetensors"),
    ],
)
def test_files_without_weights_are_named(name, content, named, tmp_path):
    """Missing, foreign, or of an unknown kind."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=rf"{name}.*{named}"):
        ModuleBackbone.from_file(Tiny(), tmp_path / name)


def test_pickled_models_are_not_run(tmp_path):
    """A file with a pickled class is refused; so is one without tensors."""
    torch.save(Tiny(), tmp_path / "model.pt")
    with pytest.raises(DamagedFile, match="tensors only"):
        ModuleBackbone.from_file(Tiny(), tmp_path / "model.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(DamagedFile, match="no state dict"):
        ModuleBackbone.from_file(Tiny(), tmp_path / "empty.pt")


def test_features_must_be_finite_vectors():
    """A map of places, and NaN, are refused with the module's name."""
    with pytest.raises(InvalidData, match=r"Conv2d must give features \(2, F\), but gave \(2, 4, 14, 14\)"):
        ModuleBackbone(nn.Conv2d(3, 4, 3))(pictures(2))
    broken = random_tiny()
    nn.init.constant_(broken.conv.bias, torch.nan)
    with pytest.raises(InvalidData, match="features of Tiny"):
        ModuleBackbone(broken)(pictures(2))
    with pytest.raises(InvalidData, match="takes images"):
        ModuleBackbone(Tiny())(np.zeros((2, 5), dtype=np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (PCABackbone.fit(Videos(pictures(9), [9]), components=4), None),
        lambda: (ModuleBackbone(SmallCNN(features=5, seed=2), image_size=(16, 16)), None),
        lambda: (ModuleBackbone(random_tiny(), mean=(0.5, 0.5, 0.5)), Tiny()),
    ],
    ids=["pca", "small_cnn", "module"],
)
def test_backbones_survive_a_file(make, tmp_path):
    """Written and read, a backbone gives the same features to the last bit."""
    backbone, module = make()
    save_checkpoint(tmp_path / "backbone.safetensors", backbone.state())
    found = load_backbone(load_checkpoint(tmp_path / "backbone.safetensors"), module=module)
    assert torch.equal(found(pictures(3)), backbone(pictures(3)))


def test_a_users_module_must_be_given_again():
    """Its code is not in the file; and an unknown kind is named."""
    with pytest.raises(ConfigError, match="module=…"):
        load_backbone(ModuleBackbone(Tiny()).state())
    with pytest.raises(InvalidData, match="'other'"):
        load_backbone({"kind": "other"})


# --- features and the head


def test_features_of_videos_are_those_of_their_frames():
    """Whatever the batch; padded with zeros that the mask excludes."""
    videos = Videos(pictures(9), [4, 2, 3])
    backbone = ModuleBackbone(SmallCNN(features=5))
    found = VideoFeatures.compute(backbone, videos, batch_size=2)
    assert found.features.shape == (3, 4, 5)
    assert found.mask.sum(1).tolist() == [4, 2, 3]
    for v in range(3):
        torch.testing.assert_close(found.features[v, found.mask[v]], backbone(videos[v]), rtol=1e-4, atol=1e-6)
    assert not found.features[~found.mask].any()
    assert found.subset([2]).mask.tolist() == [[True, True, True, False]]


def test_malformed_features_are_refused():
    """Padding before frames, a video without any, NaN."""
    features = torch.zeros(2, 3, 4)
    for mask in ([[True, False, True]] * 2, [[True] * 3, [False] * 3]):
        with pytest.raises(InvalidData, match="prefix"):
            VideoFeatures(features, torch.tensor(mask))
    with pytest.raises(InvalidData, match="NaN"):
        VideoFeatures(features / 0, torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("hidden", [(), (7,)])
def test_the_head_is_made_again(hidden, tmp_path):
    """By its seed, and from a file; without hidden layers it is linear."""
    encoder, x = Encoder(4, size=3, hidden=hidden, seed=5), torch.randn(2, 6, 4)
    assert torch.equal(encoder(x), Encoder(4, size=3, hidden=hidden, seed=5)(x))
    assert not torch.equal(encoder(x), Encoder(4, size=3, hidden=hidden, seed=6)(x))
    save_checkpoint(tmp_path / "encoder.safetensors", encoder.state())
    assert torch.equal(Encoder.from_state(load_checkpoint(tmp_path / "encoder.safetensors"))(x), encoder(x))
    bias = encoder(torch.zeros(4))
    assert torch.allclose(encoder(2 * x) - bias, 2 * (encoder(x) - bias), atol=1e-5) == (hidden == ())


# --- training without labels


def test_the_small_network_is_small():
    """About 100 000 weights, whatever the size of pictures."""
    network = SmallCNN(features=64)
    assert 80_000 < sum(weight.numel() for weight in network.parameters()) < 120_000
    for size in (16, 32, 48):
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 64)


def test_cycles_of_a_sped_up_copy_come_back():
    """Through a video of the same places a cycle ends where it began; through a single frame, in the middle."""
    x = torch.arange(10.0)[:, None] * torch.ones(1, 2)
    assert cycle_back_loss(x, x[::2], temperature=0.01).max() < 0.02
    to_middle = cycle_back_loss(x, torch.zeros(1, 2), temperature=1e6)
    torch.testing.assert_close(to_middle, (torch.arange(10.0) / 10 - 0.45) ** 2, atol=1e-4, rtol=1e-3)


def test_the_variance_is_part_of_the_loss_if_asked():
    """(t − μ)²/σ² + λ log σ², with uniform β: σ² = mean (t − μ)²."""
    x = torch.zeros(4, 2)
    time = torch.arange(4.0) / 4
    variance = ((time - time.mean()) ** 2).mean()
    expected = (time - time.mean()) ** 2 / variance + 0.001 * variance.log()
    torch.testing.assert_close(cycle_back_loss(x, x, variance_weight=0.001), expected)


def test_training_by_cycles_brings_cycles_back():
    """The loss of cycles between videos falls; equal seeds give equal weights."""
    videos = moving()
    untrained, trained, again = (
        pretrain_by_cycles(videos, features=8, steps=steps, frames=8, temperature=0.1, learning_rate=lr)
        for steps, lr in ((1, 1e-12), (30, 3e-3), (30, 3e-3))
    )
    x, y = ([backbone(videos[v]) for v in (0, 1)] for backbone in (untrained, trained))
    assert cycle_back_loss(*y, temperature=0.1).mean() < 0.5 * cycle_back_loss(*x, temperature=0.1).mean()
    assert torch.equal(again(videos[0]), y[0])


def test_training_by_reconstruction_keeps_where_things_are():
    """From the features, the column's place in unseen videos can be read off by a linear map."""
    videos = moving(V=6)
    seen: list[int] = []
    backbone = pretrain_by_reconstruction(videos, features=8, steps=40, progress=lambda step, _: seen.append(step))
    assert seen == list(range(1, 41))
    train, test = (torch.cat([backbone(videos[v]) for v in rows]) for rows in ((0, 1, 2, 3), (4, 5)))
    place = torch.arange(8.0)
    inputs = torch.cat([train, torch.ones(len(train), 1)], 1)
    weights = torch.linalg.lstsq(inputs, place.repeat(4)[:, None]).solution
    predicted = torch.cat([test, torch.ones(len(test), 1)], 1) @ weights
    assert (predicted[:, 0] - place.repeat(2)).abs().mean() < 1.0


def test_impossible_pretraining_is_refused():
    """One video has no other to cycle through; options must be positive."""
    with pytest.raises(InvalidData, match="two videos"):
        pretrain_by_cycles(moving(V=1), steps=1)
    with pytest.raises(ConfigError, match="temperature"):
        pretrain_by_cycles(moving(), steps=1, temperature=0.0)
    with pytest.raises(ConfigError, match="steps"):
        pretrain_by_reconstruction(moving(), steps=0)
    with pytest.raises(InvalidData, match="takes images"):
        pretrain_by_reconstruction(Videos(np.zeros((4, 2), dtype=np.float32), [4]), steps=1)


# --- goal distance


def test_goal_distance_is_that_to_where_demos_end():
    """By hand: demos end at 4 and 6, the goal is 5; what is padded counts nothing."""

    def of(*rows):
        return VideoFeatures.compute(IdentityBackbone(), Videos.from_list([np.array(row)[:, None] for row in rows]))

    demos = of([0.0, 2.0, 4.0], [6.0])
    videos = of([5.0, 1.0], [8.0, 5.0, 6.0])
    torch.testing.assert_close(goal_rewards(videos, demos), torch.tensor([[0.0, -4.0, 0.0], [-3.0, 0.0, -1.0]]))
    torch.testing.assert_close(goal_distance(videos, demos, scale=0.5), torch.tensor([-2.0, -2.0]))
    with pytest.raises(ConfigError, match="scale"):
        goal_rewards(videos, demos, scale=0.0)
