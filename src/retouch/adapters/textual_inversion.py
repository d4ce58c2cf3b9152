"""Textual inversion on a pipeline: learned words become tokens of a tokenizer and of its text encoder.

A word of several vectors is several tokens: <word>, <word>_1 and so on. Prompts name the first. The functions
whose first parameter is `self` are methods of the pipelines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retouch.checkpoints.adapter_files import find_adapter_file, read_adapter_file
from retouch.checkpoints.textual_inversion import Learned, learned_from
from retouch.errors import CheckpointError, InputError, errors_about
from retouch.families.family import Parts
from retouch.families.text import expanded, tokenizing

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@dataclass(frozen=True)
class _Addition:
    """Tokens to add to a tokenizer, and their rows in the encoder's embedding."""

    tokenizer: Any
    encoder: Any
    tokens: Sequence[str]
    rows: Tensor


def load_textual_inversion(
    self: Parts,
    pretrained_model_name_or_path: Any,
    token: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    text_encoder: Any = None,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    hf_token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    use_safetensors: bool | None = None,
) -> None:
    """Load learned words from files, folders, hub repositories, their contents or tensors: one or a list.

    `token` is the word to use in prompts, in place of the one that a file names. SDXL's files with two
    embeddings fill both text encoders; others the first, or `text_encoder` and `tokenizer` if given.
    """
    listed = isinstance(pretrained_model_name_or_path, list)
    sources = pretrained_model_name_or_path if listed else [pretrained_model_name_or_path]
    tokens: list[str | None] = [token] if token is None or isinstance(token, str) else list(token)
    if len(sources) == 1 and len(tokens) > 1 and isinstance(sources[0], Tensor):
        sources = list(sources[0])  # a row for each token
    if tokens == [None]:
        tokens *= len(sources)
    if len(tokens) != len(sources):
        raise InputError(
            f"{len(tokens)} tokens were given for {len(sources)} textual inversions. Give one for each, or "
            "none to use those that the files name.",
            parameter="token",
        )
    options: dict[str, Any] = {
        "weight_name": weight_name,
        "subfolder": subfolder,
        "revision": revision,
        "cache_dir": cache_dir,
        "token": hf_token,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "use_safetensors": use_safetensors,
    }
    additions: list[_Addition] = []
    for source, word in zip(sources, tokens, strict=True):
        name, content = "The textual inversion", source
        with errors_about("pretrained_model_name_or_path"):
            if not isinstance(source, Mapping | Tensor):
                path = find_adapter_file(source, "learned_embeds", **options)
                name, content = str(path), read_adapter_file(path)[0]
            learned = learned_from(content, name)
        additions += _additions(self, name, learned, word or learned.token, tokenizer, text_encoder)
    _refuse_known_tokens(additions)
    for addition in additions:
        _add(addition)


def unload_textual_inversion(
    self: Parts, tokens: str | Sequence[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
) -> None:
    """Remove these learned words, or all with None, from all text encoders or from the one given."""
    pairs = list(_pairs(self, tokenizer, text_encoder))
    if tokens is None:
        for each, encoder in pairs:
            _remove(each, encoder, _learned_tokens(each))
        return
    words = [tokens] if isinstance(tokens, str) else list(tokens)
    known = {word for each, _ in pairs for word in _learned_tokens(each)}
    unknown = [word for word in words if word not in known]
    if unknown:
        raise InputError(
            f"No word {', '.join(unknown)} was learned. Learned are: {', '.join(sorted(known)) or '-'}. Name "
            "one of them, or none to remove all.",
            parameter="tokens",
        )
    for each, encoder in pairs:
        there = _learned_tokens(each)
        _remove(each, encoder, [part for word in words if word in there for part in _tokens_of(word, there)])


def maybe_convert_prompt(self: Parts, prompt: str | list[str], tokenizer: Any) -> str | list[str]:
    """Return prompts with each word of several vectors written out, as the tokenizer knows them."""
    if isinstance(prompt, list):
        return [expanded(tokenizer, text) for text in prompt]
    return expanded(tokenizer, prompt)


def _pairs(self: Parts, tokenizer: Any, text_encoder: Any) -> Iterator[tuple[Any, Any]]:
    """Yield tokenizers with their text encoders: the pair given, or all that the pipeline has."""
    if tokenizer is not None or text_encoder is not None:
        given = getattr(text_encoder, "_orig_mod", text_encoder)  # inside torch.compile's wrapper
        yield tokenizer or self.part("tokenizer"), given or self.part("text_encoder")
        return
    for name, tokenizer_name in _TOKENIZERS.items():
        each, encoder = self.part(tokenizer_name), self.part(name)
        if each is not None and encoder is not None:
            yield each, encoder


def _additions(
    self: Parts, source: str, learned: Learned, token: str | None, tokenizer: Any, text_encoder: Any
) -> Iterator[_Addition]:
    """Yield the tokens and rows that a learned word adds to each text encoder."""
    if not token:
        raise InputError(
            f"{source} does not say which word it teaches. Give it: load_textual_inversion(..., "
            "token='<word>').",
            parameter="token",
        )
    is_given = tokenizer is not None or text_encoder is not None
    wanted = dict(learned.vectors)
    if is_given:
        ((each, encoder),) = _pairs(self, tokenizer, text_encoder)
        own = "text_encoder_2" if encoder is self.part("text_encoder_2") else "text_encoder"
        wanted = {own: wanted[own]} if own in wanted else wanted
    for name, rows in wanted.items():
        if not is_given:
            name = name or "text_encoder"
            each, encoder = self.part(_TOKENIZERS[name]), self.part(name)
        if each is None or encoder is None:
            raise InputError(
                f"{source} is for {name or 'a text encoder'}, which this pipeline lacks. Load the pipeline "
                "with it, or give tokenizer and text_encoder.",
                parameter="text_encoder",
            )
        width = encoder.get_input_embeddings().weight.shape[1]
        if rows.shape[1] != width:
            raise CheckpointError(
                f"{source} has vectors of width {rows.shape[1]}, and this text encoder has {width}. Use one "
                "that was made for this family of models; for SDXL's second encoder give "
                "tokenizer=pipeline.tokenizer_2 and text_encoder=pipeline.text_encoder_2.",
                parameter="pretrained_model_name_or_path",
            )
        tokens = [token, *(f"{token}_{number}" for number in range(1, len(rows)))]
        yield _Addition(each, encoder, tokens, rows)


def _refuse_known_tokens(additions: Sequence[_Addition]) -> None:
    seen: dict[int, set[str]] = {}
    for addition in additions:
        known = seen.setdefault(id(addition.tokenizer), set(addition.tokenizer.get_vocab()))
        # <word>_1 of another word would be read as the second vector of <word>.
        taken = [token for token in (*addition.tokens, f"{addition.tokens[0]}_1") if token in known]
        if taken:
            raise InputError(
                f"The tokenizer knows {taken[0]!r} already. A learned word needs its own name. Give another "
                f"as token=..., or call unload_textual_inversion({addition.tokens[0]!r}) first if it was "
                "learned before.",
                parameter="token",
            )
        known.update(addition.tokens)


def _add(addition: _Addition) -> None:
    with tokenizing:
        first = len(addition.tokenizer)
        addition.tokenizer.add_tokens(list(addition.tokens))
        old = addition.encoder.get_input_embeddings().weight.data
        rows = addition.rows.to(old)
        _set_rows(addition.encoder, torch.cat([old[:first], rows, old[first + len(rows) :]]))


def _remove(tokenizer: Any, encoder: Any, tokens: Sequence[str]) -> None:
    """Remove tokens; those after them move up, in the tokenizer as in the embedding."""
    if not tokens:
        return
    with tokenizing:
        gone = {tokenizer.added_tokens_encoder[token] for token in tokens}
        state = json.loads(tokenizer._tokenizer.to_str())
        state["added_tokens"] = [
            {**entry, "id": entry["id"] - sum(number < entry["id"] for number in gone)}
            for entry in state["added_tokens"]
            if entry["id"] not in gone
        ]
        tokenizer._tokenizer = type(tokenizer._tokenizer).from_str(json.dumps(state))
        old = encoder.get_input_embeddings().weight.data
        kept = [number for number in range(len(old)) if number not in gone]
        _set_rows(encoder, old[kept])


def _set_rows(encoder: Any, rows: Tensor) -> None:
    embedding = encoder.get_input_embeddings()
    embedding.weight = nn.Parameter(rows, requires_grad=embedding.weight.requires_grad)
    embedding.num_embeddings = encoder.config.vocab_size = len(rows)


def _learned_tokens(tokenizer: Any) -> list[str]:
    """Return the tokens that were added, in their order."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    return [token.content for _, token in added if not token.special]


def _tokens_of(word: str, known: Sequence[str]) -> list[str]:
    """Return the tokens of a word, one for each of its vectors."""
    tokens = [word]
    while f"{word}_{len(tokens)}" in known:
        tokens.append(f"{word}_{len(tokens)}")
    return tokens
