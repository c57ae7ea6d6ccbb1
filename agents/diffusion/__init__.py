"""Diffusion policies: actions in chunks from a denoising model, learned from data and from preferences.

    schedules.py     how noise is added; what a network may predict, and conversions between those
    samplers.py      from noise to data: DDPM, DDIM, with known parts
    denoisers.py     networks: MLP, 1-D U-Net, transformer
    chunks.py        the history and the actions that belong to each step
    policy.py        the policy, and what acts for it in an episode
    optimization.py  AdamW, warm-up and cosine, moving average
    bc.py            learner from transitions
    preference.py    learner from comparisons, starting from a trained policy
    collapse.py      notices that a policy leaves its data

Schedules, samplers and denoisers know nothing of policies: they are for sequences (B, T, C) of anything.
"""

from agents.diffusion.bc import DiffusionBC
from agents.diffusion.chunks import Chunks, chunk_transitions, chunks_of
from agents.diffusion.collapse import CollapseDetected, DemonstrationError
from agents.diffusion.denoisers import MLPDenoiser, TransformerDenoiser, UNetDenoiser
from agents.diffusion.policy import DiffusionActor, DiffusionPolicy
from agents.diffusion.preference import DiffusionPreference
from agents.diffusion.samplers import ddim_step, ddpm_step, sample, sampling_times
from agents.diffusion.schedules import alpha_bars, betas, noised, to_noise, to_target, to_x0

__all__ = [
    "Chunks",
    "CollapseDetected",
    "DemonstrationError",
    "DiffusionActor",
    "DiffusionBC",
    "DiffusionPolicy",
    "DiffusionPreference",
    "MLPDenoiser",
    "TransformerDenoiser",
    "UNetDenoiser",
    "alpha_bars",
    "betas",
    "chunk_transitions",
    "chunks_of",
    "ddim_step",
    "ddpm_step",
    "noised",
    "sample",
    "sampling_times",
    "to_noise",
    "to_target",
    "to_x0",
]
