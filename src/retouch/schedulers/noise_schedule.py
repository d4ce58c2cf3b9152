"""Betas, alphas and sigmas of the training schedule, and the spacings that choose a run's levels from them.

Every scheduler takes its numbers from here, so each spacing and each conversion between epsilon, v and sample
prediction exists once. The step formulas are elsewhere.

The precision of an intermediate value (float64 in numpy, float32 in torch) follows diffusers where it decides
the last digit of a timestep or a sigma: a picture must not depend on the program that computed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retouch.errors import ConfigError

Settings = Mapping[str, Any]  # the settings of a scheduler, including its defaults

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")

# A sigma schedule divides by sqrt(alpha), so zero terminal SNR needs a last alpha just above zero. This is
# the smallest number of float16; the first sigma becomes 4096.
SMALLEST_ALPHA = 2.0**-24

_ALPHA_BARS: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda t: math.exp(-12.0 * t),
    "laplace": lambda t: _laplace_alpha_bar(t),
}


def _laplace_alpha_bar(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


def make_betas(settings: Settings) -> Tensor:
    """Return the variance added by each training step, float32."""
    steps, name = settings["num_train_timesteps"], settings["beta_schedule"]
    start, end = settings.get("beta_start", 0.0), settings.get("beta_end", 0.0)
    if settings.get("trained_betas") is not None:
        betas = torch.tensor(settings["trained_betas"], dtype=torch.float32)
    elif name == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float32)
    elif name == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    elif name == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, steps)) * (end - start) + start
    else:
        alpha_bar = _ALPHA_BARS[name]
        values = [1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
        betas = torch.tensor([min(value, 0.999) for value in values], dtype=torch.float32)
    return _rescaled_to_zero_snr(betas) if settings.get("rescale_betas_zero_snr") else betas


def _rescaled_to_zero_snr(betas: Tensor) -> Tensor:
    """Apply algorithm 1 of arXiv:2305.08891: the last level becomes pure noise, the first stays the same."""
    signal = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    signal = (signal - last) * (first / (first - last))
    alphas_cumprod = signal**2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


class NoiseSchedule:
    """The signal and the noise at each of the training timesteps."""

    def __init__(self, betas: Tensor, last_alpha: float | None = None) -> None:
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if last_alpha is not None:
            self.alphas_cumprod[-1] = last_alpha

    @cached_property
    def sigmas(self) -> np.ndarray:
        """Noise over signal at each timestep, increasing, float32."""
        return (((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).numpy()

    @cached_property
    def log_sigmas(self) -> np.ndarray:
        return np.log(self.sigmas)

    def sigmas_at(self, timesteps: np.ndarray) -> np.ndarray:
        """Return the sigmas at timesteps, also between two training timesteps, float64."""
        return np.interp(timesteps, np.arange(len(self.sigmas)), self.sigmas)

    def timesteps_at(self, sigmas: np.ndarray, dtype: type = np.float64) -> np.ndarray:
        """Return the timesteps of these sigmas, interpolated in log sigma between two training timesteps.

        They are float64, or of the `dtype` in which the reference computes them.
        """
        log_sigmas = np.log(np.maximum(sigmas, 1e-10))
        # This finds the last training sigma that is not above, in any order; searchsorted needs sorted ones.
        below = log_sigmas >= self.log_sigmas[:, np.newaxis]
        low = np.cumsum(below, axis=0).argmax(axis=0).clip(max=len(self.log_sigmas) - 2)
        left, right = self.log_sigmas[low], self.log_sigmas[low + 1]
        weight = np.clip((left - log_sigmas) / (left - right), 0, 1)
        return (1 - weight) * low.astype(dtype) + weight * (low + 1).astype(dtype)

    def mix(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the original noised to these integer timesteps, one for all rows or one per row."""
        signal, sigma = self._coefficients(original, timesteps)
        return signal * original + sigma * noise

    def velocity(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the target of a v-predicting model at these integer timesteps."""
        signal, sigma = self._coefficients(original, timesteps)
        return signal * noise - sigma * original

    def _coefficients(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        # Cast before taking the roots: in half precision the order changes the result.
        alphas = self.alphas_cumprod.to(like.dtype)[timesteps.to("cpu", torch.long)].to(like.device)
        alphas = alphas.reshape(-1, *[1] * (like.ndim - 1))
        return alphas**0.5, (1 - alphas) ** 0.5


def spaced_timesteps(
    spacing: str,
    steps: int,
    train_steps: int,
    *,
    offset: int = 0,
    rounded: bool = True,
    drop_last: bool = False,
    end: int | None = None,
) -> np.ndarray:
    """Return the decreasing timesteps of a run as in table 2 of arXiv:2305.08891, float64.

    `drop_last` spaces one more and drops the smallest, as the DPM-Solver family does. `end` replaces
    `train_steps` as the noisy end of the spacing.
    """
    end = train_steps if end is None else end
    points = steps + 1 if drop_last else steps
    if spacing == "linspace":
        timesteps = np.linspace(0, end - 1, points)[::-1]
        timesteps = timesteps.round() if rounded else timesteps
    elif spacing == "leading":
        timesteps = (np.arange(points, dtype=np.float64) * (end // points))[::-1] + offset
    else:
        timesteps = np.arange(end, 0, -train_steps / steps).round() - 1
    # For 61 trailing steps and a few other counts, float arithmetic yields one extra timestep, -1. diffusers
    # keeps it, and its last step then starts from pure noise.
    return timesteps[:steps].copy()


def karras_sigmas(highest: float, lowest: float, steps: int) -> np.ndarray:
    """Return sigmas by equation 5 of arXiv:2206.00364 with rho 7."""
    high, low = highest ** (1 / 7.0), lowest ** (1 / 7.0)
    return (high + np.linspace(0, 1, steps) * (low - high)) ** 7.0


def exponential_sigmas(highest: float, lowest: float, steps: int) -> np.ndarray:
    """Return sigmas that are evenly spaced in log sigma."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), steps))


def lu_sigmas(highest: float, lowest: float, steps: int) -> np.ndarray:
    """Return sigmas that are evenly spaced in lambda (arXiv:2206.00927): the same with other rounding."""
    high, low = np.log(np.array([highest, lowest], dtype=np.float32)).tolist()
    return np.exp(high + np.linspace(0, 1, steps) * (low - high))


def beta_sigmas(highest: float, lowest: float, steps: int) -> np.ndarray:
    """Return quantiles of a Beta(0.6, 0.6) distribution, denser at both ends (arXiv:2407.12173)."""
    try:
        from scipy.special import betaincinv  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            "use_beta_sigmas = True needs scipy, which is not installed. Install scipy, or choose "
            "use_karras_sigmas or use_exponential_sigmas.",
            parameter="use_beta_sigmas",
        ) from None
    return lowest + betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, steps)) * (highest - lowest)


_SIGMA_SPACINGS = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
    "use_lu_lambdas": lu_sigmas,
}


def chosen_sigma_spacing(settings: Settings) -> str | None:
    """Return the `use_..._sigmas` setting that is on, or None for sigmas that follow the timesteps."""
    chosen = [name for name in _SIGMA_SPACINGS if settings.get(name)]
    if len(chosen) > 1:
        raise ConfigError(
            f"{' and '.join(chosen)} are both set. At most one of {', '.join(_SIGMA_SPACINGS)} may be set; "
            f"set the others to False.",
            parameter=chosen[-1],
        )
    return chosen[0] if chosen else None


def respaced_sigmas(settings: Settings, sigmas: np.ndarray, steps: int) -> np.ndarray:
    """Return `steps` decreasing sigmas over the range of the given ones, spaced as the settings choose.

    `sigma_min` and `sigma_max` in the settings replace the ends of the range.
    """
    name = chosen_sigma_spacing(settings)
    if name is None:
        return sigmas
    highest, lowest = settings.get("sigma_max"), settings.get("sigma_min")
    highest = sigmas[0].item() if highest is None else highest
    lowest = sigmas[-1].item() if lowest is None else lowest
    return _SIGMA_SPACINGS[name](highest, lowest, steps)


def predicted_original(
    kind: str, prediction: Tensor, latents: Tensor, signal: Tensor, noise: Tensor
) -> Tensor:
    """Return the clean latents, from latents = signal * original + noise * epsilon and the prediction."""
    if kind == "epsilon":
        return (latents - noise * prediction) / signal
    return prediction if kind == "sample" else signal * latents - noise * prediction


def predicted_noise(kind: str, prediction: Tensor, latents: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return epsilon, from latents = signal * original + noise * epsilon and the prediction."""
    if kind == "epsilon":
        return prediction
    if kind == "sample":
        return (latents - signal * prediction) / noise
    return signal * prediction + noise * latents


def predicted_original_at_sigma(kind: str, prediction: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean latents, from latents = original + sigma * epsilon and the prediction.

    `predicted_original` with signal 1 / sqrt(sigma**2 + 1) gives the same with other rounding, which shows at
    sigma 4096, where zero terminal SNR starts.
    """
    if kind == "epsilon":
        return latents - sigma * prediction
    if kind == "sample":
        return prediction
    return prediction * (-sigma / (sigma**2 + 1) ** 0.5) + latents / (sigma**2 + 1)


def ancestral_sigmas(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sigma that an ancestral step goes down to, and the noise that leads back to `sigma_next`."""
    up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    # This equals (sigma_next**2 / sigma)**2, with the reference's rounding. At sigmas in the thousands, which
    # a cosine schedule has, it can be negative; the picture of the reference is then NaN.
    square = sigma_next**2 - up**2
    return torch.where(square > 0, square**0.5, sigma_next**2 / sigma), up


def limited_original(original: Tensor, settings: Settings) -> Tensor:
    """Return the predicted clean latents, thresholded or clipped if the settings say so."""
    if settings.get("thresholding"):
        return _thresholded(original, settings["dynamic_thresholding_ratio"], settings["sample_max_value"])
    if settings.get("clip_sample"):
        limit = settings["clip_sample_range"]
        return original.clamp(-limit, limit)
    return original


def _thresholded(original: Tensor, ratio: float, largest: float) -> Tensor:
    """Apply dynamic thresholding, section 2.3 of arXiv:2205.11487, to each row of the batch."""
    rows = original.flatten(1)
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()  # quantile needs it
    limit = torch.quantile(rows.abs(), ratio, dim=1).clamp(min=1, max=largest).unsqueeze(1)
    return (rows.clamp(-limit, limit) / limit).reshape(original.shape).to(original.dtype)
