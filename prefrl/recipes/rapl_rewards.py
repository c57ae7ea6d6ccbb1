"""Rewards that know videos: of an aligned metric, and of what it is compared with, on the same answers.

RAPL (Tian et al. 2024, arXiv 2310.07932): answers train an encoder, not a reward; a rollout is rewarded by minus its
transport distance to the closest of a few preferred demonstrations. Beside it stand the return that explains the same
answers (RLHF), transport in features that nobody aligned, and the distance to the demonstrations' last frames (XIRL,
arXiv 2106.03911).

Axes: V videos, T steps of an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prefrl.data.triplets import Triplets, VideoPairs
from prefrl.data.videos import Videos, every_kth
from prefrl.errors import DamagedFile
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.representation.backbones import Backbone, load_backbone
from prefrl.representation.baselines import goal_distance, goal_rewards
from prefrl.representation.encoder import Encoder
from prefrl.representation.features import VideoFeatures
from prefrl.representation.ot_reward import OTReward
from prefrl.scores.return_ensemble import ReturnEnsemble
from prefrl.train.align_rlhf import as_segments, load_return, return_scores, return_state

__all__ = ["LEARNED", "TRANSPORTED", "VideoRewards", "learn_rewards", "load_rewards", "thinned"]

LEARNED = {
    "aligned": "transport to the demonstrations in the representation that the answers aligned (RAPL)",
    "rlhf": "the return of frames that explains the same answers (RLHF)",
    "unaligned": "control: transport in the backbone's features, without any answer",
    "goal_distance": "control: distance to where the demonstrations end, without any answer (XIRL)",
}
TRANSPORTED = ("aligned", "unaligned")


@dataclass(frozen=True)
class VideoRewards:
    """What a run has learned of videos. every: of an episode's frames each such is compared, [steps]."""

    backbone: Backbone
    encoder: nn.Module
    rlhf: ReturnEnsemble | None
    demos: VideoFeatures
    reward: Callable[..., OTReward]
    every: int

    def ot_reward(self, name: str) -> OTReward:
        """A new one, whose scale is not settled yet; name: aligned | unaligned."""
        encoder = self.encoder if name == "aligned" else nn.Identity()
        return self.reward(
            backbone=self.backbone, encoder=encoder, demos=self.demos.features, demo_mask=self.demos.mask,
            every=self.every,
        )  # fmt: skip

    def per_step(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """Frames (T+1, …) of an episode → rewards (T,) of its steps; name: rlhf | goal_distance."""

        def rewards(frames: np.ndarray) -> np.ndarray:
            features = self.backbone(frames[1:])[None]  # (1, T, F): what each step led to
            video = VideoFeatures(features, torch.ones(features.shape[:2], dtype=torch.bool))
            return self._per_frame(name, video)[0].numpy().astype(np.float32)

        return rewards

    def scores(self, name: str, features: VideoFeatures) -> np.ndarray:
        """(V,) scores of whole videos, to rank them by."""
        if name in TRANSPORTED:
            return self.ot_reward(name).scores(features.features, features.mask).numpy()
        if name == "rlhf":
            assert self.rlhf is not None
            return return_scores(self.rlhf, features).numpy()
        return goal_distance(features, self.demos).numpy()

    @torch.no_grad()
    def _per_frame(self, name: str, features: VideoFeatures) -> torch.Tensor:
        """(V, T)."""
        if name == "goal_distance":
            return goal_rewards(features, self.demos)
        assert self.rlhf is not None
        segments = as_segments(features)
        V, T = features.mask.shape
        frames, actions = segments.observations[:, :-1].flatten(0, 1), segments.actions.flatten(0, 1)
        return self.rlhf.reward(frames, actions).mean(0).view(V, T)


def learn_rewards(
    folder: Path,
    videos: Videos,
    *,
    triplets: Triplets,
    pairs: VideoPairs,
    demos: Sequence[int],
    names: Sequence[str],
    backbone: Callable[..., Backbone],
    encoder: Callable[..., Encoder],
    align: Callable[..., Any],
    rlhf: Callable[..., Any],
    every: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Fit what the rewards of these ``names`` need, on the answers, and write it to ``folder``; what was found.

    pairs: answers that are in no triplet · demos: numbers of videos · every: as of :class:`VideoRewards`
    """
    compared = thinned(videos, every)
    seen = backbone(compared, seed=seed)
    features = VideoFeatures.compute(seen, compared)
    shown = features.subset(np.asarray(demos))
    found: dict[str, Any] = {}
    save_checkpoint(folder / "backbone.safetensors", seen.state())
    save_checkpoint(folder / "demos.safetensors", {"features": shown.features, "mask": shown.mask})
    if "aligned" in names:
        head = encoder(features.feature_size, seed=seed)
        history = align(
            head, features, triplets if len(triplets) else None, pairs=pairs if len(pairs) else None, demos=shown,
            seed=seed, progress=progress,
        )  # fmt: skip
        save_checkpoint(folder / "encoder.safetensors", head.state())
        best = history.best
        found["align"] = {
            "epochs": len(history.train_loss) - 1, "best": best, "heldout_loss": history.heldout_loss[best],
            "alignment_score": history.alignment_score[best], "plan_entropy": history.entropy[best],
        }  # fmt: skip
    if "rlhf" in names:
        fitted, report = rlhf(features, _all_pairs(triplets, pairs), seed=seed)
        save_checkpoint(folder / "rlhf.safetensors", return_state(fitted))
        found["rlhf"] = report.as_dict()
    return found


def thinned(videos: Videos, every: int) -> Videos:
    """Each with every so many of its frames, the last among them."""
    return Videos.from_list([every_kth(videos[v], every) for v in range(len(videos))])


def _all_pairs(triplets: Triplets, pairs: VideoPairs) -> VideoPairs:
    """Every answer once."""
    of = triplets.pairs()
    return VideoPairs(*(np.concatenate([getattr(of, n), getattr(pairs, n)]) for n in ("first", "second", "p_first")))


def load_rewards(folder: Path, *, reward: Callable[..., OTReward], every: int) -> VideoRewards:
    """What :func:`learn_rewards` has written."""
    for name in ("backbone", "demos"):
        if not (folder / f"{name}.safetensors").is_file():
            raise DamagedFile(
                f"{folder / name}.safetensors is missing: this run has not learned its rewards, or lost them. Remove "
                "stages/align.json of the run, and `prefrl resume` learns them from its answers again."
            )

    def kept(name: str) -> Any:
        file = folder / f"{name}.safetensors"
        return load_checkpoint(file) if file.is_file() else None

    demos, encoder, rlhf = kept("demos"), kept("encoder"), kept("rlhf")
    return VideoRewards(
        backbone=load_backbone(kept("backbone")),
        encoder=nn.Identity() if encoder is None else Encoder.from_state(encoder),
        rlhf=None if rlhf is None else load_return(rlhf),
        demos=VideoFeatures(demos["features"], demos["mask"]),
        reward=reward,
        every=every,
    )
