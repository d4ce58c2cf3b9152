"""A family of models as a package outside retouch would add it, to see that no other file needs to know of
it.

16 latent channels with a scale and a shift, flow matching whose shift depends on the picture's size, and a
transformer that sees squares of 2x2 latents as tokens. `entry_point` writes what pip would install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import retouch
from retouch.checkpoints.config import Config
from retouch.checkpoints.pretrained import Pretrained
from retouch.families.call import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE, Call, Task
from retouch.families.family import Family, Parts, Size
from retouch.families.latents import LatentLayout
from retouch.families.registry import FamilyRow
from retouch.pipelines import signatures
from retouch.pipelines.pipeline import Pipeline
from retouch.sampling.conditioning import Conditioning, spread


@dataclass(frozen=True)
class ToyConfig(Config):
    """The settings of the transformer."""

    in_channels: int = 64
    text_width: int = 8
    sample_size: int = 8


class ToyTransformer(Pretrained, nn.Module):
    """Predicts a velocity for each token from the token, the mean of all tokens, the time and the text."""

    config_class = ToyConfig
    config: ToyConfig

    def __init__(self, **settings: Any) -> None:
        nn.Module.__init__(self)
        self.config = ToyConfig.from_dict(settings)
        width = self.config.in_channels
        self.own, self.shared = nn.Linear(width, width), nn.Linear(width, width)
        self.text, self.time = nn.Linear(self.config.text_width, width), nn.Linear(1, width)
        self.seen: list[tuple[int, ...]] = []  # shapes of tokens

    @property
    def dtype(self) -> torch.dtype:
        return self.own.weight.dtype

    def forward(self, tokens: Tensor, time: Tensor, text: Tensor) -> Tensor:
        self.seen.append(tuple(tokens.shape))
        told = self.text(text)[:, None] + self.time(time.reshape(-1, 1))[:, None]
        return self.own(tokens) + 0.1 * self.shared(tokens.mean(dim=1, keepdim=True)) + told


class ToyFamily(Family):
    """The family: prompts become numbers that depend on the text."""

    name = "toy"
    title = "Toy"
    components = ("vae", "transformer", "scheduler")
    denoiser = "transformer"

    def layout(self, parts: Parts) -> LatentLayout:
        return LatentLayout.of_autoencoder(parts.part("vae"), packing=2)

    def joins_mask(self, parts: Parts) -> bool:
        return False

    def read(self, parts: Parts, call: Call, *, guided: bool) -> tuple[Tensor, Tensor | None]:
        def states(texts: str | Sequence[str]) -> Tensor:
            listed = [texts] if isinstance(texts, str) else texts
            rows = [torch.Generator().manual_seed(sum(map(ord, text))) for text in listed]
            return torch.stack([torch.randn(8, generator=row) for row in rows]).to(parts.dtype)

        return states(call.prompt or ""), states(call.negative_prompt or "") if guided else None

    def condition(
        self,
        parts: Parts,
        call: Call,
        read: tuple[Tensor, Tensor | None],
        *,
        rows: int,
        size: Size,
        task: Task,
    ) -> Conditioning:
        positive, negative = read
        return Conditioning(
            {"text": spread(positive, rows)}, None if negative is None else {"text": spread(negative, rows)}
        )

    def plan_options(self, parts: Parts, size: Size) -> dict[str, Any]:
        height, width = parts.layout.size(*size)
        return {"mu": parts.part("scheduler").mu_for(height * width // parts.layout.packing**2)}

    def denoise_with(self, parts: Parts, model: Any) -> Callable[..., Any]:
        layout = parts.layout

        def predict(latents: Tensor, timestep: Tensor, *, text: Tensor, return_dict: bool = True) -> Any:
            velocity = model(layout.packed(latents), timestep / 1000, text)
            return (layout.unpacked(velocity, (latents.shape[-2], latents.shape[-1])),)

        return predict


TOY = ToyFamily()


class ToyPipeline(Pipeline):
    """Pictures from text."""

    family, task = TOY, TEXT_TO_IMAGE
    __call__ = signatures.stable_diffusion


class ToyImg2ImgPipeline(Pipeline):
    """Pictures from a picture and text."""

    family, task = TOY, IMAGE_TO_IMAGE
    __call__ = signatures.stable_diffusion


class ToyInpaintPipeline(Pipeline):
    """A picture with the masked part repainted."""

    family, task = TOY, INPAINT
    __call__ = signatures.stable_diffusion


ROW = FamilyRow(
    "toy",
    "Toy",
    "toy_family",
    {"text2image": "ToyPipeline", "image2image": "ToyImg2ImgPipeline", "inpaint": "ToyInpaintPipeline"},
    models={"ToyTransformer": "toy_family"},
)


def entry_point(folder: Path) -> Path:
    """Write the metadata of an installed package that adds the family; return the folder for sys.path."""
    info = folder / "toy_family-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[retouch.families]\ntoy = toy_family:ROW\n")
    return folder


VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 16,
    "scaling_factor": 0.36,
    "shift_factor": 0.12,
}


def toy_pipeline() -> ToyPipeline:
    """Return a pipeline with seeded weights."""
    torch.manual_seed(0)
    vae = retouch.AutoencoderKL(**VAE).eval()
    scheduler = retouch.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = ToyPipeline(vae=vae, transformer=ToyTransformer().eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
