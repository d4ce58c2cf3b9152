"""What a call may leave out when it is asked to: what that saves, and that nothing changes unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close, assert_differ
from pipeline_pairs import load, mask, photo
from torch import Tensor

import retouch
from retouch.errors import InputError

HOLE: dict[str, Any] = {"image": photo(), "mask_image": mask(), "num_inference_steps": 6, "output_type": "pt"}


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A pipeline of its own over shared models, with a scheduler of one evaluation for each step."""

    def build(checkpoint: str, name: str = "StableDiffusionInpaintPipeline", library: Any = retouch) -> Any:
        pipeline = getattr(library, name).from_pipe(load(library, name, request.getfixturevalue(checkpoint)))
        config = dict(pipeline.scheduler.config)
        pipeline.scheduler = library.DDIMScheduler.from_config(config)
        return pipeline

    return build


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def counted(pipeline: Any, *parts: str) -> Iterator[list[list[int]]]:
    """Rows that went into the UNet, or into parts of it, one list for each."""
    counts: list[list[int]] = [[] for _ in parts or [""]]
    handles = [
        pipeline.unet.get_submodule(part).register_forward_pre_hook(
            lambda module, args, kwargs, count=count: count.append(len((*args, *kwargs.values())[0])),
            with_kwargs=True,
        )
        for part, count in zip(parts or [""], counts, strict=True)
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


CHECKPOINTS = pytest.mark.parametrize("checkpoint", ["tiny_sd", "tiny_sd_inpaint"])


@CHECKPOINTS
def test_what_is_switched_off_changes_nothing(make: Any, checkpoint: str) -> None:
    pipeline = make(checkpoint)

    def call(**options: Any) -> Tensor:
        return pipeline("a cat", **HOLE, **options, generator=seeded()).images

    plain = call()
    assert torch.equal(call(guidance_interval=None, reuse_deep_features=1), plain)
    assert torch.equal(call(guidance_interval=(0.0, 1.0)), plain)
    assert torch.equal(call(guidance_scale=1.0, guidance_interval=(0.4, 0.6)), call(guidance_scale=1.0))
    for change in ({"guidance_interval": (0.4, 1.0)}, {"reuse_deep_features": 2}):
        assert_differ(call(**change), plain)


@CHECKPOINTS
def test_the_negative_side_is_computed_inside_the_interval_alone(make: Any, checkpoint: str) -> None:
    pipeline = make(checkpoint)
    with counted(pipeline) as (rows,):
        pipeline("a cat", **HOLE, guidance_interval=(0.3, 0.7), generator=seeded())
    levels = [step.timestep / 1000 for step in pipeline.scheduler.plan(6)]
    assert rows == [1 + (0.3 <= level <= 0.7) for level in levels] and set(rows) == {1, 2}


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_an_interval_that_ends_is_the_references_cutoff(make: Any, share: float) -> None:
    """Its callback switches guidance off after a share of the steps."""
    steps = list(make("tiny_sd").scheduler.plan(6))
    last = int(6 * share)  # the last guided one
    between = float(steps[last].timestep + steps[last + 1].timestep) / 2000
    cutoff = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=share)
    ways = {
        retouch: {"guidance_interval": (between, 1.0)},
        diffusers: {"callback_on_step_end": cutoff},
    }

    def picture(library: Any) -> Any:
        pipeline = make("tiny_sd", "StableDiffusionPipeline", library)
        options = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "np"}
        return pipeline("a cat", **options, **ways[library], generator=seeded()).images

    assert_close(picture(retouch), lambda: picture(diffusers))


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("tiny_sd", "StableDiffusionInpaintPipeline"),
        ("tiny_sd_inpaint", "StableDiffusionInpaintPipeline"),
        ("tiny_sdxl", "StableDiffusionXLInpaintPipeline"),
    ],
)
@pytest.mark.parametrize("every", [2, 4])
def test_deep_levels_run_in_every_nth_step(make: Any, checkpoint: str, name: str, every: int) -> None:
    pipeline = make(checkpoint, name)
    deep, fine = "mid_block", "down_blocks.0"
    with counted(pipeline, deep, fine) as (inner, outer):
        result = pipeline("a cat", **HOLE, reuse_deep_features=every, strength=1.0, generator=seeded())
    assert outer == [2] * 6 and inner == [2] * -(-6 // every)
    assert result.images.isfinite().all()


def test_both_together(make: Any) -> None:
    """Guidance that ends half way takes the positive rows of what was kept."""
    pipeline = make("tiny_sd_inpaint")
    with counted(pipeline, "mid_block", "down_blocks.0") as (inner, outer):
        pipeline("a cat", **HOLE, reuse_deep_features=3, guidance_interval=(0.45, 1.0), generator=seeded())
    assert outer == [2, 2, 2, 1, 1, 1] and inner == [2, 1]


def test_windows_keep_features_of_their_own(make: Any) -> None:
    pipeline = make("tiny_sd_inpaint")
    wide = {**HOLE, "image": photo(0, 128, 64), "mask_image": mask((20, 10, 110, 50), 128, 64)}
    with counted(pipeline, "mid_block", "down_blocks.0") as (inner, outer):
        pipeline("a cat", **wide, tile_size=64, reuse_deep_features=2, generator=seeded())
    windows = len(outer) // 6
    assert windows == 3 and len(inner) == 3 * windows


def test_each_row_of_a_batch_keeps_its_own(make: Any) -> None:
    pipeline = make("tiny_sd_inpaint")
    both = {**HOLE, "image": [photo(1), photo(2)], "mask_image": [mask(), mask((0, 0, 30, 64))]}
    saving = {"reuse_deep_features": 2, "guidance_interval": (0.4, 1.0)}
    together = pipeline(["a cat", "a bench"], **both, **saving, generator=[seeded(1), seeded(2)]).images

    def alone(index: int, prompt: str) -> Tensor:
        own = {key: value[index] if isinstance(value, list) else value for key, value in both.items()}
        return pipeline(prompt, **own, **saving, generator=seeded(index + 1)).images

    assert_close(together, lambda: torch.cat([alone(0, "a cat"), alone(1, "a bench")]))


def test_one_pipelines_calls_do_not_share_what_they_keep(make: Any) -> None:
    pipeline = make("tiny_sd_inpaint")

    def start(prompt: str) -> Any:
        return pipeline.start(prompt, **HOLE, reuse_deep_features=3, generator=seeded())

    expected = [start(prompt).result().images for prompt in ("a cat", "a bench")]
    first, second = start("a cat"), start("a bench")
    for _ in zip(first, second, strict=True):
        pass
    for run, wanted in zip((first, second), expected, strict=True):
        assert torch.equal(run.result().images, wanted)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.5, 0.2), r"\(0\.5, 0\.2\) is not an interval.*from 0 .* to 1 .*give the lower one first"),
        ((-0.1, 0.5), "not an interval"),
        ((0.1, 1.5), "not an interval"),
        ((float("nan"), 1), "not an interval"),
        (0.5, r"is 0\.5.*Two noise levels.*Leave it out"),
        ((0.1, 0.2, 0.3), "Two noise levels"),
        (("a", "b"), "Two noise levels"),
    ],
)
def test_what_is_no_interval(make: Any, interval: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make("tiny_sd")("a cat", **HOLE, guidance_interval=interval)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_evaluations(make: Any, every: Any) -> None:
    with pytest.raises(InputError, match=r"reuse_deep_features=.* is not a whole number of 1 or more"):
        make("tiny_sd")("a cat", **HOLE, reuse_deep_features=every)


def test_a_unet_of_another_library_keeps_no_features(make: Any) -> None:
    pipeline = make("tiny_sd_inpaint")
    pipeline.unet = make("tiny_sd_inpaint", library=diffusers).unet
    with pytest.raises(InputError, match=r"the UNet is a diffusers.*Only a retouch\.UNet2D.*leave the arg"):
        pipeline("a cat", **HOLE, reuse_deep_features=2)
