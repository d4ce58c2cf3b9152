"""Write the trained parts as a checkpoint folder in half precision, which diffusers can load, too.

`python -m training.package --state FOLDER` writes `FOLDER/checkpoint`. With `--install` the folder also
replaces the built-in checkpoint in the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from retouch.models.autoencoder import AutoencoderKL
from retouch.models.tiny_autoencoder import AutoencoderTiny
from retouch.models.unet import UNet2DConditionModel
from training.state import default_state, write_json
from training.text import TOKENS
from training.train_unet import make_scheduler
from training.vocabulary import NAMES, RELATED

LIMIT = 40_000_000  # bytes, without the regular UNet
LIMIT_REGULAR = 30_000_000  # bytes, the regular UNet

PACKAGE = Path(__file__).parents[1] / "src" / "retouch" / "checkpoints" / "builtin"
CARD = Path(__file__).with_name("card.md")

# retouch.json: default options of the editing functions with this checkpoint, and its limits.
PROFILE: dict[str, Any] = {
    "defaults": {
        # In training, the side of a hole is about 70 % of the side of a square picture. Steps and guidance
        # are from builtin_quality.py: more guidance makes colours glaring, more steps change nothing.
        "all": {"steps": 12, "guidance_scale": 1.5, "context": "21%", "one_pass": True},
        # What it paints around a thing is a smear at a photo's resolution.
        "inpaint": {"matte": True},
        # The model learnt an empty prompt as "background only", so it needs no guidance. A classical fill
        # that is then partly repainted came closest to the truth.
        "erase": {
            "negative_prompt": None,
            "guidance_scale": 1.0,
            "context": "50%",
            "steps": 4,
            "fill": "telea",
            "strength": 0.3,
            "join": "poisson",
        },
        "outpaint": {"context": "100%", "matte": True},
    },
    "square_crops": True,
    "names": "names.json",
    "limits": [
        "It knows the things that are listed and no others; other words paint a blob or one of these.",
        "No faces or people, no text or letters, no styles, no counts, no relations between things.",
        "It paints 128 x 128 pixels: larger holes are scaled up and stay soft.",
        "Things look like the 3D icons and drawings that it learnt from, not like photos.",
        "It does not remove things: an empty prompt paints a soft background. Erase without a model instead.",
    ],
}


def package(state: Path) -> Path:
    """Write `<state>/checkpoint`: a StableDiffusionInpaintPipeline with additional parts of our own."""
    folder = state / "checkpoint"
    staged = state / "checkpoint.partial"
    shutil.rmtree(staged, ignore_errors=True)
    for name, part in (
        ("unet", UNet2DConditionModel.from_pretrained(state / "unet")),
        ("unet_regular", UNet2DConditionModel.from_pretrained(state / "unet_regular")),
        ("vae", AutoencoderKL.from_pretrained(state / "vae")),
        ("preview_decoder", AutoencoderTiny.from_pretrained(state / "preview_decoder")),
        ("text_encoder", CLIPTextModel.from_pretrained(state / "text_encoder")),
    ):
        part.to(torch.float16).save_pretrained(staged / name)
    CLIPTokenizer.from_pretrained(state / "tokenizer", model_max_length=TOKENS).save_pretrained(
        staged / "tokenizer"
    )
    for name in ("vocab.json", "merges.txt"):  # for transformers before 5; version 5 does not write them
        shutil.copy(state / "tokenizer" / name, staged / "tokenizer")
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
    write_json(
        staged / "names.json",
        [{"word": name.word, "synonyms": name.synonyms, "related": related(name.word)} for name in NAMES],
    )
    write_json(staged / "retouch.json", PROFILE)
    shutil.copy(state / "data" / "sources.json", staged / "sources.json")
    (staged / "README.md").write_text(card(state), encoding="utf-8")
    for path in staged.rglob("*.*"):  # some writers make files readable by their owner only
        path.chmod(0o644)
    size, regular = size_of(staged)
    for what, has, limit in (("The checkpoint", size, LIMIT), ("Its regular UNet", regular, LIMIT_REGULAR)):
        if has > limit:
            raise SystemExit(f"{what} has {has} bytes; {limit} are allowed. Make the UNet narrower.")
    shutil.rmtree(folder, ignore_errors=True)
    staged.replace(folder)
    print(f"{folder}: {size / 1e6:.1f} MB, and {regular / 1e6:.1f} MB for the regular UNet", flush=True)
    return folder


def related(word: str) -> list[str]:
    """Return words that are not names but are related to one: sofa is related to chair."""
    return [other for other, words in RELATED.items() if word in words]


def size_of(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files except the regular UNet, and of the regular UNet."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    regular = sum(path.stat().st_size for path in files if "unet_regular" in path.parts)
    return sum(path.stat().st_size for path in files) - regular, regular


def card(state: Path) -> str:
    """Return the model card: `card.md` filled in from the state folder."""
    sources = json.loads((state / "data" / "sources.json").read_text(encoding="utf-8"))
    rows = [
        f"| {source['client']} `{source['package']}` {source['version']} | {source['licence']} "
        f"| {source['attribution']} | {source['pictures_made']:,} |"
        for source in sources
    ]
    filled = {
        "names": str(len(NAMES)),
        "sources": "\n".join(rows),
        "compute": "\n".join(
            _compute(state / f"{stage}.jsonl")
            for stage in ("vae", "regular", "inpainting", "preview_decoder")
        ),
    }
    text = CARD.read_text(encoding="utf-8")
    for key, value in filled.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def _compute(log: Path) -> str:
    """Return a row of the card's table with the steps and hours of a stage."""
    if not log.is_file():
        return f"| {log.stem} | not trained | |"
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return f"| {log.stem} | {last['step']:,} | {last['hours']:.1f} |"


def install(folder: Path, target: Path = PACKAGE) -> Path:
    """Replace the built-in checkpoint of the package by a packaged one."""
    staged = target.with_name(target.name + ".partial")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(folder, staged)
    shutil.rmtree(target, ignore_errors=True)
    staged.replace(target)
    print(f"{target}: installed", flush=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=default_state(), help="the state folder")
    parser.add_argument("--install", action="store_true", help="also replace the checkpoint in the package")
    options = parser.parse_args()
    folder = package(options.state)
    if options.install:
        install(folder)


if __name__ == "__main__":
    main()
