"""What holds for any arrangement of blocks: original names are one to one, and the reference's."""

from __future__ import annotations

from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from hypothesis import given, settings, strategies
from tiny_single_files import meta_model

from retouch.checkpoints.original_layout import origins, to_original


@strategies.composite
def unets(draw: strategies.DrawFn) -> dict[str, Any]:
    levels = draw(strategies.integers(2, 4))
    attends = draw(strategies.lists(strategies.booleans(), min_size=levels, max_size=levels))
    return {
        "block_out_channels": [8 * draw(strategies.integers(1, 2)) for _ in range(levels)],
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        "layers_per_block": draw(strategies.integers(1, 3)),
        "transformer_layers_per_block": draw(strategies.integers(1, 2)),
        "use_linear_projection": draw(strategies.booleans()),
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
    }


@strategies.composite
def vaes(draw: strategies.DrawFn) -> dict[str, Any]:
    levels = draw(strategies.integers(1, 4))
    return {
        "block_out_channels": [8 * draw(strategies.integers(1, 2)) for _ in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": draw(strategies.integers(1, 3)),
        "norm_num_groups": 4,
    }


def check(part: str, config: dict[str, Any], prefix: str, convert: Any) -> None:
    model = meta_model(part, config)
    own = model.state_dict()
    found = origins(type(model).__name__, model.config, own)
    assert len({origin.name for origin in found.values()}) == len(own)
    file = to_original(own, found)
    for name, tensor in own.items():
        assert found[name].read(file[found[name].name]).shape == tensor.shape
    converted = convert({prefix + name: tensor for name, tensor in file.items()}, dict(model.config))
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in own.items()
    }


@settings(max_examples=15, deadline=None)
@given(unets())
def test_unets(config: dict[str, Any]) -> None:
    check("unet", config, "model.diffusion_model.", convert_ldm_unet_checkpoint)


@settings(max_examples=10, deadline=None)
@given(vaes())
def test_vaes(config: dict[str, Any]) -> None:
    check("vae", config, "first_stage_model.", convert_ldm_vae_checkpoint)
