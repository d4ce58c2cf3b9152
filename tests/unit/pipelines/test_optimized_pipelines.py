"""Pipelines paint the same with optimized models as with plain ones, whatever is done to the models."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_differ
from ip_adapter_files import ip_adapter, tiny_image_encoder
from lora_files import peft, sides
from optimized_layers import has_optimized_layers, packed_layers
from pipeline_pairs import mask, photo
from torch import Tensor

import retouch
from retouch.editing.editor import Editor
from retouch.kernels.cpu import onednn

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="torch has no oneDNN for this processor")


@pytest.fixture
def plain(tiny_sd_inpaint: Path) -> Any:
    return loaded(tiny_sd_inpaint, optimize=False)


@pytest.fixture
def pipeline(tiny_sd_inpaint: Path) -> Any:
    return loaded(tiny_sd_inpaint)


def loaded(folder: Path, **options: Any) -> Any:
    pipeline = retouch.AutoPipelineForInpainting.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def painted(pipeline: Any, **options: Any) -> Any:
    given = {
        "image": photo(),
        "mask_image": mask(),
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        **options,
    }
    return pipeline("a cat", generator=torch.Generator().manual_seed(1), output_type="pt", **given).images


def test_on_unless_asked_otherwise(pipeline: Any, plain: Any) -> None:
    for name in ("unet", "vae", "text_encoder"):
        assert has_optimized_layers(getattr(pipeline, name)) and not has_optimized_layers(
            getattr(plain, name)
        )
    wanted = painted(plain)
    assert_close(painted(pipeline), lambda: painted(plain))
    for name in ("unet", "vae", "text_encoder"):
        assert len(packed_layers(getattr(pipeline, name))) > 10 and not packed_layers(getattr(plain, name))
    pipeline.optimize(False)
    assert not has_optimized_layers(pipeline.unet)
    assert torch.equal(painted(pipeline), wanted)
    pipeline.optimize()
    assert has_optimized_layers(pipeline.unet)


@pytest.fixture(params=["sd", "sdxl", "kandinsky"])
def family(request: pytest.FixtureRequest) -> Any:
    fixture = {"sd": "tiny_sd", "sdxl": "tiny_sdxl", "kandinsky": "tiny_kandinsky_whole"}[request.param]
    return request.getfixturevalue(fixture)


def test_every_family(family: Path) -> None:
    def both_sizes(on: bool) -> list[Tensor]:
        pipeline = loaded(family, optimize=on)
        return [painted(pipeline, height=size, width=size) for size in (64, 72)]  # 9 latents have no half

    assert_close(both_sizes(True), lambda: both_sizes(False))


@pytest.mark.skipif(not onednn.computes(torch.bfloat16), reason="no bfloat16 here")
def test_bfloat16(tiny_sd_inpaint: Path, plain: Any) -> None:
    exact = painted(plain)
    errors = []
    for on in (True, False):
        pipeline = loaded(tiny_sd_inpaint, dtype=torch.bfloat16, optimize=on)
        errors.append((painted(pipeline) - exact).square().mean().sqrt().item())
    assert errors[0] < 1.3 * errors[1]


def test_batches_of_different_sizes(pipeline: Any, plain: Any) -> None:
    calls = ({}, {"num_images_per_prompt": 3}, {"guidance_scale": 1.0}, {"height": 72, "width": 56})
    assert_close(
        [painted(pipeline, **options) for options in calls],
        lambda: [painted(plain, **options) for options in calls],
    )


def test_saving(pipeline: Any, plain: Any, tmp_path: Path) -> None:
    painted(pipeline)
    for each, name in ((pipeline, "optimized"), (plain, "plain")):
        each.save_pretrained(tmp_path / name)
    files = [
        path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*") if path.is_file()
    ]
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "optimized" / file).read_bytes()


def test_lora_afterwards(pipeline: Any, plain: Any) -> None:
    before, without = painted(pipeline), painted(plain)
    file = peft(sides(plain, unet=""))
    for each in (pipeline, plain):
        each.load_lora_weights(dict(file), adapter_name="a")
    assert_differ(painted(plain), without)
    assert_close(painted(pipeline), lambda: painted(plain))
    assert len(packed_layers(pipeline.unet)) > 10
    half = {"cross_attention_kwargs": {"scale": 0.5}}
    assert_close(painted(pipeline, **half), lambda: painted(plain, **half))
    for each in (pipeline, plain):
        each.fuse_lora()
    assert_close(painted(pipeline), lambda: painted(plain))
    for each in (pipeline, plain):
        each.unfuse_lora()
        each.unload_lora_weights()
    assert torch.equal(painted(pipeline), before)


def test_lora_before(pipeline: Any, plain: Any) -> None:
    plain.load_lora_weights(dict(peft(sides(plain, unet=""))), adapter_name="a")
    wanted = painted(plain)
    plain.optimize()
    found = painted(plain)
    assert len(packed_layers(plain.unet)) > 10
    plain.optimize(False)
    assert torch.equal(painted(plain), wanted)
    assert_close(found, lambda: painted(plain))
    plain.unload_lora_weights()
    plain.optimize()
    assert torch.equal(painted(plain), painted(pipeline))


def test_ip_adapter(pipeline: Any, plain: Any) -> None:
    before = painted(pipeline)
    file = ip_adapter(plain.unet, "plain", 0)
    for each in (pipeline, plain):
        each.image_encoder = tiny_image_encoder()
        each.load_ip_adapter(copy.deepcopy(file), None, "")
    shown = {"ip_adapter_image": photo()}
    assert_close(painted(pipeline, **shown), lambda: painted(plain, **shown))
    pipeline.unload_ip_adapter()
    assert torch.equal(painted(pipeline), before)


def test_another_dtype_and_back(pipeline: Any, plain: Any) -> None:
    wanted = painted(pipeline)
    for each in (pipeline, plain):
        each.to(torch.float64)
    assert torch.equal(painted(pipeline), painted(plain))
    assert not packed_layers(pipeline.unet)
    pipeline.to(torch.float32)
    assert torch.equal(painted(pipeline), wanted) and packed_layers(pipeline.unet)


def test_a_weight_that_is_changed(pipeline: Any) -> None:
    before = painted(pipeline)
    weight = pipeline.unet.mid_block.attentions[0].proj_in.weight
    assert torch.isfinite(weight).all()
    with torch.no_grad():
        weight.mul_(3)
    assert_differ(painted(pipeline), before)


def test_a_compiler_sees_plain_layers(pipeline: Any, plain: Any) -> None:
    painted(pipeline)
    inner = pipeline.unet
    pipeline.unet = torch.compile(inner, backend="eager", fullgraph=True)
    assert not has_optimized_layers(inner) and has_optimized_layers(pipeline.vae)
    assert_close(painted(pipeline), lambda: painted(plain))
    pipeline.optimize()
    assert not has_optimized_layers(inner)


def test_runs_in_threads(pipeline: Any, plain: Any) -> None:
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(painted(pipeline))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert_close(found, lambda: 3 * [painted(plain)])


def test_an_editor_takes_the_switch(tiny_sd_inpaint: Path) -> None:
    assert has_optimized_layers(retouch.load(tiny_sd_inpaint).pipeline.unet)
    assert not has_optimized_layers(retouch.load(tiny_sd_inpaint, optimize=False).pipeline.unet)


def test_calls_keep_blocks_of_memory(pipeline: Any, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    @contextmanager
    def noted() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    monkeypatch.setattr("retouch.pipelines.pipeline.keeping_memory", noted)
    painted(plain)
    assert entered == []
    painted(pipeline, callback_on_step_end=lambda *_: entered.append("step") or {})
    assert entered == ["in", *["step"] * 4, "out"]  # one more to warm up
    entered.clear()
    editor = Editor(pipeline, "tiny", show_progress=False)
    editor.inpaint(photo(), mask(), "a cat", steps=2, progress=lambda _: entered.append("step"))
    assert entered == ["in", *["step"] * 3, "out"]
