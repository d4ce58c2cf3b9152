"""Complete Stable Diffusion checkpoints of a few hundred kilobytes, made from a config and a seed.

The reference library builds and saves them, so we load the files that it writes, in the layout of published
checkpoints. They are not trained: their pictures are coloured noise.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

PROMPT_WORDS = ("a", "photo", "of", "cat", "castle", "bench", "in", "the", "park", "highly", "detailed")

# The side of a picture if the caller gives no size: 8 latents of 8 pixels.
DEFAULT_SIDE = 64

# Settings of the scheduler files in the hub's SD 1.5 and SD 2.1 repositories.
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_PNDM = {**_SCHEDULE, "skip_prk_steps": True, "set_alpha_to_one": False}
_DDIM_V = {**_SCHEDULE, "prediction_type": "v_prediction", "set_alpha_to_one": False, "clip_sample": False}


def stable_diffusion(
    folder: str | Path,
    *,
    in_channels: Literal[4, 9] = 4,
    version: Literal[1, 2] = 1,
    variant: str | None = None,
    safety_checker: Literal["never flags", "always flags"] | None = None,
    published_text_keys: bool = True,
    seed: int = 0,
    **unet_settings: Any,
) -> Path:
    """Build a checkpoint in `folder` and return it.

    `variant="fp16"` adds half-precision files to the full ones, as on the hub. Version 2 predicts v and
    projects linearly. `published_text_keys` spells the text encoder's keys as the hub's files do; False
    leaves them as the installed transformers writes them.
    """
    from diffusers import (
        DDIMScheduler,
        PNDMScheduler,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
    )

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        checker = _safety_checker(safety_checker) if safety_checker else None
        pipeline_class = StableDiffusionInpaintPipeline if in_channels == 9 else StableDiffusionPipeline
        pipeline = pipeline_class(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(version=version),
            tokenizer=tiny_tokenizer(version=version),
            unet=tiny_unet(in_channels=in_channels, version=version, **unet_settings),
            scheduler=DDIMScheduler(**_DDIM_V) if version == 2 else PNDMScheduler(**_PNDM),
            safety_checker=checker,
            feature_extractor=_feature_extractor() if checker else None,
            requires_safety_checker=checker is not None,
        )
    if variant is not None:
        # First, because both write config.json, which on the hub is that of full precision.
        half = pipeline_class(**halved(pipeline.components), requires_safety_checker=checker is not None)
        half.save_pretrained(folder, variant=variant)
    pipeline.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer", version=version)
    if published_text_keys:
        _publish_text_keys(folder / "text_encoder")
    if checker is not None:
        _write_feature_extractor(folder / "feature_extractor")
    return folder


def halved(components: dict[str, Any]) -> dict[str, Any]:
    """Return the same parts, with models in half precision."""
    return {
        name: copy.deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in components.items()
    }


def tiny_unet(*, in_channels: int = 4, version: int = 1, **settings: Any) -> Any:
    """Make a UNet with three levels: with attention inside, at the edge, and without attention."""
    from diffusers import UNet2DConditionModel

    defaults: dict[str, Any] = {
        "sample_size": DEFAULT_SIDE // 8,
        "in_channels": in_channels,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
        "norm_num_groups": 4,
    }
    if version == 2:
        defaults |= {
            "use_linear_projection": True,
            "upcast_attention": True,
            "attention_head_dim": (1, 2, 2),
        }
    return randomised(UNet2DConditionModel(**(defaults | settings)))


def tiny_vae(**settings: Any) -> Any:
    """Make a VAE with four levels, for SD's factor of 8 between pixels and latents."""
    from diffusers import AutoencoderKL

    defaults: dict[str, Any] = {
        "sample_size": DEFAULT_SIDE,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return randomised(AutoencoderKL(**(defaults | settings)))


def tiny_text_encoder(*, version: int = 1) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(vocabulary()[0]),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=77,
        hidden_act="gelu" if version == 2 else "quick_gelu",
        # The values in the hub's files. They are not the tokenizer's ids: CLIP's pooling then uses the
        # highest id, which is the end token.
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return randomised(CLIPTextModel(config))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Give norms, biases and zero-initialised layers values, so that a skipped layer changes the result."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                centre, spread = (0.0, 0.1) if name.endswith("bias") else (1.0, 0.2)
                parameter.normal_(centre, spread)
            elif not parameter.any():
                parameter.normal_(0.0, 0.05)
    return module.eval()


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Write CLIP's byte-level vocabulary with the merges that make each of PROMPT_WORDS one token."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())  # "!" is the first token, as in CLIP: SD 2 pads with it
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    merges: list[tuple[str, str]] = []
    for word in PROMPT_WORDS:
        *head, last = word
        pieces = [*head, last + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            pieces[:2] = ["".join(pair)]
    tokens = list(dict.fromkeys(tokens))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path, *, version: int = 1) -> Path:
    """Write the four files of SD repositories, in place of other ones."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens, merges = vocabulary()
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "!" if version == 2 else "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    settings = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    for name, values in (
        ("vocab.json", tokens),
        ("special_tokens_map.json", special),
        ("tokenizer_config.json", settings),
    ):
        (folder / name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def tiny_tokenizer(*, version: int = 1) -> Any:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        return CLIPTokenizer.from_pretrained(write_tokenizer(Path(folder) / "tokenizer", version=version))


def _publish_text_keys(folder: Path) -> None:
    """Spell keys as in published files: below `text_model`, and with the stored position ids."""
    for file in folder.glob("*.safetensors"):
        state = {
            f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in load_file(file).items()
        }
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(state, file, metadata={"format": "pt"})


def _safety_checker(answer: str) -> Any:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=dict(tower, vocab_size=len(vocabulary()[0]), bos_token_id=0, eos_token_id=2),
        vision_config=dict(tower, image_size=32, patch_size=16),
        projection_dim=16,
    )
    checker = StableDiffusionSafetyChecker(config)
    # Cosines in -1..1 are compared with these, so the verdict does not depend on the weights.
    threshold = 2.0 if answer == "never flags" else -2.0
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(threshold)
    return checker


_FEATURE_EXTRACTOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}


def _feature_extractor() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size=32, crop_size=32)


def _write_feature_extractor(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(_FEATURE_EXTRACTOR))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build a checkpoint at its first use and share it for the session, also among xdist's workers.

    The folder is read-only: copy it before you change a file.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def build(name: str, make: Callable[..., Path] = stable_diffusion, **settings: Any) -> Path:
        finished = shared / "checkpoints" / name
        if not finished.exists():
            finished.parent.mkdir(exist_ok=True)
            unfinished = tmp_path_factory.mktemp(f"unfinished-{name}")
            make(unfinished, **settings)
            try:
                unfinished.rename(finished)
            except OSError:  # another worker was first
                shutil.rmtree(unfinished)
        return finished

    return build


def checkpoint_fixture(name: str, make: Callable[..., Path] = stable_diffusion, **settings: Any) -> Any:
    """Return a fixture of that name: the folder of a checkpoint that `make` builds once a session."""

    @pytest.fixture(scope="session", name=name)
    def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
        return tiny_checkpoint(name, make, **settings)

    return folder


tiny_sd = checkpoint_fixture("tiny_sd", in_channels=4)
tiny_sd_inpaint = checkpoint_fixture("tiny_sd_inpaint", in_channels=9, seed=1)
tiny_sd2 = checkpoint_fixture("tiny_sd2", version=2, seed=2)
tiny_sd2_inpaint = checkpoint_fixture("tiny_sd2_inpaint", in_channels=9, version=2, seed=3)
tiny_sd_fp16 = checkpoint_fixture("tiny_sd_fp16", variant="fp16", seed=4)
tiny_sd_inpaint_fp16 = checkpoint_fixture("tiny_sd_inpaint_fp16", in_channels=9, variant="fp16", seed=5)
tiny_sd_checked = checkpoint_fixture("tiny_sd_checked", safety_checker="always flags", seed=6)
