"""Descriptions of files by the names of their tensors, for errors about a file of an unexpected kind.

They are guesses for people to read. Loading does not depend on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Pattern of a tensor's name, what such a file is, what to do with it. The first pattern that matches counts.
_SIGNS = (
    (
        r"lora_(up|down|A|B|unet|te|linear_layer)\b|lora_(unet|te\d?)_|\blora\.(up|down)\b|\.(hada|lokr)_w\d",
        "a LoRA",
        "Load the checkpoint that it was made for, then add it with the pipeline's load_lora_weights",
    ),
    (
        r"^(emb_params|clip_l|clip_g|string_to_param|<[^>]+>)$",
        "a textual inversion embedding",
        "Load a checkpoint, then add it with the pipeline's load_textual_inversion",
    ),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter", "Load a checkpoint, then add it with load_ip_adapter"),
    (r"^(adapter\.)?body\.\d", "a T2I-Adapter", "T2I-Adapters are not supported; use a ControlNet"),
    (r"motion_modules?\.", "an AnimateDiff motion module", "Video models are not supported"),
    (r"\b(double|single)_blocks\.\d", "a Flux model", "Use a Stable Diffusion 1.x, 2.x or XL checkpoint"),
    (r"\bjoint_blocks\.\d", "a Stable Diffusion 3 model", "Use a Stable Diffusion 1.x, 2.x or XL checkpoint"),
    (r"^model\.diffusion_model\.", "a checkpoint, or a part of one", "Check that it is complete"),
    (
        r"^(control_model\.|input_hint_block\.|controlnet_cond_embedding\.)",
        "a ControlNet",
        "Load it with ControlNetModel.from_single_file, and give it to a pipeline as controlnet=",
    ),
    (
        r"^(first_stage_model\.|(encoder|decoder)\.(down|up|mid|down_blocks|up_blocks|mid_block)\.)",
        "a VAE alone",
        "Load it with AutoencoderKL.from_single_file, and give it to a pipeline as vae=",
    ),
    (
        r"^(down_blocks|up_blocks|input_blocks|output_blocks)\.",
        "a UNet alone",
        "Load it with UNet2DConditionModel.from_single_file, and give it to a pipeline as unet=",
    ),
    (
        r"^(cond_stage_model\.|conditioner\.|text_model\.|transformer\.resblocks\.)",
        "a text encoder alone",
        "Load it with transformers, and give it to a pipeline as text_encoder=",
    ),
)


def describe(names: Iterable[str]) -> tuple[str, str]:
    """Return a noun and advice for a file with these tensors: ("a LoRA", "Load the checkpoint ...")."""
    names = list(names)
    for pattern, noun, advice in _SIGNS:
        if any(re.search(pattern, name) for name in names):
            return noun, advice
    first = ", ".join(sorted(names)[:3])
    return (
        f"a file of {len(names)} tensors of an unknown kind ({first})",
        "Check that it is the right file",
    )
