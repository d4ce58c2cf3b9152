"""The pipelines with a ControlNet under the names that people know: `Controlled` before each family."""

from __future__ import annotations

from dataclasses import dataclass

from retouch.pipelines.control import Controlled, ControlRequest
from retouch.pipelines.request import Task
from retouch.pipelines.stable_diffusion import StableDiffusion
from retouch.pipelines.stable_diffusion_xl import StableDiffusionXL, XLRequest


@dataclass(frozen=True)
class XLControlRequest(ControlRequest, XLRequest):
    """The inputs of both."""


_GUIDED = ("guidance_scale", "negative_prompt")
_DRAWS = ("num_images_per_prompt", "eta", "generator", "latents")
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_IMAGES = ("ip_adapter_image", "ip_adapter_image_embeds")
_POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_CUSTOM = ("timesteps", "sigmas")
_OUTPUT = (*_IMAGES, "output_type", "return_dict", "cross_attention_kwargs")
_CONTROL = (
    *("controlnet_conditioning_scale", "guess_mode"),
    *("control_guidance_start", "control_guidance_end"),
)
_LISTEN = ("clip_skip", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "prompt_syntax")

# Arguments that the reference's pipelines of the task lack, but not those without a ControlNet, come last.
TEXT_TO_IMAGE = Task(
    "text2image",
    [
        *("prompt", "image", "height", "width", "num_inference_steps", *_CUSTOM, *_GUIDED, *_DRAWS),
        *(*_EMBEDS, *_OUTPUT, *_CONTROL, *_LISTEN, "guidance_rescale"),
    ],
    required=["image"],
    request=ControlRequest,
    renamed={"image": "control_image"},
)
IMAGE_TO_IMAGE = Task(
    "image2image",
    [
        *("prompt", "image", "control_image", "height", "width", "strength", "num_inference_steps"),
        *(*_GUIDED, *_DRAWS, *_EMBEDS, *_OUTPUT, *_CONTROL, *_LISTEN, *_CUSTOM, "guidance_rescale"),
    ],
    defaults={"strength": 0.8, "controlnet_conditioning_scale": 0.8},
    required=["image", "control_image"],
    request=ControlRequest,
)
INPAINT = Task(
    "inpaint",
    [
        *("prompt", "image", "mask_image", "control_image", "height", "width", "padding_mask_crop"),
        *("strength", "num_inference_steps", *_GUIDED, *_DRAWS, *_EMBEDS, *_OUTPUT, *_CONTROL, *_LISTEN),
        *(*_CUSTOM, "guidance_rescale", "masked_image_latents", "mask_mode"),
    ],
    defaults={"controlnet_conditioning_scale": 0.5},
    required=["image", "mask_image", "control_image"],
    request=ControlRequest,
)

_XL_GUIDED = (*_GUIDED, "negative_prompt_2")
_XL_SIZES = ("original_size", "crops_coords_top_left", "target_size")
_XL_NEGATIVE_SIZES = (*("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"),)
_XL_SCORES = ("aesthetic_score", "negative_aesthetic_score")

XL_TEXT_TO_IMAGE = Task(
    "text2image",
    [
        *("prompt", "prompt_2", "image", "height", "width", "num_inference_steps", *_CUSTOM),
        *("denoising_end", *_XL_GUIDED, *_DRAWS, *_EMBEDS, *_POOLED, *_OUTPUT, *_CONTROL),
        *(*_XL_SIZES, *_XL_NEGATIVE_SIZES, *_LISTEN, "guidance_rescale"),
    ],
    defaults={"guidance_scale": 5.0},
    required=["image"],
    request=XLControlRequest,
    renamed={"image": "control_image"},
)
XL_IMAGE_TO_IMAGE = Task(
    "image2image",
    [
        *("prompt", "prompt_2", "image", "control_image", "height", "width", "strength"),
        *("num_inference_steps", *_XL_GUIDED, *_DRAWS, *_EMBEDS, *_POOLED, *_OUTPUT, *_CONTROL),
        *(*_XL_SIZES, *_XL_NEGATIVE_SIZES, *_XL_SCORES, *_LISTEN, *_CUSTOM),
        *("denoising_start", "denoising_end", "guidance_rescale"),
    ],
    defaults={"strength": 0.8, "guidance_scale": 5.0, "controlnet_conditioning_scale": 0.8},
    required=["image", "control_image"],
    request=XLControlRequest,
)
XL_INPAINT = Task(
    "inpaint",
    [
        *("prompt", "prompt_2", "image", "mask_image", "control_image", "height", "width"),
        *("padding_mask_crop", "strength", "num_inference_steps", "denoising_start", "denoising_end"),
        *(*_XL_GUIDED, *_DRAWS, *_EMBEDS, *_IMAGES, *_POOLED, *_OUTPUT[2:], *_CONTROL),
        *("guidance_rescale", *_XL_SIZES),
        *(*_XL_SCORES, *_LISTEN, *_CUSTOM, *_XL_NEGATIVE_SIZES, "masked_image_latents", "mask_mode"),
    ],
    defaults={"strength": 0.9999, "guidance_scale": 5.0},
    required=["image", "mask_image", "control_image"],
    request=XLControlRequest,
)


class StableDiffusionControlNetPipeline(Controlled, StableDiffusion):
    """Pictures from text and a control picture, which is called `image` here."""

    task = TEXT_TO_IMAGE
    control_argument = "image"


class StableDiffusionControlNetImg2ImgPipeline(Controlled, StableDiffusion):
    """Pictures from a picture, text and a control picture."""

    task = IMAGE_TO_IMAGE


class StableDiffusionControlNetInpaintPipeline(Controlled, StableDiffusion):
    """A picture with the masked part painted anew, as a control picture wants it."""

    task = INPAINT


class StableDiffusionXLControlNetPipeline(Controlled, StableDiffusionXL):
    """Pictures from text and a control picture, which is called `image` here."""

    task = XL_TEXT_TO_IMAGE
    control_argument = "image"


class StableDiffusionXLControlNetImg2ImgPipeline(Controlled, StableDiffusionXL):
    """Pictures from a picture, text and a control picture."""

    task = XL_IMAGE_TO_IMAGE


class StableDiffusionXLControlNetInpaintPipeline(Controlled, StableDiffusionXL):
    """A picture with the masked part painted anew, as a control picture wants it."""

    task = XL_INPAINT
