"""retouch: inpainting with diffusion models.

The public names. Each is imported when it is first used, so `import retouch` is quick and torch
comes with the first model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names below once more, for editors and type checkers
    from retouch import control as control, utils as utils
    from retouch.editing.compare import compare as compare
    from retouch.editing.editor import Editor as Editor, load as load
    from retouch.editing.result import Edit as Edit
    from retouch.editing.verbs import erase as erase, inpaint as inpaint, outpaint as outpaint
    from retouch.errors import (
        Cancelled as Cancelled,
        CheckpointError as CheckpointError,
        ConfigError as ConfigError,
        DeviceError as DeviceError,
        InputError as InputError,
        NumericsError as NumericsError,
        OfflineError as OfflineError,
        RetouchError as RetouchError,
    )
    from retouch.images.processor import (
        IPAdapterMaskProcessor as IPAdapterMaskProcessor,
        VaeImageProcessor as VaeImageProcessor,
    )
    from retouch.images.seam import seam_score as seam_score
    from retouch.models.autoencoder import AutoencoderKL as AutoencoderKL
    from retouch.models.controlnet import (
        ControlNetModel as ControlNetModel,
        MultiControlNetModel as MultiControlNetModel,
    )
    from retouch.models.movq import VQModel as VQModel
    from retouch.models.prior_transformer import PriorTransformer as PriorTransformer
    from retouch.models.tiny_autoencoder import AutoencoderTiny as AutoencoderTiny
    from retouch.models.unet import UNet2DConditionModel as UNet2DConditionModel
    from retouch.pipelines.auto import (
        AutoPipelineForImage2Image as AutoPipelineForImage2Image,
        AutoPipelineForInpainting as AutoPipelineForInpainting,
        AutoPipelineForText2Image as AutoPipelineForText2Image,
    )
    from retouch.pipelines.controlnet_names import (
        StableDiffusionControlNetImg2ImgPipeline as StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline as StableDiffusionControlNetInpaintPipeline,
        StableDiffusionControlNetPipeline as StableDiffusionControlNetPipeline,
        StableDiffusionXLControlNetImg2ImgPipeline as StableDiffusionXLControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetInpaintPipeline as StableDiffusionXLControlNetInpaintPipeline,
        StableDiffusionXLControlNetPipeline as StableDiffusionXLControlNetPipeline,
    )
    from retouch.pipelines.kandinsky22_names import (
        KandinskyV22CombinedPipeline as KandinskyV22CombinedPipeline,
        KandinskyV22Img2ImgCombinedPipeline as KandinskyV22Img2ImgCombinedPipeline,
        KandinskyV22Img2ImgPipeline as KandinskyV22Img2ImgPipeline,
        KandinskyV22InpaintCombinedPipeline as KandinskyV22InpaintCombinedPipeline,
        KandinskyV22InpaintPipeline as KandinskyV22InpaintPipeline,
        KandinskyV22Pipeline as KandinskyV22Pipeline,
    )
    from retouch.pipelines.kandinsky22_prior import KandinskyV22PriorPipeline as KandinskyV22PriorPipeline
    from retouch.pipelines.names import (
        StableDiffusionImg2ImgPipeline as StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline as StableDiffusionInpaintPipeline,
        StableDiffusionPipeline as StableDiffusionPipeline,
        StableDiffusionSimpleInpaintingPipeline as StableDiffusionSimpleInpaintingPipeline,
        StableDiffusionXLImg2ImgPipeline as StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLInpaintPipeline as StableDiffusionXLInpaintPipeline,
        StableDiffusionXLPipeline as StableDiffusionXLPipeline,
    )
    from retouch.pipelines.recording import Recording as Recording
    from retouch.schedulers.ddim import DDIMScheduler as DDIMScheduler
    from retouch.schedulers.ddpm import DDPMScheduler as DDPMScheduler
    from retouch.schedulers.dpm_multistep import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
    from retouch.schedulers.dpm_singlestep import DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler
    from retouch.schedulers.euler import (
        EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler as EulerDiscreteScheduler,
    )
    from retouch.schedulers.heun import HeunDiscreteScheduler as HeunDiscreteScheduler
    from retouch.schedulers.kdpm2 import (
        KDPM2AncestralDiscreteScheduler as KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler as KDPM2DiscreteScheduler,
    )
    from retouch.schedulers.lcm import LCMScheduler as LCMScheduler
    from retouch.schedulers.lms import LMSDiscreteScheduler as LMSDiscreteScheduler
    from retouch.schedulers.pndm import PNDMScheduler as PNDMScheduler
    from retouch.schedulers.tcd import TCDScheduler as TCDScheduler
    from retouch.schedulers.unclip import UnCLIPScheduler as UnCLIPScheduler
    from retouch.schedulers.unipc import UniPCMultistepScheduler as UniPCMultistepScheduler
    from retouch.utils import load_image as load_image, make_image_grid as make_image_grid

__version__ = "0.1.0.dev0"

_HOMES = {
    "retouch": ("control", "utils"),  # modules, which need no import of their own
    "retouch.editing.compare": ("compare",),
    "retouch.editing.editor": ("Editor", "load"),
    "retouch.editing.result": ("Edit",),
    "retouch.editing.verbs": ("erase", "inpaint", "outpaint"),
    "retouch.images.seam": ("seam_score",),
    "retouch.pipelines.recording": ("Recording",),
    "retouch.errors": (
        "Cancelled",
        "CheckpointError",
        "ConfigError",
        "DeviceError",
        "InputError",
        "NumericsError",
        "OfflineError",
        "RetouchError",
    ),
    "retouch.images.processor": ("IPAdapterMaskProcessor", "VaeImageProcessor"),
    "retouch.models.autoencoder": ("AutoencoderKL",),
    "retouch.models.controlnet": ("ControlNetModel", "MultiControlNetModel"),
    "retouch.models.movq": ("VQModel",),
    "retouch.models.prior_transformer": ("PriorTransformer",),
    "retouch.models.tiny_autoencoder": ("AutoencoderTiny",),
    "retouch.models.unet": ("UNet2DConditionModel",),
    "retouch.pipelines.auto": (
        "AutoPipelineForImage2Image",
        "AutoPipelineForInpainting",
        "AutoPipelineForText2Image",
    ),
    "retouch.pipelines.controlnet_names": (
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
    ),
    "retouch.pipelines.kandinsky22_names": (
        "KandinskyV22CombinedPipeline",
        "KandinskyV22Img2ImgCombinedPipeline",
        "KandinskyV22Img2ImgPipeline",
        "KandinskyV22InpaintCombinedPipeline",
        "KandinskyV22InpaintPipeline",
        "KandinskyV22Pipeline",
    ),
    "retouch.pipelines.kandinsky22_prior": ("KandinskyV22PriorPipeline",),
    "retouch.pipelines.names": (
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionSimpleInpaintingPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLPipeline",
    ),
    "retouch.schedulers": (
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "TCDScheduler",
        "UnCLIPScheduler",
        "UniPCMultistepScheduler",
    ),
    "retouch.utils": ("load_image", "make_image_grid"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME_OF[name]
    value = import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
    globals()[name] = value  # so that this runs once for each name
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
