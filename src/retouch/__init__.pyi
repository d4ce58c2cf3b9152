"""The public names, each once: for editors and type checkers, and for __init__.py, which reads them here."""

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
from retouch.pipelines.compat import *  # noqa: F403
from retouch.pipelines.progress import Recording as Recording
from retouch.schedulers.ddim import DDIMScheduler as DDIMScheduler
from retouch.schedulers.ddpm import DDPMScheduler as DDPMScheduler
from retouch.schedulers.dpm_multistep import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
from retouch.schedulers.dpm_singlestep import DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler
from retouch.schedulers.euler import (
    EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler as EulerDiscreteScheduler,
)
from retouch.schedulers.flow_match_euler import (
    FlowMatchEulerDiscreteScheduler as FlowMatchEulerDiscreteScheduler,
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

__version__: str
