"""Weighted and long prompts: our states are Compel's, and Compel itself works with our pipelines."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_differ
from pipeline_pairs import load, mask, photo

import retouch
from retouch.families.prompt_weights import parse, plain

with contextlib.redirect_stdout(io.StringIO()):
    from compel import Compel, CompelForSDXL, ReturnedEmbeddingsType
    from compel.embeddings_provider import SplitLongTextMode

# (our spelling, Compel's spelling)
PROMPTS = [
    ("a photo of a cat", "a photo of a cat"),
    ("a (cat:1.3) in the park", "a (cat)1.3 in the park"),
    ("a (photo of a:1.5) cat, (park:1.2)", "a (photo of a)1.5 cat, (park)1.2"),
    ("a (cat:0.5) in the park", "a (cat)0.5 in the park"),
    ("a (cat:0.3) in the (park:0.7), (castle:1.4)", "a (cat)0.3 in the (park)0.7, (castle)1.4"),
    ("(cat)", "(cat)1.1"),
    ("a ((cat)) of the park", "a (cat)1.21 of the park"),
    ("a [cat] of the park", f"a (cat){1 / 1.1} of the park"),
    ("", ""),
]
LONG = "a highly detailed photo of a cat in the park of the castle on a bench " * 8


@pytest.fixture
def sd(tiny_sd: Path) -> Any:
    return load(retouch, "StableDiffusionInpaintPipeline", tiny_sd)


@pytest.mark.parametrize(("ours", "theirs"), PROMPTS)
def test_states_are_compels(sd: Any, ours: str, theirs: str) -> None:
    compel = Compel(tokenizer=sd.tokenizer, text_encoder=sd.text_encoder)
    states, _ = sd.encode_prompt(ours, prompt_syntax="weighted")
    assert_close(states, lambda: compel(theirs))


@pytest.mark.parametrize("weight", ["", ":1.4", ":0.6"])
def test_long_prompts_are_compels(sd: Any, weight: str) -> None:
    compel = Compel(
        tokenizer=sd.tokenizer,
        text_encoder=sd.text_encoder,
        truncate_long_prompts=False,
        split_long_text_mode=SplitLongTextMode.WORDS,
    )
    ours, theirs = LONG, LONG
    if weight:
        ours, theirs = f"a (castle{weight}), {LONG}", f"a (castle){weight[1:]}, {LONG}"
    states, negative = sd.encode_prompt(ours, negative_prompt="a bench", prompt_syntax="weighted")
    assert states.shape[1] > 77 and states.shape[1] % 77 == 0
    assert_close(
        [states, negative],
        lambda: compel.pad_conditioning_tensors_to_same_length([compel(theirs), compel("a bench")]),
    )


@pytest.mark.parametrize(("ours", "theirs"), PROMPTS[1:5])
def test_sdxl(tiny_sdxl: Path, ours: str, theirs: str) -> None:
    xl = load(retouch, "StableDiffusionXLPipeline", tiny_sdxl)
    with contextlib.redirect_stdout(io.StringIO()):
        compel = Compel(
            tokenizer=[xl.tokenizer, xl.tokenizer_2],
            text_encoder=[xl.text_encoder, xl.text_encoder_2],
            returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            requires_pooled=[False, True],
        )
    states, _, pooled, _ = xl.encode_prompt(ours, prompt_syntax="weighted")
    assert_close(states, lambda: compel(theirs)[0])
    assert_close(pooled, lambda: xl.encode_prompt(plain(ours))[2])


def test_compel_drives_our_pipelines(sd: Any, tiny_sdxl: Path) -> None:
    """It is called as its users do, with a prompt that our own syntax can spell too."""
    compel = Compel(tokenizer=sd.tokenizer, text_encoder=sd.text_encoder)
    options = {"image": photo(), "mask_image": mask(), "num_inference_steps": 2, "output_type": "pt"}

    def painted(**prompt: Any) -> torch.Tensor:
        return sd(**prompt, **options, generator=torch.Generator().manual_seed(1)).images

    embeds = {"prompt_embeds": "a cat+++ in the park", "negative_prompt_embeds": "a bench"}
    texts = {"prompt": f"a (cat:{1.1**3}) in the park", "negative_prompt": "a bench"}
    by_us = painted(**texts, prompt_syntax="weighted")
    assert_close(by_us, lambda: painted(**{name: compel(text) for name, text in embeds.items()}))
    assert_differ(by_us, painted(prompt="a cat in the park", negative_prompt="a bench"))

    xl = load(retouch, "StableDiffusionXLPipeline", tiny_sdxl)
    made = CompelForSDXL(xl)(main_prompt="a cat++", negative_prompt="a bench")
    picture = xl(
        prompt_embeds=made.embeds,
        pooled_prompt_embeds=made.pooled_embeds,
        negative_prompt_embeds=made.negative_embeds,
        negative_pooled_prompt_embeds=made.negative_pooled_embeds,
        num_inference_steps=2,
        output_type="pt",
    ).images
    assert picture.isfinite().all()


def test_long_prompts_paint(sd: Any, tiny_sdxl: Path) -> None:
    xl = load(retouch, "StableDiffusionXLPipeline", tiny_sdxl)
    options = {"num_inference_steps": 2, "output_type": "pt", "prompt_syntax": "weighted"}
    for negative in (None, "a bench", LONG + LONG):
        for pipeline, extra in ((sd, {"image": photo(), "mask_image": mask()}), (xl, {})):
            assert pipeline(LONG, negative_prompt=negative, **options, **extra).images.isfinite().all()
    two = sd.encode_prompt(["a cat", LONG], prompt_syntax="weighted")[0]
    assert_close(two[1:], lambda: sd.encode_prompt(LONG, prompt_syntax="weighted")[0])


def test_off_unless_asked_for(sd: Any) -> None:
    as_text = sd.encode_prompt("a (cat:1.3)")[0]
    assert not torch.equal(as_text, sd.encode_prompt("a (cat:1.3)", prompt_syntax="weighted")[0])
    assert torch.equal(as_text, sd.encode_prompt("a (cat:1.3)", prompt_syntax=None)[0])
    with pytest.raises(retouch.InputError, match="prompt_syntax='compel' is unknown"):
        sd("a cat", image=photo(), mask_image=mask(), prompt_syntax="compel")


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red:1.3) cat", [("a ", 1.0), ("red", 1.3), (" cat", 1.0)]),
        ("(a (b:2))", [("a ", 1.1), ("b", 2.2)]),
        ("[a (b)]", [("a ", 1 / 1.1), ("b", 1.0)]),
        (r"\(a\) b: c", [("(a) b: c", 1.0)]),
        ("(16:9:1.2)", [("16:9", 1.2)]),
        ("(a : 0.5 )", [("a ", 0.5)]),
    ],
)
def test_the_syntax(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert all(math.isclose(a, b) for (_, a), (_, b) in zip(found, parts, strict=True))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (cat", "1 '\\(' that nothing closes"),
        ("cat)", "closes nothing"),
        ("(cat]", "closes nothing"),
        ("(a:-1)", "the weight -1"),
    ],
)
def test_unbalanced_syntax(prompt: str, message: str) -> None:
    with pytest.raises(retouch.InputError, match=message):
        parse(prompt)
