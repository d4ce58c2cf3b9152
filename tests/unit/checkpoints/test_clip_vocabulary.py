"""The vocabulary in the package is CLIP's, and makes its tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from retouch.checkpoints.clip_vocabulary import END, START, clip_vocabulary
from retouch.pipelines.components import clip_tokenizer

# The ids that OpenAI's tokenizer gave, made from its own file of merges.
TOKENS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "don't you're I'll we've": [847, 713, 592, 982, 328, 1342, 649, 1200],
    "123 4567 $%&": [272, 273, 274, 275, 276, 277, 278, 3, 4, 261],
    "(masterpiece:1.2), best_quality": [263, 12066, 281, 272, 269, 273, 2361, 949, 318, 3027],
}


def test_vocabulary() -> None:
    vocabulary, merges = clip_vocabulary()
    assert len(vocabulary) == 49408 and sorted(vocabulary.values()) == list(range(49408))
    assert (vocabulary["!"], vocabulary["photo</w>"], vocabulary[START], vocabulary[END]) == (
        0,
        1125,
        49406,
        49407,
    )
    text = "".join(f"{first} {second}\n" for first, second in merges)
    # The facts that its README states.
    readme = Path(__file__).parents[3] / "src/retouch/checkpoints/tokenizers/README.md"
    assert hashlib.sha256(text.encode()).hexdigest() in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", TOKENS)
def test_tokens(text: str) -> None:
    for pad_token, padding in (("<|endoftext|>", 49407), ("!", 0)):
        tokenizer = clip_tokenizer(pad_token)
        row = tokenizer([text], padding="max_length", max_length=77).input_ids[0]
        expected = [49406, *TOKENS[text], 49407]
        assert row == [*expected, *[padding] * (77 - len(expected))]
        assert tokenizer.model_max_length == 77


def test_other_letters() -> None:
    row = clip_tokenizer("!")("naïve café 東京 🎉").input_ids
    assert row == [49406, 1097, 35689, 563, 15304, 48338, 21078, 361, 3986, 49407]
    assert clip_tokenizer("!").decode(row, skip_special_tokens=True) == "naïve café 東京 🎉"


def test_save_and_load(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    clip_tokenizer("!").save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert (again.pad_token, again.model_max_length) == ("!", 77)
    assert again("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
