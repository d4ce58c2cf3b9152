"""Calls with a ControlNet: sizes, crops, several nets, what is refused, and who finds which pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close, assert_differ
from PIL import Image
from pipeline_pairs import generators, load, mask, photo
from refusals import refuses
from tiny_controls import control_inputs, control_pair, drawing, tiny_controlnet

import retouch
from retouch.pipelines.placement import ModelOffload, SequentialOffload
from retouch.utils import make_inpaint_condition

FAST = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
TASKS = ["text2image", "image2image", "inpaint"]


@pytest.fixture
def made(tiny_sd: Path) -> Any:
    return lambda task, nets=1: control_pair(tiny_sd, task, nets).ours


def nets_of(pipeline: Any) -> list[Any]:
    return list(getattr(pipeline.controlnet, "nets", [pipeline.controlnet]))


@contextmanager
def shown_to(pipeline: Any) -> Iterator[list[torch.Tensor]]:
    """What the first net sees, once for each step."""
    seen: list[torch.Tensor] = []
    embedding = nets_of(pipeline)[0].controlnet_cond_embedding
    hook = embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


def draw(pipeline: Any, seed: int = 5, **arguments: Any) -> Any:
    return pipeline(**{**FAST, **arguments}, generator=generators(seed)).images


def plain(pipeline: Any, task: str) -> Any:
    fronts = {"text2image": "", "image2image": "Img2Img", "inpaint": "Inpaint"}
    found = getattr(retouch, f"StableDiffusion{fronts[task]}Pipeline").from_pipe(pipeline)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_without_weight_it_is_the_plain_pipeline(made: Any, task: str) -> None:
    pipeline = made(task)
    given = control_inputs(task)
    controlled = draw(pipeline, **given)
    off = draw(pipeline, **given, controlnet_conditioning_scale=0)
    del given["image" if task == "text2image" else "control_image"]
    if task == "image2image":
        del given["height"], given["width"]
    assert np.array_equal(off, draw(plain(pipeline, task), **given))
    assert not np.array_equal(off, controlled)


def test_a_new_net_changes_nothing(made: Any) -> None:
    pipeline = made("inpaint")
    net = retouch.ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(4, 6, 8, 8)
    ).eval()
    fresh = type(pipeline).from_pipe(pipeline, controlnet=net)
    given = control_inputs("inpaint")
    assert_close(draw(fresh, **given), lambda: draw(pipeline, **given, controlnet_conditioning_scale=0))


@pytest.mark.parametrize("task", TASKS)
def test_the_result_has_the_pictures_own_size(made: Any, task: str) -> None:
    pipeline, size = made(task), (70, 45)
    given = control_inputs(task, drawing(0, *size)) | {"height": None, "width": None}
    if task != "text2image":
        given["image"] = photo(0, *size)
    if task == "inpaint":
        given["mask_image"] = mask(width=70, height=45)
    with shown_to(pipeline) as seen:
        assert draw(pipeline, **given).shape == (1, 45, 70, 3)
    shown = seen[0][0]
    assert shown.shape == (3, 48, 72)
    original = torch.from_numpy(np.asarray(drawing(0, *size), np.float32) / 255).permute(2, 0, 1)
    assert torch.equal(shown[:, :45, :70], original)
    assert torch.equal(shown[:, 45:, :70], original[:, -1:].expand(-1, 3, -1)), "the edge is repeated"
    assert torch.equal(shown[:, :45, 70:], original[..., -1:].expand(-1, -1, 2))


def test_the_hole_of_a_condition_is_kept(made: Any) -> None:
    pipeline, size = made("inpaint"), (70, 45)
    image, hole = photo(0, *size), mask((10, 18, 41, 45), *size)
    condition = make_inpaint_condition(image, hole)
    with shown_to(pipeline) as seen:
        draw(pipeline, image=image, mask_image=hole, control_image=condition)
    assert torch.equal(seen[0][:1, :, :45, :70], condition) and (seen[0][:, :, 45:, 10:41] == -1).all()


def test_control_pictures_of_another_size(made: Any) -> None:
    pipeline = made("inpaint")
    given = {"image": photo(0, 72, 48), "mask_image": mask(width=72, height=48)}
    with (
        shown_to(pipeline) as seen,
        pytest.warns(UserWarning, match="36x24 but the picture is 72x48.*scaled"),
    ):
        draw(pipeline, **given, control_image=drawing(0, 36, 24))
    expected = np.asarray(drawing(0, 36, 24).resize((72, 48), Image.Resampling.LANCZOS), np.float32) / 255
    assert np.array_equal(seen[0][0].permute(1, 2, 0).numpy(), expected)
    with refuses("control_image", "48x72", "72x48", "height and width"):
        draw(pipeline, **given, control_image=drawing(0, 48, 72))
    assert draw(pipeline, **given, control_image=drawing(0, 48, 72), height=40, width=64).shape == (
        1,
        40,
        64,
        3,
    )


CROP = {"padding_mask_crop": 8, "height": 64, "width": 64, "output_type": "pil"}
PLACE = {"image": photo(0, 150, 110), "mask_image": mask((90, 61, 131, 83), 150, 110)}


def test_a_condition_is_cropped_with_its_picture(made: Any) -> None:
    """The reference stretches the whole tensor over the crop."""
    pipeline = made("inpaint")
    condition = make_inpaint_condition(PLACE["image"], PLACE["mask_image"])
    with shown_to(pipeline) as seen:
        draw(pipeline, **PLACE, **CROP, control_image=condition)
        draw(pipeline, **PLACE, **CROP, control_image=PLACE["image"])
    hole = (seen[0][0] == -1).all(0)
    as_picture = seen[-1][0]
    assert 0.25 < float(hole.float().mean()) < 0.5
    difference = (seen[0][0] - as_picture)[:, ~hole].abs().mean()
    assert float(difference) < 0.06  # another filter, the same place
    whole = torch.nn.functional.interpolate(condition, size=(64, 64))[0]
    assert float((whole - as_picture)[:, ~hole].abs().mean()) > 0.15
    rows, columns = torch.nonzero(hole, as_tuple=True)
    # The crop is 57 wide and as high, with the mask in its middle: 22 of the height, 41 of the width.
    assert abs(int(rows.max() - rows.min() + 1) - 22 * 64 / 57) < 3
    assert abs(int(columns.max() - columns.min() + 1) - 41 * 64 / 57) < 3


def test_a_crop_with_two_nets(made: Any) -> None:
    two, one = made("inpaint", 2), made("inpaint")
    first, second = drawing(0, 150, 110), drawing(1, 150, 110)
    scales = {"controlnet_conditioning_scale": [0.8, 0.0]}
    both = draw(two, **PLACE, **CROP, control_image=[first, second], **scales)
    alone = draw(one, **PLACE, **CROP, control_image=first, controlnet_conditioning_scale=0.8)
    assert both[0].tobytes() == alone[0].tobytes()
    assert draw(two, **PLACE, **CROP, control_image=[first, second])[0].tobytes() != alone[0].tobytes()


def test_crops_of_a_batch_have_their_own_place(made: Any) -> None:
    pipeline = made("inpaint")
    image, holes = PLACE["image"], [PLACE["mask_image"], mask((10, 11, 40, 35), 150, 110)]
    given = {"image": image, "control_image": drawing(0, 150, 110), **CROP}
    both = pipeline(
        **{**FAST, **given, "prompt": ["a cat", "a cat"]}, mask_image=holes, generator=generators([5, 6])
    ).images
    for seed, hole, found in zip((5, 6), holes, both, strict=True):
        assert draw(pipeline, seed, **given, mask_image=hole)[0].tobytes() == found.tobytes()


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_as_calls_one_by_one(made: Any, task: str) -> None:
    """Several control pictures make a batch, even with one prompt for all."""
    pipeline = made(task, 2)
    pictures = [[drawing(0), drawing(1)], [drawing(2), drawing(3)]]
    given = control_inputs(task, pictures)
    if task == "inpaint":  # of a picture that all share, the sample is drawn for the first alone
        given["image"] = [photo(), photo()]
    both = pipeline(**{**FAST, **given}, generator=generators([5, 6])).images

    def alone(row: int, seed: int) -> Any:
        own = {**FAST, **control_inputs(task, pictures[row])}
        return pipeline(**own, generator=generators([seed])).images[0]

    assert_close(list(both), lambda: [alone(0, 5), alone(1, 6)])
    assert_differ(both[0], both[1])


def test_runs_that_take_turns(made: Any) -> None:
    pipeline = made("inpaint")
    options = [control_inputs("inpaint", drawing(seed)) for seed in (0, 1)]
    expected = [draw(pipeline, seed, **given) for seed, given in enumerate(options)]
    runs = [
        pipeline.start(**{**FAST, **given}, generator=generators(seed)) for seed, given in enumerate(options)
    ]
    for _ in range(2):
        for run in runs:
            next(run)
    for run, images in zip(runs, expected, strict=True):
        assert np.array_equal(run.result().images, images)


@pytest.mark.parametrize("nets", [1, 2])
@pytest.mark.parametrize("strategy", [ModelOffload, SequentialOffload])
def test_offloaded(made: Any, strategy: Any, nets: int) -> None:
    pipeline = made("inpaint", nets)
    given = control_inputs("inpaint", drawing() if nets == 1 else [drawing(), drawing(1)])
    before = pipeline.placement
    pipeline.placement = strategy(pipeline, torch.device("cpu"))
    try:
        found = draw(pipeline, **given)
    finally:
        pipeline.placement = before
    assert_close(found, lambda: draw(pipeline, **given))


def test_a_net_of_another_precision(made: Any, tiny_sd: Path, tmp_path: Path) -> None:
    """Forgetting the dtype of one of the two is easily done, and no reason to fail."""
    pipeline = made("inpaint")
    tiny_controlnet(tiny_sd).save_pretrained(tmp_path)
    net = retouch.ControlNetModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mixed = type(pipeline).from_pipe(pipeline, controlnet=net)
    given = control_inputs("inpaint")
    difference = np.abs(draw(mixed, **given) - draw(pipeline, **given)).max()
    assert 0 < difference < 0.02 and mixed.controlnet.dtype == torch.bfloat16


@pytest.mark.parametrize("nets", [1, 2])
def test_compiled_nets_are_found_in_their_wrapper(made: Any, nets: int) -> None:
    pipeline = made("inpaint", nets)
    given = control_inputs("inpaint", drawing() if nets == 1 else [drawing(), drawing(1)])
    wrapped = type(pipeline).from_pipe(pipeline)
    wrapped.controlnet = torch.compile(pipeline.controlnet, backend="eager")
    assert_close(draw(wrapped, **given), lambda: draw(pipeline, **given))


# The task, the number of nets, what differs from a good call, the argument at fault, facts of the message.
REFUSED: list[tuple[str, int, dict[str, Any], str, list[Any]]] = [
    ("text2image", 1, {"image": None}, "image", ["text2image"]),
    ("inpaint", 1, {"control_image": None}, "control_image", ["inpaint"]),
    ("inpaint", 1, {"control_img": drawing()}, "control_img", ["control_image"]),
    ("inpaint", 1, {"control_image": "edges.png"}, "control_image", ["str"]),
    ("inpaint", 1, {"control_image": []}, "control_image", ["empty"]),
    ("inpaint", 1, {"control_image": torch.zeros(1, 4, 64, 64)}, "control_image", ["4 channels", 3]),
    ("inpaint", 1, {"control_image": 255 * torch.ones(3, 64, 64)}, "control_image", [255, "-1 to 1"]),
    ("text2image", 1, {"image": Image.new("RGBA", (64, 64))}, "image", ["alpha"]),
    ("inpaint", 1, {"control_image": [drawing()] * 3, "prompt": ["a", "b"]}, "prompt", ["2 prompts", 3]),
    ("inpaint", 1, {"control_image": [drawing()] * 3, "image": [photo()] * 2}, "control_image", [[2, 3]]),
    ("inpaint", 2, {"control_image": drawing()}, "control_image", ["1 pictures", "2 ControlNets"]),
    ("inpaint", 2, {"control_image": [drawing()] * 3}, "control_image", ["3 pictures", "2 ControlNets"]),
    ("inpaint", 2, {"control_image": [[drawing()] * 3] * 2}, "control_image", [[3], "2 ControlNets"]),
    (
        "inpaint",
        1,
        {"controlnet_conditioning_scale": "strong"},
        "controlnet_conditioning_scale",
        ["'strong'"],
    ),
    ("inpaint", 1, {"controlnet_conditioning_scale": [1.0, 2.0]}, "controlnet_conditioning_scale", [2, 1]),
    ("inpaint", 2, {"controlnet_conditioning_scale": [1.0] * 3}, "controlnet_conditioning_scale", [3, 2]),
    (
        "inpaint",
        1,
        {"controlnet_conditioning_scale": float("nan")},
        "controlnet_conditioning_scale",
        ["nan"],
    ),
    (
        "inpaint",
        1,
        {"control_guidance_start": 0.5, "control_guidance_end": 0.5},
        "control_guidance_start",
        ["control_guidance_end=0.5", "0 to 1"],
    ),
    (
        "inpaint",
        1,
        {"control_guidance_end": 1.5},
        "control_guidance_start",
        ["control_guidance_end=1.5", "0 to 1"],
    ),
    ("inpaint", 2, {"control_guidance_start": [0.0, -0.1]}, "control_guidance_start", [-0.1, "0 to 1"]),
    ("inpaint", 2, {"control_guidance_end": [0.5, 0.6, 0.7]}, "control_guidance_end", [3, "2 ControlNets"]),
    ("inpaint", 1, {"tile_size": 32}, "tile_size", ["ControlNet"]),
    ("inpaint", 1, {"guess_mode": 1}, "guess_mode", [1, True, False]),
]


@pytest.mark.parametrize(("task", "nets", "changed", "parameter", "facts"), REFUSED)
def test_what_is_refused(
    made: Any, task: str, nets: int, changed: dict[str, Any], parameter: str, facts: list[Any]
) -> None:
    given = control_inputs(task, drawing() if nets == 1 else [drawing(), drawing(1)])
    with refuses(parameter, *facts):
        made(task, nets).start(**{**FAST, **given, **changed})


def test_a_net_of_another_family(made: Any, tiny_sdxl: Path, tiny_sd: Path, tiny_sd_inpaint: Path) -> None:
    pipeline = made("inpaint")
    for folder, settings, facts in (
        (tiny_sdxl, {}, ["cross_attention_dim", 72, 32]),
        (tiny_sd, {"block_out_channels": (8, 16, 24)}, ["block_out_channels", (8, 16, 24), (8, 16, 16)]),
        (tiny_sd_inpaint, {"in_channels": 9}, [9, 4]),
    ):
        net = retouch.ControlNetModel.from_config(tiny_controlnet(folder, **settings).config)
        other = type(pipeline).from_pipe(pipeline, controlnet=net)
        with refuses("controlnet", *facts):
            other.start(**{**FAST, **control_inputs("inpaint")})


def test_what_is_no_net(tiny_sd: Path) -> None:
    for kind in (retouch.StableDiffusionControlNetPipeline, retouch.AutoPipelineForInpainting):
        for given in ("lllyasviel/x", ["lllyasviel/x"]):
            with refuses("controlnet", "lllyasviel/x", "ControlNetModel"):
                kind.from_pretrained(tiny_sd, controlnet=given)
    with refuses("controlnet"):
        retouch.StableDiffusionControlNetPipeline.from_pretrained(tiny_sd)


AUTO = {
    retouch.AutoPipelineForText2Image: "",
    retouch.AutoPipelineForImage2Image: "Img2Img",
    retouch.AutoPipelineForInpainting: "Inpaint",
}


@pytest.mark.parametrize(("folder", "family"), [("tiny_sd", ""), ("tiny_sdxl", "XL")])
def test_the_auto_classes(folder: str, family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(folder)
    net = retouch.ControlNetModel.from_config(tiny_controlnet(checkpoint).config)
    name = f"StableDiffusion{family}{{}}Pipeline"
    load(retouch, name.format(""), checkpoint).save_pretrained(tmp_path / "plain")
    controlled = retouch.AutoPipelineForInpainting.from_pretrained(tmp_path / "plain", controlnet=[net, net])
    controlled.save_pretrained(tmp_path / "controlled")
    for auto, task in AUTO.items():
        with_net, without = name.format(f"ControlNet{task}"), name.format(task)
        found = auto.from_pretrained(tmp_path / "plain", controlnet=net)
        assert type(found).__name__ == with_net and found.controlnet is net
        assert type(auto.from_pretrained(tmp_path / "plain", controlnet=None)).__name__ == without
        loaded = auto.from_pretrained(tmp_path / "controlled")
        assert type(loaded).__name__ == with_net and len(loaded.controlnet.nets) == 2
        bare = auto.from_pretrained(tmp_path / "controlled", controlnet=None)
        assert type(bare).__name__ == without and not hasattr(bare, "controlnet")

        made_from = auto.from_pipe(controlled)
        assert type(made_from).__name__ == with_net and made_from.controlnet is controlled.controlnet
        assert made_from.unet is controlled.unet
        dropped = auto.from_pipe(controlled, controlnet=None)
        assert type(dropped).__name__ == without and "controlnet" not in dropped.components
        again = auto.from_pipe(dropped, controlnet=net)
        assert type(again).__name__ == with_net and again.controlnet is net
        assert again.components["unet"] is controlled.unet
