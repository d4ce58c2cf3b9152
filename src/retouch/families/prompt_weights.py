"""Prompts with weights, (word:1.3), and prompts longer than the text encoder reads at once.

    (word)      times 1.1; each further pair of parentheses once more
    (word:1.3)  times 1.3
    [word]      divided by 1.1
    \\( \\) \\[ \\]  the characters themselves

A weight moves a token's states away from those of an empty text, or back towards them. A weight below 1 also
mixes in the states of the prompt with that part hidden, because a tenth of "red" would still be red; this is
the definition of the Compel library, whose states are the same. Long prompts are read in chunks, cut between
words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.families.text import expanded, tokenizing

Read = Callable[[Tensor, Tensor | None], Tensor]  # token ids and attention mask (1, length) -> states

_STEP = 1.1
_PIECE = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*[-+]?\d*\.?\d+\s*\)|[^\\()\[\]:]+|[\\:]")


def parse(prompt: str) -> list[tuple[str, float]]:
    """Return the parts of a prompt with their weights; neighbours of equal weight are joined."""
    parts: list[tuple[str, float]] = []
    open_at: list[tuple[str, int]] = []
    for match in _PIECE.finditer(prompt):
        piece = match[0]
        if piece in ("(", "["):
            open_at.append((piece, len(parts)))
        elif piece in (")", "]") or (piece.startswith(":") and piece.endswith(")")):
            bracket = "[" if piece == "]" else "("
            if not open_at or open_at[-1][0] != bracket:
                raise InputError(
                    f"The prompt has a {piece[-1]!r} at character {match.end()} that closes nothing: "
                    f"...{prompt[max(0, match.end() - 25) : match.end()]!r}. Balance it, or write "
                    f"\\{piece[-1]} for the character itself.",
                    parameter="prompt",
                )
            factor = {")": _STEP, "]": 1 / _STEP}.get(piece) or float(piece[1:-1])
            if factor < 0:
                raise InputError(
                    f"The prompt has the weight {factor}. 0 or more is accepted; use negative_prompt "
                    f"instead.",
                    parameter="prompt",
                )
            start = open_at.pop()[1]
            parts[start:] = [(text, weight * factor) for text, weight in parts[start:]]
        else:
            parts.append((piece[-1] if len(piece) == 2 and piece[0] == "\\" else piece, 1.0))
    if open_at:
        raise InputError(
            f"The prompt has {len(open_at)} {open_at[-1][0]!r} that nothing closes. Balance them, or write "
            f"\\{open_at[-1][0]} for the character itself.",
            parameter="prompt",
        )
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return [part for part in joined if part[0].strip()] or [("", 1.0)]


def plain(prompt: str) -> str:
    """Return the prompt without its syntax."""
    return " ".join(text.strip() for text, _ in parse(prompt))


def weighted_states(prompts: Sequence[str], tokenizer: Any, read: Read) -> Tensor:
    """Return text states of weighted prompts of any length: a multiple of the encoder's length."""
    empty = _Chunk(tokenizer, []).states(read, None)
    rows = [_states(prompt, tokenizer, read, empty) for prompt in prompts]
    longest = max(row.shape[1] for row in rows)
    return torch.cat([_filled(row, longest, empty) for row in rows])


def padded_to_match(first: Tensor, second: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Return both, the shorter one padded with the states of an empty text."""
    longest = max(first.shape[1], second.shape[1])
    return _filled(first, longest, empty), _filled(second, longest, empty)


def _filled(states: Tensor, length: int, empty: Tensor) -> Tensor:
    count = (length - states.shape[1]) // empty.shape[1]
    return torch.cat([states, *[empty.expand(len(states), -1, -1)] * count], dim=1)


class _Chunk:
    """The tokens of one encoder call, each with its weight and its part of the prompt."""

    def __init__(self, tokenizer: Any, tokens: Sequence[tuple[int, float, int]]) -> None:
        length = tokenizer.model_max_length
        ids = [tokenizer.bos_token_id, *(token for token, _, _ in tokens), tokenizer.eos_token_id]
        self.ids = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids))])
        self.weights = torch.ones(1, length, 1)
        self.parts = torch.full((1, length), -1)
        for position, (_, weight, part) in enumerate(tokens, start=1):
            self.weights[0, position], self.parts[0, position] = weight, part

    def states(self, read: Read, empty: Tensor | None, hidden: int | None = None) -> Tensor:
        """Return weighted states; `hidden` is a part of the prompt that the encoder must not see."""
        mask = None if hidden is None else (self.parts != hidden).long()
        states = read(self.ids, mask)
        if empty is None:
            return states
        weights = self.weights.to(states)
        return torch.where(weights == 1, states, empty + (states - empty) * weights)


def _states(prompt: str, tokenizer: Any, read: Read, empty: Tensor) -> Tensor:
    parts = parse(prompt)
    chunks = [_Chunk(tokenizer, tokens) for tokens in _cut(_tokens(parts, tokenizer), tokenizer)]

    def whole(hidden: int | None = None) -> Tensor:
        return torch.cat([chunk.states(read, empty, hidden) for chunk in chunks], dim=1)

    blended, total = whole(), 1.0
    for index, (_, weight) in enumerate(parts):
        if weight < 1:
            # 0 at weight 1, 1 at one half, unbounded towards 0: there the states without the part take over.
            share = math.tan((1 - weight) * math.pi / 2)
            blended, total = blended + share * whole(hidden=index), total + share
    return blended / total


def _tokens(parts: Sequence[tuple[str, float]], tokenizer: Any) -> list[tuple[int, float, int]]:
    tokens = []
    with tokenizing:
        for index, (text, weight) in enumerate(parts):
            text = expanded(tokenizer, text)
            ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
            tokens += [(token, weight, index) for token in ids]
    return tokens


def _cut(tokens: list[tuple[int, float, int]], tokenizer: Any) -> list[list[tuple[int, float, int]]]:
    """Return chunks that fit the encoder, cut after the last whole word."""
    room = tokenizer.model_max_length - 2
    chunks = []
    while len(tokens) > room:
        ends = tokenizer.convert_ids_to_tokens([token for token, _, _ in tokens[:room]])
        cut = next((index + 1 for index in reversed(range(room)) if ends[index].endswith("</w>")), room)
        chunks.append(tokens[:cut])
        tokens = tokens[cut:]
    return [*chunks, tokens]
