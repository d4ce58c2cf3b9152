"""The decoder of previews: where it comes from, what it shows, what is no such decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from closeness import assert_close
from pipeline_pairs import mask, photo
from tiny_checkpoints import randomised

import retouch
from retouch import AutoencoderTiny, InputError
from retouch.pipelines.progress import Recording, linear_colours, preview


def decoder(**settings: Any) -> AutoencoderTiny:
    widths = {"decoder_block_out_channels": (8,) * 4, "encoder_block_out_channels": (8,) * 4}
    return randomised(AutoencoderTiny(**{**widths, **settings})).eval()


@pytest.fixture
def pipeline(tiny_sd: Path) -> Any:
    made = retouch.AutoPipelineForInpainting.from_pretrained(tiny_sd)
    made.set_progress_bar_config(disable=True)
    return made


def run(pipeline: Any, record: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    given = {"image": photo(), "mask_image": mask(), "num_inference_steps": 3, "record": record}
    return pipeline("a cat", generator=generator, output_type="np", **given)


def test_a_pipeline_has_none_unless_it_is_given_one(pipeline: Any) -> None:
    latents = torch.randn(1, 4, 3, 2)
    assert pipeline.preview_decoder is None
    assert torch.equal(preview(pipeline, latents), linear_colours(pipeline, latents))
    pipeline.preview_decoder = tiny = decoder()
    with torch.no_grad():
        assert torch.equal(preview(pipeline, latents), tiny.decode(latents).sample.clamp(-1, 1))
    pipeline.preview_decoder = None
    assert torch.equal(preview(pipeline, latents), linear_colours(pipeline, latents))


def test_fast_frames_are_its_and_others_and_results_are_not(pipeline: Any) -> None:
    before, linear = run(pipeline, True), run(pipeline, Recording(fast=True))
    pipeline.preview_decoder = decoder()
    calls: list[int] = []
    pipeline.preview_decoder.decoder.register_forward_hook(lambda *_: calls.append(1))
    after = run(pipeline, True)
    assert not calls, "the exact VAE is the default"
    fast = run(pipeline, Recording(fast=True))
    assert len(calls) == len(fast.recording.frames)
    assert np.array_equal(before.images, after.images) and np.array_equal(after.images, fast.images)
    for one, other in zip(linear.recording.frames, fast.recording.frames, strict=True):
        assert one.image.size == other.image.size and not np.array_equal(one.image, other.image)


def test_a_verbs_listener_sees_it(tiny_sd_inpaint: Path) -> None:
    editor = retouch.load(
        tiny_sd_inpaint, device="cpu", dtype="float32", progress=False, preview_decoder=decoder()
    )
    calls: list[int] = []
    editor.pipeline.preview_decoder.decoder.register_forward_hook(lambda *_: calls.append(1))
    shown: list[Any] = []
    size = {"size": 64, "steps": 2, "one_pass": True}
    editor.inpaint(photo(), (8, 8, 40, 40), "a cat", progress=lambda u: shown.append(u.preview()), **size)
    seen = len(calls)
    assert seen == len(shown) > 1 and shown[0].size == (64, 64)
    editor.inpaint(photo(), (8, 8, 40, 40), "a cat", progress=lambda u: None, **size)
    assert len(calls) == seen, "a preview that nobody asks for is not made"


def test_it_is_shared_moved_and_not_listed(pipeline: Any) -> None:
    pipeline.preview_decoder = tiny = decoder()
    for other in (retouch.AutoPipelineForText2Image.from_pipe(pipeline), type(pipeline).from_pipe(pipeline)):
        assert other.preview_decoder is tiny
    assert type(pipeline).from_pipe(pipeline, preview_decoder=None).preview_decoder is None
    assert "preview_decoder" not in pipeline.components and "preview_decoder" not in pipeline.config
    assert pipeline.to(torch.bfloat16).preview_decoder.dtype == torch.bfloat16
    run(pipeline, Recording(fast=True))


def test_it_is_saved_in_a_folder_that_is_found_again(pipeline: Any, tmp_path: Path, hub: Any) -> None:
    pipeline.preview_decoder = tiny = decoder()
    pipeline.save_pretrained(tmp_path)
    assert "preview_decoder" not in json.loads((tmp_path / "model_index.json").read_text())
    again = retouch.AutoPipelineForInpainting.from_pretrained(tmp_path)
    latents = torch.randn(1, 4, 2, 2)
    assert_close(preview(again, latents), lambda: preview(pipeline, latents))
    assert torch.equal(
        again.preview_decoder.state_dict()["decoder.layers.0.bias"], tiny.decoder.layers[0].bias
    )
    for left_out in (None, other := decoder()):
        given = retouch.AutoPipelineForInpainting.from_pretrained(tmp_path, preview_decoder=left_out)
        assert given.preview_decoder is left_out
    assert other is not None and hub.requests == []
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path, requires_safety_checker=False)
    assert "preview_decoder" not in theirs.components


def test_it_is_saved_in_a_variant_too(pipeline: Any, tmp_path: Path) -> None:
    pipeline.preview_decoder = decoder()
    pipeline.save_pretrained(tmp_path, variant="fp16")
    again = retouch.AutoPipelineForInpainting.from_pretrained(tmp_path, variant="fp16")
    assert again.preview_decoder is not None


def test_what_the_hub_has_of_a_checkpoint_is_fetched_with_it(pipeline: Any, tmp_path: Path, hub: Any) -> None:
    pipeline.save_pretrained(tmp_path / "without")
    pipeline.preview_decoder = decoder()
    pipeline.save_pretrained(tmp_path / "with")
    for name in ("with", "without"):
        hub.add(f"someone/{name}", tmp_path / name)
        loaded = retouch.AutoPipelineForInpainting.from_pretrained(f"someone/{name}")
        assert (loaded.preview_decoder is not None) == (name == "with")


def test_of_another_librarys_models_too(pipeline: Any) -> None:
    theirs = diffusers.AutoencoderTiny(decoder_block_out_channels=(8,) * 4)
    pipeline.preview_decoder = theirs
    assert preview(pipeline, torch.randn(1, 4, 2, 3)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: decoder(latent_channels=16), "16 channels and 8 pixels a side.*4 channels and 8 pixels"),
        (
            lambda: decoder(decoder_block_out_channels=(8,) * 3, num_decoder_blocks=(1, 1, 1)),
            "4 channels and 4 pixels a side.*made for this family",
        ),
        (lambda: torch.nn.Identity(), r"is a Identity.*AutoencoderTiny\.from_pretrained"),
        (lambda: "madebyollin/taesd", r"is a str.*AutoencoderTiny\.from_pretrained"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline: Any, tiny_sd: Path, wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.preview_decoder = wrong()
    with pytest.raises(InputError, match=message):
        retouch.AutoPipelineForInpainting.from_pretrained(tiny_sd, preview_decoder=wrong())
    assert pipeline.preview_decoder is None
