"""What a call cannot do is refused before anything is computed, in words that say what to do instead."""

from __future__ import annotations

import copy
import re
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


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("inpaint", {"mask_img": HOLE}, "inpaint has no argument 'mask_img'. Did you mean mask_image?"),
    ("text2image", {"guidance": 3}, "Did you mean guidance_scale?"),
    ("text2image", {"callback": print}, "Did you mean callback_on_step_end?"),
    *(
        ("text2image", {"tile_size": side}, "tile_size=.* is not a whole number of 8 or more")
        for side in (0, -8, 40.0, "64", True)
    ),
    ("text2image", {"watermark": True}, "no argument 'watermark'. It takes p"),
    ("text2image", {"cross_attention_kwargs": {"gligen": {}}}, "gligen.*scale"),
    ("inpaint", {"cross_attention_kwargs": {"scale": "strong"}}, "'strong'.*number"),
    ("image2image", {"mask_image": HOLE}, "mask_image was given.*image2image"),
    ("text2image", {"image": PICTURE}, "image was given.*text2image"),
    ("text2image", {"strength": 0.5}, "strength was given.*text2image"),
    ("text2image9", {}, "inpainting checkpoint.*9 channels.*AutoPipelineForInpainting.*text2image"),
    ("image2image9", {}, "inpainting checkpoint.*9 channels.*AutoPipelineForInpainting.*image2image"),
    # Prompts
    ("text2image", {"prompt": None}, "Neither prompt nor prompt_embeds.*prompt=\"\""),
    ("text2image", {"prompt": []}, r"prompt is \[\].*string.*list"),
    ("text2image", {"prompt": ["a", 3]}, "'a', 3.*string.*list"),
    ("text2image", {"prompt_embeds": states(1)}, "Both prompt and prompt_embeds.*Give one"),
    (
        "text2image",
        {"negative_prompt": "a", "negative_prompt_embeds": states(1)},
        "Both negative_prompt and negative_prompt_embeds",
    ),
    ("text2image", {"prompt": ["a", "b"], "negative_prompt": ["c"]}, "1 entries for 2 prompts"),
    ("text2image", {"prompt": None, "prompt_embeds": states(1)[0]}, r"prompt_embeds is of shape \(77, 32\)"),
    ("text2image", {"negative_prompt_embeds": [1]}, "negative_prompt_embeds is .*list.*tensor"),
    ("text2image", {"prompt": None, "prompt_embeds": states(1, width=16)}, "width 16.*width 32"),
    ("text2image", {"prompt": None, "prompt_embeds": states(1, 154)}, "154 tokens.*reads 77.*Give negative"),
    (
        "text2image",
        {"prompt": None, "prompt_embeds": states(1), "negative_prompt_embeds": states(1, 80)},
        r"\(1, 77, 32\).*\(1, 80, 32\).*must match",
    ),
    ("text2image", {"negative_prompt_embeds": states(1, 154)}, r"\(1, 154, 32\).*\(1, 77, 32\).*Pad"),
    ("text2image", {"prompt": ["a", "b", "c"], "negative_prompt_embeds": states(2)}, "one row for all"),
    ("text2image", {"clip_skip": 20}, "20 layers before the last.*3 layers.*clip_skip"),
    # Numbers
    ("text2image", {"height": 60}, "height=60 is not a multiple of 8. The nearest is 64."),
    ("text2image", {"width": 64.0}, "width=64.0 is not a whole number"),
    ("text2image", {"height": 0}, "height=0 is not a whole number of 8 or more"),
    ("text2image", {"num_inference_steps": 0}, "num_inference_steps=0 is not a whole number of 1"),
    ("text2image", {"num_inference_steps": 2.0}, "num_inference_steps=2.0"),
    ("text2image", {"num_inference_steps": True}, "num_inference_steps=True"),
    ("text2image", {"num_inference_steps": 1001}, "1001.*1000"),
    ("text2image", {"num_images_per_prompt": 0}, "num_images_per_prompt=0"),
    ("text2image", {"clip_skip": -1}, "clip_skip=-1"),
    ("text2image", {"guidance_scale": float("nan")}, "guidance_scale=nan is not a finite number"),
    ("text2image", {"eta": "0"}, "eta='0' is not a finite number"),
    ("inpaint", {"padding_mask_crop": -3, "output_type": "pil"}, "padding_mask_crop=-3"),
    ("image2image", {"strength": 1.5}, "strength=1.5 is outside 0 to 1"),
    ("image2image", {"strength": "all"}, "strength='all' is not a finite number"),
    ("image2image", {"strength": 0}, "strength=0 leaves none of the 2 steps.*use strength=0.5 or more.$"),
    ("inpaint", {"strength": 0.2}, "strength=0.2 leaves none.*strength=0.5 or more, or 5 steps"),
    ("text2image", {"timesteps": [9], "sigmas": [1.0, 0.0]}, "Both timesteps and sigmas"),
    ("text2image", {"timesteps": [9]}, "does not take custom timesteps. Those that do: .*Euler"),
    ("text2image", {"output_type": "jpeg"}, "output_type='jpeg'.*'pil', 'np', 'pt' and 'latent'"),
    ("inpaint", {"mask_mode": "hard"}, "mask_mode='hard'.*'soft' and 'binary'"),
    # Randomness
    ("text2image", {"generator": 3}, r"generator is 3.*torch.Generator\(\).manual_seed\(seed\)"),
    ("text2image", {"generator": [3]}, "generator is 3"),
    ("text2image", {"prompt": ["a", "b"], "generator": [generators(1)]}, "1 generators.*2 pictures"),
    ("text2image", {"latents": torch.randn(1, 4, 16, 16)}, r"latents.*\(1, 4, 16, 16\).*\(1, 4, 8, 8\)"),
    ("inpaint9", {"masked_image_latents": torch.randn(2, 4, 8, 8)}, r"masked_image_latents.*\(2, 4, 8, 8\)"),
    # Callbacks
    ("text2image", {"callback_on_step_end": 3}, "callback_on_step_end is a int.*function"),
    ("text2image", {"callback_on_step_end_tensor_inputs": ["x"]}, "names x.*can get latents"),
    ("text2image", {"callback_on_step_end": CALLBACK}, "names add_text_embeds, add_time_ids"),
    # Pictures
    ("image2image", {"image": None}, "image2image needs image"),
    ("image2image", {"image": "a.png"}, "image is a str.*load_image"),
    ("image2image", {"image": []}, "empty list"),
    ("image2image", {"image": SEE_THROUGH}, r"alpha channel.*composite|alpha channel.*Composite"),
    ("image2image", {"image": np.zeros((64, 64, 4), np.float32)}, r"alpha channel.*image\[\.\.\., :3\]"),
    ("image2image", {"image": torch.rand(1, 4, 64, 64)}, r"alpha channel.*image\[:3\]"),
    ("image2image", {"image": torch.rand(2, 64, 64)}, r"shape \(2, 64, 64\).*\(3, height, width\).*latents"),
    ("image2image", {"image": torch.full((3, 64, 64), float("nan"))}, "NaN or infinite"),
    ("image2image", {"image": np.full((64, 64, 3), 200.0)}, "from 200 to 200.*Divide them by 255"),
    ("image2image", {"image": [photo(), photo(0, 72, 64)]}, "different sizes \\(64x64, 72x64\\).*one size"),
    ("image2image", {"image": [torch.randn(4, 8, 8), torch.rand(3, 64, 64)]}, "latents and some are pixels"),
    ("inpaint", {"image": torch.randn(1, 4, 8, 8), "height": 72, "width": 64}, "64x64 picture.*64x72"),
    ("inpaint", {"image": [PICTURE] * 3, "prompt": ["a", "b"]}, "2 prompts do not fit a batch of 3"),
    ("inpaint", {"mask_image": [HOLE] * 3, "prompt": ["a", "b"]}, "2 prompts do not fit a batch of 3"),
    # Masks
    ("inpaint", {"mask_image": None}, "inpaint needs mask_image"),
    ("inpaint", {"mask_image": []}, "mask_image is an empty list"),
    ("inpaint", {"mask_image": SEE_THROUGH}, r"mask_image has an alpha channel.*getchannel\(\"A\"\)"),
    ("inpaint", {"mask_image": mask(width=64, height=32)}, r"is 64x32 but image is 64x64.*mask.resize"),
    ("inpaint", {"mask_image": np.full((64, 64), 255.0)}, "mask_image.*Divide them by 255"),
    ("inpaint", {"mask_image": -np.ones((64, 64))}, "mask_image.*from -1 to -1"),
    ("inpaint", {"image": [PICTURE] * 3, "mask_image": [HOLE] * 2}, "2 masks were given for 3 pictures"),
    ("inpaint", {"padding_mask_crop": 3}, "padding_mask_crop.*returns PIL.*output_type='np'"),
    (
        "inpaint",
        {"padding_mask_crop": 3, "output_type": "pil", "image": np.zeros((64, 64, 3), np.float32)},
        "padding_mask_crop needs PIL.*fromarray",
    ),
]  # fmt: skip


# Where the fault is in another argument than those of the case, which is missing or does not fit.
CAUSES: dict[tuple[str, ...], dict[str, Any]] = {
    ("text2image9",): {"mask_image": None},
    ("image2image9",): {"mask_image": None},
}


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    REFUSED,
    ids=[
        f"{task}-{'-'.join(arguments) or 'nothing'}-{row}" for row, (task, arguments, _) in enumerate(REFUSED)
    ],
)
def test_refused(pipelines: dict[str, Any], task: str, arguments: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np"}
    if "text" not in task:
        inputs["image"] = PICTURE
    if task.startswith("inpaint"):
        inputs["mask_image"] = HOLE
    with pytest.raises(InputError) as refusal:
        pipelines[task](**{**inputs, **arguments})
    assert re.search(message, str(refusal.value), re.DOTALL), refusal.value
    assert isinstance(refusal.value, ValueError) and isinstance(refusal.value, RetouchError)
    # The error names the argument at fault: one of those that are wrong or missing here.
    names = {**arguments, **CAUSES.get((task, *arguments), {})}
    assert refusal.value.parameter in names, refusal.value.parameter


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
    with pytest.raises(InputError, match=r"takes 8 input channels.*4 \(a regular.*9 \(an inpainting"):
        pipeline("a cat")


def test_parts(pipelines: dict[str, Any]) -> None:
    parts = pipelines["text2image"].components
    with pytest.raises(InputError, match=r"does not know brush.*Its parts are vae, text_encoder"):
        retouch.StableDiffusionPipeline(**parts, brush=3)
    with pytest.raises(InputError, match="lacks unet, scheduler"):
        retouch.StableDiffusionPipeline(**{**parts, "unet": None, "scheduler": None})
    with pytest.raises(InputError, match=r"was given nothing; it lacks"):
        retouch.StableDiffusionPipeline()


def test_a_scheduler_that_is_none(pipelines: dict[str, Any]) -> None:
    pipelines["text2image"].scheduler = SimpleNamespace(config={})
    with pytest.raises(InputError, match=r"without set_timesteps, step, add_noise.*from_config"):
        pipelines["text2image"]("a cat")


def test_automatic_choice(pipelines: dict[str, Any], tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"only chooses a pipeline.*from_pretrained"):
        retouch.AutoPipelineForInpainting()
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ConfigError, match=r"is a FluxPipeline.*Known families: StableDiffusionPipeline"):
        retouch.AutoPipelineForInpainting.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cannot be made with brush.*parts vae"):
        retouch.AutoPipelineForInpainting.from_pretrained(tiny_sd, brush=3)


def test_a_safety_checker_that_is_not_there(pipelines: dict[str, Any], tiny_sd: Path) -> None:
    load_pipeline = retouch.StableDiffusionInpaintPipeline.from_pretrained
    with pytest.raises(InputError, match=r"safety_checker=True.*this checkpoint has none.*leave it out"):
        load_pipeline(tiny_sd, safety_checker=True)
    assert load_pipeline(tiny_sd, safety_checker=None).safety_checker is None


def test_saving_over_a_file_and_in_pickles(pipelines: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"is a file.*folder"):
        pipelines["text2image"].save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match=r"pickled weights.*Only safetensors"):
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
