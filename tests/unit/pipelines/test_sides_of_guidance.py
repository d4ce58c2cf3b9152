"""What both sides of the guidance have in common is computed once, wherever nobody expects it twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close
from ip_adapter_files import ip_adapter, tiny_image_encoder
from lora_files import peft, sides
from pipeline_pairs import load, mask, photo
from tiny_controls import control_pair, drawing
from torch import Tensor

import retouch
from retouch.models.prepared import onednn
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines.placement import SequentialOffload

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="no layers are prepared on this processor")

FIRST, LATER = "down_blocks.0.resnets.0", "mid_block.resnets.0"


def loaded(folder: Path, **options: Any) -> Any:
    pipeline = retouch.AutoPipelineForInpainting.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def painted(pipeline: Any, **options: Any) -> Tensor:
    """A small scale, because it multiplies roundings."""
    given: dict[str, Any] = {"prompt": "a cat", "image": photo(), "mask_image": mask(), **options}
    given = {"num_inference_steps": 4, "guidance_scale": 3.0, "strength": 1.0, "output_type": "pt", **given}
    if isinstance(pipeline, retouch.KandinskyV22InpaintCombinedPipeline):
        del given["strength"]
    found = pipeline(**given, generator=torch.Generator().manual_seed(1)).images
    assert isinstance(found, Tensor)
    return found


@contextmanager
def counted(unet: Any, name: str = FIRST) -> Iterator[list[int]]:
    """Rows that come into a layer, counted by a change of its class: a hook would be noticed."""
    rows: list[int] = []
    layer = unet.get_submodule(name)
    kind = type(layer)

    def forward(self: Any, x: Tensor, *more: Any) -> Any:
        rows.append(len(x))
        return kind.forward(self, x, *more)

    layer.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    try:
        yield rows
    finally:
        layer.__class__ = kind


def compared(pipeline: Any, **options: Any) -> list[int]:
    """The same picture where somebody listens; the rows of the first layers where nobody does."""
    with counted(pipeline.unet) as once, counted(pipeline.unet, LATER) as rows:
        found = painted(pipeline, **options)
    handle = pipeline.unet.conv_out.register_forward_hook(lambda *_: None)
    with counted(pipeline.unet) as twice:
        wanted = painted(pipeline, **options)
    handle.remove()
    assert_close(found, wanted, 5e-5)  # 1.2e-5 was seen, with a LoRA
    assert len(once) == len(twice) and set(rows) <= set(twice)
    return once


@pytest.mark.parametrize("checkpoint", ["tiny_sd", "tiny_sd_inpaint", "tiny_sd2", "tiny_sd2_inpaint"])
def test_stable_diffusion(checkpoint: str, request: pytest.FixtureRequest) -> None:
    rows = compared(loaded(request.getfixturevalue(checkpoint)))
    assert set(rows) == {1} and len(rows) >= 4


@pytest.mark.parametrize("checkpoint", ["tiny_sdxl", "tiny_sdxl_inpaint", "tiny_kandinsky_whole"])
def test_those_that_have_nothing_in_common(checkpoint: str, request: pytest.FixtureRequest) -> None:
    """Pooled text and image embeddings are a part of what the first layers are told."""
    assert set(compared(loaded(request.getfixturevalue(checkpoint)))) == {2}


@pytest.fixture
def pipeline(tiny_sd_inpaint: Path) -> Any:
    pipeline = loaded(tiny_sd_inpaint)
    pipeline.scheduler = retouch.DDIMScheduler.from_config(dict(pipeline.scheduler.config))
    return pipeline


def switch(at: int, scale: float) -> Any:
    """A callback that changes the guidance after a step."""

    def change(run: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == at:
            run._guidance_scale = scale
        return tensors

    return change


TWO = {"prompt": ["a cat", "a bench"], "image": [photo(1), photo(2)], "mask_image": [mask()] * 2}
WIDE = {"image": photo(0, 128, 64), "mask_image": mask((20, 10, 110, 50), 128, 64)}


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"guidance_scale": 1.0}, [1] * 4),
        (TWO, [2] * 4),
        ({"num_images_per_prompt": 3}, [3] * 4),
        ({"reuse_deep_features": 2}, [1] * 4),
        ({"guidance_interval": (0.3, 0.8)}, [1] * 4),
        ({**TWO, "guidance_interval": (0.3, 0.8), "reuse_deep_features": 2}, [2] * 4),
        ({**WIDE, "tile_size": 64}, [1] * 12),
        ({**WIDE, "tile_size": 64, "reuse_deep_features": 2}, [1] * 12),
        ({**TWO, "callback_on_step_end": switch(1, 1.0)}, [2] * 4),
        ({**TWO, "callback_on_step_end": switch(1, 5.0)}, [2] * 4),
        ({"height": 72, "width": 56}, [1] * 4),
    ],
)
def test_options_of_a_call(pipeline: Any, options: dict[str, Any], rows: list[int]) -> None:
    assert compared(pipeline, **options) == rows


def test_control(tiny_sd_inpaint: Path) -> None:
    shared = control_pair(tiny_sd_inpaint, "inpaint").ours
    pipeline = type(shared).from_pipe(shared, unet=loaded(tiny_sd_inpaint).unet)
    for guess_mode in (False, True):
        rows = compared(pipeline, control_image=drawing(), guess_mode=guess_mode, height=64, width=64)
        assert set(rows) == {1}


def test_adapters(pipeline: Any) -> None:
    pipeline.load_lora_weights(dict(peft(sides(pipeline, unet=""))))
    assert compared(pipeline) == [1] * 4
    pipeline.unload_lora_weights()
    pipeline.image_encoder = tiny_image_encoder()
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet), None, "")
    assert compared(pipeline, ip_adapter_image=photo()) == [1] * 4


def rows_of(pipeline: Any) -> set[int]:
    with counted(pipeline.unet) as rows:
        painted(pipeline)
    return set(rows)


def test_the_off_switch(pipeline: Any) -> None:
    assert rows_of(pipeline) == {1}
    assert rows_of(pipeline.optimize(False)) == {2}
    assert rows_of(pipeline.optimize()) == {1}


@pytest.mark.parametrize("name", ["", "conv_in", "down_blocks.0.attentions.0.transformer_blocks.0.attn1"])
def test_who_listens_hears_both_sides(pipeline: Any, name: str) -> None:
    heard: list[int] = []
    layer = pipeline.unet.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda layer, args: heard.append(len(args[0])))
    painted(pipeline)
    handle.remove()
    assert heard == [2] * 4
    assert rows_of(pipeline) == {1}


def test_who_replaces_a_forward_sees_both_sides(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = pipeline.unet.forward

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool) -> Any:
        seen.append(len(sample))
        return original(sample, timestep, encoder_hidden_states, return_dict=return_dict)

    monkeypatch.setattr(pipeline.unet, "forward", forward)
    painted(pipeline)
    assert seen == [2] * 4


class Wrapped(torch.nn.Module):
    """A UNet as somebody may wrap it, who knows no more of it than its usual arguments."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet, self.config = unet, unet.config
        self.seen: list[int] = []

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool) -> Any:
        self.seen.append(len(sample))
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=return_dict)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype  # type: ignore[no-any-return]


class Inherited(UNet2DConditionModel):
    """The same by inheritance."""

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Any, **given: Any) -> Any:  # type: ignore[override]
        assert "copies" not in given and len(sample) == 2
        return super().forward(sample, timestep, encoder_hidden_states, **given)


def test_others_see_both_sides(pipeline: Any, tiny_sd_inpaint: Path) -> None:
    wanted, own = painted(pipeline), pipeline.unet
    wrapped = Wrapped(own)
    theirs = load(diffusers, "StableDiffusionInpaintPipeline", tiny_sd_inpaint).unet
    inherited = copy.deepcopy(own)
    inherited.__class__ = Inherited
    compiled = torch.compile(copy.deepcopy(own), backend="eager", fullgraph=True)
    for unet in (wrapped, theirs, inherited, compiled):
        pipeline.unet = unet
        assert_close(painted(pipeline), wanted, 1e-5)
    assert wrapped.seen == [2] * 4


def test_offloading_layer_by_layer_listens_too(pipeline: Any) -> None:
    pipeline.placement = SequentialOffload(pipeline, torch.device("cpu"))
    assert rows_of(pipeline) == {2}
