"""Complete Kandinsky 2.2 checkpoints, made as tiny_checkpoints.py makes those of SD 1.x and 2.x.

As on the hub, the prior is a repository of its own, which the decoder's README.md names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_configs import KANDINSKY_SCHEDULERS
from tiny_checkpoints import (
    _feature_extractor,
    _write_feature_extractor,
    checkpoint_fixture,
    randomised,
    tiny_tokenizer,
    vocabulary,
    write_tokenizer,
)

PRIOR_ID = "kandinsky-community/kandinsky-2-2-prior"
# The width of embeddings. As in published checkpoints it is a multiple of 16, the fewest numbers that torch
# draws together, so that drawing two rows at once gives the same as one row after the other.
WIDTH = 32

MOVQ: dict[str, Any] = {
    "block_out_channels": (32, 32, 32, 64),  # 32 are the fewest that the spatial norm can group
    "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "norm_type": "spatial",
    "num_vq_embeddings": 16,
    "vq_embed_dim": 4,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 2),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 2, "ResnetUpsampleBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "resnet_time_scale_shift": "scale_shift",
    "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
}
PRIOR: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "embedding_dim": WIDTH,
    "num_embeddings": 77,
}


def kandinsky22_decoder(
    folder: str | Path, *, in_channels: int = 4, card: bool = True, seed: int = 0, **unet_settings: Any
) -> Path:
    """Build a decoder in `folder` and return it; with 9 channels, the one for inpainting."""
    from diffusers import (
        DDPMScheduler,
        KandinskyV22InpaintPipeline,
        KandinskyV22Pipeline,
        UNet2DConditionModel,
        VQModel,
    )

    folder = Path(folder)
    front = KandinskyV22InpaintPipeline if in_channels == 9 else KandinskyV22Pipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = front(
            unet=randomised(UNet2DConditionModel(**UNET | {"in_channels": in_channels} | unet_settings)),
            scheduler=DDPMScheduler(**KANDINSKY_SCHEDULERS["decoder"]),
            movq=randomised(VQModel(**MOVQ)),
        )
    pipeline.save_pretrained(folder)
    if card:
        head = f"---\nlicense: apache-2.0\nprior:\n- {PRIOR_ID}\ntags:\n- kandinsky\n---\n"
        (folder / "README.md").write_text(head + "\n# A tiny decoder\n", encoding="utf-8")
    return folder


def kandinsky22_prior(folder: str | Path, *, seed: int = 0) -> Path:
    """Build a prior in `folder` and return it."""
    from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = randomised(PriorTransformer(**PRIOR))
        with torch.no_grad():
            prior.clip_mean.normal_()
            prior.clip_std.uniform_(0.5, 1.5)
        pipeline = KandinskyV22PriorPipeline(
            prior=prior,
            image_encoder=tiny_image_encoder(),
            text_encoder=_text_encoder(),
            tokenizer=tiny_tokenizer(version=2),
            scheduler=UnCLIPScheduler(**KANDINSKY_SCHEDULERS["prior"]),
            image_processor=_feature_extractor(),
        )
    pipeline.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer", version=2)
    _write_feature_extractor(folder / "image_processor")
    return folder


def tiny_image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        image_size=32,
        patch_size=16,
    )
    return randomised(CLIPVisionModelWithProjection(config))


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(vocabulary()[0]),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return randomised(CLIPTextModelWithProjection(config))


tiny_kandinsky = checkpoint_fixture("tiny_kandinsky", kandinsky22_decoder)
tiny_kandinsky_inpaint = checkpoint_fixture(
    "tiny_kandinsky_inpaint", kandinsky22_decoder, in_channels=9, seed=1
)
tiny_kandinsky_prior = checkpoint_fixture("tiny_kandinsky_prior", kandinsky22_prior, seed=2)


@pytest.fixture(scope="session")
def tiny_kandinsky_whole(
    tiny_checkpoint: Callable[..., Path], tiny_kandinsky_inpaint: Path, tiny_kandinsky_prior: Path
) -> Path:
    """Build the inpainting decoder and the prior in one folder, as a combined pipeline is saved."""

    def make(folder: Path) -> None:
        import diffusers

        prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(tiny_kandinsky_prior)
        decoder = diffusers.KandinskyV22InpaintPipeline.from_pretrained(tiny_kandinsky_inpaint)
        parts = {f"prior_{name}": part for name, part in prior.components.items()}
        whole = diffusers.KandinskyV22InpaintCombinedPipeline(**decoder.components, **parts)
        whole.save_pretrained(folder)
        write_tokenizer(folder / "prior_tokenizer", version=2)
        _write_feature_extractor(folder / "prior_image_processor")

    return tiny_checkpoint("tiny_kandinsky_whole", make)
