"""Writes the trained parts as the folder that ships: half precision, loadable by name and by diffusers."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from retouch.models.autoencoder import AutoencoderKL
from retouch.models.unet import UNet2DConditionModel
from training.state import write_json
from training.text import TOKENS
from training.train_unet import make_scheduler
from training.vocabulary import NAMES

LIMIT = 40_000_000  # bytes, of everything but the regular UNet


def package(state: Path) -> Path:
    """`<state>/checkpoint`: a StableDiffusionInpaintPipeline, and beside it `unet_regular`."""
    folder = state / "checkpoint"
    staged = state / "checkpoint.partial"
    shutil.rmtree(staged, ignore_errors=True)
    for name, part in (
        ("unet", UNet2DConditionModel.from_pretrained(state / "unet")),
        ("unet_regular", UNet2DConditionModel.from_pretrained(state / "unet_regular")),
        ("vae", AutoencoderKL.from_pretrained(state / "vae")),
        ("text_encoder", CLIPTextModel.from_pretrained(state / "text_encoder")),
    ):
        part.to(torch.float16).save_pretrained(staged / name)
    CLIPTokenizer.from_pretrained(state / "tokenizer", model_max_length=TOKENS).save_pretrained(
        staged / "tokenizer"
    )
    make_scheduler().save_pretrained(staged / "scheduler")
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (staged / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    known = [
        {key: value for key, value in asdict(name).items() if key in ("word", "synonyms")} for name in NAMES
    ]
    write_json(staged / "names.json", known)
    shutil.copy(state / "data" / "sources.json", staged / "sources.json")
    shipped = [path for path in staged.rglob("*") if path.is_file() and "unet_regular" not in path.parts]
    size = sum(path.stat().st_size for path in shipped)
    if size > LIMIT:
        raise SystemExit(f"The checkpoint has {size} bytes; {LIMIT} are allowed. Make the UNet narrower.")
    shutil.rmtree(folder, ignore_errors=True)
    staged.replace(folder)
    print(f"{folder}: {size / 1e6:.1f} MB without the regular UNet", flush=True)
    return folder
