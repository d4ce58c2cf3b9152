"""Learned words in every format compared with diffusers: whole pictures, and the state after unloading."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close
from pipeline_pairs import NAMES, XL_NAMES, Pair, task_inputs
from safetensors.torch import save_file
from torch import Tensor

import retouch
from retouch.errors import CheckpointError, InputError

PROMPT = "a photo of a <cat> in the park"


def fresh(folder: Path, name: str) -> Pair:
    made = []
    for library in (retouch, diffusers):
        pipeline = getattr(library, name).from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline)
    return Pair(*made, "text2image")


@pytest.fixture(scope="module")
def sd_pair(tiny_sd: Path) -> Pair:
    return fresh(tiny_sd, NAMES["text2image"])


@pytest.fixture(scope="module")
def xl_pair(tiny_sdxl: Path) -> Pair:
    return fresh(tiny_sdxl, XL_NAMES["text2image"])


def encoders(pipeline: Any) -> list[tuple[Any, Any]]:
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    return [(getattr(pipeline, one), getattr(pipeline, two)) for one, two in names if hasattr(pipeline, two)]


def emptied(pair: Pair) -> Iterator[Pair]:
    yield pair
    pair.ours.unload_textual_inversion()
    for tokenizer, encoder in encoders(pair.theirs):
        if any(not token.special for token in tokenizer.added_tokens_decoder.values()):
            pair.theirs.unload_textual_inversion(tokenizer=tokenizer, text_encoder=encoder)


@pytest.fixture
def sd(sd_pair: Pair) -> Iterator[Pair]:
    yield from emptied(sd_pair)


@pytest.fixture
def xl(xl_pair: Pair) -> Iterator[Pair]:
    yield from emptied(xl_pair)


def vectors(count: int = 1, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def loaded(pair: Pair, given: Any, **options: Any) -> None:
    for pipeline in (pair.ours, pair.theirs):
        pipeline.load_textual_inversion(given, **options)


def compared(pair: Pair, prompt: Any = PROMPT, **arguments: Any) -> None:
    pair.compare(prompt=prompt, num_inference_steps=2, **task_inputs("text2image"), **arguments)


def picture(pipeline: Any, prompt: str = PROMPT) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    images: Tensor = pipeline(prompt, num_inference_steps=2, output_type="pt", generator=draw).images
    return images


def web_ui(rows: Tensor) -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows},
        "name": "<cat>",
        "step": 500,
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": None,
    }


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"<cat>": vectors()[0]}, {}),
        ({"<cat>": vectors(3)}, {}),
        ({"<dog>": vectors(2)}, {"token": "<cat>"}),
        (vectors(2), {"token": "<cat>"}),
        (vectors(2), {"token": ["<cat>", "<dog>"]}),
        ({"emb_params": vectors(3)}, {"token": "<cat>"}),
        (web_ui(vectors(3)), {}),
        ([{"<cat>": vectors(2)}, {"<dog>": vectors(1, seed=1)}], {}),
        ([vectors(), vectors(2, seed=1)], {"token": ["<cat>", "<dog>"]}),
    ],
    ids=[
        "vector",
        "vectors",
        "renamed",
        "tensor",
        "tensor-two",
        "emb_params",
        "web-ui",
        "list",
        "tensors",
    ],
)
def test_formats(sd: Pair, given: Any, options: dict[str, Any]) -> None:
    before = picture(sd.ours)
    loaded(sd, given, **options)
    assert (picture(sd.ours) - before).abs().max() > 0.01, "it has no effect worth comparing"
    compared(sd)
    compared(sd, ["<cat>, a <cat> and a <dog>", "a <dog>"], negative_prompt=["a <cat>", "a bench"])
    assert sd.ours.maybe_convert_prompt(PROMPT, sd.ours.tokenizer) == sd.theirs.maybe_convert_prompt(
        PROMPT, sd.theirs.tokenizer
    )
    assert sd.ours.tokenizer(PROMPT).input_ids == sd.theirs.tokenizer(PROMPT).input_ids


def test_capitals(sd: Pair) -> None:
    """The tokenizer ignores capitals, so whole words match in all spellings; the reference knows one."""
    loaded(sd, {"<Cat>": vectors(2)})
    found = [picture(sd.ours, prompt) for prompt in ("a <Cat>", "a <cat>", "a <CAT>", "a <Cat> <cat>_1")]
    assert_close(found, lambda: 4 * [picture(sd.theirs, "a <Cat> <Cat>_1")])
    written = sd.ours.maybe_convert_prompt(["a <cat>s", "<cat>_10"], sd.ours.tokenizer)
    assert written == ["a <Cat> <Cat>_1s", "<cat>_10"]


def test_words_without_brackets(sd: Pair) -> None:
    loaded(sd, {"my.style": vectors(3)})
    compared(sd, "a cat in my.style, detailed")


def test_files(sd: Pair, tmp_path: Path) -> None:
    save_file({"<cat>": vectors(2)}, tmp_path / "learned_embeds.safetensors")
    loaded(sd, str(tmp_path))
    compared(sd)
    sd.ours.unload_textual_inversion()
    sd.theirs.unload_textual_inversion()
    torch.save(web_ui(vectors(3)), tmp_path / "cat.pt")
    with pytest.raises(CheckpointError, match=r"cat.pt is pickled.*use_safetensors=False"):
        sd.ours.load_textual_inversion(tmp_path, weight_name="cat.pt")
    loaded(sd, str(tmp_path), weight_name="cat.pt", use_safetensors=False)
    compared(sd)


def test_the_words_of_sdxl(xl: Pair, tmp_path: Path) -> None:
    pair = {"clip_l": vectors(2), "clip_g": vectors(2, 40)}
    save_file(pair, tmp_path / "cat.safetensors")
    xl.ours.load_textual_inversion(tmp_path / "cat.safetensors", token="<cat>")
    for rows, (tokenizer, encoder) in zip(pair.values(), encoders(xl.theirs), strict=True):
        xl.theirs.load_textual_inversion(rows, token="<cat>", tokenizer=tokenizer, text_encoder=encoder)
    compared(xl)
    compared(xl, "a <cat>", prompt_2="a bench", negative_prompt="a <cat> in the park")
    xl.ours.unload_textual_inversion("<cat>")
    for rows, (tokenizer, encoder) in zip(pair.values(), encoders(xl.ours), strict=True):
        xl.ours.load_textual_inversion(rows, "<cat>", tokenizer=tokenizer, text_encoder=encoder)
    compared(xl)
    xl.ours.unload_textual_inversion()
    tokenizer, encoder = encoders(xl.ours)[1]
    xl.ours.load_textual_inversion(pair, "<cat>", tokenizer=tokenizer, text_encoder=encoder)
    assert "<cat>" not in xl.ours.tokenizer.get_vocab()
    assert torch.equal(encoder.get_input_embeddings().weight[-2:], pair["clip_g"])


def test_forgetting(sd: Pair) -> None:
    (tokenizer, encoder) = encoders(sd.ours)[0]
    before, weights = picture(sd.ours), encoder.get_input_embeddings().weight.clone()
    text, size = tokenizer._tokenizer.to_str(), encoder.config.vocab_size
    loaded(sd, [{"<cat>": vectors(2)}, {"<dog>": vectors(1, seed=1)}, {"<elk>": vectors(3, seed=2)}])
    with_all = picture(sd.ours, "a <elk> and a <dog>")
    sd.ours.unload_textual_inversion("<cat>")
    # The reference removes only the first vector, and so leaves a word that was never learned.
    sd.theirs.unload_textual_inversion(["<cat>", "<cat>_1"])
    assert tokenizer.get_vocab() == sd.theirs.tokenizer.get_vocab()
    assert torch.equal(picture(sd.ours, "a <elk> and a <dog>"), with_all)
    compared(sd, "a <elk>, a <cat> and a <dog>")
    sd.ours.load_textual_inversion(vectors(2), token="<cat>")
    assert torch.equal(picture(sd.ours, "a <elk> and a <dog>"), with_all)
    sd.ours.unload_textual_inversion(["<cat>", "<elk>"])
    sd.ours.unload_textual_inversion()
    assert torch.equal(picture(sd.ours), before)
    assert torch.equal(encoder.get_input_embeddings().weight, weights)
    assert tokenizer._tokenizer.to_str() == text and encoder.config.vocab_size == size


def test_saved_with_its_words(sd: Pair, tmp_path: Path) -> None:
    sd.ours.load_textual_inversion({"<cat>": vectors(2)})
    sd.ours.save_pretrained(tmp_path)
    for library in (retouch, diffusers):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = library.StableDiffusionPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert_close(picture(again), lambda: picture(sd.ours))


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ({"cat": vectors()}, {"token": "park</w>"}, InputError, "knows 'park</w>' already.*token="),
        ({"<cat>": vectors(1, 40)}, {}, CheckpointError, "vectors of width 40, and this text encoder has 32"),
        ({"emb_params": vectors()}, {}, InputError, "does not say which word it teaches"),
        (vectors(), {}, InputError, "does not say which word it teaches"),
        (
            {"clip_l": vectors(), "clip_g": vectors(1, 40)},
            {"token": "<cat>"},
            InputError,
            "text_encoder_2, which",
        ),
        ({"<cat>": vectors() / 0}, {}, CheckpointError, "NaN or infinite"),
        ({"<cat>": vectors()[None]}, {}, CheckpointError, "is not a textual inversion"),
        ({"<cat>": "text"}, {}, CheckpointError, "is not a textual inversion"),
        ({"a.lora_A.weight": vectors(), "b": vectors()}, {}, CheckpointError, "it looks like a LoRA"),
        (
            [vectors(), vectors()],
            {"token": "<cat>"},
            InputError,
            "1 tokens were given for 2 textual inversions",
        ),
        ([vectors(), vectors()], {"token": ["<cat>", "<cat>"]}, InputError, "knows '<cat>' already"),
        ([vectors(2), vectors()], {"token": ["<cat>", "<cat>_1"]}, InputError, "knows '<cat>_1' already"),
        ([vectors(), vectors()], {"token": ["<cat>_1", "<cat>"]}, InputError, "knows '<cat>_1' already"),
    ],
)
def test_refused(sd: Pair, given: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    words = len(sd.ours.tokenizer)
    with pytest.raises(error, match=message) as caught:
        sd.ours.load_textual_inversion(given, **options)
    if error is CheckpointError:
        assert caught.value.parameter == "pretrained_model_name_or_path"
    assert len(sd.ours.tokenizer) == words  # no word is added if one is refused
    with pytest.raises(InputError, match=r"No word <cat> was learned. Learned are: -"):
        sd.ours.unload_textual_inversion("<cat>")
