"""Recognising files and folders: a picture of retouch with its settings, or a checkpoint and its family.

The facts are for people to read. Nothing is loaded, and the hub is not asked.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retouch.cli.options import flag_of
from retouch.errors import CheckpointError, InputError
from retouch.families.registry import row_of_class, title_of_width

Facts = dict[str, Any]

# Endings of paths, which repositories' names do not have.
_NO_REPOSITORY = (
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif"),
    *(".safetensors", ".ckpt", ".pt", ".onnx"),
)
_DOWN = re.compile(r"(lora_A|lora_down|lora\.down|_lora\.down|lora_linear_layer\.down)\.weight$")


def recognised(name: str, *, pickled: bool = False) -> Facts:
    """Return the facts of a file, a folder, or what is cached under a short name or hub id."""
    from retouch.checkpoints.single_file import names_single_file
    from retouch.editing.erasers import eraser_files, names_eraser
    from retouch.editing.models import BUILT_IN_NAMES, ERASER_NAMES, MODELS, SHORT_NAMES

    if name in BUILT_IN_NAMES:
        entry = BUILT_IN_NAMES[name]
        return of_built_in(name) | {"licence": entry.licence, "note": entry.note}
    path = Path(name).expanduser()
    if path.is_file() and names_eraser(name):
        return of_eraser([path], name)
    if path.is_file():
        return of_weights(path, pickled=pickled) if names_single_file(path) else of_picture(path)
    if path.is_dir():
        return of_eraser(eraser_files(name), name) if names_eraser(name) else of_folder(path)
    if name in SHORT_NAMES:
        entry = SHORT_NAMES[name]
        size = f"{entry.size_gb:g} GB in float32"
        about = {"short_name": name, "licence": entry.licence, "size": size, "note": entry.note}
        return of_cached(entry.repository, name) | about
    if name in ERASER_NAMES:
        entry = ERASER_NAMES[name]
        size = f"{1000 * entry.size_gb:.0f} MB"
        about = {"short_name": name, "licence": entry.licence, "size": size, "note": entry.note}
        return of_cached_eraser(name) | about
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", name) and names_eraser(name):
        return of_cached_eraser(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix.lower() not in _NO_REPOSITORY:
        return of_cached(name)
    raise InputError(
        f"{name!r} is no file or folder here, no short name, and no hub id like 'org/name'. Accepted are "
        f"pictures, files of weights, folders of checkpoints, hub ids, and {', '.join(MODELS)}. Check "
        f"the spelling and the working folder.",
        parameter="file",
    )


def of_picture(path: Path) -> Facts:
    """Return a picture's size and, if retouch made it, its settings; only its head is read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            facts: Facts = {
                "kind": "picture",
                "what": "a picture",
                "path": str(path),
                "format": picture.format,
                "width": picture.width,
                "height": picture.height,
                "mode": picture.mode,
            }
            # Not `picture.text`, which reads all pixels to reach the text after them.
            text = {key: value for key, value in picture.info.items() if isinstance(value, str)}
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} is neither a picture that can be read ({error}) nor a file of weights. Accepted are "
            f"pictures, .safetensors files, folders of checkpoints, short names and hub ids.",
            parameter="file",
        ) from error
    settings = _settings_in(text)
    if settings is not None:
        facts |= {"what": "a picture made by retouch", "settings": settings}
        facts["command"] = command_for(settings)
    elif "parameters" in text:
        facts |= {"what": "a picture made by another program that writes its settings"}
        facts["parameters"] = text["parameters"]
    return facts


def _settings_in(text: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        settings = json.loads(text.get("retouch", "null"))
    except ValueError:
        return None
    return settings if isinstance(settings, dict) and "verb" in settings else None


def command_for(settings: Mapping[str, Any]) -> str:
    """Return the command line that makes a picture with these settings again."""
    verb = str(settings.get("verb"))
    words = ["retouch", verb, str(settings.get("photo", "PHOTO"))]
    if verb != "outpaint":
        words.append(str(settings.get("mask", "MASK")))
    if verb != "erase" and settings.get("prompt"):
        words.append(str(settings["prompt"]))
    margins = settings.get("margins")
    if isinstance(margins, list):
        for side, margin in zip(("left", "top", "right", "bottom"), margins, strict=False):
            words += [f"--{side}", str(margin)] if margin else []
    # The command makes one picture, with its own seed.
    left_out = {"verb", "version", "photo", "mask", "prompt", "margins", "variations"}
    if verb == "outpaint":  # it reads no mask
        left_out |= {"mask_mode", "invert", "fit_mask"}
    for key, value in settings.items():
        if key in left_out or value is None or value is False:
            continue
        words.append(flag_of(str(key)))
        if value is not True:
            parts = value if isinstance(value, list) else [value]
            words.append(",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts))
    return shlex.join(words)


def of_eraser(paths: list[Path], name: str) -> Facts:
    """Return the facts of an ONNX file, or of Moebius's; refuse one that is no network for erasing."""
    from retouch.editing.erasers import open_network

    network = open_network(paths)
    return {
        "kind": "eraser",
        "what": f"a network for erasing, {network.title}",
        "path": str(paths[0] if len(paths) == 1 else paths[0].parent),
        "bytes": sum(path.stat().st_size for path in paths),
        "works_at": network.side,
        "use": f"retouch erase PHOTO MASK --model {shlex.quote(name)}",
    }


def of_cached_eraser(name: str) -> Facts:
    """Return the facts of a network's file on the hub, as far as it is cached."""
    from retouch.editing.erasers import eraser_files
    from retouch.editing.models import repository_of, resolve
    from retouch.errors import OfflineError

    file = str(resolve(name))
    about: Facts = {"repository": repository_of(file)}
    try:
        paths = eraser_files(name, local_files_only=True)
    except OfflineError:
        return about | {
            "kind": "eraser",
            "what": "a network for erasing that is not in the cache",
            "use": f"retouch models pull {name}",
        }
    return of_eraser(paths, name) | about


def of_weights(path: Path, *, pickled: bool = False) -> Facts:
    """Return the facts of one file of tensors, by their names and shapes."""
    from retouch.checkpoints.contents import describe
    from retouch.checkpoints.original_kinds import KINDS
    from retouch.checkpoints.original_layout import PLACES
    from retouch.checkpoints.single_file import SingleFile

    file = SingleFile.open(path, use_safetensors=False if pickled else None)
    noun, advice = describe(file.shapes)
    facts: Facts = {
        "kind": "weights",
        "what": noun,
        "path": str(path),
        "bytes": path.stat().st_size,
        "tensors": len(file.shapes),
        **_dtype_in(path),
    }
    width = _text_width(file.shapes)
    family = title_of_width(width)
    parts = [part for part in PLACES if file.prefix_of(part) is not None]
    if "unet" in parts and len(parts) > 1:
        kind = KINDS[file.kind()]
        facts |= {"kind": "checkpoint", "what": f"a checkpoint of {kind.title}, in one file", "parts": parts}
        facts["use"] = f'retouch inpaint PHOTO MASK "PROMPT" --model {shlex.quote(str(path))}'
        return facts
    if noun == "a LoRA":
        downs = [shape for key, shape in file.shapes.items() if _DOWN.search(key)]
        facts |= {"kind": "lora", "layers": len(downs), "rank": max((shape[0] for shape in downs), default=0)}
    elif noun == "a ControlNet":
        facts["kind"] = "controlnet"
    elif noun.startswith("a textual inversion"):
        facts["kind"] = "embedding"
    if family is not None:
        facts["what"] = f"{noun} for {family}"
    facts["use"] = advice
    return facts


def _dtype_in(path: Path) -> Facts:
    """Return the dtype of a safetensors file's largest tensor, from its header."""
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return {}
    with path.open("rb") as file:  # SingleFile has checked this header
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    largest = max(entries, key=lambda entry: math.prod(entry["shape"]), default=None)
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return {"dtype": names.get(largest["dtype"], largest["dtype"])} if largest else {}


def _text_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the width of the text states that a UNet, a ControlNet or a LoRA for one reads."""
    readers = [(key, shape) for key, shape in shapes.items() if re.search(r"attn2[._]to_[kv]", key)]
    for key, shape in readers:
        if key.endswith("attn2.to_k.weight") or _DOWN.search(key):
            return shape[1]
    return None


def of_built_in(name: str) -> Facts:
    """Return the facts of a built-in checkpoint, by one of its names."""
    from retouch.checkpoints.locate import Checkpoint
    from retouch.checkpoints.shipped import shipped_folder

    checkpoint = Checkpoint.open(name)
    facts = _of_pipeline(shipped_folder(), checkpoint.index(), name, unet=checkpoint.home_of("unet"))
    return facts | {
        "what": facts["what"].replace("a checkpoint of Stable Diffusion", "the built-in checkpoint")
    }


def of_folder(folder: Path) -> Facts:
    """Return the facts of a checkpoint in the Hugging Face layout, or of one model of it."""
    from retouch.checkpoints.listing import INDEX_NAME
    from retouch.checkpoints.locate import Checkpoint

    if (folder / INDEX_NAME).is_file():
        return _of_pipeline(folder, Checkpoint.open(folder).index(), str(folder))
    facts: Facts = {"kind": "model", "path": str(folder), "bytes": bytes_in(folder)}
    config = json_in(folder / "config.json")
    if config.get("_class_name"):
        name = str(config["_class_name"])
        family = title_of_width(config.get("cross_attention_dim"))
        facts["what"] = f"one part of a checkpoint{f' of {family}' if family else ''}: {name}"
        facts["use"] = f"retouch.{name}.from_pretrained({str(folder)!r})"
        return facts
    lone = sorted(folder.glob("*.safetensors"))
    if len(lone) == 1:  # a LoRA or an embedding in the folder of its training
        return of_weights(lone[0])
    raise CheckpointError(
        f"{folder} holds no {INDEX_NAME} and no config.json of a model. A folder that a pipeline or a model "
        f"was saved to is expected. Check the path; perhaps one of its folders is meant.",
        parameter="file",
    )


def of_cached(repository: str, name: str | None = None) -> Facts:
    """Return the facts of a repository as far as it is cached; `name` is how the user called it."""
    from retouch.checkpoints.locate import Checkpoint
    from retouch.errors import OfflineError

    try:
        checkpoint = Checkpoint.open(repository, local_files_only=True)
        index = checkpoint.index()
    except OfflineError:
        return {
            "kind": "checkpoint",
            "what": "a repository of the hub that is not in the cache",
            "repository": repository,
            "use": f"retouch models pull {name or repository}",
        }
    folder = checkpoint.fetch([], weights=False)
    return _of_pipeline(folder, index, name or repository) | {"repository": repository}


def _of_pipeline(folder: Path, index: Mapping[str, Any], name: str, unet: str = "unet") -> Facts:
    from retouch.checkpoints.profile import Profile

    settings = json_in(folder / unet / "config.json")
    pipeline = str(index.get("_class_name"))
    row, width = row_of_class(pipeline), settings.get("cross_attention_dim") or 0
    family = "" if row is None else row.text_widths.get(width, row.title)
    facts: Facts = {
        "kind": "checkpoint",
        "what": f"a checkpoint of {family}" if family else f"a {pipeline}, which is not supported",
        "path": str(folder),
        "bytes": bytes_in(folder),
        "pipeline": pipeline,
    }
    channels = settings.get("in_channels")
    if channels:
        facts["what"] += ", made for inpainting" if channels == 9 else ", regular"
        facts["input_channels"] = channels
        facts["works_at"] = _side(folder, settings)
    facts["parts"] = [part for part, entry in index.items() if isinstance(entry, list) and entry[1]]
    facts["variants"] = _variants(folder / unet)
    names = Profile.of(folder).names
    if names:
        facts["knows"] = f"{len(names)} things by name (`retouch models show {shlex.quote(name)}`)"
    facts["use"] = f'retouch inpaint PHOTO MASK "PROMPT" --model {shlex.quote(name)}'
    return facts


def _side(folder: Path, settings: Mapping[str, Any]) -> int | None:
    side = settings.get("sample_size")
    blocks = json_in(folder / "vae" / "config.json").get("block_out_channels") or [0] * 4
    return side * 2 ** (len(blocks) - 1) if isinstance(side, int) else None


def _variants(unet: Path) -> list[str]:
    """Return the variants of the UNet's weights that are there."""
    from retouch.checkpoints.tensors import find_weights

    names = os.listdir(unet) if unet.is_dir() else []
    return sorted({files.variant or "plain" for files in find_weights(names)})


def json_in(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
