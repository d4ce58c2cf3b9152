"""Kandinsky's pipelines through files: found by task, tied together by a card, shared with the reference."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close
from kandinsky_pairs import COMBINED, PRIOR, combined_pair, loaded, made, prompts, task_inputs
from pipeline_pairs import generators
from tiny_checkpoints_kandinsky import PRIOR_ID

import retouch
from retouch.errors import CheckpointError, OfflineError


@pytest.fixture
def whole(tiny_kandinsky_inpaint: Path, tiny_kandinsky_prior: Path) -> Any:
    return combined_pair(tiny_kandinsky_inpaint, tiny_kandinsky_prior, "inpaint").ours


def with_local_prior(decoder: Path, prior: Path, folder: Path, head: str = "prior: [the-prior]") -> Path:
    """A decoder whose card names a folder in it."""
    shutil.copytree(decoder, folder)
    (folder / "the-prior").symlink_to(prior)
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A decoder\n")
    return folder


class TestLoading:
    @pytest.mark.parametrize(
        ("task", "name"),
        [("Text2Image", "text2image"), ("Image2Image", "image2image"), ("Inpainting", "inpaint")],
    )
    def test_by_task(
        self, task: str, name: str, tmp_path: Path, tiny_kandinsky: Path, tiny_kandinsky_inpaint: Path,
        tiny_kandinsky_prior: Path,
    ) -> None:  # fmt: skip
        decoder = tiny_kandinsky_inpaint if name == "inpaint" else tiny_kandinsky
        folder = with_local_prior(decoder, tiny_kandinsky_prior, tmp_path / "decoder")
        pipeline = getattr(retouch, f"AutoPipelineFor{task}").from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        assert type(pipeline) is getattr(retouch, COMBINED[name])
        assert pipeline.name_or_path == str(folder)
        expected = combined_pair(decoder, tiny_kandinsky_prior, name).ours
        inputs = prompts(name)
        assert torch.equal(made(pipeline, **inputs), made(expected, **inputs))
        for other, kind in COMBINED.items():
            front = {"text2image": "Text2Image", "image2image": "Image2Image"}.get(other, "Inpainting")
            sibling = getattr(retouch, f"AutoPipelineFor{front}").from_pipe(pipeline)
            assert type(sibling).__name__ == kind and sibling.unet is pipeline.unet

    @pytest.mark.parametrize("head", ["license: mit", "prior: []", "prior: 3"])
    def test_a_card_without_a_prior(
        self, head: str, tmp_path: Path, tiny_kandinsky: Path, tiny_kandinsky_prior: Path
    ) -> None:
        folder = with_local_prior(tiny_kandinsky, tiny_kandinsky_prior, tmp_path / "decoder", head)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"names no prior.*'prior:'.*KandinskyV22PriorPipeline"):
                retouch.AutoPipelineForText2Image.from_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)

    def test_a_broken_card(self, tmp_path: Path, tiny_kandinsky: Path, tiny_kandinsky_prior: Path) -> None:
        folder = with_local_prior(tiny_kandinsky, tiny_kandinsky_prior, tmp_path / "decoder", "prior: [")
        with pytest.raises(CheckpointError, match=r"README.md has a head that cannot be read"):
            retouch.AutoPipelineForText2Image.from_pretrained(folder)

    def test_a_local_decoder_whose_prior_is_on_the_hub(self, tiny_kandinsky: Path) -> None:
        with pytest.raises(OfflineError, match=PRIOR_ID):
            retouch.AutoPipelineForText2Image.from_pretrained(tiny_kandinsky, local_files_only=True)

    def test_the_priors_parts_can_be_given(self, tiny_kandinsky: Path, tiny_kandinsky_prior: Path) -> None:
        prior = loaded(retouch, PRIOR, tiny_kandinsky_prior)
        parts = {f"prior_{name}": part for name, part in prior.components.items()}
        pipeline = retouch.AutoPipelineForText2Image.from_pretrained(tiny_kandinsky, **parts)
        assert pipeline.prior_prior is prior.prior

    def test_a_decoder_alone(self, tiny_kandinsky_inpaint: Path) -> None:
        pipeline = retouch.KandinskyV22InpaintPipeline.from_pretrained(tiny_kandinsky_inpaint)
        assert pipeline.components.keys() == {"unet", "scheduler", "movq"}
        other = retouch.AutoPipelineForImage2Image.from_pipe(pipeline)
        assert type(other) is retouch.KandinskyV22Img2ImgPipeline


class TestSaving:
    def test_the_reference_loads_the_whole_and_each_half(self, whole: Any, tmp_path: Path) -> None:
        whole.save_pretrained(tmp_path / "whole")
        whole.prior_pipe.save_pretrained(tmp_path / "prior")
        whole.decoder_pipe.save_pretrained(tmp_path / "decoder")
        inputs, options = prompts("inpaint"), {"num_inference_steps": 3, "output_type": "np"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = getattr(diffusers, COMBINED["inpaint"]).from_pretrained(tmp_path / "whole")
            prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(tmp_path / "prior")
            decoders = [
                diffusers.KandinskyV22InpaintPipeline.from_pretrained(tmp_path / half)
                for half in ("decoder", "whole")
            ]
            theirs.set_progress_bar_config(disable=True)
            found = [theirs(**inputs, **options, generator=generators(7)).images]
            for decoder in decoders:
                generator = generators(7)
                made_of = prior("a photo of a cat in the park", num_inference_steps=3, generator=generator)
                output = decoder(
                    image_embeds=made_of.image_embeds,
                    negative_image_embeds=made_of.negative_image_embeds,
                    **task_inputs("inpaint"),
                    **options,
                    generator=generator,
                )
                found.append(output.images)
        assert_close(found, lambda: 3 * [made(whole, **inputs)])

    def test_we_load_what_we_and_the_reference_save(
        self, whole: Any, tiny_kandinsky_whole: Path, tmp_path: Path
    ) -> None:
        whole.save_pretrained(tmp_path)
        inputs = prompts("inpaint")
        for folder in (tmp_path, tiny_kandinsky_whole):
            pipeline = retouch.AutoPipelineForInpainting.from_pretrained(folder)
            pipeline.set_progress_bar_config(disable=True)
            assert type(pipeline) is retouch.KandinskyV22InpaintCombinedPipeline
            assert torch.equal(made(pipeline, **inputs), made(whole, **inputs))
            prior = retouch.KandinskyV22PriorPipeline.from_pretrained(folder)
            assert prior.components.keys() == {
                *("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")
            }
            assert type(prior.scheduler).__name__ == "UnCLIPScheduler"
            decoder = retouch.KandinskyV22InpaintPipeline.from_pretrained(folder)
            assert type(decoder.scheduler).__name__ == "DDPMScheduler"
