"""The benchmark of full-size networks, run on networks of a few kilobytes and in one process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_size_check.py"
LEVELS = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def tiny(script: ModuleType, dtype: torch.dtype) -> object:
    return script.Family(
        unet=LEVELS
        | {
            "in_channels": 9,
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
        vae=LEVELS
        | {
            "latent_channels": 4,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        },
        controlnet=LEVELS
        | {
            "in_channels": 4,
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "conditioning_embedding_out_channels": [4, 4, 6, 6],
        },
        prior={
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_layers": 1,
            "embedding_dim": 12,
            "num_embeddings": 7,
        },
        movq={
            "block_out_channels": [32, 32],  # the fewest channels that its norm can group
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "norm_type": "spatial",
            "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        },
        dtype=dtype,
        latent_side=8,
        text_shape=(7, 12),
        tolerance=1e-4 if dtype == torch.float32 else 0.02,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["unet", "vae", "controlnet", "prior", "movq"])
def test_it_compares_what_it_says(script: ModuleType, part: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family = tiny(script, dtype)
    script.build(family, part, tmp_path, seed=0, threads=1)
    seen = [
        script.measure(family, part, library, tmp_path, seed=0, threads=1)
        for library in ("reference", "ours")
    ]
    assert seen[0].parameters == seen[1].parameters > 1000
    result = script.compare(family, part, *seen, tmp_path)
    assert result.is_close
    assert result.part in script.describe(result) and "ok" in script.describe(result)

    ours = tmp_path / f"{part}-ours.pt"
    torch.save(torch.load(ours) * 1.1, ours)
    result = script.compare(family, part, *seen, tmp_path)
    assert not result.is_close and "NOT CLOSE" in script.describe(result)
    assert 0.05 < result.relative_difference < 0.15 and 10 < result.psnr < 40
