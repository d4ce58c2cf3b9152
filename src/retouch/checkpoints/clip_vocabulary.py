"""The vocabulary of CLIP's tokenizer, for checkpoints that have none.

It has tokens and merges, from the file that tokenizers/README.md describes. transformers makes the tokenizer
from them.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77  # tokens that the text encoders of all Stable Diffusion checkpoints read


@cache
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the number of each token, and the merges, the most frequent first."""
    packed = files("retouch.checkpoints").joinpath("tokenizers/clip_merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _letters() -> list[str]:
    """Return a visible character for each byte: its own, or one from 256 on for an invisible byte."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]
