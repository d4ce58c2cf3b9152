"""The tokenizer and the text encoder: CLIP's classes with a small vocabulary.

Every known word is one token; other words are split into several tokens, down to letters.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.data import STYLES
from training.vocabulary import NAMES

TOKENS = 16
WIDTH = 128
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789',.!?&-"
# Words that people add around a name. They take one token each and have no meaning for the model.
_FILLERS = "a an the of on in with photo picture painting drawing icon small big"


def known_words() -> list[str]:
    phrases = [*(spelling for name in NAMES for spelling in name.spellings), *STYLES.values(), _FILLERS]
    return sorted({word for phrase in phrases for word in re.findall("[a-z]+", phrase)})


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn byte-pair merges until no pair is left, so that each known word becomes one token."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=50_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|startoftext|>"],
        initial_alphabet=list(_LETTERS),
    )
    learner.train_from_iterator([*known_words(), *_LETTERS], trainer)
    learnt = json.loads(learner.to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    for letter in _LETTERS:
        for token in (letter, letter + "</w>"):
            vocabulary.setdefault(token, len(vocabulary))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learnt["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]):
    encoded = tokenizer(
        captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    return encoded.input_ids
