"""The derived tolerances: other right results pass, and a network that is wrong in one small thing fails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import (
    CAUSED,
    FEW,
    RandomRounding,
    assert_close,
    assert_differ,
    assert_equal,
    with_random_rounding,
)
from PIL import Image
from pipeline_pairs import pair, task_inputs
from tiny_checkpoints import tiny_unet
from torch import Tensor, nn

import retouch
from retouch.models import layers

pytestmark = pytest.mark.usefixtures("no_gradients")

Change = Callable[[Any], object]


def scale(path: str, factor: float = 1.001) -> Change:
    return lambda net: net.get_parameter(path).mul_(factor)


def without(path: str) -> Change:
    return lambda net: net.get_parameter(path).zero_()


def one_epsilon(net: Any) -> None:
    net.down_blocks[0].resnets[0].norm1.eps *= 100


BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
WRONG_UNETS: dict[str, Change] = {
    "one convolution scaled": scale("down_blocks.0.resnets.0.conv1.weight"),
    "the deepest convolution scaled": scale("mid_block.resnets.1.conv2.weight"),
    "one norm scaled": scale("up_blocks.1.resnets.0.norm1.weight"),
    "one value layer scaled": scale(f"{BLOCK}.attn2.to_v.weight"),
    "a bias dropped": without("up_blocks.2.resnets.1.conv2.bias"),
    "a bias of the time embedding dropped": without("time_embedding.linear_2.bias"),
    "a shortcut scaled": scale("up_blocks.0.resnets.0.conv_shortcut.weight"),
    "another epsilon in one norm": one_epsilon,
}


@pytest.fixture(scope="module")
def unets() -> tuple[Any, Any]:
    theirs = tiny_unet()
    ours = retouch.UNet2DConditionModel.from_config(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def predicted(unet: Any) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    latents, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 7, 32, generator=draw)
    return unet(latents, torch.tensor(500), text).sample


def test_the_right_unet_passes(unets: Any) -> None:
    ours, theirs = unets
    assert_close(predicted(ours), lambda: predicted(theirs))
    other_layout = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    assert_close(predicted(other_layout), lambda: predicted(theirs))
    for seed in (1, 2, 3):
        assert_close(with_random_rounding(lambda: predicted(ours), seed), lambda: predicted(theirs))


@pytest.mark.parametrize("name", WRONG_UNETS)
def test_a_wrong_unet_fails(unets: Any, name: str) -> None:
    ours, theirs = copy.deepcopy(unets[0]), unets[1]
    WRONG_UNETS[name](ours)
    with pytest.raises(AssertionError, match="max difference"):
        assert_close(predicted(ours), lambda: predicted(theirs))


def test_a_wrong_epsilon_shows_where_values_are_small() -> None:
    """Why layers are compared for inputs of two scales."""
    right, wrong = (layers.ResnetBlock2D(8, 8, None, groups=4, eps=eps) for eps in (1e-5, 1e-6))
    wrong.load_state_dict(right.state_dict())
    x = 1e-3 * torch.randn(2, 8, 7, 5)
    assert_close(right(x, None), lambda: right(x, None))
    with pytest.raises(AssertionError, match="max difference"):
        assert_close(wrong(x, None), lambda: right(x, None))


def another_schedule(pipeline: Any) -> None:
    pipeline.scheduler = retouch.PNDMScheduler.from_config(pipeline.scheduler.config, beta_end=0.01201)


WRONG_PIPELINES: dict[str, Change] = {
    "a convolution of the UNet": lambda pipeline: scale("up_blocks.1.resnets.0.conv2.weight")(pipeline.unet),
    "a bias of the decoder": lambda pipeline: without("decoder.mid_block.resnets.0.conv1.bias")(pipeline.vae),
    "the factor of the latents": lambda pipeline: object.__setattr__(
        pipeline.vae.config, "scaling_factor", 1.001 * pipeline.vae.config.scaling_factor
    ),
    "a norm of the text encoder": lambda pipeline: scale("final_layer_norm.weight")(
        getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    ),
    "the noise schedule": another_schedule,
}


@pytest.mark.parametrize("name", WRONG_PIPELINES)
def test_a_wrong_pipeline_fails(tiny_sd: Path, name: str) -> None:
    both = pair(tiny_sd, "inpaint").changed()
    for part in ("unet", "vae", "text_encoder"):
        setattr(both.ours, part, copy.deepcopy(getattr(both.ours, part)))
    WRONG_PIPELINES[name](both.ours)
    with pytest.raises(AssertionError, match="max difference"):
        both.compare(**task_inputs("inpaint"), num_inference_steps=2)


@pytest.mark.parametrize("task", ["image2image", "inpaint"])
def test_the_right_pipeline_passes_with_any_rounding(tiny_sd: Path, task: str) -> None:
    both = pair(tiny_sd, task)

    def picture(pipeline: Any) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        given = {**task_inputs(task), "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
        return pipeline("a cat", **given, generator=draw).images

    assert_close(with_random_rounding(lambda: picture(both.ours), 1), lambda: picture(both.theirs))


def test_random_rounding_changes_only_what_is_rounded() -> None:
    whole, parts = torch.arange(24.0).reshape(4, 6), torch.rand(4, 6)
    state = torch.get_rng_state()
    with RandomRounding():
        exact = (whole * 2 + 1).reshape(-1) @ torch.ones(24)
        rounded = parts / 3
        drawn = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert exact.item() == 2 * 276 + 24
    error = (rounded.double() - parts.double() / 3).abs() / rounded.double()
    assert 0 < error.max() <= torch.finfo(torch.float32).eps
    assert not torch.equal(rounded, parts / 3)
    assert torch.equal(drawn, torch.randn(5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_value_may_be_off_by_a_few_roundings_only() -> None:
    values = torch.ones(1000)
    values[::2] = -1
    unit = torch.finfo(torch.float32).eps
    assert_close(values * (1 + (FEW - 2) * unit), values)
    for wrong in (values * (1 + (FEW + 2) * unit), values.double(), values[:-1], values + float("nan")):
        with pytest.raises(AssertionError):
            assert_close(wrong, values)
    with pytest.raises(AssertionError, match="almost constant"):
        assert_close(torch.ones(4), torch.ones(4))
    assert_differ(values * (1 + 2 * CAUSED * unit), values)
    with pytest.raises(AssertionError, match="roundings"):
        assert_differ(values * (1 + CAUSED // 2 * unit), values)
    with pytest.raises(AssertionError):
        assert_equal(values * (1 + unit), values)


def test_the_whole_of_a_list_is_compared() -> None:
    first, second = torch.randn(2, 3), torch.randn(4)
    assert_close([first, [second]], [first, [second]])
    with pytest.raises(AssertionError):
        assert_close([first, second], [first])
    with pytest.raises(AssertionError, match="max difference"):
        assert_close([first, second + 1], lambda: [first, second])


def test_pictures_may_be_off_by_one_level() -> None:
    levels = torch.arange(64, dtype=torch.uint8).reshape(8, 8).numpy()
    pictures = [Image.fromarray(levels + more) for more in (0, 1, 2)]
    assert_close(pictures[1:2], pictures[:1])
    with pytest.raises(AssertionError, match="max difference"):
        assert_close(pictures[2:], pictures[:1])


def test_half_precision_is_measured() -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    x = torch.randn(9, 64).to(torch.bfloat16)
    result = layer(x)
    assert_close(with_random_rounding(lambda: layer(x), 1), lambda: layer(x))
    with pytest.raises(AssertionError, match="max difference"):
        assert_close(1.05 * result, lambda: layer(x))
