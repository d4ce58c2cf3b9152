"""The signatures of the pipelines' calls: one for each family, with and without ControlNet.

`prompt, image, mask_image` may be given by position and everything else by keyword. The task of a pipeline
class says which of the arguments it needs and which it refuses. None for a number stands for the default of
the task.

`**unknown: Never` lets type checkers refuse unknown arguments, while at run time they are answered with a
hint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Generator, Tensor
from typing_extensions import Never

from retouch.adapters.controlnet import ControlArguments
from retouch.families.call import Call, documented
from retouch.families.kandinsky22 import CombinedArguments, Embeds, EmbedsArguments
from retouch.families.stable_diffusion_xl import XLArguments
from retouch.pipelines.outputs import PipelineOutput, PriorOutput
from retouch.pipelines.pipeline import Pipeline

Texts = str | Sequence[str] | None
Generators = Generator | Sequence[Generator] | None
Callback = Callable[..., Mapping[str, Any]] | None
Size = tuple[int, int]

_RETURNS = "Returns a PipelineOutput, whose `images` are the pictures."


@documented(f"Paint with Stable Diffusion 1.x or 2.x. {_RETURNS}", Call)
def stable_diffusion(
    self: Pipeline,
    prompt: Texts = None,
    image: Any = None,
    mask_image: Any = None,
    *,
    height: int | None = None,
    width: int | None = None,
    masked_image_latents: Tensor | None = None,
    padding_mask_crop: int | None = None,
    mask_mode: str = "soft",
    strength: float | None = None,
    num_inference_steps: int = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    negative_prompt: Texts = None,
    num_images_per_prompt: int = 1,
    eta: float = 0.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Sequence[Tensor] | None = None,
    clip_skip: int | None = None,
    prompt_syntax: str | None = None,
    cross_attention_kwargs: Mapping[str, Any] | None = None,
    tile_size: int | None = None,
    reuse_deep_features: int = 1,
    output_type: str = "pil",
    return_dict: bool = True,
    record: Any = None,
    callback_on_step_end: Callback = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    **unknown: Never,
) -> PipelineOutput:
    return self._called(locals())


@documented(f"Paint with Stable Diffusion and ControlNet. {_RETURNS}", Call, ControlArguments)
def stable_diffusion_controlnet(
    self: Pipeline,
    prompt: Texts = None,
    image: Any = None,
    mask_image: Any = None,
    *,
    control_image: Any = None,
    controlnet_conditioning_scale: float | Sequence[float] | None = None,
    guess_mode: bool = False,
    control_guidance_start: float | Sequence[float] = 0.0,
    control_guidance_end: float | Sequence[float] = 1.0,
    height: int | None = None,
    width: int | None = None,
    masked_image_latents: Tensor | None = None,
    padding_mask_crop: int | None = None,
    mask_mode: str = "soft",
    strength: float | None = None,
    num_inference_steps: int = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    negative_prompt: Texts = None,
    num_images_per_prompt: int = 1,
    eta: float = 0.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Sequence[Tensor] | None = None,
    clip_skip: int | None = None,
    prompt_syntax: str | None = None,
    cross_attention_kwargs: Mapping[str, Any] | None = None,
    tile_size: int | None = None,
    reuse_deep_features: int = 1,
    output_type: str = "pil",
    return_dict: bool = True,
    record: Any = None,
    callback_on_step_end: Callback = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    **unknown: Never,
) -> PipelineOutput:
    return self._called(locals())


@documented(f"Paint with Stable Diffusion XL. {_RETURNS}", Call, XLArguments)
def stable_diffusion_xl(
    self: Pipeline,
    prompt: Texts = None,
    image: Any = None,
    mask_image: Any = None,
    *,
    height: int | None = None,
    width: int | None = None,
    masked_image_latents: Tensor | None = None,
    padding_mask_crop: int | None = None,
    mask_mode: str = "soft",
    strength: float | None = None,
    num_inference_steps: int = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    prompt_2: Texts = None,
    negative_prompt: Texts = None,
    negative_prompt_2: Texts = None,
    num_images_per_prompt: int = 1,
    eta: float = 0.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    pooled_prompt_embeds: Tensor | None = None,
    negative_pooled_prompt_embeds: Tensor | None = None,
    original_size: Size | None = None,
    crops_coords_top_left: Size = (0, 0),
    target_size: Size | None = None,
    negative_original_size: Size | None = None,
    negative_crops_coords_top_left: Size | None = None,
    negative_target_size: Size | None = None,
    aesthetic_score: float = 6.0,
    negative_aesthetic_score: float = 2.5,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Sequence[Tensor] | None = None,
    clip_skip: int | None = None,
    prompt_syntax: str | None = None,
    cross_attention_kwargs: Mapping[str, Any] | None = None,
    tile_size: int | None = None,
    reuse_deep_features: int = 1,
    output_type: str = "pil",
    return_dict: bool = True,
    record: Any = None,
    callback_on_step_end: Callback = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    **unknown: Never,
) -> PipelineOutput:
    return self._called(locals())


@documented(f"Paint with Stable Diffusion XL and ControlNet. {_RETURNS}", Call, XLArguments, ControlArguments)
def stable_diffusion_xl_controlnet(
    self: Pipeline,
    prompt: Texts = None,
    image: Any = None,
    mask_image: Any = None,
    *,
    control_image: Any = None,
    controlnet_conditioning_scale: float | Sequence[float] | None = None,
    guess_mode: bool = False,
    control_guidance_start: float | Sequence[float] = 0.0,
    control_guidance_end: float | Sequence[float] = 1.0,
    height: int | None = None,
    width: int | None = None,
    masked_image_latents: Tensor | None = None,
    padding_mask_crop: int | None = None,
    mask_mode: str = "soft",
    strength: float | None = None,
    num_inference_steps: int = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    prompt_2: Texts = None,
    negative_prompt: Texts = None,
    negative_prompt_2: Texts = None,
    num_images_per_prompt: int = 1,
    eta: float = 0.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    pooled_prompt_embeds: Tensor | None = None,
    negative_pooled_prompt_embeds: Tensor | None = None,
    original_size: Size | None = None,
    crops_coords_top_left: Size = (0, 0),
    target_size: Size | None = None,
    negative_original_size: Size | None = None,
    negative_crops_coords_top_left: Size | None = None,
    negative_target_size: Size | None = None,
    aesthetic_score: float = 6.0,
    negative_aesthetic_score: float = 2.5,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Sequence[Tensor] | None = None,
    clip_skip: int | None = None,
    prompt_syntax: str | None = None,
    cross_attention_kwargs: Mapping[str, Any] | None = None,
    tile_size: int | None = None,
    reuse_deep_features: int = 1,
    output_type: str = "pil",
    return_dict: bool = True,
    record: Any = None,
    callback_on_step_end: Callback = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    **unknown: Never,
) -> PipelineOutput:
    return self._called(locals())


@documented(f"Paint image embeddings with Kandinsky 2.2. {_RETURNS}", Call, EmbedsArguments)
def kandinsky22_decoder(
    self: Pipeline,
    image_embeds: Embeds | None = None,
    image: Any = None,
    mask_image: Any = None,
    *,
    negative_image_embeds: Embeds | None = None,
    height: int | None = None,
    width: int | None = None,
    padding_mask_crop: int | None = None,
    mask_mode: str = "soft",
    strength: float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    num_images_per_prompt: int = 1,
    generator: Generators = None,
    latents: Tensor | None = None,
    tile_size: int | None = None,
    reuse_deep_features: int = 1,
    output_type: str = "pil",
    return_dict: bool = True,
    record: Any = None,
    callback_on_step_end: Callback = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    **unknown: Never,
) -> PipelineOutput:
    return self._called(locals())


@documented(f"Paint with Kandinsky 2.2 and its prior. {_RETURNS}", Call, CombinedArguments)
def kandinsky22_combined(
    self: Pipeline,
    prompt: Texts = None,
    image: Any = None,
    mask_image: Any = None,
    *,
    negative_prompt: Texts = None,
    height: int | None = None,
    width: int | None = None,
    padding_mask_crop: int | None = None,
    mask_mode: str = "soft",
    strength: float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    num_images_per_prompt: int = 1,
    generator: Generators = None,
    latents: Tensor | None = None,
    prior_guidance_scale: float = 4.0,
    prior_num_inference_steps: int = 25,
    prior_callback_on_step_end: Callback = None,
    prior_callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    tile_size: int | None = None,
    reuse_deep_features: int = 1,
    output_type: str = "pil",
    return_dict: bool = True,
    record: Any = None,
    callback_on_step_end: Callback = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    **unknown: Never,
) -> PipelineOutput:
    return self._called(locals())


@documented("Make image embeddings from prompts. Returns a PriorOutput.", Call)
def kandinsky22_prior(
    self: Pipeline,
    prompt: Texts = None,
    negative_prompt: Texts = None,
    num_images_per_prompt: int = 1,
    num_inference_steps: int | None = None,
    generator: Generators = None,
    latents: Tensor | None = None,
    guidance_scale: float | None = None,
    output_type: str = "pt",
    return_dict: bool = True,
    callback_on_step_end: Callback = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    **unknown: Never,
) -> PriorOutput:
    return self._called(locals())
