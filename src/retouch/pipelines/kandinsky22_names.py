"""Kandinsky 2.2's pipelines under the names that people know, with and without the prior."""

from __future__ import annotations

from retouch.pipelines.kandinsky22 import EmbedsRequest, Kandinsky22
from retouch.pipelines.kandinsky22_combined import CombinedRequest, Kandinsky22Combined
from retouch.pipelines.request import Task

_DEFAULTS = {"num_inference_steps": 100, "guidance_scale": 4.0}
_STEPS = ("num_inference_steps", "guidance_scale")
_LISTEN = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
_DRAWS = ("num_images_per_prompt", "generator", "latents", "output_type", "return_dict", *_LISTEN)
# What the reference lacks comes last.
_INPAINT_MORE = ("strength", "padding_mask_crop", "mask_mode")

TEXT_TO_IMAGE = Task(
    "text2image",
    ["image_embeds", "negative_image_embeds", "height", "width", *_STEPS, *_DRAWS],
    defaults=_DEFAULTS,
    required=["image_embeds"],
    request=EmbedsRequest,
)
IMAGE_TO_IMAGE = Task(
    "image2image",
    [
        *("image_embeds", "image", "negative_image_embeds", "height", "width", *_STEPS, "strength"),
        *("num_images_per_prompt", "generator", "output_type", "return_dict", *_LISTEN),
    ],
    defaults={**_DEFAULTS, "strength": 0.3},
    required=["image_embeds", "image"],
    request=EmbedsRequest,
)
INPAINT = Task(
    "inpaint",
    [
        *("image_embeds", "image", "mask_image", "negative_image_embeds", "height", "width", *_STEPS),
        *(*_DRAWS, *_INPAINT_MORE),
    ],
    defaults=_DEFAULTS,
    required=["image_embeds", "image", "mask_image"],
    request=EmbedsRequest,
)

_PRIOR = ("prior_guidance_scale", "prior_num_inference_steps", "generator", "latents")
_PRIOR_LISTEN = ("prior_callback_on_step_end", "prior_callback_on_step_end_tensor_inputs")
_SIZE = ("num_images_per_prompt", "height", "width")

COMBINED_TEXT_TO_IMAGE = Task(
    "text2image",
    [
        *("prompt", "negative_prompt", *_STEPS, *_SIZE, *_PRIOR),
        *("output_type", "return_dict", *_PRIOR_LISTEN, *_LISTEN),
    ],
    defaults=_DEFAULTS,
    required=["prompt"],
    request=CombinedRequest,
)
COMBINED_IMAGE_TO_IMAGE = Task(
    "image2image",
    [
        *("prompt", "image", "negative_prompt", *_STEPS, "strength", *_SIZE, *_PRIOR),
        *("output_type", "return_dict", *_PRIOR_LISTEN, *_LISTEN),
    ],
    defaults={**_DEFAULTS, "strength": 0.3},
    required=["prompt", "image"],
    request=CombinedRequest,
)
COMBINED_INPAINT = Task(
    "inpaint",
    [
        *("prompt", "image", "mask_image", "negative_prompt", *_STEPS, *_SIZE, *_PRIOR),
        *("output_type", "return_dict", *_PRIOR_LISTEN, *_LISTEN, *_INPAINT_MORE),
    ],
    defaults=_DEFAULTS,
    required=["prompt", "image", "mask_image"],
    request=CombinedRequest,
)


class KandinskyV22Pipeline(Kandinsky22):
    """Pictures from image embeddings."""

    task = TEXT_TO_IMAGE


class KandinskyV22Img2ImgPipeline(Kandinsky22):
    """Pictures from a picture and image embeddings."""

    task = IMAGE_TO_IMAGE


class KandinskyV22InpaintPipeline(Kandinsky22):
    """A picture with the masked part painted anew after image embeddings."""

    task = INPAINT


class KandinskyV22CombinedPipeline(Kandinsky22Combined):
    """Pictures from text."""

    task = COMBINED_TEXT_TO_IMAGE
    decoder = KandinskyV22Pipeline


class KandinskyV22Img2ImgCombinedPipeline(Kandinsky22Combined):
    """Pictures from a picture and text."""

    task = COMBINED_IMAGE_TO_IMAGE
    decoder = KandinskyV22Img2ImgPipeline


class KandinskyV22InpaintCombinedPipeline(Kandinsky22Combined):
    """A picture with the masked part painted anew after text."""

    task = COMBINED_INPAINT
    decoder = KandinskyV22InpaintPipeline
