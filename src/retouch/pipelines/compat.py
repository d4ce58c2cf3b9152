"""The pipeline classes under the names that people know from diffusers: a family, a task and a signature
each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retouch.adapters import ip_adapter, lora, textual_inversion
from retouch.adapters.controlnet import ControlNetUse
from retouch.errors import InputError
from retouch.families import stable_diffusion, stable_diffusion_xl
from retouch.families.call import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE, Task
from retouch.families.kandinsky22 import KANDINSKY_22_DECODER
from retouch.families.stable_diffusion import STABLE_DIFFUSION
from retouch.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from retouch.pipelines import signatures
from retouch.pipelines.inputs import Cache
from retouch.pipelines.kandinsky22 import MOVQ_AS_VAE, Kandinsky22Combined, KandinskyV22PriorPipeline
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.run import Run
from retouch.sampling.region import SimpleRegion

__all__ = [
    "KandinskyV22CombinedPipeline",
    "KandinskyV22Img2ImgCombinedPipeline",
    "KandinskyV22Img2ImgPipeline",
    "KandinskyV22InpaintCombinedPipeline",
    "KandinskyV22InpaintPipeline",
    "KandinskyV22Pipeline",
    "KandinskyV22PriorPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionSimpleInpaintingPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
]

SIMPLE_INPAINT = Task(
    "image2image",
    needs=("image", "mask_image"),
    refuses=("masked_image_latents", "padding_mask_crop"),
    defaults={"strength": 0.8},
)
XL_TEXT_TO_IMAGE = TEXT_TO_IMAGE.refusing("denoising_start")
_KANDINSKY = {"num_inference_steps": 100, "guidance_scale": 4.0}


class AdaptedPipeline(Pipeline):
    """Base of the Stable Diffusion pipelines, with the calls for LoRA, textual inversion and IP-Adapter."""

    load_lora_weights = lora.load_lora_weights
    set_adapters = lora.set_adapters
    get_active_adapters = lora.get_active_adapters
    get_list_adapters = lora.get_list_adapters
    delete_adapters = lora.delete_adapters
    unload_lora_weights = lora.unload_lora_weights
    disable_lora = lora.disable_lora
    enable_lora = lora.enable_lora
    fuse_lora = lora.fuse_lora
    unfuse_lora = lora.unfuse_lora
    fused_loras = property(lora.fused_loras)
    num_fused_loras = property(lora.num_fused_loras)

    load_textual_inversion = textual_inversion.load_textual_inversion
    unload_textual_inversion = textual_inversion.unload_textual_inversion
    maybe_convert_prompt = textual_inversion.maybe_convert_prompt

    load_ip_adapter = ip_adapter.load_ip_adapter
    set_ip_adapter_scale = ip_adapter.set_ip_adapter_scale
    unload_ip_adapter = ip_adapter.unload_ip_adapter
    encode_image = ip_adapter.encode_image
    prepare_ip_adapter_image_embeds = ip_adapter.prepare_ip_adapter_image_embeds
    num_ip_adapters = property(ip_adapter.num_ip_adapters)


class StableDiffusionPipeline(AdaptedPipeline):
    """Pictures from text."""

    family, task = STABLE_DIFFUSION, TEXT_TO_IMAGE
    __call__ = signatures.stable_diffusion
    encode_prompt = stable_diffusion.encode_prompt


class StableDiffusionImg2ImgPipeline(AdaptedPipeline):
    """Pictures from a picture and text."""

    family, task = STABLE_DIFFUSION, IMAGE_TO_IMAGE
    __call__ = signatures.stable_diffusion
    encode_prompt = stable_diffusion.encode_prompt


class StableDiffusionInpaintPipeline(AdaptedPipeline):
    """A picture with the masked part repainted, by a regular or an inpainting checkpoint."""

    family, task = STABLE_DIFFUSION, INPAINT
    __call__ = signatures.stable_diffusion
    encode_prompt = stable_diffusion.encode_prompt


class StableDiffusionSimpleInpaintingPipeline(AdaptedPipeline):
    """The simplest inpainting with any regular checkpoint, to understand the idea.

    It is image2image in which the original's noised latents come back outside the mask after every step.
    StableDiffusionInpaintPipeline does it better.
    """

    family, task = STABLE_DIFFUSION, SIMPLE_INPAINT
    region_class = SimpleRegion
    __call__ = signatures.stable_diffusion
    encode_prompt = stable_diffusion.encode_prompt

    def _run(self, arguments: Mapping[str, Any], cache: Cache | None = None) -> Run:
        if self.joins_mask:
            raise InputError(
                "This is an inpainting checkpoint, which sees the mask itself. The simple algorithm is for "
                "regular ones; use StableDiffusionInpaintPipeline, or load a regular checkpoint.",
                parameter="unet",
            )
        return super()._run(arguments, cache)


class StableDiffusionXLPipeline(AdaptedPipeline):
    """Pictures from text."""

    family = STABLE_DIFFUSION_XL
    task = XL_TEXT_TO_IMAGE.with_defaults(guidance_scale=5.0)
    __call__ = signatures.stable_diffusion_xl
    encode_prompt = stable_diffusion_xl.encode_prompt


class StableDiffusionXLImg2ImgPipeline(AdaptedPipeline):
    """Pictures from a picture and text; with the refiner, the finish of a picture."""

    family, task = STABLE_DIFFUSION_XL, IMAGE_TO_IMAGE.with_defaults(strength=0.3, guidance_scale=5.0)
    __call__ = signatures.stable_diffusion_xl
    encode_prompt = stable_diffusion_xl.encode_prompt


class StableDiffusionXLInpaintPipeline(AdaptedPipeline):
    """A picture with the masked part repainted, by a regular or an inpainting checkpoint."""

    family, task = STABLE_DIFFUSION_XL, INPAINT.with_defaults(strength=0.9999)
    __call__ = signatures.stable_diffusion_xl
    encode_prompt = stable_diffusion_xl.encode_prompt


class StableDiffusionControlNetPipeline(AdaptedPipeline):
    """Pictures from text and a control picture, which is called `image` here."""

    family, task = STABLE_DIFFUSION, TEXT_TO_IMAGE.needing("image")
    controlnet_use = ControlNetUse("image")
    __call__ = signatures.stable_diffusion_controlnet
    encode_prompt = stable_diffusion.encode_prompt


class StableDiffusionControlNetImg2ImgPipeline(AdaptedPipeline):
    """Pictures from a picture, text and a control picture."""

    family = STABLE_DIFFUSION
    task = IMAGE_TO_IMAGE.needing("control_image").with_defaults(controlnet_conditioning_scale=0.8)
    controlnet_use = ControlNetUse()
    __call__ = signatures.stable_diffusion_controlnet
    encode_prompt = stable_diffusion.encode_prompt


class StableDiffusionControlNetInpaintPipeline(AdaptedPipeline):
    """A picture with the masked part repainted to fit a control picture."""

    family = STABLE_DIFFUSION
    task = INPAINT.needing("control_image").with_defaults(controlnet_conditioning_scale=0.5)
    controlnet_use = ControlNetUse()
    __call__ = signatures.stable_diffusion_controlnet
    encode_prompt = stable_diffusion.encode_prompt


class StableDiffusionXLControlNetPipeline(AdaptedPipeline):
    """Pictures from text and a control picture, which is called `image` here."""

    family = STABLE_DIFFUSION_XL
    task = XL_TEXT_TO_IMAGE.needing("image").with_defaults(guidance_scale=5.0)
    controlnet_use = ControlNetUse("image")
    __call__ = signatures.stable_diffusion_xl_controlnet
    encode_prompt = stable_diffusion_xl.encode_prompt


class StableDiffusionXLControlNetImg2ImgPipeline(AdaptedPipeline):
    """Pictures from a picture, text and a control picture."""

    family = STABLE_DIFFUSION_XL
    task = IMAGE_TO_IMAGE.needing("control_image").with_defaults(
        strength=0.8, guidance_scale=5.0, controlnet_conditioning_scale=0.8
    )
    controlnet_use = ControlNetUse()
    __call__ = signatures.stable_diffusion_xl_controlnet
    encode_prompt = stable_diffusion_xl.encode_prompt


class StableDiffusionXLControlNetInpaintPipeline(AdaptedPipeline):
    """A picture with the masked part repainted to fit a control picture."""

    family = STABLE_DIFFUSION_XL
    task = INPAINT.needing("control_image").with_defaults(strength=0.9999, guidance_scale=5.0)
    controlnet_use = ControlNetUse()
    __call__ = signatures.stable_diffusion_xl_controlnet
    encode_prompt = stable_diffusion_xl.encode_prompt


class KandinskyV22Pipeline(Pipeline):
    """Pictures from image embeddings."""

    family, task = KANDINSKY_22_DECODER, TEXT_TO_IMAGE.needing("image_embeds").with_defaults(**_KANDINSKY)
    vae = MOVQ_AS_VAE
    movq_scale_factor = Pipeline.vae_scale_factor
    __call__ = signatures.kandinsky22_decoder


class KandinskyV22Img2ImgPipeline(Pipeline):
    """Pictures from a picture and image embeddings."""

    family = KANDINSKY_22_DECODER
    task = IMAGE_TO_IMAGE.needing("image_embeds").with_defaults(**_KANDINSKY, strength=0.3)
    vae = MOVQ_AS_VAE
    movq_scale_factor = Pipeline.vae_scale_factor
    __call__ = signatures.kandinsky22_decoder


class KandinskyV22InpaintPipeline(Pipeline):
    """A picture with the masked part repainted after image embeddings."""

    family, task = KANDINSKY_22_DECODER, INPAINT.needing("image_embeds").with_defaults(**_KANDINSKY)
    vae = MOVQ_AS_VAE
    movq_scale_factor = Pipeline.vae_scale_factor
    __call__ = signatures.kandinsky22_decoder


class KandinskyV22CombinedPipeline(Kandinsky22Combined):
    """Pictures from text."""

    task = TEXT_TO_IMAGE.needing("prompt").with_defaults(**_KANDINSKY)
    decoder = KandinskyV22Pipeline


class KandinskyV22Img2ImgCombinedPipeline(Kandinsky22Combined):
    """Pictures from a picture and text."""

    task = IMAGE_TO_IMAGE.needing("prompt").with_defaults(**_KANDINSKY, strength=0.3)
    decoder = KandinskyV22Img2ImgPipeline


class KandinskyV22InpaintCombinedPipeline(Kandinsky22Combined):
    """A picture with the masked part repainted from text."""

    task = INPAINT.needing("prompt").with_defaults(**_KANDINSKY)
    decoder = KandinskyV22InpaintPipeline
