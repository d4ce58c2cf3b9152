"""Kandinsky's prior and its autoencoder compared with the reference's, alone and through files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close, share_weights
from diffusers import PriorTransformer as TheirPrior, VQModel as TheirMovq
from diffusers.models.autoencoders.vae import VectorQuantizer as TheirQuantizer
from published_configs import MOVQS, PRIORS
from safetensors.torch import load_file, save_file
from tiny_checkpoints import randomised
from torch import Tensor

from retouch.errors import CheckpointError, ConfigError
from retouch.models.movq import VectorQuantizer, VQModel
from retouch.models.prior_transformer import PriorTransformer

pytestmark = pytest.mark.usefixtures("no_gradients")

PRIOR: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "embedding_dim": 20,
    "num_embeddings": 11,
}
# 32 channels are the fewest that the spatial norm can group.
MOVQ: dict[str, Any] = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "norm_type": "spatial",
    "num_vq_embeddings": 12,
    "vq_embed_dim": 4,
}
MOVQ_VARIANTS = {
    "Kandinsky 2.2": MOVQ,
    "two layers": MOVQ | {"layers_per_block": 2},
    "no attention in the middle": MOVQ | {"mid_block_add_attention": False},
    "no attention": MOVQ
    | {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3},
}


def priors(settings: dict[str, Any] = PRIOR) -> tuple[PriorTransformer, Any]:
    ours, theirs = PriorTransformer(**settings).eval(), randomised(TheirPrior(**settings))
    share_weights(ours, theirs)
    return ours, theirs


def movqs(settings: dict[str, Any] = MOVQ) -> tuple[VQModel, Any]:
    ours, theirs = VQModel(**settings).eval(), randomised(TheirMovq(**settings))
    theirs.quantize.embedding.weight.normal_()
    share_weights(ours, theirs)
    return ours, theirs


def prior_inputs(lengths: tuple[int, ...] = (3, 11)) -> dict[str, Any]:
    rows, width, tokens = len(lengths), PRIOR["embedding_dim"], PRIOR["num_embeddings"]
    return {
        "hidden_states": torch.randn(rows, width),
        "timestep": torch.tensor(321),
        "proj_embedding": torch.randn(rows, width),
        "encoder_hidden_states": torch.randn(rows, tokens, width),
        "attention_mask": torch.arange(tokens)[None] < torch.tensor(lengths)[:, None],
    }


@pytest.mark.parametrize("timestep", [0, 998.0, torch.tensor([5, 700])], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_prior(masked: bool, timestep: Any) -> None:
    ours, theirs = priors()
    given = prior_inputs() | {"timestep": timestep}
    if not masked:
        del given["attention_mask"]
    assert_close(ours(**given).predicted_image_embedding, lambda: theirs(**given).predicted_image_embedding)


def test_prior_sees_the_text_and_no_padding() -> None:
    ours, _ = priors()
    given = prior_inputs((3,))
    before = ours(**given).predicted_image_embedding
    for token, is_seen in ((2, True), (3, False)):
        changed = given["encoder_hidden_states"].clone()
        changed[:, token] += 1
        after = ours(**given | {"encoder_hidden_states": changed}).predicted_image_embedding
        assert bool((after - before).abs().max() > 1e-4) == is_seen
    nothing = given | {"attention_mask": torch.zeros(1, PRIOR["num_embeddings"], dtype=torch.bool)}
    assert ours(**nothing).predicted_image_embedding.isfinite().all()


def test_prior_normalisation() -> None:
    ours, theirs = priors()
    latents = torch.randn(3, PRIOR["embedding_dim"])
    assert_close(ours.post_process_latents(latents), lambda: theirs.post_process_latents(latents))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    ours, theirs = (model.to(dtype) for model in priors())
    given = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in prior_inputs().items()
    }
    assert_close(ours(**given).predicted_image_embedding, lambda: theirs(**given).predicted_image_embedding)
    ours, theirs = (model.to(dtype) for model in movqs())
    # Quantised, the nearest entry of the codebook may be another one.
    assert_latents_and_pixels_close(ours, theirs, torch.rand(1, 3, 20, 28).to(dtype), force_not_quantize=True)


def assert_latents_and_pixels_close(ours: VQModel, theirs: Any, pixels: Tensor, **how: Any) -> None:
    latents = ours.encode(pixels).latents
    assert_close(latents, lambda: theirs.encode(pixels).latents)
    assert_close(ours.decode(latents, **how).sample, lambda: theirs.decode(latents, **how).sample)


@pytest.mark.parametrize("settings", MOVQ_VARIANTS.values(), ids=MOVQ_VARIANTS.keys())
@pytest.mark.parametrize("size", [(24, 16), (20, 28)], ids=str)
def test_encode_quantise_decode(settings: dict[str, Any], size: tuple[int, int]) -> None:
    ours, theirs = movqs(settings)
    pixels = torch.rand(2, 3, *size) * 2 - 1
    for quantised in (True, False):
        assert_latents_and_pixels_close(ours, theirs, pixels, force_not_quantize=quantised)
    assert_close(ours(pixels).sample, lambda: theirs(pixels).sample)


def test_quantiser() -> None:
    ours, theirs = VectorQuantizer(12, 4), TheirQuantizer(12, 4, beta=0.25)
    theirs.embedding.weight.normal_()
    share_weights(ours, theirs)
    latents = torch.randn(2, 4, 5, 3)
    found = ours(latents)
    assert_close(found, lambda: theirs(latents)[0])
    assert (found - latents).abs().max() > 0.1, "the codebook was passed by"


def test_slices() -> None:
    ours, _ = movqs()
    latents = torch.randn(3, 4, 5, 7)
    calls: list[int] = []
    ours.decoder.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    ours.enable_slicing()
    sliced = ours.decode(latents).sample
    ours.disable_slicing()
    assert_close(sliced, lambda: ours.decode(latents).sample)
    assert calls[:4] == [1, 1, 1, 3]


def test_tiles() -> None:
    """A tile sees the latents below it, and blends into the next tile where they overlap."""
    ours, _ = movqs()
    latents, pixels = torch.randn(1, 4, 12, 20), torch.rand(1, 3, 48, 80)
    whole = ours.decode(latents, force_not_quantize=True).sample
    ours.enable_tiling()
    assert torch.equal(ours.decode(latents, force_not_quantize=True).sample, whole)  # below 512 pixels
    ours.tile_sample_min_size, ours.tile_latent_min_size = 32, 8
    tiled = ours.decode(latents, force_not_quantize=True).sample
    assert tiled.shape == whole.shape and 0 < (tiled - whole).abs().mean() < 0.5 * whole.std()
    corner = latents[..., :8, :8]
    assert_close(
        tiled[..., :24, :24], lambda: ours.decoder(ours.post_quant_conv(corner), corner)[..., :24, :24]
    )
    assert ours.encode(pixels).latents.shape == latents.shape
    ours.disable_tiling()
    assert torch.equal(ours.decode(latents, force_not_quantize=True).sample, whole)


@pytest.mark.parametrize("ours, theirs, config", [
    (VQModel, TheirMovq, MOVQS["Kandinsky 2.2"]),
    (PriorTransformer, TheirPrior, PRIORS["Kandinsky 2.2"]),
])  # fmt: skip
def test_published_configs_give_the_same_tensors(ours: Any, theirs: Any, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        models = ours.from_config(config), theirs.from_config(config)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    assert ours.config_class.from_dict(models[0].config.to_dict()) == models[0].config


@pytest.mark.parametrize("kind", ["prior", "movq"])
def test_files_both_ways(kind: str, tmp_path: Path) -> None:
    ours, theirs = priors() if kind == "prior" else movqs()
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    loaded = type(ours).from_pretrained(tmp_path / "theirs")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    for model in (loaded, again):
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())
    assert type(ours).from_pretrained(tmp_path / "ours").config == loaded.config == ours.config


def test_old_spelling_of_attention(tmp_path: Path) -> None:
    ours, _ = movqs()
    ours.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    spelling = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for today, then in spelling.items():
        state = {key.replace(f".{today}.", f".{then}."): tensor for key, tensor in state.items()}
    assert sum(".query." in key for key in state) == 2 * (1 + 1 + 1 + 2)
    save_file(state, file)
    loaded = VQModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in ours.state_dict().items())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"norm_type = 'group' .*Supported: 'spatial'.*Kandinsky"):
        VQModel()
    with pytest.raises(ConfigError, match=r"up_block_types = .*Supported: UpDecoderBlock2D and AttnUp"):
        VQModel(**MOVQ | {"up_block_types": ("UpBlock2D",) * 3})
    with pytest.raises(ConfigError, match=r"norm_in_type = 'layer' is not supported by PriorTransformer"):
        PriorTransformer(norm_in_type="layer")
    priors()[1].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="PriorTransformer"):
        VQModel.from_pretrained(tmp_path)
