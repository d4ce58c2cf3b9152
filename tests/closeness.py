"""Comparing tensors with the reference's, with a failure that says how far off they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Same shape, dtype and values, and values that are worth comparing."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert theirs.isfinite().all()
    assert theirs.float().std() > 0.01, "the reference's values are all but constant: they show nothing"
    error = (ours.double() - theirs.double()).abs()
    peak = theirs.double().abs().max().item()
    psnr = 10 * math.log10(peak**2 / max(error.square().mean().item(), 1e-30))
    assert error.max() <= tolerance, f"max difference {error.max():.2e} of {peak:.2f}, PSNR {psnr:.1f} dB"


def share_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Give the reference's weights to ours, having seen that ours fit the reference too. Both strictly."""
    weights = {key: value.clone() for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    theirs.load_state_dict(weights)
    ours.load_state_dict(weights)
