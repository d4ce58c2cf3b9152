"""The pipelines under the names that people know: a task, its arguments in the familiar order, a family."""

from __future__ import annotations

from typing import ClassVar

from retouch.pipelines.request import Task
from retouch.pipelines.stable_diffusion import StableDiffusion

_SCHEDULE = ("num_inference_steps", "timesteps", "sigmas", "guidance_scale", "negative_prompt")
_DRAWS = ("num_images_per_prompt", "eta", "generator")
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_OUTPUT = ("output_type", "return_dict")
_LISTEN = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")

TEXT_TO_IMAGE = Task(
    "text2image",
    [
        *("prompt", "height", "width", *_SCHEDULE, *_DRAWS, "latents", *_EMBEDS, *_OUTPUT),
        *("guidance_rescale", "clip_skip", *_LISTEN),
    ],
)
IMAGE_TO_IMAGE = Task(
    "image2image",
    [
        *("prompt", "image", "strength", *_SCHEDULE, *_DRAWS, *_EMBEDS, *_OUTPUT, "clip_skip", *_LISTEN),
        "guidance_rescale",
    ],
    defaults={"strength": 0.8},
    required=["image"],
)
INPAINT = Task(
    "inpaint",
    [
        *("prompt", "image", "mask_image", "masked_image_latents", "height", "width"),
        *("padding_mask_crop", "strength", *_SCHEDULE, *_DRAWS, "latents", *_EMBEDS, *_OUTPUT),
        *("clip_skip", *_LISTEN, "guidance_rescale", "mask_mode"),
    ],
    required=["image", "mask_image"],
)


class StableDiffusionPipeline(StableDiffusion):
    """Pictures from text."""

    task = TEXT_TO_IMAGE
    scheduler_repairs: ClassVar = {"steps_offset": 1, "clip_sample": False}


class StableDiffusionImg2ImgPipeline(StableDiffusion):
    """Pictures from a picture and text."""

    task = IMAGE_TO_IMAGE
    scheduler_repairs: ClassVar = {"steps_offset": 1, "clip_sample": False}


class StableDiffusionInpaintPipeline(StableDiffusion):
    """A picture with the masked part painted anew, by a regular or an inpainting checkpoint."""

    task = INPAINT
    scheduler_repairs: ClassVar = {"steps_offset": 1, "skip_prk_steps": True}
