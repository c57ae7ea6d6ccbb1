"""Videos to rewards: frozen backbones, a trainable head, and optimal transport to demonstrations (RAPL)."""

from prefrl.representation.backbones import Backbone, IdentityBackbone, ModuleBackbone, PCABackbone, load_backbone
from prefrl.representation.baselines import goal_distance, goal_rewards
from prefrl.representation.cnn import SmallCNN
from prefrl.representation.encoder import Encoder
from prefrl.representation.features import VideoFeatures
from prefrl.representation.ot_reward import PRESETS, OTReward, RewardOptions
from prefrl.representation.pretraining import cycle_back_loss, pretrain_by_cycles, pretrain_by_reconstruction

__all__ = [
    "PRESETS",
    "Backbone",
    "Encoder",
    "IdentityBackbone",
    "ModuleBackbone",
    "OTReward",
    "PCABackbone",
    "RewardOptions",
    "SmallCNN",
    "VideoFeatures",
    "cycle_back_loss",
    "goal_distance",
    "goal_rewards",
    "load_backbone",
    "pretrain_by_cycles",
    "pretrain_by_reconstruction",
]
