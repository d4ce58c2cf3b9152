"""Inpainting: the part of the latents to repaint, and the original that the rest returns to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retouch.schedulers.plan import Plan, Step


@dataclass
class Region:
    """The part to repaint, and the original that the other part is held to.

    `repaint` may be soft. A latent is released once the noise level has fallen below its mask value, so a
    value of 0.3 takes part in the last 30 % of the noise levels only: it can change in detail but not in
    shape. A mask of zeros and ones acts as a hard one at every level.
    """

    original: Tensor  # clean latents of the given image
    repaint: Tensor  # (batch, 1, height/8, width/8), 1 = paint here, 0 = keep
    noise: Tensor  # the noise that this run started from

    def restore_outside(self, latents: Tensor, plan: Plan, step: Step) -> Tensor:
        """Put the original back where nothing may be painted yet, noised for the next step."""
        following = plan.following(step)
        if following is None:
            kept, level = self.original, 0.0
        else:
            kept, level = plan.noised(self.original, self.noise, following), plan.level(following)
        return torch.where(self.repaint > level, latents, kept)


class SimpleRegion(Region):
    """The simplest inpainting: a hard mask, and the original comes back at the noise level of the step just
    taken.

    The latents are then one step less noisy than their surroundings, and some noise stays around the mask at
    the end. `Region` does better; this one shows how the idea works.
    """

    def restore_outside(self, latents: Tensor, plan: Plan, step: Step) -> Tensor:
        kept = plan.noised(self.original, self.noise, step)
        return torch.where(self.repaint > 0.5, latents, kept)
