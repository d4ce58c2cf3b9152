"""IP-Adapter files: a projection of an image to tokens, and the keys and values of each cross-attention.

Both formats are read into one form, and a file is refused unless every tensor has its place. The layers'
numbers and shapes are in models/ip_adapter.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retouch.checkpoints.contents import describe
from retouch.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_ACCEPTED = "Accepted are IP-Adapter, IP-Adapter Plus and Full Face for Stable Diffusion 1.x and XL"
_PARTS = ("image_proj", "ip_adapter")
_LAYER = re.compile(r"(\d+)\.(to_[kv]_ip)\.weight")


@dataclass(frozen=True)
class IPAdapterFile:
    """The tensors of an adapter."""

    source: str
    projection: Mapping[str, Tensor]
    attention: Mapping[int, Mapping[str, Tensor]]  # a layer's number -> to_k_ip and to_v_ip


def read_ip_adapter(content: Mapping[str, Any], source: str) -> IPAdapterFile:
    """Read an adapter from a file's tensors: with flat names, or in two mappings as in pickled files."""
    flat = dict(content)
    for part in _PARTS:
        if isinstance(flat.get(part), Mapping):
            flat |= {f"{part}.{key}": value for key, value in flat.pop(part).items()}
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    unknown = []
    for key, tensor in flat.items():
        part, _, name = key.partition(".")
        if part in parts and hasattr(tensor, "shape"):
            parts[part][name] = tensor
        else:
            unknown.append(key)
    projection, layers = parts["image_proj"], parts["ip_adapter"]
    if unknown or not projection or not layers:
        noun, advice = describe(flat)
        lacking = " and ".join(f"no {part}.*" for part, tensors in parts.items() if not tensors)
        raise CheckpointError(
            f"{source} is no IP-Adapter: it has {lacking or f'further keys ({_few(unknown)})'}. {_ACCEPTED}, "
            f"with the keys image_proj.* and ip_adapter.*. "
            + (
                "Check that it is complete."
                if noun == "an IP-Adapter"
                else f"This is {noun or 'empty'}. {advice}."
            )
        )
    _refuse_faceid(projection, layers, source)
    attention: dict[int, dict[str, Tensor]] = {}
    for key, tensor in layers.items():
        found = _LAYER.fullmatch(key)
        if found is None:
            raise CheckpointError(
                f"{source} has the key ip_adapter.{key}, which is no part of an IP-Adapter. {_ACCEPTED}, "
                "with ip_adapter.<number>.to_k_ip.weight and to_v_ip.weight. Look for such a version of it."
            )
        attention.setdefault(int(found[1]), {})[found[2]] = tensor
    for kind, tensors in (("image_proj", projection), ("ip_adapter", layers)):
        for key, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(
                    f"{source} has NaN or infinite values in {kind}.{key}. Its training failed, or it is "
                    "damaged. Download it again, or use another."
                )
    return IPAdapterFile(source, projection, attention)


def _refuse_faceid(projection: Mapping[str, Any], layers: Mapping[str, Any], source: str) -> None:
    """Refuse IP-Adapter FaceID, which needs the face network of another program and mostly a LoRA."""
    is_faceid = (
        "perceiver_resampler.proj_in.weight" in projection
        or ("norm.weight" in projection and "proj.0.weight" in projection)
        or any("_lora." in key for key in layers)
    )
    if is_faceid:
        raise CheckpointError(
            f"{source} is an IP-Adapter FaceID, which needs a network for faces. {_ACCEPTED}. Use "
            "ip-adapter-plus-face or ip-adapter-full-face for faces."
        )


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
