"""ControlNets of a few kilobytes that fit the tiny checkpoints, and pipelines with them."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw
from pipeline_pairs import Pair, load, mask, photo
from tiny_checkpoints import randomised

import retouch


def tiny_controlnet(checkpoint: Path, seed: int = 0, **settings: Any) -> Any:
    """Make a net of the reference for the UNet in `checkpoint`; a skipped layer would change its result."""
    unet = diffusers.UNet2DConditionModel.load_config(checkpoint, subfolder="unet")
    known = inspect.signature(diffusers.ControlNetModel.__init__).parameters
    shared = {key: value for key, value in unet.items() if key in known}
    defaults = {"in_channels": 4, "conditioning_embedding_out_channels": (4, 6, 8, 8)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(diffusers.ControlNetModel(**(shared | defaults | settings)))


SIZE = {"height": 64, "width": 64}
TASKS = {
    "text2image": "ControlNetPipeline",
    "image2image": "ControlNetImg2ImgPipeline",
    "inpaint": "ControlNetInpaintPipeline",
}


@functools.cache
def control_pair(checkpoint: Path, task: str, nets: int = 1, **settings: Any) -> Pair:
    """Return our pipeline and the reference's with the same nets; `nets=0` gives a list of one."""
    is_xl = "sdxl" in checkpoint.name
    prefix = "StableDiffusionXL" if is_xl else "StableDiffusion"
    theirs = [tiny_controlnet(checkpoint, seed, **settings) for seed in range(nets or 1)]
    ours = [retouch.ControlNetModel.from_config(net.config) for net in theirs]
    for mine, their in zip(ours, theirs, strict=True):
        mine.load_state_dict(their.state_dict())
        mine.eval()
    made = []
    for library, controls in ((retouch, ours), (diffusers, theirs)):
        plain = load(library, f"{prefix}InpaintPipeline", checkpoint)
        kind = getattr(library, prefix + TASKS[task])
        expected = inspect.signature(kind.__init__).parameters
        parts = {
            name: part for name, part in plain.components.items() if library is retouch or name in expected
        }
        extra = {} if is_xl else {"requires_safety_checker": False}
        pipeline = kind(**parts, controlnet=controls[0] if nets == 1 else controls, **extra)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline)
    return Pair(*made, task)


def drawing(seed: int = 0, width: int = 64, height: int = 64) -> Image.Image:
    """Return a control picture: white lines on black."""
    draw = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        ends = [(int(draw.integers(0, width)), int(draw.integers(0, height))) for _ in range(2)]
        pen.line(ends, fill=(255, 255, 255), width=2)
    return picture


def control_inputs(task: str, control: Any = None) -> dict[str, Any]:
    """Return the arguments of a task, in the checkpoint's own size."""
    control = drawing() if control is None else control
    if task == "text2image":
        return {"image": control, **SIZE}
    if task == "image2image":
        return {"image": photo(), "control_image": control, "strength": 0.8, **SIZE}
    return {"image": photo(), "mask_image": mask(), "control_image": control, **SIZE}
