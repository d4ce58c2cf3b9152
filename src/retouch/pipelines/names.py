"""The pipelines under the names that people know: a task, its arguments in the familiar order, a family."""

from __future__ import annotations

from typing import ClassVar

from retouch.errors import InputError
from retouch.pipelines.request import Request, Task
from retouch.pipelines.stable_diffusion import StableDiffusion
from retouch.pipelines.stable_diffusion_xl import StableDiffusionXL, XLRequest
from retouch.sampling.region import SimpleRegion

_SCHEDULE = ("num_inference_steps", "timesteps", "sigmas", "guidance_scale", "negative_prompt")
_DRAWS = ("num_images_per_prompt", "eta", "generator")
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_IMAGES = ("ip_adapter_image", "ip_adapter_image_embeds")
_OUTPUT = (*_IMAGES, "output_type", "return_dict", "cross_attention_kwargs")
_LISTEN = ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "prompt_syntax")

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
SIMPLE_INPAINT = Task(
    "image2image",
    ["prompt", "image", "mask_image", *IMAGE_TO_IMAGE.arguments[2:]],
    defaults=IMAGE_TO_IMAGE.defaults,
    required=["image", "mask_image"],
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

_XL_STAGE = ("num_inference_steps", "timesteps", "sigmas")
_XL_NEGATIVE = ("guidance_scale", "negative_prompt", "negative_prompt_2")
_XL_TEXT = ("latents", *_EMBEDS, "pooled_prompt_embeds", "negative_pooled_prompt_embeds", *_OUTPUT)
_XL_SIZES = (
    *("guidance_rescale", "original_size", "crops_coords_top_left", "target_size"),
    *("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"),
)
_XL_SCORES = ("aesthetic_score", "negative_aesthetic_score")
_XL_WINDOW = ("denoising_start", "denoising_end")

XL_TEXT_TO_IMAGE = Task(
    "text2image",
    [
        *("prompt", "prompt_2", "height", "width", *_XL_STAGE, "denoising_end", *_XL_NEGATIVE, *_DRAWS),
        *(*_XL_TEXT, *_XL_SIZES, "clip_skip", *_LISTEN),
    ],
    defaults={"guidance_scale": 5.0},
    request=XLRequest,
)
XL_IMAGE_TO_IMAGE = Task(
    "image2image",
    [
        *("prompt", "prompt_2", "image", "strength", *_XL_STAGE, *_XL_WINDOW, *_XL_NEGATIVE, *_DRAWS),
        *(*_XL_TEXT, *_XL_SIZES, *_XL_SCORES, "clip_skip", *_LISTEN),
    ],
    defaults={"strength": 0.3, "guidance_scale": 5.0},
    required=["image"],
    request=XLRequest,
)
XL_INPAINT = Task(
    "inpaint",
    [
        *("prompt", "prompt_2", "image", "mask_image", "masked_image_latents", "height", "width"),
        *("padding_mask_crop", "strength", *_XL_STAGE, *_XL_WINDOW, *_XL_NEGATIVE, *_DRAWS),
        *(*_XL_TEXT, *_XL_SIZES, *_XL_SCORES, "clip_skip", *_LISTEN, "mask_mode"),
    ],
    defaults={"strength": 0.9999},
    required=["image", "mask_image"],
    request=XLRequest,
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


class StableDiffusionSimpleInpaintingPipeline(StableDiffusionImg2ImgPipeline):
    """The simplest inpainting with any regular checkpoint: image2image, and after every step the original's
    noised latents outside the mask. To understand inpainting; StableDiffusionInpaintPipeline does it better.
    """

    task = SIMPLE_INPAINT
    region_class = SimpleRegion

    def check(self, request: Request) -> None:
        super().check(request)
        if self.joins_mask:
            raise InputError(
                "This is an inpainting checkpoint, which sees the mask itself. The simple algorithm is for "
                "regular "
                "ones; use StableDiffusionInpaintPipeline, or load a regular checkpoint."
            )


class StableDiffusionXLPipeline(StableDiffusionXL):
    """Pictures from text."""

    task = XL_TEXT_TO_IMAGE


class StableDiffusionXLImg2ImgPipeline(StableDiffusionXL):
    """Pictures from a picture and text; with the refiner, the finish of a picture."""

    task = XL_IMAGE_TO_IMAGE


class StableDiffusionXLInpaintPipeline(StableDiffusionXL):
    """A picture with the masked part painted anew, by a regular or an inpainting checkpoint."""

    task = XL_INPAINT
