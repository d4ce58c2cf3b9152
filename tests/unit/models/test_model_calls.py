"""How the networks are called: what they refuse, and that they compile whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, assert_differ
from tiny_checkpoints import randomised

from retouch.errors import InputError
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.unet import UNet2DConditionModel

pytestmark = pytest.mark.usefixtures("no_gradients")

UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
SDXL = UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 58,
}


SIZES = ((9, 7), (9, 7), (5, 4), (5, 4))  # of what the way down keeps of `inputs`


def inputs() -> dict[str, Any]:
    return {
        "sample": torch.randn(2, 4, 9, 7),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(2, 5, 12),
    }


def test_a_guidance_embedding_is_refused_where_it_would_be_ignored() -> None:
    with pytest.raises(InputError, match=r"time_cond_proj_dim is None.*Leave timestep_cond out"):
        UNet2DConditionModel(**UNET)(**inputs(), timestep_cond=torch.randn(2, 6))


@pytest.mark.parametrize("given", [None, {"text_embeds": torch.zeros(2, 10)}])
def test_sdxl_names_what_it_lacks(given: dict[str, torch.Tensor] | None) -> None:
    with pytest.raises(InputError, match=r"needs text_embeds .* and time_ids"):
        UNet2DConditionModel(**SDXL)(**inputs(), added_cond_kwargs=given)


def test_too_few_residuals_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        UNet2DConditionModel(**UNET)(**inputs(), down_block_additional_residuals=[torch.zeros(1)])


@pytest.mark.parametrize("settings", [UNET, SDXL], ids=["SD", "SDXL"])
def test_deep_features_stand_for_the_deeper_levels(settings: dict[str, Any]) -> None:
    """With those of the same call nothing changes, with others the prediction does; half of it is skipped."""
    unet = randomised(UNet2DConditionModel(**settings))
    given = inputs()
    if settings is SDXL:
        added = {"text_embeds": torch.randn(2, 10), "time_ids": torch.rand(2, 6)}
        given["added_cond_kwargs"] = added
    plain = unet(**given)
    assert len(plain) == 1
    prediction, deep = unet(**given, return_deep=True)
    assert torch.equal(prediction, plain.sample)
    ran: list[str] = []
    for name in ("down_blocks.1", "mid_block", "up_blocks.0"):
        module = unet.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    again, same = unet(**given, deep=deep, return_deep=True)
    assert torch.equal(again, prediction) and torch.equal(same, deep) and not ran
    assert_differ(unet(**given, deep=deep + 1).sample, prediction)
    unet(**given)
    assert len(ran) == 3


def test_deep_features_with_control() -> None:
    unet = randomised(UNet2DConditionModel(**UNET))
    given = inputs()
    extras = [torch.randn(2, channels, *size) for channels, size in zip((8, 8, 8, 16), SIZES, strict=True)]
    control = {"down_block_additional_residuals": extras, "mid_block_additional_residual": torch.ones(1)}
    prediction, deep = unet(**given, **control, return_deep=True)
    assert torch.equal(unet(**given, **control, deep=deep).sample, prediction)
    assert_differ(unet(**given, deep=deep).sample, prediction)  # without the control of the finest level


def test_the_unet_compiles_whole() -> None:
    unet = randomised(UNet2DConditionModel(**SDXL))
    extra = {"text_embeds": torch.randn(2, 10), "time_ids": torch.rand(2, 6)}
    given = inputs() | {"added_cond_kwargs": extra, "mid_block_additional_residual": torch.ones(1)}
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    assert_close(compiled(**given).sample, lambda: unet(**given).sample)
    deep = unet(**given, return_deep=True).deep
    assert_close(compiled(**given, deep=deep).sample, lambda: unet(**given).sample)


@pytest.mark.parametrize("tiling", [True, False])
def test_the_autoencoder_compiles_whole(tiling: bool) -> None:
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    vae = randomised(vae)
    vae.use_tiling = tiling
    pixels = torch.rand(1, 3, 20, 28)
    compiled = torch.compile(vae, fullgraph=True, backend="eager")
    assert_close(compiled(pixels).sample, lambda: vae(pixels).sample)


def test_training_reaches_every_weight() -> None:
    unet = UNet2DConditionModel(**UNET | {"time_cond_proj_dim": 6})
    with torch.enable_grad():
        unet(**inputs(), timestep_cond=torch.randn(2, 6)).sample.square().mean().backward()
    idle = [key for key, weight in unet.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


def test_fresh_weights_are_sane() -> None:
    prediction = UNet2DConditionModel(**UNET)(**inputs()).sample
    assert 0.01 < prediction.std() < 2
