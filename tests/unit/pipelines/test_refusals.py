"""What a call cannot do is refused before anything is computed, in words that say what to do instead."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDXLCFGCutoffCallback
from PIL import Image
from pipeline_pairs import NAMES, generators, load, mask, photo
from refusals import refuses

import retouch
from retouch.errors import ConfigError, InputError, RetouchError

PICTURE, HOLE = photo(), mask()
SEE_THROUGH = Image.new("RGBA", (64, 64), (1, 2, 3, 100))

CALLBACK = SDXLCFGCutoffCallback()  # it asks for tensors that this family does not have


def states(rows: int, tokens: int = 77, width: int = 32) -> torch.Tensor:
    return torch.randn(rows, tokens, width)


@pytest.fixture
def pipelines(tiny_sd: Path, tiny_sd_inpaint: Path) -> Iterator[dict[str, Any]]:
    """One for each task, over a regular checkpoint; with a 9, over an inpainting one. None may compute."""
    made = {}
    for folder, suffix in ((tiny_sd, ""), (tiny_sd_inpaint, "9")):
        first = load(retouch, NAMES["inpaint"], folder)
        for task, name in NAMES.items():
            made[task + suffix] = getattr(retouch, name).from_pipe(first)
    keeps = []

    def fail(*_: Any) -> None:
        raise AssertionError("it was computed")

    for pipeline in (made["inpaint"], made["inpaint9"]):
        for part in (pipeline.unet, pipeline.vae.encoder):
            keeps.append(part.register_forward_pre_hook(fail))
    yield made
    for keep in keeps:
        keep.remove()


# The task, the arguments that differ from those of a good call, the one at fault, and facts of the message.
REFUSED: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    ("inpaint", {"mask_img": HOLE}, "mask_img", ["mask_image"]),
    ("text2image", {"guidance": 3}, "guidance", ["guidance_scale"]),
    ("text2image", {"callback": print}, "callback", ["callback_on_step_end"]),
    ("text2image", {"watermark": True}, "watermark", ["prompt"]),
    *(("text2image", {"tile_size": side}, "tile_size", [side, 8]) for side in (0, -8, 40.0, "64", True)),
    ("text2image", {"cross_attention_kwargs": {"gligen": {}}}, "cross_attention_kwargs", ["gligen", "scale"]),
    ("inpaint", {"cross_attention_kwargs": {"scale": "strong"}}, "cross_attention_kwargs", ["'strong'"]),
    ("image2image", {"mask_image": HOLE}, "mask_image", ["image2image"]),
    ("text2image", {"image": PICTURE}, "image", ["text2image"]),
    ("text2image", {"strength": 0.5}, "strength", ["text2image"]),
    ("text2image9", {}, "mask_image", ["9 channels", "AutoPipelineForInpainting", "text2image"]),
    ("image2image9", {}, "mask_image", ["9 channels", "AutoPipelineForInpainting", "image2image"]),
    # Prompts
    ("text2image", {"prompt": None}, "prompt", ["prompt_embeds"]),
    ("text2image", {"prompt": []}, "prompt", ["[]", "string", "list"]),
    ("text2image", {"prompt": ["a", 3]}, "prompt", ["'a', 3", "string", "list"]),
    ("text2image", {"prompt_embeds": states(1)}, "prompt_embeds", ["prompt and prompt_embeds"]),
    (
        "text2image",
        {"negative_prompt": "a", "negative_prompt_embeds": states(1)},
        "negative_prompt_embeds",
        ["negative_prompt and negative_prompt_embeds"],
    ),
    ("text2image", {"prompt": ["a", "b"], "negative_prompt": ["c"]}, "negative_prompt", [1, 2]),
    ("text2image", {"prompt": None, "prompt_embeds": states(1)[0]}, "prompt_embeds", [(77, 32)]),
    ("text2image", {"negative_prompt_embeds": [1]}, "negative_prompt_embeds", ["list", "tensor"]),
    ("text2image", {"prompt": None, "prompt_embeds": states(1, width=16)}, "prompt_embeds", [16, 32]),
    (
        "text2image",
        {"prompt": None, "prompt_embeds": states(1, 154)},
        "prompt_embeds",
        [154, 77, "negative_prompt_embeds"],
    ),
    (
        "text2image",
        {"prompt": None, "prompt_embeds": states(1), "negative_prompt_embeds": states(1, 80)},
        "negative_prompt_embeds",
        [(1, 77, 32), (1, 80, 32)],
    ),
    (
        "text2image",
        {"negative_prompt_embeds": states(1, 154)},
        "negative_prompt_embeds",
        [(1, 154, 32), (1, 77, 32)],
    ),
    (
        "text2image",
        {"prompt": ["a", "b", "c"], "negative_prompt_embeds": states(2)},
        "negative_prompt_embeds",
        [2, 3],
    ),
    ("text2image", {"clip_skip": 20}, "clip_skip", [20, "3 layers"]),
    # Numbers
    ("text2image", {"height": 60}, "height", [60, 8, 64]),
    ("text2image", {"width": 64.0}, "width", [64.0]),
    ("text2image", {"height": 0}, "height", [0, 8]),
    ("text2image", {"num_inference_steps": 0}, "num_inference_steps", [0, 1]),
    ("text2image", {"num_inference_steps": 2.0}, "num_inference_steps", [2.0]),
    ("text2image", {"num_inference_steps": True}, "num_inference_steps", [True]),
    ("text2image", {"num_inference_steps": 1001}, "num_inference_steps", [1001, 1000]),
    ("text2image", {"num_images_per_prompt": 0}, "num_images_per_prompt", [0]),
    ("text2image", {"clip_skip": -1}, "clip_skip", [-1]),
    ("text2image", {"guidance_scale": float("nan")}, "guidance_scale", ["nan"]),
    ("text2image", {"eta": "0"}, "eta", ["'0'"]),
    ("inpaint", {"padding_mask_crop": -3, "output_type": "pil"}, "padding_mask_crop", [-3]),
    ("image2image", {"strength": 1.5}, "strength", [1.5, "0 to 1"]),
    ("image2image", {"strength": "all"}, "strength", ["'all'"]),
    ("image2image", {"strength": 0}, "strength", ["strength=0 ", "2 steps", "strength=0.5"]),
    ("inpaint", {"strength": 0.2}, "strength", [0.2, "strength=0.5", "5 steps"]),
    ("text2image", {"timesteps": [9], "sigmas": [1.0, 0.0]}, "timesteps", ["timesteps and sigmas"]),
    ("text2image", {"timesteps": [9]}, "timesteps", ["PNDMScheduler", "Euler"]),
    ("text2image", {"output_type": "jpeg"}, "output_type", ["'jpeg'", "'pil'", "'np'", "'pt'", "'latent'"]),
    ("inpaint", {"mask_mode": "hard"}, "mask_mode", ["'hard'", "'soft'", "'binary'"]),
    # Randomness
    ("text2image", {"generator": 3}, "generator", [3, "torch.Generator"]),
    ("text2image", {"generator": [3]}, "generator", [3, "torch.Generator"]),
    ("text2image", {"prompt": ["a", "b"], "generator": [generators(1)]}, "generator", [1, 2]),
    ("text2image", {"latents": torch.randn(1, 4, 16, 16)}, "latents", [(1, 4, 16, 16), (1, 4, 8, 8)]),
    (
        "inpaint9",
        {"masked_image_latents": torch.randn(2, 4, 8, 8)},
        "masked_image_latents",
        [(2, 4, 8, 8), (1, 4, 8, 8)],
    ),
    # Callbacks
    ("text2image", {"callback_on_step_end": 3}, "callback_on_step_end", ["int", "function"]),
    (
        "text2image",
        {"callback_on_step_end_tensor_inputs": ["x"]},
        "callback_on_step_end_tensor_inputs",
        ["x", "latents"],
    ),
    (
        "text2image",
        {"callback_on_step_end": CALLBACK},
        "callback_on_step_end",
        ["add_text_embeds", "add_time_ids", "latents"],
    ),
    # Pictures
    ("image2image", {"image": None}, "image", ["image2image"]),
    ("image2image", {"image": "a.png"}, "image", ["str", "load_image"]),
    ("image2image", {"image": []}, "image", ["empty"]),
    ("image2image", {"image": SEE_THROUGH}, "image", ["alpha"]),
    ("image2image", {"image": np.zeros((64, 64, 4), np.float32)}, "image", ["alpha", "[..., :3]"]),
    ("image2image", {"image": torch.rand(1, 4, 64, 64)}, "image", ["alpha", "[:3]"]),
    ("image2image", {"image": torch.rand(2, 64, 64)}, "image", [(2, 64, 64), "(3, height, width)"]),
    ("image2image", {"image": torch.full((3, 64, 64), float("nan"))}, "image", ["NaN"]),
    ("image2image", {"image": np.full((64, 64, 3), 200.0)}, "image", [200, 255]),
    ("image2image", {"image": [photo(), photo(0, 72, 64)]}, "image", ["64x64", "72x64"]),
    ("image2image", {"image": [torch.randn(4, 8, 8), torch.rand(3, 64, 64)]}, "image", ["latents", "pixels"]),
    ("inpaint", {"image": torch.randn(1, 4, 8, 8), "height": 72, "width": 64}, "image", ["64x64", "64x72"]),
    ("inpaint", {"image": [PICTURE] * 3, "prompt": ["a", "b"]}, "prompt", [2, 3]),
    ("inpaint", {"mask_image": [HOLE] * 3, "prompt": ["a", "b"]}, "prompt", [2, 3]),
    # Masks
    ("inpaint", {"mask_image": None}, "mask_image", ["inpaint"]),
    ("inpaint", {"mask_image": []}, "mask_image", ["empty"]),
    ("inpaint", {"mask_image": SEE_THROUGH}, "mask_image", ["alpha"]),
    ("inpaint", {"mask_image": mask(width=64, height=32)}, "mask_image", ["64x32", "64x64", "resize"]),
    ("inpaint", {"mask_image": np.full((64, 64), 255.0)}, "mask_image", [255]),
    ("inpaint", {"mask_image": -np.ones((64, 64))}, "mask_image", [-1]),
    ("inpaint", {"image": [PICTURE] * 3, "mask_image": [HOLE] * 2}, "mask_image", ["2 masks", "3 pictures"]),
    ("inpaint", {"padding_mask_crop": 3}, "padding_mask_crop", ["output_type", "'np'", "PIL"]),
    (
        "inpaint",
        {"padding_mask_crop": 3, "output_type": "pil", "image": np.zeros((64, 64, 3), np.float32)},
        "padding_mask_crop",
        ["PIL", "fromarray"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "arguments", "parameter", "facts"),
    REFUSED,
    ids=[f"{case[0]}-{'-'.join(case[1]) or 'nothing'}-{row}" for row, case in enumerate(REFUSED)],
)
def test_refused(
    pipelines: dict[str, Any], task: str, arguments: dict[str, Any], parameter: str, facts: list[Any]
) -> None:
    inputs: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np"}
    if "text" not in task:
        inputs["image"] = PICTURE
    if task.startswith("inpaint"):
        inputs["mask_image"] = HOLE
    with refuses(parameter, *facts) as refusal:
        pipelines[task](**{**inputs, **arguments})
    assert isinstance(refusal.value, ValueError) and isinstance(refusal.value, RetouchError)


def test_given_twice_and_too_many(pipelines: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="multiple values for argument 'prompt'"):
        pipelines["text2image"]("a cat", prompt="a castle")
    with pytest.raises(TypeError, match="positional arguments"):
        pipelines["text2image"](*range(99))
    with pytest.raises(InputError, match="multiple values for argument 'prompt'"):
        pipelines["text2image"].start("a cat", prompt="a castle")


def test_a_unet_of_another_width(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["text2image"]
    config = copy.copy(pipeline.unet.config)
    object.__setattr__(config, "in_channels", 8)
    pipeline.unet = copy.copy(pipeline.unet)
    pipeline.unet.config = config
    with refuses("unet", 8, "4 (", "9 ("):
        pipeline("a cat")


def test_parts(pipelines: dict[str, Any]) -> None:
    parts = pipelines["text2image"].components
    with refuses("brush", "vae", "text_encoder"):
        retouch.StableDiffusionPipeline(**parts, brush=3)
    with refuses("unet", "unet, scheduler"):
        retouch.StableDiffusionPipeline(**{**parts, "unet": None, "scheduler": None})
    with refuses("vae", "nothing", "unet", "scheduler"):
        retouch.StableDiffusionPipeline()


def test_a_scheduler_that_is_none(pipelines: dict[str, Any]) -> None:
    pipelines["text2image"].scheduler = SimpleNamespace(config={})
    with refuses("scheduler", "set_timesteps, step, add_noise", "from_config"):
        pipelines["text2image"]("a cat")


def test_automatic_choice(pipelines: dict[str, Any], tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"only chooses a pipeline.*from_pretrained"):
        retouch.AutoPipelineForInpainting()
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with refuses("name", "FluxPipeline", "StableDiffusionPipeline", error=ConfigError):
        retouch.AutoPipelineForInpainting.from_pretrained(tmp_path)
    with refuses("brush", "vae"):
        retouch.AutoPipelineForInpainting.from_pretrained(tiny_sd, brush=3)


def test_a_safety_checker_that_is_not_there(pipelines: dict[str, Any], tiny_sd: Path) -> None:
    load_pipeline = retouch.StableDiffusionInpaintPipeline.from_pretrained
    with refuses("safety_checker", True):
        load_pipeline(tiny_sd, safety_checker=True)
    assert load_pipeline(tiny_sd, safety_checker=None).safety_checker is None


def test_saving_over_a_file_and_in_pickles(pipelines: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refuses("folder", tmp_path / "file"):
        pipelines["text2image"].save_pretrained(tmp_path / "file")
    with refuses("safe_serialization", False, "safetensors"):
        pipelines["text2image"].save_pretrained(tmp_path / "folder", safe_serialization=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_failure_in_saving_leaves_nothing(
    pipelines: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(type(pipelines["text2image"].scheduler), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk is full"):
        pipelines["text2image"].save_pretrained(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
