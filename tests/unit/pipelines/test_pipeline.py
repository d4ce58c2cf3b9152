"""A pipeline between calls: its fronts, its device and dtype, its progress bar."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_pairs import NAMES, load, mask, photo

import retouch
from retouch import devices
from retouch.errors import InputError
from retouch.pipelines.placement import ModelOffload

FRONTS = {
    "text2image": retouch.AutoPipelineForText2Image,
    "image2image": retouch.AutoPipelineForImage2Image,
    "inpaint": retouch.AutoPipelineForInpainting,
}


@pytest.fixture
def pipeline(tiny_sd: Path) -> Any:
    return retouch.StableDiffusionPipeline.from_pipe(load(retouch, NAMES["text2image"], tiny_sd))


@pytest.mark.parametrize("task", FRONTS)
def test_the_automatic_choice_loads_the_front_for_the_task(tiny_sd: Path, task: str) -> None:
    loaded = FRONTS[task].from_pretrained(tiny_sd)
    assert type(loaded).__name__ == NAMES[task]
    assert loaded.name_or_path == str(tiny_sd) and loaded.config["_class_name"] == NAMES[task]
    assert loaded.safety_checker is None and loaded.vae_scale_factor == 8


@pytest.mark.parametrize("task", FRONTS)
def test_another_front_has_the_same_parts(pipeline: Any, task: str) -> None:
    pipeline.placement = ModelOffload(pipeline, torch.device("cpu"))
    other = FRONTS[task].from_pipe(pipeline)
    assert type(other).__name__ == NAMES[task]
    for name, part in pipeline.components.items():
        assert getattr(other, name) is part
    assert other._progress_bar == {"disable": True} and type(other.placement) is ModelOffload
    replaced = FRONTS[task].from_pipe(pipeline, scheduler=retouch.LCMScheduler(steps_offset=1))
    assert type(replaced.scheduler).__name__ == "LCMScheduler" and replaced.unet is pipeline.unet
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"


def test_parts_can_be_given_when_loading(pipeline: Any, tiny_sd: Path) -> None:
    given = retouch.EulerDiscreteScheduler(steps_offset=1)
    loaded = retouch.StableDiffusionPipeline.from_pretrained(tiny_sd, scheduler=given, unet=pipeline.unet)
    assert loaded.scheduler is given and loaded.unet is pipeline.unet and loaded.vae is not pipeline.vae


def test_options_of_the_reference_that_ask_for_nothing_here(pipeline: Any, tiny_sd: Path) -> None:
    given = {"unet": pipeline.unet, "low_cpu_mem_usage": True, "device_map": None, "add_watermarker": False}
    loaded = retouch.AutoPipelineForInpainting.from_pretrained(tiny_sd, **given)
    assert loaded.unet is pipeline.unet and type(loaded) is retouch.StableDiffusionInpaintPipeline
    for option, answer in (
        ({"device_map": "balanced"}, r"with device_map.*it takes the parts vae.*to\(device\)"),
        ({"add_watermarker": True}, "with add_watermarker"),
        ({"low_cpu_mem_usage": "some"}, "with low_cpu_mem_usage"),
    ):
        with pytest.raises(InputError, match=answer):
            retouch.AutoPipelineForInpainting.from_pretrained(tiny_sd, **option)


def test_a_copy_shares_parts_until_one_is_exchanged(pipeline: Any, tiny_sd_inpaint: Path) -> None:
    other = load(retouch, NAMES["inpaint"], tiny_sd_inpaint)
    original = retouch.StableDiffusionInpaintPipeline.from_pipe(pipeline)
    twin = copy.copy(original)
    assert twin.vae is original.vae
    twin.unet = other.unet
    twin.set_progress_bar_config(disable=True, desc="twin")
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    one, two = (
        made("a cat", photo(), mask(), generator=torch.Generator().manual_seed(0), **arguments).images
        for made in (twin, retouch.StableDiffusionInpaintPipeline.from_pipe(original, unet=other.unet))
    )
    assert np.array_equal(one, two)
    assert original.unet is pipeline.unet and "desc" not in original._progress_bar


def test_a_deep_copy_has_parts_and_a_placement_of_its_own(pipeline: Any) -> None:
    pipeline.placement = ModelOffload(pipeline, torch.device("cpu"))
    twin = copy.deepcopy(pipeline)
    assert twin.unet is not pipeline.unet and twin.placement.owner is twin
    assert type(twin.placement) is ModelOffload and twin.placement._users is not pipeline.placement._users
    with twin.placement.using("unet") as used:
        assert used is twin.unet


def test_the_config_behaves_as_objects_do(pipeline: Any) -> None:
    assert not hasattr(pipeline.config, "brush") and pipeline.config.unet[0] == "diffusers"
    assert copy.deepcopy(pipeline.config) == pipeline.config == pickle.loads(pickle.dumps(pipeline.config))
    with pytest.raises(AttributeError, match=r"no brush. It has _class_name"):
        _ = pipeline.config.brush


def test_a_pipeline_from_its_parts(pipeline: Any) -> None:
    made = retouch.StableDiffusionInpaintPipeline(**pipeline.components)
    assert made.unet is pipeline.unet and made.device == torch.device("cpu")
    assert made.config.unet == ["diffusers", "UNet2DConditionModel"]
    assert made.config["safety_checker"] == [None, None]


@pytest.mark.parametrize(
    "how",
    [
        {"args": (torch.bfloat16,)},
        {"args": ("cpu", torch.bfloat16)},
        {"dtype": torch.bfloat16, "device": "cpu"},
        {"args": (torch.device("cpu"),), "dtype": torch.bfloat16, "silence_dtype_warnings": True},
    ],
    ids=str,
)
def test_moving_and_converting(pipeline: Any, how: dict[str, Any]) -> None:
    for name in ("unet", "vae", "text_encoder"):
        setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)))
    assert pipeline.to(*how.pop("args", ()), **how) is pipeline
    assert {part.dtype for part in pipeline._modules().values()} == {torch.bfloat16} == {pipeline.dtype}
    images = pipeline("a cat", height=64, width=64, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_half_precision_where_the_processor_has_none(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cpu_abilities", lambda: set())
    monkeypatch.setattr(devices, "_warned_of_float16", False)
    with pytest.warns(UserWarning, match=r"float16 was asked for on a CPU.*float32 is used"):
        pipeline.to(torch.float16)
    pipeline.to(torch.float16)  # once is enough
    assert pipeline.unet.dtype == torch.float32


class Bar:
    """Counts as tqdm does."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self, by: int = 1) -> None:
        self.done += by


@pytest.mark.parametrize(
    ("scheduler", "arguments", "total"),
    [
        ("DDIMScheduler", {}, 6),
        ("DDIMScheduler", {"strength": 0.5}, 3),
        ("PNDMScheduler", {}, 6),
        ("PNDMScheduler", {"strength": 0.5}, 3),
        ("HeunDiscreteScheduler", {}, 6),
        ("HeunDiscreteScheduler", {"strength": 0.5}, 3),
        ("KDPM2DiscreteScheduler", {"strength": 0.5}, 3),
        ("LCMScheduler", {"timesteps": [900, 500, 100]}, 3),
    ],
)
def test_the_bar_counts_the_steps_that_were_asked_for(
    pipeline: Any, scheduler: str, arguments: dict[str, Any], total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inpainting = retouch.StableDiffusionInpaintPipeline.from_pipe(pipeline)
    inpainting.scheduler = getattr(retouch, scheduler).from_config(pipeline.scheduler.config)
    bars: list[Bar] = []
    monkeypatch.setattr(inpainting, "progress_bar", lambda total: bars.append(Bar(total)) or bars[-1])
    inpainting("a cat", photo(), mask(), num_inference_steps=6, output_type="latent", **arguments)
    (bar,) = bars
    assert bar.total == bar.done == total


def test_settings_of_the_bar(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.set_progress_bar_config(desc="painting", disable=False, ncols=60)
    pipeline("a cat", height=64, width=64, num_inference_steps=2, output_type="latent")
    shown = capsys.readouterr().err
    assert "painting" in shown and "2/2" in shown


def test_switches_for_less_memory(
    pipeline: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.vae = copy.deepcopy(pipeline.vae)
    pipeline.enable_vae_tiling()
    pipeline.enable_vae_slicing()
    assert pipeline.vae.use_tiling and pipeline.vae.use_slicing
    pipeline.disable_vae_tiling()
    pipeline.disable_vae_slicing()
    assert not pipeline.vae.use_tiling and not pipeline.vae.use_slicing
    monkeypatch.setattr("retouch.pipelines.parts._said", set())  # other tests of this process may have asked
    pipeline.enable_attention_slicing()
    pipeline.enable_attention_slicing("max")
    pipeline.disable_attention_slicing()
    pipeline.enable_xformers_memory_efficient_attention()
    pipeline.disable_xformers_memory_efficient_attention()
    said = [record.message for record in caplog.records if record.name == "retouch"]
    names = ["enable_attention_slicing()", "enable_xformers_memory_efficient_attention()"]
    assert [message.split()[0] for message in said] == names, "each says once that it has no effect"
    assert all("no effect" in message for message in said)
