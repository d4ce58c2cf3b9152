"""The tensor names of the original Stable Diffusion programs, for each tensor name of our models.

The tables map our names to the original ones, because a model has a fixed set of names and a file may have
others too. In reverse they turn a model into an original file. No file is read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from retouch.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

# Part -> the prefixes that its tensors may have in a whole checkpoint, each with the rule for their names.
PLACES: dict[str, tuple[tuple[str, str], ...]] = {
    "unet": (("model.diffusion_model.", "UNet2DConditionModel"),),
    "vae": (("first_stage_model.", "AutoencoderKL"),),
    "controlnet": (("control_model.", "ControlNetModel"),),
    "text_encoder": (
        ("cond_stage_model.transformer.", "CLIP"),  # SD 1.x
        ("cond_stage_model.model.", "OpenCLIP"),  # SD 2.x
        ("conditioner.embedders.0.transformer.", "CLIP"),  # XL
    ),
    "text_encoder_2": (
        ("conditioner.embedders.1.model.", "OpenCLIP"),
        ("conditioner.embedders.0.model.", "OpenCLIP"),  # the refiner, which has no other
    ),
}
PART_OF = {rule: part for part, places in PLACES.items() for _, rule in places if "CLIP" not in rule}

# A part in a file of its own has no prefix. It is recognised by one of its tensors.
BARE = {
    "unet": "input_blocks.0.0.weight",
    "vae": "decoder.mid.block_1.conv1.weight",
    "controlnet": "input_hint_block.0.weight",
}
# The same for a file with our names.
OURS = {
    "unet": "down_blocks.0.resnets.0.norm1.weight",
    "vae": "encoder.down_blocks.0.resnets.0.norm1.weight",
    "controlnet": "controlnet_cond_embedding.conv_in.weight",
}

Table = dict[str, str]


@dataclass(frozen=True)
class Origin:
    """The original tensor of one of ours, and the form in which it is stored."""

    name: str
    stored: Literal["alike", "as a 1x1 convolution", "transposed", "in thirds"] = "alike"
    third: int = 0

    def read(self, tensor: Tensor) -> Tensor:
        """Return our tensor from the original one."""
        if self.stored == "as a 1x1 convolution":
            return tensor.flatten(1)
        if self.stored == "transposed":
            return tensor.t().contiguous()
        if self.stored == "in thirds":  # one matrix for query, key and value
            return tensor.chunk(3)[self.third]
        return tensor

    def write(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the original tensor from ours: one tensor, or the three thirds in order."""
        import torch

        if self.stored == "as a 1x1 convolution":
            return tensors[0][..., None, None]
        if self.stored == "transposed":
            return tensors[0].t().contiguous()
        return torch.cat(list(tensors)) if self.stored == "in thirds" else tensors[0]


def to_original(tensors: Mapping[str, Tensor], origins: Mapping[str, Origin]) -> dict[str, Tensor]:
    """Return our tensors under their original names."""
    gathered: dict[str, list[tuple[Origin, Tensor]]] = {}
    for name, tensor in tensors.items():
        gathered.setdefault(origins[name].name, []).append((origins[name], tensor))
    written = {}
    for original, parts in gathered.items():
        parts.sort(key=lambda part: part[0].third)
        written[original] = parts[0][0].write([tensor for _, tensor in parts])
    return written


def origins(class_name: str, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Origin]:
    """Return the original of each of a model's tensors, without the prefix of its part."""
    return _RULES[class_name](config, names)


def text_encoder_shapes(config: Mapping[str, Any], has_projection: bool) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a CLIP text encoder's tensors in published files."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    linear = {
        **{f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")},
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    modules: dict[str, tuple[int, ...]] = {"final_layer_norm": (width,)}
    for layer in range(config["num_hidden_layers"]):
        place = f"encoder.layers.{layer}"
        modules |= {f"{place}.layer_norm{number}": (width,) for number in (1, 2)}
        modules |= {f"{place}.{name}": shape for name, shape in linear.items()}
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (config["vocab_size"], width),
        "text_model.embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
    }
    for module, shape in modules.items():
        shapes[f"text_model.{module}.weight"], shapes[f"text_model.{module}.bias"] = shape, shape[:1]
    if has_projection:
        shapes["text_projection.weight"] = (config["projection_dim"], width)
    return shapes


_UNET_TABLE: Table = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET: Table = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_CONTROLNET_TABLE: Table = {
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
}
_VAE_TABLE: Table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
_VAE_HALF: Table = {  # in the encoder and in the decoder
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}
_VAE_RESNET: Table = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
_OPEN_CLIP_TABLE: Table = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER: Table = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _inside(place: str, original: str, table: Table) -> Table:
    """Return a table of the modules below one place."""
    return {f"{place}.{ours}": f"{original}.{theirs}" for ours, theirs in table.items()}


def _renamed(name: str, table: Table) -> str:
    """Return the original of a tensor's name, by the longest entry that it starts with."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        place = ".".join(parts[:count])
        if place in table:
            return ".".join([table[place], *parts[count:]])
    raise ConfigError(
        f"The tensor {name} has no name in the original layout. Models with the settings of Stable Diffusion "
        f"1.x, 2.x and XL are supported in it. Use a folder with config.json instead."
    )


def _down_table(config: Mapping[str, Any]) -> Table:
    """Return the table of the encoder. The original numbers its blocks through all levels.

    A downsampler is a block of its own.
    """
    levels, block = len(config["block_out_channels"]), 1
    table: Table = {}
    for level, layers in enumerate(_per_level(config, "layers_per_block")):
        for layer in range(layers):
            ours = f"down_blocks.{level}"
            table |= _inside(f"{ours}.resnets.{layer}", f"input_blocks.{block}.0", _UNET_RESNET)
            table[f"{ours}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            table[f"{ours}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    for ours_number, original in ((0, 0), (1, 2)):  # the attention is between them
        table |= _inside(f"mid_block.resnets.{ours_number}", f"middle_block.{original}", _UNET_RESNET)
    return table


def _up_table(config: Mapping[str, Any]) -> Table:
    """Return the table of the decoder. An upsampler is the last module of a level's last block.

    It follows the attention, if there is one.
    """
    levels, block = len(config["block_out_channels"]), 0
    table: Table = {}
    for level, layers in enumerate(reversed(_per_level(config, "layers_per_block"))):
        ours = f"up_blocks.{level}"
        attends = "CrossAttn" in config["up_block_types"][level]
        for layer in range(layers + 1):
            table |= _inside(f"{ours}.resnets.{layer}", f"output_blocks.{block}.0", _UNET_RESNET)
            table[f"{ours}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            table[f"{ours}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{2 if attends else 1}.conv"
    return table


def _per_level(config: Mapping[str, Any], key: str) -> list[Any]:
    value = config[key]
    return list(value) if isinstance(value, list | tuple) else [value] * len(config["block_out_channels"])


def _unet(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Origin]:
    table = _UNET_TABLE | _down_table(config) | _up_table(config)
    return {name: Origin(_renamed(name, table)) for name in names}


def _controlnet(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Origin]:
    table = _UNET_TABLE | _CONTROLNET_TABLE | _down_table(config)
    # Activations are modules in the original, and have numbers.
    blocks = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    for block in range(blocks):
        table[f"controlnet_cond_embedding.blocks.{block}"] = f"input_hint_block.{2 * block + 2}"
    table["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * blocks + 2}"
    names = list(names)
    for name in names:
        if match := re.match(r"controlnet_down_blocks\.(\d+)\.", name):
            table[f"controlnet_down_blocks.{match[1]}"] = f"zero_convs.{match[1]}.0"
    return {name: Origin(_renamed(name, table)) for name in names}


def _vae(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Origin]:
    levels = len(config["block_out_channels"])
    table = dict(_VAE_TABLE)
    for half, direction, extra in (("encoder", "down", 0), ("decoder", "up", 1)):
        table |= _inside(half, half, _VAE_HALF)
        for number in range(2):
            place, original = f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}"
            table |= _inside(place, original, _VAE_RESNET)
        for level in range(levels):
            # The original numbers the decoder's levels from the finest one too.
            theirs_level = level if direction == "down" else levels - 1 - level
            ours, theirs = f"{half}.{direction}_blocks.{level}", f"{half}.{direction}.{theirs_level}"
            table[f"{ours}.{direction}samplers.0.conv"] = f"{theirs}.{direction}sample.conv"
            for layer in range(config["layers_per_block"] + extra):
                table |= _inside(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}", _VAE_RESNET)
    found = {}
    for name in names:
        is_linear = ".mid_block.attentions.0.to_" in name and name.endswith(".weight")
        found[name] = Origin(_renamed(name, table), "as a 1x1 convolution" if is_linear else "alike")
    return found


def _clip(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Origin]:
    return {name: Origin(name) for name in names}


def _open_clip(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Origin]:
    table = dict(_OPEN_CLIP_TABLE)
    found = {
        "text_model.embeddings.position_embedding.weight": Origin("positional_embedding"),
        "text_projection.weight": Origin("text_projection", "transposed"),
    }
    for layer in range(config["num_hidden_layers"]):
        ours, original = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        table |= _inside(ours, original, _OPEN_CLIP_LAYER)
        for third, letter in enumerate("qkv"):
            for kind in ("weight", "bias"):
                found[f"{ours}.self_attn.{letter}_proj.{kind}"] = Origin(
                    f"{original}.attn.in_proj_{kind}", "in thirds", third
                )
    return {name: found.get(name) or Origin(_renamed(name, table)) for name in names}


_RULES: dict[str, Callable[[Mapping[str, Any], Iterable[str]], dict[str, Origin]]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _vae,
    "ControlNetModel": _controlnet,
    "CLIP": _clip,
    "OpenCLIP": _open_clip,
}
