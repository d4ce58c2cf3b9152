"""Whole pictures with IP-Adapters of all kinds, alone and together, scaled and masked, as in diffusers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close, assert_differ
from diffusers.callbacks import IPAdapterScaleCutoffCallback
from diffusers.image_processor import IPAdapterMaskProcessor
from ip_adapter_files import SIDE, ip_adapter, repository, tiny_image_encoder
from lora_files import ATTENTION, kohya, sides
from pipeline_pairs import NAMES, XL_NAMES, Pair, fresh, mask, photo, task_inputs
from tiny_checkpoints import tiny_unet
from tiny_controls import drawing, tiny_controlnet

import retouch


@pytest.fixture(scope="module")
def sd_pair(tiny_sd: Path) -> Pair:
    return fresh(tiny_sd, NAMES["text2image"], "text2image")


@pytest.fixture(scope="module")
def xl_pair(tiny_sdxl: Path) -> Pair:
    return fresh(tiny_sdxl, XL_NAMES["text2image"], "text2image")


@pytest.fixture
def sd(sd_pair: Pair) -> Iterator[Pair]:
    yield sd_pair
    both(sd_pair, "unload_ip_adapter")


@pytest.fixture
def xl(xl_pair: Pair) -> Iterator[Pair]:
    yield xl_pair
    both(xl_pair, "unload_ip_adapter")


def both(pair: Pair, method: str, *args: Any, **options: Any) -> None:
    for pipeline in (pair.ours, pair.theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(pipeline, method)(*args, **options)


def loaded(pair: Pair, *kinds: str) -> None:
    """Load adapters of these kinds, and an image encoder, into both pipelines."""
    files = [ip_adapter(pair.theirs.unet, kind, seed) for seed, kind in enumerate(kinds)]
    for pipeline in (pair.ours, pair.theirs):
        pipeline.image_encoder = tiny_image_encoder()
    both(pair, "load_ip_adapter", copy.deepcopy(files), [None] * len(kinds), [""] * len(kinds))
    for pipeline in (pair.ours, pair.theirs):
        assert pipeline.feature_extractor.crop_size["height"] in (SIDE, 224)
        pipeline.feature_extractor = pair.ours.feature_extractor


def picture(pipeline: Any, **arguments: Any) -> torch.Tensor:
    options = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "output_type": "pt",
        **task_inputs("text2image"),
    }
    generator = torch.Generator().manual_seed(7)
    images: torch.Tensor = pipeline("a cat", generator=generator, **{**options, **arguments}).images
    return images


def compared(pair: Pair, **arguments: Any) -> None:
    pair.compare(num_inference_steps=2, **{**task_inputs(pair.task), **arguments})


@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_kinds(request: pytest.FixtureRequest, family: str, kind: str) -> None:
    pair: Pair = request.getfixturevalue(family)
    before = picture(pair.ours)
    weights = {name: tensor.clone() for name, tensor in pair.ours.unet.state_dict().items()}
    loaded(pair, kind)
    seen = {"ip_adapter_image": photo(5)}
    assert (picture(pair.ours, **seen) - before).abs().max() > 0.1, "it has no effect worth comparing"
    compared(pair, **seen)
    both(pair, "set_ip_adapter_scale", 0.4)
    compared(pair, **seen, guidance_scale=1.0)
    compared(pair, **seen, prompt=["a cat", "a castle"], num_images_per_prompt=2)
    both(pair, "set_ip_adapter_scale", 0.0)
    assert torch.equal(picture(pair.ours, **seen), before)
    assert pair.ours.unet.state_dict().keys() == weights.keys()
    pair.ours.unload_ip_adapter()
    assert torch.equal(picture(pair.ours), before)
    assert pair.ours.unet.encoder_hid_proj is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pair.ours.unet.state_dict().items())


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_two_adapters_and_several_images(request: pytest.FixtureRequest, family: str) -> None:
    pair: Pair = request.getfixturevalue(family)
    loaded(pair, "plain", "plus")
    seen: dict[str, Any] = {"ip_adapter_image": [photo(5), [photo(6, 80, 50), photo(7)]]}
    compared(pair, **seen)
    both(pair, "set_ip_adapter_scale", [0.3, 0.7])
    compared(pair, **seen, num_images_per_prompt=2)
    loaded(pair, "plus")  # replaces both
    compared(pair, ip_adapter_image=[[photo(6), photo(5)]])


SCALES: list[Any] = [
    {"up": {"block_1": [0.8]}},
    {"down": 0.3, "mid": 0.6},
    {"down": {"block_1": 0.9}, "up": {"block_2": [0.0, 1.0]}},
    [{"down": 0.7}, 0.2],
]


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_scales_by_block(sd: Pair, scale: Any) -> None:
    loaded(sd, *["plain", "plus"][: len(scale) if isinstance(scale, list) else 1])
    images = [photo(5), photo(6)][: sd.ours.num_ip_adapters]
    whole = picture(sd.ours, ip_adapter_image=images)
    both(sd, "set_ip_adapter_scale", scale)
    assert not torch.equal(picture(sd.ours, ip_adapter_image=images), whole)
    compared(sd, ip_adapter_image=images)


@pytest.mark.parametrize("is_guided", [True, False])
def test_embeds(xl: Pair, is_guided: bool) -> None:
    loaded(xl, "plain", "plus")
    images = [photo(5), [photo(6), photo(7)]]
    embeds = xl.ours.prepare_ip_adapter_image_embeds(images, None, None, 1, is_guided)
    reference = xl.theirs.prepare_ip_adapter_image_embeds(images, None, "cpu", 1, is_guided)
    for ours, theirs in zip(embeds, reference, strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
    options = {"guidance_scale": 3.0 if is_guided else 1.0}
    compared(xl, ip_adapter_image_embeds=embeds, num_images_per_prompt=2, **options)
    xl.ours.image_encoder = None
    given = picture(xl.ours, ip_adapter_image_embeds=embeds, **options)
    xl.ours.image_encoder = tiny_image_encoder()
    assert torch.equal(given, picture(xl.ours, ip_adapter_image=images, **options))


def masks(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """Return one mask for each box, from the reference's own processor."""
    width, height = size
    whites = [mask(box, width, height) for box in boxes]
    made: torch.Tensor = IPAdapterMaskProcessor().preprocess(whites, height=height, width=width)
    again = retouch.IPAdapterMaskProcessor().preprocess(whites, height=height, width=width)
    assert torch.equal(made, again)
    return made


LEFT, RIGHT = (0, 0, 32, 64), (32, 8, 60, 64)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_masks(request: pytest.FixtureRequest, family: str) -> None:
    pair: Pair = request.getfixturevalue(family)
    loaded(pair, "plain", "plus")
    seen: dict[str, Any] = {"ip_adapter_image": [[photo(5), photo(6)], photo(7)]}
    two, one = masks(LEFT, RIGHT), masks((20, 10, 50, 40))
    told: dict[str, Any] = {"ip_adapter_masks": [two.reshape(1, 2, 64, 64), one]}
    without = picture(pair.ours, **seen)
    assert (picture(pair.ours, **seen, cross_attention_kwargs=told) - without).abs().max() > 0.05
    compared(pair, **seen, cross_attention_kwargs=told, num_images_per_prompt=2)
    both(pair, "set_ip_adapter_scale", [[0.3, 0.9], 0.5])
    compared(pair, **seen, cross_attention_kwargs=told)
    both(pair, "set_ip_adapter_scale", [0.0, 0.5])
    compared(pair, **seen, cross_attention_kwargs={"ip_adapter_masks": [None, one]})
    both(pair, "set_ip_adapter_scale", [0.6, 0.5])
    compared(pair, ip_adapter_image=[photo(5), photo(7)], cross_attention_kwargs={"ip_adapter_masks": two})


@pytest.mark.parametrize("size", [(64, 32), (80, 48), (40, 88)])
def test_masks_of_pictures_that_are_no_square(sd: Pair, size: tuple[int, int]) -> None:
    loaded(sd, "plus")
    width, height = size
    told = {"ip_adapter_masks": [masks((0, 8, 32, 40), size=size)]}
    sizes = {"height": height, "width": width}
    if size == (64, 32):  # the reference mistakes the shape of others
        compared(sd, ip_adapter_image=photo(5), cross_attention_kwargs=told, **sizes)
    shown = picture(sd.ours, ip_adapter_image=photo(5), cross_attention_kwargs=told, **sizes)
    whole = {"ip_adapter_masks": [torch.ones(1, 1, height, width)]}
    everywhere = picture(sd.ours, ip_adapter_image=photo(5), cross_attention_kwargs=whole, **sizes)
    assert_close(everywhere, lambda: picture(sd.ours, ip_adapter_image=photo(5), **sizes))
    assert_differ(everywhere, shown)


@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [
        ("tiny_sd", "image2image"),
        ("tiny_sd_inpaint", "inpaint"),
        ("tiny_sd", "inpaint"),
        ("tiny_sdxl", "image2image"),
        ("tiny_sdxl", "inpaint"),
        ("tiny_sdxl_inpaint", "inpaint"),
    ],
)
def test_other_tasks(request: pytest.FixtureRequest, checkpoint: str, task: str) -> None:
    names = XL_NAMES if "xl" in checkpoint else NAMES
    pair = fresh(request.getfixturevalue(checkpoint), names[task], task)
    loaded(pair, "plus")
    both(pair, "set_ip_adapter_scale", 0.6)
    told = {"ip_adapter_masks": [masks(LEFT)]}
    options = {"strength": 0.8, "guidance_scale": 1.5}
    compared(pair, ip_adapter_image=photo(5), **options)
    compared(pair, ip_adapter_image=photo(5), cross_attention_kwargs=told, **options)


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_beside_a_controlnet(
    request: pytest.FixtureRequest, family: str, guess_mode: bool, tmp_path: Path
) -> None:
    pair: Pair = request.getfixturevalue(family)
    tiny_controlnet(request.getfixturevalue(f"tiny_{'sdxl' if family == 'xl' else 'sd'}")).save_pretrained(
        tmp_path
    )
    loaded(pair, "plain")
    steered = []
    for library, pipeline in ((retouch, pair.ours), (diffusers, pair.theirs)):
        net = library.ControlNetModel.from_pretrained(tmp_path)
        name = f"StableDiffusion{'XL' if family == 'xl' else ''}ControlNetPipeline"
        steered.append(getattr(library, name).from_pipe(pipeline, controlnet=net))
        steered[-1].set_progress_bar_config(disable=True)
    pair = replace(pair, ours=steered[0], theirs=steered[1])
    compared(pair, image=drawing(), ip_adapter_image=photo(5), guess_mode=guess_mode)


def test_beside_a_lora(sd: Pair) -> None:
    before = picture(sd.ours)
    state = kohya(sides(sd.ours, unet=ATTENTION))
    loaded(sd, "plus")
    both(sd, "load_lora_weights", dict(state))
    compared(sd, ip_adapter_image=photo(5), cross_attention_kwargs={"scale": 0.5})
    both(sd, "unload_ip_adapter")
    compared(sd)
    both(sd, "unload_lora_weights")
    assert torch.equal(picture(sd.ours), before)


def test_a_callback_that_ends_it(sd: Pair) -> None:
    """The reference's own callback, used for its run only, sets the scale to 0 from a step on."""
    loaded(sd, "plus")
    both(sd, "set_ip_adapter_scale", 0.7)
    whole = picture(sd.ours, ip_adapter_image=photo(5), num_inference_steps=4)

    def cut_off(pipeline: Any) -> torch.Tensor:
        if pipeline is sd.theirs:
            pipeline.set_ip_adapter_scale(0.7)  # it leaves 0 behind
        cutoff = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
        options = {"callback_on_step_end": cutoff, "num_inference_steps": 4}
        return picture(pipeline, ip_adapter_image=photo(5), **options)

    assert_close(found := cut_off(sd.ours), lambda: cut_off(sd.theirs))
    assert_differ(found, whole)
    assert torch.equal(picture(sd.ours, ip_adapter_image=photo(5), num_inference_steps=4), whole)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_from_a_folder(sd: Pair, tmp_path: Path, ending: str) -> None:
    """Files load in both formats, with the image encoder of their repository."""
    folder = repository(tmp_path, sd.theirs.unet)
    names = [f"ip-adapter-{kind}.{ending}" for kind in ("plain", "plus")]
    pickled: dict[str, Any] = {"use_safetensors": False} if ending == "bin" else {}
    if pickled:
        tiny_image_encoder().save_pretrained(folder / "pickled")
        torch.save(tiny_image_encoder().state_dict(), folder / "pickled/pytorch_model.bin")
        pickled["image_encoder_folder"] = "pickled/"
    sd.ours.load_ip_adapter(folder, "models", names, **pickled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sd.theirs.load_ip_adapter([str(folder)] * 2, subfolder=["models"] * 2, weight_name=names)
    assert sd.ours.feature_extractor.crop_size == sd.theirs.feature_extractor.crop_size
    compared(sd, ip_adapter_image=[photo(5), photo(6)])


def test_a_unet_by_itself() -> None:
    """Our UNet and the reference's give the same for the same `added_cond_kwargs`."""
    from retouch.checkpoints.ip_adapter import read_ip_adapter
    from retouch.models.ip_adapter import attach

    theirs = tiny_unet()
    ours = retouch.UNet2DConditionModel.from_config(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    file = ip_adapter(theirs, "plus")
    attach(ours, [read_ip_adapter(file, "It")])
    theirs._load_ip_adapter_weights([file])
    draw = torch.Generator().manual_seed(0)
    inputs = {
        "encoder_hidden_states": torch.randn(2, 7, 32, generator=draw),
        "added_cond_kwargs": {"image_embeds": [torch.randn(2, 3, 17, 40, generator=draw)]},
    }
    latents = torch.randn(2, 4, 8, 8, generator=draw)
    with torch.no_grad():
        assert_close(ours(latents, 500, **inputs).sample, lambda: theirs(latents, 500, **inputs).sample)
