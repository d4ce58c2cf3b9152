"""Whole pictures with LoRA in every format, alone and together, as in diffusers with PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from lora_files import (
    ATTENTION,
    Sides,
    State,
    diffusers as diffusers_spelling,
    diffusers_2023,
    kohya,
    kohya_xl,
    peft,
    sides,
)
from pipeline_pairs import NAMES, XL_NAMES, Pair, fresh, task_inputs
from tiny_controls import drawing, tiny_controlnet

import retouch
from retouch.checkpoints.original_layout import origins

# The layers of the published LCM-LoRAs, which have diffusers' names.
LCM = (
    r"\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2"
    r"|conv1|conv2|conv_shortcut|conv|time_emb_proj)$"
)
SCALED = {"cross_attention_kwargs": {"scale": 0.4}}


@pytest.fixture(scope="module")
def sd_pair(tiny_sd: Path) -> Pair:
    return fresh(tiny_sd, NAMES["text2image"], "text2image")


@pytest.fixture(scope="module")
def xl_pair(tiny_sdxl: Path) -> Pair:
    return fresh(tiny_sdxl, XL_NAMES["text2image"], "text2image")


def loaded(pair: Pair, state: Any, name: str | None = None, **options: Any) -> None:
    """Load the same file into both, without the reference's warnings."""
    pair.ours.load_lora_weights(dict(state), adapter_name=name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair.theirs.load_lora_weights(dict(state), adapter_name=name, **options)


def emptied(pair: Pair) -> Iterator[Pair]:
    yield pair
    pair.ours.unload_lora_weights()
    pair.theirs.unload_lora_weights()
    # In the reference the scale of a call stays, and scales the next file for text encoders too.
    pair.theirs._lora_scale = 1.0


@pytest.fixture
def sd(sd_pair: Pair) -> Iterator[Pair]:
    yield from emptied(sd_pair)


@pytest.fixture
def xl(xl_pair: Pair) -> Iterator[Pair]:
    yield from emptied(xl_pair)


def picture(pipeline: Any, **arguments: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    options = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "output_type": "pt",
        **task_inputs("text2image"),
    }
    images: torch.Tensor = pipeline("a cat", generator=generator, **{**options, **arguments}).images
    return images


def compared(pair: Pair, **arguments: Any) -> None:
    pair.compare(num_inference_steps=2, **{**task_inputs(pair.task), **arguments})


def original_name(pipeline: Any) -> Callable[[str], str]:
    """Return the names of the UNet's layers in the program that kohya-ss trains SDXL with."""
    names = [f"{name}.weight" for name, layer in pipeline.unet.named_modules() if hasattr(layer, "weight")]
    found = origins("UNet2DConditionModel", pipeline.unet.config, names)
    return lambda name: found[f"{name}.weight"].name.removesuffix(".weight")


SD_FORMATS: dict[str, tuple[Callable[[Sides], State], dict[str, Any]]] = {
    "peft": (peft, {"alpha": 4.0}),
    "peft-ranks": (peft, {"alpha": 4.0, "rank": [4, 2, 3]}),
    "diffusers": (diffusers_spelling, {"alpha": 4.0, "unet": ATTENTION}),
    "diffusers-2023": (diffusers_2023, {"alpha": 4.0, "unet": ATTENTION}),
    "kohya": (kohya, {"alpha": 1.0, "unet": ATTENTION + r"|\.(proj_in|proj_out|ff\.net.*)$"}),
    "kohya-every-layer": (kohya, {"alpha": 3.0}),
    "kohya-text-alone": (kohya, {"unet": "no layer"}),
}


@pytest.mark.parametrize("form", SD_FORMATS)
def test_formats(sd: Pair, form: str) -> None:
    write, options = SD_FORMATS[form]
    before = picture(sd.ours)
    loaded(sd, write(sides(sd.ours, **options)))
    assert (picture(sd.ours) - before).abs().max() > 0.02, "it has no effect worth comparing"
    compared(sd)
    compared(sd, **SCALED)
    sd.ours.unload_lora_weights()
    assert torch.equal(picture(sd.ours), before)


XL_FORMATS: dict[str, tuple[Callable[..., State], dict[str, Any]]] = {
    "peft": (peft, {"alpha": 4.0}),
    "kohya": (kohya_xl, {"alpha": 1.0, "unet": ATTENTION}),
    "lcm": (kohya_xl, {"alpha": 4.0, "text": None, "unet": LCM}),
    "original": (
        kohya_xl,
        {"alpha": 1.0, "unet": r"attn\d|ff|proj_(in|out)|resnets|samplers|conv_|embedding"},
    ),
}


@pytest.mark.parametrize("form", XL_FORMATS)
def test_sdxl_formats(xl: Pair, form: str) -> None:
    write, options = XL_FORMATS[form]
    names = {"original": original_name(xl.ours)} if form == "original" else {}
    before = picture(xl.ours)
    loaded(xl, write(sides(xl.ours, **options), **names))
    assert (picture(xl.ours) - before).abs().max() > 0.02, "it has no effect worth comparing"
    compared(xl)
    compared(xl, **SCALED)
    xl.ours.unload_lora_weights()
    assert torch.equal(picture(xl.ours), before)


def two(pair: Pair) -> tuple[State, State]:
    """Load one with text encoders and one without; some of their layers are the same."""
    return (
        kohya(sides(pair.ours, unet=ATTENTION, alpha=1.0)),
        kohya(sides(pair.ours, unet=r"to_q$|conv1$", text=None, rank=2, alpha=2.0, seed=1)),
    )


def both(pair: Pair, method: str, *args: Any, **options: Any) -> None:
    for pipeline in (pair.ours, pair.theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(pipeline, method)(*args, **options)


def test_two_adapters(sd: Pair) -> None:
    before = picture(sd.ours)
    for name, state in zip("ab", two(sd), strict=True):
        loaded(sd, state, name)
    both(sd, "set_adapters", ["a", "b"], [0.7, -0.4])
    compared(sd)
    compared(sd, **SCALED)
    assert sd.ours.get_active_adapters() == sd.theirs.get_active_adapters() == ["a", "b"]
    assert sd.ours.get_list_adapters() == sd.theirs.get_list_adapters()
    mixed = picture(sd.ours)
    both(sd, "set_adapters", "b")
    assert sd.ours.get_active_adapters() == ["b"]
    compared(sd)
    both(sd, "set_adapters", ["a"], [{"unet": 0.5, "text_encoder": 1.5}])
    compared(sd)
    both(sd, "disable_lora")
    compared(sd)
    assert torch.equal(picture(sd.ours), before)
    both(sd, "enable_lora")
    compared(sd)
    both(sd, "set_adapters", ["a", "b"], [0.7, -0.4])
    assert torch.equal(picture(sd.ours), mixed)
    both(sd, "delete_adapters", "a")
    assert sd.ours.get_list_adapters() == sd.theirs.get_list_adapters() == {"unet": ["b"]}
    compared(sd)


def test_fused(sd: Pair) -> None:
    before = picture(sd.ours)
    weights = sd.theirs.unet.state_dict()
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    for name, state in zip("ab", two(sd), strict=True):
        loaded(sd, state, name)
    both(sd, "set_adapters", ["a", "b"], [0.7, -0.4])
    apart = picture(sd.ours)
    both(sd, "fuse_lora", lora_scale=0.6, adapter_names=["a", "b"])
    assert sd.ours.fused_loras == sd.theirs.fused_loras and sd.ours.num_fused_loras == 2
    compared(sd)
    sd.ours.unfuse_lora()
    assert torch.equal(picture(sd.ours), apart)
    # The reference subtracts the update again, and keeps the adapters at the scale of fusing.
    sd.theirs.unfuse_lora()
    sd.theirs.set_adapters(["a", "b"], [0.7, -0.4])
    compared(sd)
    both(sd, "fuse_lora", adapter_names=["b"])
    both(sd, "unload_lora_weights")
    compared(sd)  # the fused update stays
    assert not torch.equal(picture(sd.ours), before)
    assert sd.ours.get_list_adapters() == {}
    sd.ours.unet.load_state_dict(weights)
    sd.theirs.unet.load_state_dict(weights)
    assert torch.equal(picture(sd.ours), before)


@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [
        ("tiny_sd2", "text2image"),
        ("tiny_sd", "image2image"),
        ("tiny_sdxl_refiner", "image2image"),
        ("tiny_sd", "inpaint"),
        ("tiny_sd_inpaint", "inpaint"),
        ("tiny_sdxl", "inpaint"),
    ],
)
def test_other_tasks(request: pytest.FixtureRequest, checkpoint: str, task: str) -> None:
    names = XL_NAMES if "xl" in checkpoint else NAMES
    pair = fresh(request.getfixturevalue(checkpoint), names[task], task)
    write = kohya_xl if "xl" in checkpoint else kohya
    loaded(pair, write(sides(pair.ours, unet=ATTENTION)))
    compared(pair, **({} if task == "text2image" else {"strength": 0.8}), **SCALED)


def test_beside_a_controlnet(sd: Pair, tiny_sd: Path, tmp_path: Path) -> None:
    """The net has layers of the same names, and gets no update."""
    tiny_controlnet(tiny_sd).save_pretrained(tmp_path)
    steered = []
    for library, pipeline in ((retouch, sd.ours), (diffusers, sd.theirs)):
        net = library.ControlNetModel.from_pretrained(tmp_path)
        kind = library.StableDiffusionControlNetPipeline
        steered.append(kind.from_pipe(pipeline, controlnet=net))
        steered[-1].set_progress_bar_config(disable=True)
    loaded(sd, kohya(sides(sd.ours, unet=ATTENTION)))
    compared(replace(sd, ours=steered[0], theirs=steered[1]), image=drawing(), **SCALED)


def test_settings_in_the_file(sd: Pair, tmp_path: Path) -> None:
    """Today's training scripts save alpha and rank in the file's metadata."""
    updates = sides(sd.ours, unet=ATTENTION, rank=[4, 2])
    spelled = peft(updates)
    ranks = {key: tensor.shape[0] for key, tensor in spelled.items() if "lora_A" in key}
    settings: dict[str, Any] = {}
    for part in ("unet", "text_encoder"):
        names = {
            key.removeprefix(f"{part}.")[: -len(".lora_A.weight")]: rank
            for key, rank in ranks.items()
            if key.startswith(f"{part}.")
        }
        targets = [name.removeprefix("text_model.") for name in names]
        own = {
            "r": 4,
            "lora_alpha": 6,
            "rank_pattern": {
                name.removeprefix("text_model."): rank for name, rank in names.items() if rank != 4
            },
            "alpha_pattern": {"to_k": 1, "fc1": 3},
            "target_modules": targets,
        }
        settings |= {f"{part}.{key}": value for key, value in own.items()}
    sd.theirs.write_lora_layers(spelled, str(tmp_path), True, None, None, True, settings)
    sd.ours.load_lora_weights(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sd.theirs.load_lora_weights(str(tmp_path))
    compared(sd)
