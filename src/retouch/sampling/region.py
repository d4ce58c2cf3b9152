"""Inpainting: which part of the latents is repainted, and what the rest returns to after each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retouch.schedulers.plan import Plan, Step


@dataclass
class Region:
    """The part to repaint, and the original that the other part is held to.

    `repaint` may be soft. A latent is released once the noise level has fallen below its mask value,
    so a value of 0.3 takes part in the last 30 % of the noise levels only: it can change in detail but
    not in shape. A mask of zeros and ones behaves as a hard one, whatever the levels.
    """

    original: Tensor  # clean latents of the given image
    repaint: Tensor  # (batch, 1, height/8, width/8), 1 = paint here, 0 = keep
    noise: Tensor  # the noise that this run started from

    def restore_outside(self, latents: Tensor, plan: Plan, step: Step) -> Tensor:
        """Put the original back where nothing may be painted yet, noised as the next step expects it."""
        following = plan.following(step)
        if following is None:
            kept, level = self.original, 0.0
        else:
            kept, level = plan.noised(self.original, self.noise, following), plan.level(following)
        return torch.where(self.repaint > level, latents, kept)


class SimpleRegion(Region):
    """The simplest inpainting: the original comes back at the level of the step just taken; a hard mask.

    The latents are one step less noisy than what is put around them, and some noise stays around the hole at
    the end. `Region` does better; this one shows how the idea works.
    """

    def restore_outside(self, latents: Tensor, plan: Plan, step: Step) -> Tensor:
        kept = plan.noised(self.original, self.noise, step)
        return torch.where(self.repaint > 0.5, latents, kept)
