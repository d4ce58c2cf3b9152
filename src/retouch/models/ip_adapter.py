"""IP-Adapter: attention to images next to that to the text, added to a UNet from outside.

The UNet's attention to text becomes `ImagePromptAttention`, and `encoder_hid_proj` turns image embeddings
into the tokens that it attends to. The added tensors are not in the state dict, so the UNet is saved and
loaded without them. Each call of the UNet gets the scale and the masks of the images as a `Weighting`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.checkpoints.ip_adapter import IPAdapterFile
from retouch.errors import CheckpointError, InputError
from retouch.models.attention import Attention
from retouch.models.image_tokens import image_tokens


@dataclass
class Weighting:
    """The scale of each adapter's images, and the part of the picture where they apply."""

    # For each adapter a number, one for each of its images if there are masks for them, or numbers by block:
    # {"up": {"block_0": [0.0, 1.0, 0.0]}}.
    scales: Sequence[Any]
    masks: Sequence[Tensor | None] = ()  # (1, images, height, width) for each adapter, of the whole picture
    size: tuple[int, int] = (0, 0)  # of the latents, for masks
    _shrunk: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def parts(self, adapter: int, layer: str, images: Tensor, pixels: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield the tokens that the `pixels` positions of a layer attend to together, with their weight."""
        scale = scale_at(self.scales[adapter], layer)
        mask = self.masks[adapter] if self.masks else None
        if mask is None:
            if scale:
                yield images.flatten(1, 2), scale
            return
        factors = scale if isinstance(scale, Sequence) else [scale] * images.shape[1]
        shrunk = self._mask(adapter, mask, pixels).to(images)
        for number, factor in enumerate(factors):
            if factor:
                yield images[:, number], factor * shrunk[:, number, :, None]

    def _mask(self, adapter: int, mask: Tensor, pixels: int) -> Tensor:
        """Return a mask at the resolution of a layer: (1, images, pixels)."""
        if (adapter, pixels) not in self._shrunk:
            height, width = self.size
            while height * width > pixels:  # as convolutions of stride two do
                height, width = -(-height // 2), -(-width // 2)
            if height * width != pixels:
                raise InputError(
                    f"ip_adapter_masks are for latents of {self.size}, and a layer sees {pixels} of their "
                    "pixels. Masks cannot be used with tile_size or other windows; leave one of them out.",
                    parameter="ip_adapter_masks",
                )
            shrunk = F.interpolate(mask.float(), size=(height, width), mode="bicubic")
            self._shrunk[adapter, pixels] = shrunk.flatten(2)
        return self._shrunk[adapter, pixels]


def scale_at(scale: Any, layer: str) -> Any:
    """Return an adapter's scale in a layer. Blocks that a mapping does not name have the scale 0."""
    if not isinstance(scale, Mapping):
        return scale
    side, block, _, attention, *_ = *layer.split("."), ""
    if side == "mid_block":
        scale = scale.get("mid", 0.0)
        return scale[0] if isinstance(scale, Sequence) else scale
    scale = scale.get(side.removesuffix("_blocks"), 0.0)
    if isinstance(scale, Mapping):
        scale = scale.get(f"block_{block}", 0.0)
    if isinstance(scale, Sequence):
        return scale[0 if len(scale) == 1 else int(attention)]
    return scale


def check_scales(unet: nn.Module, scales: Sequence[Any]) -> None:
    """Refuse scales that do not fit the adapters of a UNet."""
    count = len(projections(unet))
    if len(scales) != count:
        raise InputError(
            f"scale has {len(scales)} entries for {count} IP-Adapters. Give one number for all, or a list "
            "with one for each adapter.",
            parameter="scale",
        )
    layers = [layer.layer for layer in _adapted(unet)]
    for scale in scales:
        try:
            if isinstance(scale, Mapping):
                _require_blocks(scale, layers)
            values = [scale_at(scale, layer) for layer in layers]
            numbers = [n for value in values for n in (value if isinstance(value, Sequence) else [value])]
            is_finite = all(-float("inf") < number < float("inf") for number in numbers)
        except (TypeError, ValueError, IndexError):
            is_finite = False
        if not is_finite:
            raise InputError(
                f"scale is {scale!r:.120}. A finite number is accepted, a list with one for each image that "
                'has a mask, or a mapping by block: {"down": {"block_2": [0.0, 1.0]}, "mid": 0.5, '
                '"up": ...}, with one number for each attention of a block. Give one of these.',
                parameter="scale",
            )


def _require_blocks(scale: Mapping[str, Any], layers: Sequence[str]) -> None:
    known: dict[str, set[str]] = {"mid": set(), "down": set(), "up": set()}
    counts: dict[tuple[str, str], set[str]] = {}
    for layer in layers:
        side, block, _, attention, *_ = *layer.split("."), ""
        if side != "mid_block":
            name = side.removesuffix("_blocks"), f"block_{block}"
            known[name[0]].add(name[1])
            counts.setdefault(name, set()).add(attention)
    for side, value in scale.items():
        if side not in known or (isinstance(value, Mapping) and not set(value) <= known[side]):
            raise ValueError
        for block in known[side]:
            of_block = value.get(block, 0.0) if isinstance(value, Mapping) else value
            if isinstance(of_block, Sequence) and len(of_block) not in (1, len(counts[side, block])):
                raise ValueError


@dataclass(frozen=True)
class Context:
    """The context that the blocks of a UNet with adapters attend to."""

    text: Tensor
    images: Sequence[Tensor]  # (rows, images, tokens, width) for each adapter
    weighting: Weighting


class ImagePromptAttention(Attention):
    """Attention to the text, and to images with the same queries."""

    layer: str
    to_k_ip: nn.ModuleList
    to_v_ip: nn.ModuleList

    def forward(self, tokens: Tensor, context: Context, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        query = self.to_q(tokens)
        attended = self.attended(query, self.to_k(context.text), self.to_v(context.text), mask=mask)
        for adapter, (to_k, to_v) in enumerate(zip(self.to_k_ip, self.to_v_ip, strict=True)):
            images = context.images[adapter]
            for part, factor in context.weighting.parts(adapter, self.layer, images, tokens.shape[1]):
                attended = attended + factor * self.attended(query, to_k(part), to_v(part))
        return self.to_out(attended)


class ImagePrompts(nn.Module):
    """The projections of all adapters: image embeddings join the text."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.image_projection_layers = nn.ModuleList(layers)
        self.scales: list[Any] = [1.0] * len(layers)  # for calls that bring no weighting

    def forward(self, text: Tensor, embeds: Sequence[Tensor], weighting: Weighting | None = None) -> Context:
        """Return the context of the text and of `embeds`: (rows, images, ...) for each adapter.

        A callback may have turned guidance off, which leaves only the text of the positive half.
        """
        images = []
        for project, part in zip(self.image_projection_layers, embeds, strict=True):
            shown = part[-len(text) :].to(text.dtype)
            images.append(project(shown.flatten(0, 1)).unflatten(0, shown.shape[:2]))
        return Context(text, images, weighting or Weighting(self.scales))


def _cross_attentions(unet: nn.Module) -> dict[str, Attention]:
    """Return the attentions to text in the order of the files: the middle comes last."""
    found = {
        name: layer
        for name, layer in unet.named_modules()
        if name.endswith(".attn2") and isinstance(layer, Attention)
    }
    return {
        name: found[name]
        for side in ("down_blocks", "up_blocks", "mid_block")
        for name in found
        if name.startswith(side)
    }


def _adapted(unet: nn.Module) -> list[Any]:
    return [layer for layer in unet.modules() if isinstance(layer, ImagePromptAttention)]


def projections(unet: nn.Module) -> list[Any]:
    """Return each adapter's projection from images to tokens."""
    prompts = getattr(unet, "encoder_hid_proj", None)
    return list(prompts.image_projection_layers) if isinstance(prompts, ImagePrompts) else []


def attach(unet: nn.Module, files: Sequence[IPAdapterFile]) -> None:
    """Put adapters into a UNet in place of its present ones. If one does not fit, nothing changes."""
    layers = _cross_attentions(unet)
    modules = [image_tokens(file) for file in files]
    for file, module in zip(files, modules, strict=True):
        _require_fit(file, module, layers)
    detach(unet)
    for number, (name, layer) in enumerate(layers.items()):
        added = [file.attention[2 * number + 1] for file in files]
        for key in ("to_k_ip", "to_v_ip"):
            setattr(layer, key, nn.ModuleList(_linear(part[key]) for part in added))
        layer.__class__ = ImagePromptAttention
        layer.layer = name  # type: ignore[assignment]
    prompts: Any = ImagePrompts(modules)
    unet.encoder_hid_proj = prompts
    like = next(iter(layers.values())).to_q.weight
    for part in [prompts, *(module for layer in _adapted(unet) for module in (layer.to_k_ip, layer.to_v_ip))]:
        _keep_out_of_files(part.to(like))


def detach(unet: nn.Module) -> None:
    """Remove all adapters. The UNet is as before."""
    for layer in _adapted(unet):
        for name in ("to_k_ip", "to_v_ip", "layer"):
            delattr(layer, name)
        layer.__class__ = Attention
    if projections(unet):
        unet.encoder_hid_proj = None  # type: ignore[assignment]


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _keep_out_of_files(module: nn.Module) -> None:
    """Turn parameters into buffers that are not saved; they move with a UNet as its parameters do."""
    for part in module.modules():
        own = {name: value for name, value in part.named_parameters(recurse=False)}
        for name, value in own.items():
            delattr(part, name)
            part.register_buffer(name, value.detach(), persistent=False)


def _require_fit(file: IPAdapterFile, module: Any, layers: Mapping[str, Attention]) -> None:
    ours = next(iter(layers.values())).to_k.weight.shape[1] if layers else 0
    theirs = next(iter(file.attention.values())).get("to_k_ip", torch.empty(0, module.width)).shape[-1]
    if not ours == theirs == module.width:
        widths = f"{theirs}" if theirs == module.width else f"{module.width} and {theirs}"
        raise CheckpointError(
            f"{file.source} does not fit: it is for text of width {widths}, and this UNet reads text of "
            f"width {ours}. Widths are 768 for Stable Diffusion 1.x and 2048 for SDXL. Use an IP-Adapter "
            "that was made for this checkpoint's family."
        )
    wanted = {
        f"{2 * number + 1}.{key}": tuple(own.weight.shape)
        for number, layer in enumerate(layers.values())
        for key, own in (("to_k_ip", layer.to_k), ("to_v_ip", layer.to_v))
    }
    given = {
        f"{number}.{key}": tuple(tensor.shape)
        for number, part in file.attention.items()
        for key, tensor in part.items()
    }
    wrong = [key for key in {**wanted, **given} if wanted.get(key) != given.get(key)]
    if wrong:
        first = wrong[0]
        raise CheckpointError(
            f"{file.source} does not fit: {len(wrong)} of its {len(given)} keys and values are missing, too "
            f"many or of the wrong shape, first ip_adapter.{first}.weight ({given.get(first, 'none')}; the "
            f"UNet here takes {wanted.get(first, 'none')}). Use an IP-Adapter that was made for this "
            "checkpoint's family."
        )
