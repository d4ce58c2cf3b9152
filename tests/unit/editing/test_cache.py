"""The cache of an editor: what it keeps from one edit to the next, and that nothing stale is used."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import retouch
from retouch.editing import cache as module
from retouch.editing.cache import PipelineCache
from retouch.editing.editor import Editor
from retouch.models.autoencoder import AutoencoderKL

PHOTO = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (100, 100, 3), dtype=np.uint8)
HOLE = (40, 40, 60, 60)
HOLE_PICTURE, HOLE_MASK = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)
FAST: dict[str, Any] = {"steps": 1, "size": 64, "seed": 1}


@pytest.fixture
def editor(tiny_sd_inpaint: Path) -> Editor:
    return retouch.load(tiny_sd_inpaint, device="cpu", dtype="float32", progress=False)


@pytest.fixture
def counted(editor: Editor) -> Iterator[Counter[str]]:
    """Count the runs of the text encoder and of the VAE's encoder."""
    counts: Counter[str] = Counter()
    pipeline = editor.pipeline
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: counts.update([name]))
        for name, part in (("text", pipeline.text_encoder), ("picture", pipeline.vae.encoder))
    ]
    yield counts
    for handle in handles:
        handle.remove()


def test_the_second_edit_encodes_nothing_again(editor: Editor, counted: Counter[str]) -> None:
    first = editor.inpaint(PHOTO, HOLE, "a cat", **FAST)
    assert counted == {"text": 2, "picture": 2}, "both prompts, the picture and the masked picture"
    counted.clear()
    again = editor.inpaint(PHOTO, HOLE, "a cat", **FAST)
    other_seed = editor.inpaint(PHOTO, HOLE, "a cat", **{**FAST, "seed": 2, "steps": 2})
    assert not counted
    np.testing.assert_array_equal(np.asarray(again.image), np.asarray(first.image))
    assert (np.asarray(other_seed.image) != np.asarray(first.image)).any()


def test_variations_share_prompts_and_pictures(editor: Editor, counted: Counter[str]) -> None:
    editor.inpaint(PHOTO, HOLE, "a cat", **FAST, variations=3)
    assert counted == {"text": 2, "picture": 2}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": "a castle"}, {"text": 2}),
        ({"negative_prompt": "a bench"}, {"text": 2}),
        ({"guidance_scale": 1.0}, {"text": 1}),
        ({"guidance_scale": 3.0}, {}),
        ({"scheduler": "euler a"}, {}),
        ({"strength": 0.5}, {}),
        ({"photo": OTHER}, {"picture": 2}),
        ({"mask": (40, 40, 60, 62)}, {"picture": 2}),
        ({"context": "60%"}, {"picture": 2}),
        ({"size": 72}, {"picture": 2}),
        ({"fill": "telea"}, {"picture": 2}),
    ],
)
def test_only_what_a_change_affects_is_encoded_again(
    editor: Editor, counted: Counter[str], changes: dict[str, Any], expected: dict[str, int]
) -> None:
    given: dict[str, Any] = {"photo": PHOTO, "mask": HOLE, "prompt": "a cat", **FAST}
    editor.inpaint(**given)
    counted.clear()
    changed = editor.inpaint(**{**given, **changes})
    assert counted == expected
    fresh = Editor(editor.pipeline, show_progress=False).inpaint(**{**given, **changes})
    np.testing.assert_array_equal(np.asarray(changed.image), np.asarray(fresh.image))


def test_a_regular_model_encodes_only_the_picture(tiny_sd: Path) -> None:
    editor = retouch.load(tiny_sd, device="cpu", dtype="float32", progress=False)
    counts: list[int] = []
    handle = editor.pipeline.vae.encoder.register_forward_pre_hook(lambda *_: counts.append(1))
    for _ in range(2):
        editor.inpaint(PHOTO, HOLE, "a cat", **FAST)
    handle.remove()
    assert len(counts) == 1


def fuse(pipeline: Any) -> None:
    """Change a weight, as a fused adapter does that was unloaded."""
    layer = next(part for part in pipeline.text_encoder.modules() if isinstance(part, torch.nn.Linear))
    layer.weight.data = layer.weight.data + 0.5


def learn(pipeline: Any) -> None:
    pipeline.load_textual_inversion({"<word>": torch.full((1, 32), 0.3)}, token="<word>")


def relearn(pipeline: Any) -> None:
    pipeline.unload_textual_inversion()
    pipeline.load_textual_inversion({"<word>": torch.full((1, 32), -0.7)}, token="<word>")


def replace_vae(pipeline: Any) -> None:
    other = AutoencoderKL.from_config(pipeline.vae.config)
    other.load_state_dict(pipeline.vae.state_dict())
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    pipeline.vae = other.eval()


def tile(pipeline: Any) -> None:
    pipeline.enable_vae_tiling()
    pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = 32, 4


def halve(pipeline: Any) -> None:
    pipeline.to(dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "changes",
    [(fuse,), (learn,), (learn, relearn), (replace_vae,), (tile,), (halve,)],
    ids=lambda changes: "-".join(change.__name__ for change in changes),
)
def test_changed_weights_change_the_result(editor: Editor, changes: Any) -> None:
    """An editor that was used gives the same result as a new one after a change of the pipeline."""
    given: dict[str, Any] = {"photo": PHOTO, "mask": HOLE, "prompt": "a <word> cat", **FAST}
    for change in changes:
        editor.inpaint(**given)
        change(editor.pipeline)
        used = editor.inpaint(**given)
        fresh = Editor(editor.pipeline, show_progress=False).inpaint(**given)
        np.testing.assert_array_equal(np.asarray(used.image), np.asarray(fresh.image))


def test_prompts_are_not_kept_while_there_are_adapters(
    editor: Editor, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(editor.pipeline), "get_list_adapters", lambda self: {"unet": ["style"]})
    for _ in range(2):
        editor.inpaint(PHOTO, HOLE, "a cat", **FAST)
    assert counted["text"] == 4 and counted["picture"] == 2


def test_the_number_of_entries_is_limited(editor: Editor, counted: Counter[str]) -> None:
    limits = module._PROMPTS, module._PICTURES

    def read(prompt: str) -> None:
        call = {"image": HOLE_PICTURE, "mask_image": HOLE_MASK, "guidance_scale": 1.0}
        editor.pipeline.start(prompt, **call, num_inference_steps=1, cache=editor._cache).condition()

    for number in range(limits[0] + 1):
        read(f"cat {number}")
    assert len(editor._cache._states._values) == limits[0]
    counted.clear()
    read("cat 1")
    assert not counted, "only the oldest entry was dropped"
    read("cat 0")
    assert counted == {"text": 1}
    for seed in range(limits[1] + 2):
        editor.inpaint(PHOTO, HOLE, **{**FAST, "seed": seed, "fill": "noise", "steps": 1})
    assert len(editor._cache._latents._values) == limits[1]


def test_the_cache_does_not_keep_a_model_alive(editor: Editor) -> None:
    import gc
    import weakref

    editor.inpaint(PHOTO, HOLE, **FAST)
    cache, vae = editor._cache, weakref.ref(editor.pipeline.vae)
    editor.pipeline.vae = None
    del editor
    gc.collect()
    assert vae() is None and cache is not None


def test_a_failure_is_not_kept(editor: Editor) -> None:
    cache, asked = PipelineCache(), []

    def fail() -> Any:
        asked.append(1)
        raise MemoryError

    for _ in range(2):
        with pytest.raises(MemoryError):
            cache._latents.get("key", fail)
    assert len(asked) == 2


def test_threads_get_the_same_values(editor: Editor) -> None:
    cache, found = PipelineCache(), []

    def read() -> None:
        for number in range(20):
            call = {"image": HOLE_PICTURE, "mask_image": HOLE_MASK, "num_inference_steps": 1}
            run = editor.pipeline.start(f"cat {number % 3}", **call, cache=cache)
            with torch.no_grad():
                states = run.condition().positive["encoder_hidden_states"]
            found.append((number % 3, float(states.sum())))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and len(set(found)) == 3
