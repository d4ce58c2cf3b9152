"""IP-Adapters: files that do not fit, calls that do not go with them, and calls side by side."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from hub_stand_in import HubStandIn
from ip_adapter_files import EMBEDS, STATES, ip_adapter, repository, tiny_image_encoder
from pipeline_pairs import mask, photo
from refusals import refuses
from torch import Tensor

import retouch
from retouch.errors import CheckpointError
from retouch.pipelines.placement import ModelOffload, SequentialOffload

State = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def shared(tiny_sd: Path) -> Any:
    pipeline = retouch.StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(shared: Any) -> Iterator[Any]:
    shared.image_encoder = tiny_image_encoder()
    yield shared
    shared.unload_ip_adapter()
    assert shared.image_encoder is None and shared.feature_extractor is None


def paint(pipeline: Any, **arguments: Any) -> Tensor:
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}
    options["generator"] = torch.Generator().manual_seed(0)
    images: Tensor = pipeline("a cat", **{**options, **arguments}).images
    return images


def without(state: State, part: str, key: str) -> State:
    return {**state, part: {name: tensor for name, tensor in state[part].items() if name != key}}


def with_key(state: State, part: str, key: str, tensor: Tensor) -> State:
    return {**state, part: {**state[part], key: tensor}}


# How a file is spoiled, and facts of the message.
WRONG: dict[str, tuple[Callable[[State], Any], list[str]]] = {
    "nothing": (lambda state: {}, ["no image_proj"]),
    "a LoRA": (lambda state: {"lora_unet_x.lora_up.weight": torch.ones(1)}, ["a LoRA"]),
    "half of it": (lambda state: {"image_proj": state["image_proj"]}, ["no ip_adapter"]),
    "FaceID": (
        lambda state: {
            **state,
            "image_proj": {"proj.0.weight": torch.ones(2, 2), "norm.weight": torch.ones(2)},
        },
        ["FaceID", "ip-adapter-plus-face"],
    ),
    "FaceID Plus": (
        lambda state: with_key(state, "image_proj", "perceiver_resampler.proj_in.weight", torch.ones(2, 2)),
        ["FaceID", "ip-adapter-plus-face"],
    ),
    "a LoRA in it": (
        lambda state: with_key(state, "ip_adapter", "1.to_q_lora.up.weight", torch.ones(1)),
        ["FaceID", "ip-adapter-plus-face"],
    ),
    "a foreign key": (
        lambda state: with_key(state, "ip_adapter", "1.to_x.weight", torch.ones(1)),
        ["ip_adapter.1.to_x.weight", "to_k_ip.weight"],
    ),
    "a key in the projection": (
        lambda state: with_key(state, "image_proj", "other", torch.ones(1)),
        ["image_proj: other"],
    ),
    "no norm": (
        lambda state: without(state, "image_proj", "norm.weight"),
        ["image_proj: norm.weight"],
    ),
    "a layer short": (
        lambda state: without(state, "ip_adapter", "3.to_v_ip.weight"),
        ["1 of its 13", "ip_adapter.3.to_v_ip.weight"],
    ),
    "a layer of another width": (
        lambda state: with_key(state, "ip_adapter", "3.to_v_ip.weight", torch.ones(7, 32)),
        ["ip_adapter.3.to_v_ip.weight", "(7, 32)"],
    ),
    "NaN": (
        lambda state: with_key(state, "ip_adapter", "3.to_v_ip.weight", torch.full((16, 32), torch.nan)),
        ["NaN", "ip_adapter.3.to_v_ip.weight"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_do_not_fit(pipeline: Any, case: str) -> None:
    change, facts = WRONG[case]
    good = ip_adapter(pipeline.unet)
    with refuses("pretrained_model_name_or_path_or_dict", *facts, error=CheckpointError):
        pipeline.load_ip_adapter([good, change(good)])
    assert pipeline.num_ip_adapters == 0
    paint(pipeline)


def test_one_of_another_family(pipeline: Any, tiny_sdxl: Path) -> None:
    other = retouch.StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    with refuses("pretrained_model_name_or_path_or_dict", "width 72", "width 32", error=CheckpointError):
        pipeline.load_ip_adapter(ip_adapter(other.unet))
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet))
    with refuses("pretrained_model_name_or_path_or_dict", "width 72", "width 32", error=CheckpointError):
        pipeline.load_ip_adapter(ip_adapter(other.unet))
    assert pipeline.num_ip_adapters == 1  # the one from before


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"ip_adapter_image": photo()}, "ip_adapter_image"),
        ({"ip_adapter_image_embeds": [torch.ones(2, 1, EMBEDS)]}, "ip_adapter_image_embeds"),
        (
            {"cross_attention_kwargs": {"ip_adapter_masks": torch.ones(1, 1, 64, 64)}},
            "cross_attention_kwargs",
        ),
    ],
)
def test_calls_without_an_adapter(pipeline: Any, arguments: dict[str, Any], parameter: str) -> None:
    with refuses(parameter, "IP-Adapter", "load_ip_adapter"):
        paint(pipeline, **arguments)


def test_a_scale_without_an_adapter(pipeline: Any) -> None:
    with refuses("scale", "IP-Adapter", "load_ip_adapter"):
        pipeline.set_ip_adapter_scale(0.5)


def kwargs(masks: Any) -> dict[str, Any]:
    return {"ip_adapter_image": photo(), "cross_attention_kwargs": {"ip_adapter_masks": masks}}


@pytest.mark.parametrize(
    ("arguments", "parameter", "facts"),
    [
        ({}, "ip_adapter_image", ["ip_adapter_image_embeds", "unload_ip_adapter"]),
        (
            {"ip_adapter_image": photo(), "ip_adapter_image_embeds": [torch.ones(2, 1, EMBEDS)]},
            "ip_adapter_image",
            ["ip_adapter_image_embeds"],
        ),
        ({"ip_adapter_image": [photo(), photo()]}, "ip_adapter_image", ["2 entries", "1 IP-Adapters"]),
        ({"ip_adapter_image": [[]]}, "ip_adapter_image", ["1 IP-Adapters"]),
        ({"ip_adapter_image": "cat.png"}, "ip_adapter_image", ["str", "load_image"]),
        (
            {"ip_adapter_image_embeds": torch.ones(2, 1, EMBEDS)},
            "ip_adapter_image_embeds",
            ["Tensor", "list of tensors"],
        ),
        (
            {"ip_adapter_image_embeds": [torch.ones(2, 1, STATES)]},
            "ip_adapter_image_embeds",
            [(2, 1, STATES), EMBEDS],
        ),
        (
            {"ip_adapter_image_embeds": [torch.ones(1, 1, EMBEDS)]},
            "ip_adapter_image_embeds",
            [(1, 1, EMBEDS), "2 x rows"],
        ),
        (
            {"ip_adapter_image_embeds": [torch.ones(6, 1, EMBEDS)]},
            "ip_adapter_image_embeds",
            ["3 rows", "1 prompts"],
        ),
        (
            kwargs([torch.ones(64, 64)]),
            "cross_attention_kwargs",
            ["ip_adapter_masks", "(1, images, height, width)"],
        ),
        (kwargs([torch.ones(1, 2, 64, 64)]), "cross_attention_kwargs", ["2 masks", "1 images"]),
        (kwargs([torch.ones(1, 1, 64, 96)]), "cross_attention_kwargs", ["96x64", "64x64"]),
        (kwargs([torch.ones(1, 1, 64, 64)]) | {"tile_size": 64}, "tile_size", ["ip_adapter_masks"]),
        ({"cross_attention_kwargs": {"other": 1}}, "cross_attention_kwargs", ["other", "ip_adapter_masks"]),
    ],
)
def test_calls_that_do_not_go_with_the_adapter(
    pipeline: Any, arguments: Any, parameter: str, facts: list[Any]
) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet))
    with refuses(parameter, *facts):
        paint(pipeline, **arguments)


def test_the_image_encoder_is_missing_or_another(pipeline: Any) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet, "plus"))
    pipeline.image_encoder = tiny_image_encoder(hidden_size=STATES - 8)
    with refuses("ip_adapter_image", f"width {STATES}", STATES - 8):
        paint(pipeline, ip_adapter_image=photo())
    pipeline.image_encoder = None
    with refuses("ip_adapter_image", "image_encoder", "load_ip_adapter"):
        paint(pipeline, ip_adapter_image=photo())


@pytest.mark.parametrize(
    ("scale", "facts"),
    [
        ([0.5, 0.5], ["2 entries", "1 IP-Adapters"]),
        ("strong", ["'strong'"]),
        (float("nan"), ["nan"]),
        (None, ["None"]),
        ({"sideways": 1.0}, ["sideways"]),
        ({"up": {"block_0": 1.0}}, ["block_0"]),  # which has no attention
        ({"up": {"block_2": [1.0, 1.0, 1.0]}}, ["block_2"]),
    ],
    ids=str,
)
def test_scales_that_are_none(pipeline: Any, scale: Any, facts: list[str]) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet))
    before = paint(pipeline, ip_adapter_image=photo())
    with refuses("scale", *facts):
        pipeline.set_ip_adapter_scale(scale)
    assert torch.equal(paint(pipeline, ip_adapter_image=photo()), before)


def test_a_scale_for_each_image_takes_masks(pipeline: Any) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet))
    pipeline.set_ip_adapter_scale([[0.5, 0.5]])
    with refuses("cross_attention_kwargs", "ip_adapter_masks"):
        paint(pipeline, ip_adapter_image=[[photo(), photo()]])


def test_threads_with_scales_and_masks_of_their_own(pipeline: Any) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet, "plus"))
    left = retouch.IPAdapterMaskProcessor().preprocess(mask((0, 0, 32, 64)), 64, 64)
    wanted: list[dict[str, Any]] = [
        {"ip_adapter_image": photo(5)},
        {"ip_adapter_image": photo(6), "cross_attention_kwargs": {"ip_adapter_masks": [left]}},
        {"ip_adapter_image": photo(5), "cross_attention_kwargs": {"ip_adapter_masks": [1 - left]}},
    ]
    size = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "pt"}

    def begun(number: int) -> Any:
        """A run takes the scale with it that is set when it begins."""
        pipeline.set_ip_adapter_scale(0.3 + 0.3 * number)
        generator = torch.Generator().manual_seed(number)
        return pipeline.start("a cat", generator=generator, **size, **wanted[number])

    alone = [begun(number).result().images for number in range(3)]
    runs = [begun(number) for number in range(3)]
    together: dict[int, Tensor] = {}

    def work(number: int) -> None:
        together[number] = runs[number].result().images

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[number], alone[number]) for number in range(3))


def test_a_callback_that_switches_guidance_off(pipeline: Any) -> None:
    """It leaves the text of the positive side alone, and with it goes that side's image."""
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet, "plus"))
    seen = {"ip_adapter_image": photo(5), "num_inference_steps": 3}

    def off(run: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        run._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]}

    def ineffective(run: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        run._guidance_scale = 1.0 + 1e-9
        return {}

    def painted(callback: Any) -> Tensor:
        options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        return paint(pipeline, **seen, **options)

    # A scale of 1 is the positive half alone.
    assert_close(painted(off), lambda: painted(ineffective))


def test_a_prompt_has_embeds_of_its_own(pipeline: Any) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet))
    halves = []
    for seed in (5, 6):
        (embeds,) = pipeline.prepare_ip_adapter_image_embeds(photo(seed))
        halves.append(embeds.chunk(2))
    both = [torch.cat([pair[0] for pair in halves] + [pair[1] for pair in halves])]
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}
    images = pipeline(["a cat"] * 2, generator=generators, ip_adapter_image_embeds=both, **options).images

    def single(seed: int) -> Tensor:
        generator = [torch.Generator().manual_seed(seed)]
        return paint(pipeline, ip_adapter_image=photo(seed), generator=generator)

    assert_close(images, lambda: torch.cat([single(5), single(6)]))


def test_saved_without_it(pipeline: Any, tmp_path: Path) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet))
    with pytest.warns(UserWarning, match=r"without the IP-Adapter"):
        pipeline.save_pretrained(tmp_path / "saved")
    again = retouch.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert again.num_ip_adapters == 0
    pipeline.unload_ip_adapter()
    again.set_progress_bar_config(disable=True)
    assert torch.equal(paint(again), paint(pipeline))


def test_from_the_hub(hub: HubStandIn, pipeline: Any, tmp_path: Path) -> None:
    hub.add("h94/IP-Adapter", repository(tmp_path / "repository", pipeline.unet))
    pipeline.image_encoder = None
    with refuses("use_safetensors", "ip-adapter-plus.bin", error=CheckpointError):
        pipeline.load_ip_adapter("h94/IP-Adapter", "models", "ip-adapter-plus.bin")
    hub.forget()
    pipeline.load_ip_adapter("h94/IP-Adapter", subfolder="models", weight_name="ip-adapter-plus.safetensors")
    sent = {"models/ip-adapter-plus.safetensors", "models/image_encoder/config.json"}
    assert set(hub.files_sent) == sent | {"models/image_encoder/model.safetensors"}
    image = paint(pipeline, ip_adapter_image=photo())
    pipeline.unload_ip_adapter()
    hub.forget()
    pipeline.load_ip_adapter(
        "h94/IP-Adapter", "models", "ip-adapter-plus.safetensors", "models/image_encoder"
    )
    assert hub.requests == []  # from the cache
    assert torch.equal(paint(pipeline, ip_adapter_image=photo()), image)
    pipeline.unload_ip_adapter()
    with refuses("subfolder", "models/other", "models/image_encoder", error=CheckpointError):
        pipeline.load_ip_adapter("h94/IP-Adapter", "models", "ip-adapter-plus.safetensors", "other")
    pipeline.load_ip_adapter("h94/IP-Adapter", "models", "ip-adapter-plus.safetensors", None)
    assert pipeline.image_encoder is None


def test_a_single_file(pipeline: Any, tmp_path: Path) -> None:
    folder = repository(tmp_path, pipeline.unet, ("plain",)) / "models"
    pipeline.image_encoder = None
    pipeline.load_ip_adapter(folder / "ip-adapter-plain.safetensors")
    assert pipeline.image_encoder is not None  # which lies beside it
    paint(pipeline, ip_adapter_image=photo())


def test_fronts_share_it(pipeline: Any) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet))
    other = retouch.StableDiffusionInpaintPipeline.from_pipe(pipeline)
    assert other.num_ip_adapters == 1 and other.image_encoder is pipeline.image_encoder
    assert other.feature_extractor is pipeline.feature_extractor


def test_layers_keep_their_precision_and_place(pipeline: Any) -> None:
    """What is added moves with the UNet, and is no part of what it saves or trains."""
    names = list(pipeline.unet.state_dict()), [name for name, _ in pipeline.unet.named_parameters()]
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet, "plus"))
    assert names == (
        list(pipeline.unet.state_dict()),
        [name for name, _ in pipeline.unet.named_parameters()],
    )
    moved = copy.deepcopy(pipeline.unet).to(torch.bfloat16)
    assert {buffer.dtype for buffer in moved.buffers()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in pipeline.unet.buffers()} == {torch.float32}


@pytest.mark.parametrize("strategy", [ModelOffload, SequentialOffload])
def test_offloaded(pipeline: Any, strategy: Any) -> None:
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet, "plus"))
    resident = pipeline.placement
    try:
        pipeline.placement = strategy(pipeline, torch.device("cpu"))
        found = paint(pipeline, ip_adapter_image=photo())
    finally:
        pipeline.placement = resident
    assert_close(found, lambda: paint(pipeline, ip_adapter_image=photo()))


def test_a_compiled_unet(pipeline: Any) -> None:
    plain = pipeline.unet
    before = paint(pipeline)
    try:
        pipeline.unet = torch.compile(plain, backend="eager")
        pipeline.load_ip_adapter(ip_adapter(plain))
        assert not torch.equal(paint(pipeline, ip_adapter_image=photo()), before)
        pipeline.unload_ip_adapter()
        after = paint(pipeline)
    finally:
        pipeline.unet = plain
    assert_close(after, lambda: paint(pipeline))  # the compiler sees plain layers
