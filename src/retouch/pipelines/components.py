"""The parts that a pipeline's folder can name: reading and writing each of them.

model_index.json gives for each part a library and a class. Models and schedulers are ours under the
reference's names; text encoders, image encoders and tokenizers come from transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from retouch.checkpoints.clip_vocabulary import MAX_TOKENS, clip_vocabulary
from retouch.errors import CheckpointError, ConfigError
from retouch.families.registry import model_homes
from retouch.schedulers import by_name

_SAFETY = {"StableDiffusionSafetyChecker": "retouch.models.safety_checker"}
_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection")
_PROCESSORS = {
    "CLIPTokenizer": "CLIPTokenizer",
    "CLIPTokenizerFast": "CLIPTokenizerFast",
    "CLIPImageProcessor": "CLIPImageProcessor",
    "CLIPFeatureExtractor": "CLIPImageProcessor",  # its name before transformers 4.26
    "CLIPImageProcessorPil": "CLIPImageProcessor",  # what transformers 5 makes of it without torchvision
}


def subfolders(named: Mapping[str, str]) -> list[str]:
    """Return the folders of parts of these classes; a name with a star stands for all that match."""
    several = [f"{part}_*" for part, class_name in named.items() if class_name == "MultiControlNetModel"]
    return [*named, *several]


def load_component(
    folder: Path,
    subfolder: str,
    class_name: str,
    *,
    variant: str | None,
    dtype: torch.dtype | None,
    pickled: bool,
) -> Any:
    """Load the part of class `class_name` from `folder`/`subfolder` on this machine."""
    use_safetensors = False if pickled else None
    if (model := model_class(class_name)) is not None:
        return model.from_pretrained(
            folder, subfolder=subfolder, variant=variant, dtype=dtype, use_safetensors=use_safetensors
        )
    if class_name.endswith("Scheduler"):
        return by_name(class_name).from_pretrained(folder, subfolder=subfolder)
    if class_name in _PROCESSORS:
        transformers: Any = import_module("transformers")
        return getattr(transformers, _PROCESSORS[class_name]).from_pretrained(folder / subfolder)
    if class_name in _ENCODERS or class_name in _SAFETY:
        module: Any = import_module(_SAFETY.get(class_name, "transformers"))
        return _load_encoder(
            getattr(module, class_name),
            str(folder / subfolder),
            folder / subfolder,
            variant=variant,
            dtype=dtype or torch.float32,
            use_safetensors=use_safetensors is None,
        )
    known = [*model_homes(), *_SAFETY, *_ENCODERS, *_PROCESSORS]
    raise ConfigError(
        f"{folder / 'model_index.json'} names a {class_name} as its {subfolder}. Known are the schedulers "
        f"and {', '.join(known)}. Give that part yourself, {subfolder}=..., if it does the same as one of "
        "these.",
        parameter=subfolder,
    )


def model_class(class_name: str) -> Any:
    """Return our model of that name, or None."""
    home = model_homes().get(class_name)
    return None if home is None else getattr(import_module(home), class_name)


def is_tokenizer(class_name: str) -> bool:
    """Return whether parts of that class are tokenizers."""
    return class_name.startswith("CLIPTokenizer")


def clip_tokenizer(pad_token: str) -> Any:
    """Return CLIP's tokenizer, for a checkpoint without one."""
    transformers: Any = import_module("transformers")
    vocabulary, merges = clip_vocabulary()
    return transformers.CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS
    )


def text_encoder_from(
    tensors: dict[str, Any],
    class_name: str,
    settings: Mapping[str, Any],
    dtype: torch.dtype | None,
    source: str,
) -> Any:
    """Return a text encoder of transformers with tensors that are in memory already; they are not copied."""
    transformers: Any = import_module("transformers")
    config = transformers.CLIPTextConfig.from_dict(dict(settings))
    return _load_encoder(
        getattr(transformers, class_name),
        source,
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype or torch.float32,
    )


def _load_encoder(cls: Any, source: str, folder: Path | None, **how: Any) -> Any:
    logging: Any = import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the pipeline shows its own
    try:
        model, report = cls.from_pretrained(folder, output_loading_info=True, **how)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} does not load as a {cls.__name__}: {error}. A complete folder with config.json and "
            f"model.safetensors is expected; download or save it again.",
            parameter="name",
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    faults = {kind: sorted(report[kind]) for kind in ("missing_keys", "mismatched_keys") if report.get(kind)}
    if faults:
        kind, keys = next(iter(faults.items()))
        raise CheckpointError(
            f"{source} does not hold the weights of this {cls.__name__}: {len(keys)} "
            f"{kind.replace('_', ' ')} "
            f"({', '.join(map(str, keys[:3]))}). The config and the weights must belong together.",
            parameter="name",
        )
    return model.eval()


def plain(component: Any) -> Any:
    """Return the part itself, without the wrapper of torch.compile."""
    return getattr(component, "_orig_mod", component)


def index_entry(component: Any) -> list[str | None]:
    """Return the library and class of a part by which model_index.json lets the reference find it."""
    component = plain(component)
    if component is None:
        return [None, None]
    name = type(component).__name__
    if name in _SAFETY:
        return ["stable_diffusion", name]
    if type(component).__module__.startswith("transformers."):
        return ["transformers", _PROCESSORS.get(name, name)]
    return ["diffusers", name]


def save_component(component: Any, folder: Path, variant: str | None, max_shard_size: int | str) -> None:
    """Write one part into its own folder."""
    component = plain(component)
    options = {"variant": variant, "max_shard_size": max_shard_size}
    component.save_pretrained(folder, **(options if isinstance(component, torch.nn.Module) else {}))
