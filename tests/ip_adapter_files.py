"""IP-Adapter files for a UNet, and a tiny image encoder, in the layout of the hub's repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_checkpoints import randomised
from torch import Tensor

State = dict[str, dict[str, Tensor]]

# The widths of the image encoder's states and embeddings, and the side of its pictures.
STATES, EMBEDS, SIDE = 40, 24, 32


def tiny_image_encoder(seed: int = 0, **settings: Any) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    defaults = {
        "hidden_size": STATES,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "projection_dim": EMBEDS,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(CLIPVisionModelWithProjection(CLIPVisionConfig(**{**defaults, **settings})))


def layer_weights(unet: Any, draw: torch.Generator) -> dict[str, Tensor]:
    """Return keys and values for each cross-attention, in the order of the reference's UNet."""
    found = [(name, layer) for name, layer in unet.named_modules() if name.endswith(".attn2")]
    sides = ("down_blocks", "up_blocks", "mid_block")
    found.sort(key=lambda pair: [pair[0].startswith(side) for side in sides], reverse=True)
    state = {}
    for number, (_, layer) in enumerate(found):
        for key, like in (("to_k_ip", layer.to_k), ("to_v_ip", layer.to_v)):
            # Large enough to change pictures visibly.
            state[f"{2 * number + 1}.{key}.weight"] = torch.randn(like.weight.shape, generator=draw) * 0.5
    return state


def ip_adapter(unet: Any, kind: str = "plain", seed: int = 0, tokens: int = 4) -> State:
    """Return the contents of a pickled file; `kind` is plain, plus or full."""
    draw = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.3

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + weight(width), f"{name}.bias": weight(width)}

    width = next(layer for name, layer in unet.named_modules() if name.endswith("attn2.to_k")).weight.shape[1]
    if kind == "plain":
        image_proj = {
            "proj.weight": weight(tokens * width, EMBEDS),
            "proj.bias": weight(tokens * width),
            **norm("norm", width),
        }
    elif kind == "full":
        image_proj = {
            "proj.0.weight": weight(STATES, STATES),
            "proj.0.bias": weight(STATES),
            "proj.2.weight": weight(width, STATES),
            "proj.2.bias": weight(width),
            **norm("proj.3", width),
        }
    else:
        dim, inner = 48, 128  # heads are 64 wide
        image_proj = {
            "latents": weight(1, 5, dim),
            "proj_in.weight": weight(dim, STATES),
            "proj_in.bias": weight(dim),
            "proj_out.weight": weight(width, dim),
            "proj_out.bias": weight(width),
            **norm("norm_out", width),
        }
        for layer in ("layers.0", "layers.1", "layers.2", "layers.3"):
            image_proj |= {
                **norm(f"{layer}.0.norm1", dim),
                **norm(f"{layer}.0.norm2", dim),
                f"{layer}.0.to_q.weight": weight(inner, dim),
                f"{layer}.0.to_kv.weight": weight(2 * inner, dim),
                f"{layer}.0.to_out.weight": weight(dim, inner),
                **norm(f"{layer}.1.0", dim),
                f"{layer}.1.1.weight": weight(4 * dim, dim),
                f"{layer}.1.3.weight": weight(dim, 4 * dim),
            }
    return {"image_proj": image_proj, "ip_adapter": layer_weights(unet, draw)}


def flat(state: State) -> dict[str, Tensor]:
    """Return the same in the form of safetensors files."""
    return {
        f"{part}.{key}": tensor.contiguous() for part, own in state.items() for key, tensor in own.items()
    }


def repository(folder: Path, unet: Any, kinds: tuple[str, ...] = ("plain", "plus")) -> Path:
    """Write adapters in both file formats and an image encoder, laid out as on the hub."""
    models = folder / "models"
    tiny_image_encoder().save_pretrained(models / "image_encoder")
    for seed, kind in enumerate(kinds):
        state = ip_adapter(unet, kind, seed)
        save_file(flat(state), models / f"ip-adapter-{kind}.safetensors")
        torch.save(state, models / f"ip-adapter-{kind}.bin")
    return folder
