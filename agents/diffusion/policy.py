r"""Diffusion policy: actions are drawn as chunks from a denoising model (Chi et al. 2023, arXiv 2303.04137).

The last n_obs observations are the condition; the sample is the next H actions, of which the first ones are executed
before the policy looks again. So it can be one of several ways through, and stay with it. Defaults are those of the
paper's tasks from states (horizon 16, 8 executed, 2 observations, 100 steps of the squared cosine schedule), but for
the denoiser, an MLP, and 8 steps of DDIM, which suit a processor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from agents.diffusion.chunks import Chunks, chunks_of
from agents.diffusion.denoisers import MakeDenoiser, named_denoiser
from agents.diffusion.samplers import sample, sampling_times
from agents.diffusion.schedules import PARAMETRIZATIONS, Parametrization, alpha_bars, noised, to_target
from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, InvalidData
from prefrl.losses import denoising_error

__all__ = ["DiffusionActor", "DiffusionPolicy"]


class DiffusionPolicy(nn.Module):
    """What acts by denoising.

    observation_mean, observation_std: (D,), observations are divided by them · action_low, action_high: (A,), the box
    that is [−1, 1] for the denoiser, and that actions never leave · seed: of the initial weights and of ``act``'s noise
    The other arguments are explained in ``configs/agent/diffusion_bc.yaml``.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    alpha_bar: Tensor
    act_noise: Tensor

    def __init__(
        self,
        *,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_low: np.ndarray | Tensor,
        action_high: np.ndarray | Tensor,
        n_obs: int = 2,
        horizon: int = 16,
        executed: int = 8,
        denoiser: Literal["mlp", "unet", "transformer"] | MakeDenoiser = "mlp",
        parametrization: Parametrization = "epsilon",
        schedule: Literal["linear", "squared_cosine"] = "squared_cosine",
        train_steps: int = 100,
        sampling_steps: int = 8,
        sampler: Literal["ddim", "ddpm"] = "ddim",
        eta: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (action_low, action_high))
        _require_sizes(low, high, n_obs, horizon, executed)
        if parametrization not in PARAMETRIZATIONS:
            raise ConfigError(
                f"parametrization must be one of {', '.join(PARAMETRIZATIONS)}, but is {parametrization!r}."
            )
        sampling_times(train_steps, sampling_steps)
        self.n_obs, self.horizon, self.executed = n_obs, horizon, executed
        self.parametrization, self.sampler, self.eta = parametrization, sampler, eta
        self.train_steps, self.sampling_steps = train_steps, sampling_steps
        D, A = len(observation_mean), len(low)
        for name, value in (("mean", observation_mean), ("std", observation_std), ("low", low), ("high", high)):
            self.register_buffer(name, value.clone())
        self.register_buffer("alpha_bar", alpha_bars(schedule, train_steps))
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("act_noise", torch.randn(horizon, A, generator=generator))
        self.denoiser = named_denoiser(denoiser)(horizon=horizon, channels=A, condition_dim=n_obs * D, seed=seed)

    def condition(self, history: Tensor) -> Tensor:
        """(B, n_obs, D) → (B, n_obs · D), normalized."""
        return ((history - self.mean) / self.std).flatten(1)

    def to_units(self, actions: Tensor) -> Tensor:
        """(…, A) → (…, A): the action box as [−1, 1]^A."""
        return (actions - self.low) * (2 / (self.high - self.low)) - 1

    def to_box(self, units: Tensor) -> Tensor:
        """(…, A) → (…, A), inside the action box."""
        return torch.clamp(self.low + (units + 1) * (self.high - self.low) / 2, self.low, self.high)

    @torch.no_grad()
    def sample(self, history: Tensor, generator: torch.Generator) -> Tensor:
        """(B, n_obs, D) → (B, H, A): random chunks, in the action box."""
        shape = (len(history), *self.act_noise.shape)
        return self._sample(
            history, lambda: torch.randn(shape, generator=generator, device=generator.device).to(self.mean), self.eta
        )

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """(B, D) → (B, A): the first action of a chunk made of always the same noise, as if nothing happened before.

        A function of the observation, for what needs one; to act in an environment, :meth:`episode` is meant.
        """
        history = observations[:, None].expand(-1, self.n_obs, -1)
        fixed = self.act_noise.expand(len(history), -1, -1)
        return self._sample(history, lambda: fixed, eta=0.0, sampler="ddim")[:, 0]

    def episode(self, seed: int) -> DiffusionActor:
        """What acts in one episode, with random numbers of its own."""
        return DiffusionActor(self, seed)

    def denoising_error(
        self, segments: SegmentBatch, noise: Tensor, t: Tensor, *, starts: Tensor | None = None
    ) -> Tensor:
        """(B, T): mean squared error, over its real actions, of the chunk that starts at each step; 0 on padding.

        noise: (B, T, H, A) standard normal · t: (B, T) int64 diffusion times in [0, train_steps): the same for a policy
        and its reference, and for both segments of a pair, or their difference says nothing.
        starts: (B, n) steps, within the segments; the result, noise and t then have n in place of T.

        The chunk of step s has the n_obs observations up to s (before the segment: its first observation) and the
        actions from s on; those after the segment's end are its last action repeated, which the denoiser sees and the
        error leaves out. The error is that of what the network predicts, in units of the action box's half width.
        """
        at = (
            torch.arange(segments.mask.shape[1], device=t.device).expand_as(segments.mask) if starts is None else starts
        )
        chunks = chunks_of(segments, at, n_obs=self.n_obs, horizon=self.horizon)
        errors = self.chunk_error(chunks, noise.flatten(0, 1), t.flatten()).view_as(t)
        return errors if starts is not None else torch.where(segments.mask, errors, 0)

    def chunk_error(self, chunks: Chunks, noise: Tensor, t: Tensor) -> Tensor:
        """(M,): mean squared error of M chunks, at noise (M, H, A) and times t (M,)."""
        clean, bar = self.to_units(chunks.actions), self.alpha_bar[t]
        prediction = self.denoiser(noised(clean, noise, bar), t, self.condition(chunks.history))
        return denoising_error(prediction, to_target(clean, noise, bar, self.parametrization), mask=chunks.mask)

    def _sample(self, history: Tensor, draw: Callable[[], Tensor], eta: float, sampler: str | None = None) -> Tensor:
        condition = self.condition(history)
        units = sample(
            lambda x, t: self.denoiser(x, t, condition),
            draw,
            alpha_bar=self.alpha_bar,
            steps=self.sampling_steps,
            parametrization=self.parametrization,
            sampler=sampler or self.sampler,
            eta=eta,
            clip=1.0,
        )
        return self.to_box(units)


class DiffusionActor:
    """A diffusion policy in one episode: keeps the last observations, and the actions that are still to come."""

    def __init__(self, policy: DiffusionPolicy, seed: int) -> None:
        self.policy = policy
        self.generator = torch.Generator().manual_seed(seed)
        self._history: deque[np.ndarray] = deque(maxlen=policy.n_obs)
        self._chunk: deque[np.ndarray] = deque()

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(D,) → (A,) float32: the next action of the chunk; a new chunk where none is left."""
        observation = np.asarray(observation, dtype=np.float32)
        self._history.extend([observation] * (1 if self._history else self.policy.n_obs))
        if not self._chunk:
            history = torch.from_numpy(np.stack(self._history)).to(self.policy.mean)[None]
            chunk = self.policy.sample(history, self.generator)[0, : self.policy.executed]
            self._chunk.extend(chunk.cpu().numpy())
        return self._chunk.popleft()


def _require_sizes(low: Tensor, high: Tensor, n_obs: int, horizon: int, executed: int) -> None:
    if low.ndim != 1 or low.shape != high.shape or not bool(((low < high) & (high - low).isfinite()).all()):
        raise InvalidData(
            f"The action box must be finite, of shape (A,), with low < high, but is low={low.tolist()}, "
            f"high={high.tolist()}. Give action_range='data' to take it from the data."
        )
    if n_obs < 1 or not 1 <= executed <= horizon:
        raise ConfigError(
            f"n_obs must be >= 1 and executed in [1, horizon], but n_obs is {n_obs}, executed {executed} and horizon "
            f"{horizon}."
        )
