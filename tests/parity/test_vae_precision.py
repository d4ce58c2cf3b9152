"""SDXL's VAE in half precision: computed in the dtype of its config, and never converted itself."""

from __future__ import annotations

import copy
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close
from pipeline_pairs import PROMPT, XL_NAMES, generators, load, mask, photo
from torch import nn

import retouch
from retouch.pipelines.placement import ModelOffload, SequentialOffload

HALVES = [torch.float16, torch.bfloat16]
CALLS: dict[str, dict[str, Any]] = {
    "text2image": {"height": 64, "width": 64},
    "image2image": {"image": photo(), "strength": 0.6},
    "inpaint": {"image": photo(), "mask_image": mask(), "height": 64, "width": 64, "strength": 0.7},
}


def in_half(library: Any, folder: Path, task: str, dtype: torch.dtype, force_upcast: bool) -> Any:
    """Make a pipeline, and convert its parts one by one, because its `to` avoids float16 on a CPU."""
    made = load(library, XL_NAMES[task], folder)
    if library is retouch:
        made.optimize(False)  # only plain layers are equal to the bit
    parts = {
        name: copy.deepcopy(part).to(dtype) if isinstance(part, nn.Module) else part
        for name, part in made.components.items()
    }
    vae = parts["vae"]
    if library is diffusers:
        vae.register_to_config(force_upcast=force_upcast)
    else:
        vae.config = type(vae.config).from_dict({**vae.config.to_dict(), "force_upcast": force_upcast})
    pipeline = type(made)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture_of(pipeline: Any, task: str, seed: int = 1) -> torch.Tensor:
    with warnings.catch_warnings():
        if isinstance(pipeline, diffusers.DiffusionPipeline):
            warnings.simplefilter("ignore")
        return pipeline(
            PROMPT, **CALLS[task], num_inference_steps=4, guidance_scale=2.0, output_type="pt",
            generator=generators(seed),
        ).images.float()  # fmt: skip


def computed_in(vae: nn.Module) -> dict[str, set[torch.dtype]]:
    """Record the outputs of the two halves, or of those of a copy, from now on."""
    seen: dict[str, set[torch.dtype]] = {"encoder": set(), "decoder": set()}
    for name, found in seen.items():
        # A copy has the hooks too, and a default argument is not copied.
        def note(module: nn.Module, args: Any, output: torch.Tensor, found: Any = found) -> None:
            found.add(output.dtype)

        getattr(vae, name).register_forward_hook(note)
    return seen


@pytest.mark.parametrize("force_upcast", [True, False])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("task", CALLS)
def test_as_the_reference(tiny_sdxl: Path, task: str, dtype: torch.dtype, force_upcast: bool) -> None:
    """The important dtypes are the same, and the picture within half precision."""
    ours, theirs = (
        in_half(library, tiny_sdxl, task, dtype, force_upcast) for library in (retouch, diffusers)
    )
    seen = [computed_in(pipeline.vae) for pipeline in (ours, theirs)]
    mine, reference = picture_of(ours, task), picture_of(theirs, task)
    assert seen[0] == seen[1]
    assert seen[0]["decoder"] == {torch.float32 if force_upcast and dtype == torch.float16 else dtype}
    if task == "text2image":
        assert torch.equal(mine, reference)
    # A picture has another memory layout, for which another kernel rounds differently.
    assert_close(mine, lambda: picture_of(theirs, task))
    assert (mine - reference).abs().mean() < torch.finfo(dtype).eps


class Watch:
    """Detects a conversion of a module, or of one inside it, by polling and by recording calls."""

    def __init__(self, module: nn.Module, patch: pytest.MonkeyPatch) -> None:
        self.module, self.seen, self.converted = module, set[torch.dtype](), list[str]()
        own = {id(part) for part in module.modules()}
        convert = nn.Module._apply

        def note(part: nn.Module, *args: Any, **options: Any) -> nn.Module:
            if id(part) in own:
                self.converted.append(type(part).__name__)
            return convert(part, *args, **options)

        patch.setattr(nn.Module, "_apply", note)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def _poll(self) -> None:
        while not self._over.is_set():
            self.seen |= {parameter.dtype for parameter in self.module.parameters()}
            time.sleep(0.0005)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_two_threads_share_it(tiny_sdxl: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = in_half(retouch, tiny_sdxl, "image2image", dtype, force_upcast=True)
    expected = [picture_of(pipeline, "image2image", seed) for seed in range(4)]
    results: dict[int, torch.Tensor] = {}

    def work(*seeds: int) -> None:
        for seed in seeds:
            results[seed] = picture_of(pipeline, "image2image", seed)

    threads = [threading.Thread(target=work, args=seeds) for seeds in ((0, 1), (2, 3))]
    with Watch(pipeline.vae, monkeypatch) as watch:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert watch.seen == {dtype} and watch.converted == []
    assert all(torch.equal(results[seed], picture) for seed, picture in enumerate(expected))


def test_the_watch_sees_a_conversion(tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = in_half(retouch, tiny_sdxl, "image2image", torch.float16, force_upcast=True).vae
    with Watch(vae, monkeypatch) as watch:
        copy.deepcopy(vae).float()
        assert watch.converted == []
        vae.decoder.float()
        time.sleep(0.05)
    assert torch.float32 in watch.seen and "Decoder" in watch.converted


@pytest.mark.parametrize("strategy", [ModelOffload, SequentialOffload])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_offloaded(tiny_sdxl: Path, dtype: torch.dtype, strategy: Any) -> None:
    pipeline = in_half(retouch, tiny_sdxl, "inpaint", dtype, force_upcast=True)
    expected = picture_of(pipeline, "inpaint")
    pipeline.placement = strategy(pipeline, torch.device("cpu"))
    assert torch.equal(picture_of(pipeline, "inpaint"), expected)
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {dtype}
    hooks = [part for part in pipeline.vae.modules() if part._forward_pre_hooks or part._forward_hooks]
    assert hooks == []


def test_a_float32_vae_beside_half_the_rest(tiny_sdxl: Path) -> None:
    """Then nothing is copied or overflows, and the steps stay in half precision."""
    pipeline = in_half(retouch, tiny_sdxl, "inpaint", torch.bfloat16, force_upcast=True)
    pipeline.vae = pipeline.vae.float()
    seen = computed_in(pipeline.vae)
    steps: set[torch.dtype] = set()
    pipeline.unet.register_forward_hook(lambda module, args, output: steps.add(output[0].dtype))
    assert picture_of(pipeline, "inpaint").isfinite().all()
    assert seen["encoder"] == seen["decoder"] == {torch.float32} and steps == {torch.bfloat16}


@pytest.mark.parametrize("setting", ["slicing", "tiling"])
def test_the_copy_keeps_what_is_enabled(
    tiny_sdxl: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = in_half(retouch, tiny_sdxl, "text2image", torch.float16, force_upcast=True)
    getattr(pipeline, f"enable_vae_{setting}")()
    seen: list[bool] = []
    kind = type(pipeline.vae)
    decode = kind.decode

    def note(vae: Any, *args: Any, **options: Any) -> Any:
        seen.append(getattr(vae, f"use_{setting}"))
        return decode(vae, *args, **options)

    monkeypatch.setattr(kind, "decode", note)
    picture_of(pipeline, "text2image")
    assert seen == [True]
