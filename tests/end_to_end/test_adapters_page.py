"""The examples of docs/adapters.md run as they stand, against the hub's stand-in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import HubStandIn
from lora_files import kohya, peft, sides
from pipeline_pairs import mask, photo
from safetensors.torch import save_file

import retouch

PAGE = (Path(__file__).parents[2] / "docs/adapters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_examples(hub: HubStandIn, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo(0, 70, 45).save("photo.png")
    mask(width=70, height=45).save("mask.png")
    hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", tiny_sd)
    plain = retouch.StableDiffusionPipeline.from_pretrained(tiny_sd)
    save_file(kohya(sides(plain)), "style.safetensors")
    save_file(peft(sides(plain, text=None, alpha=4.0, seed=1)), "details.safetensors")
    Path("lcm").mkdir()
    save_file(kohya(sides(plain, text=None, seed=2)), "lcm/pytorch_lora_weights.safetensors")
    Path("lcm/README.md").write_text("A card")
    hub.add("latent-consistency/lcm-lora-sdv1-5", tmp_path / "lcm")
    save_file({"emb_params": torch.randn(3, 32)}, "cat.safetensors")

    names: dict[str, Any] = {}
    seen = []
    for block in BLOCKS:
        hub.forget()
        exec(compile(block, "adapters.md", "exec"), names)
        seen.append((names["pipeline"].get_active_adapters(), names["image"]))
        assert names["image"].size == (70, 45)
        if "latent-consistency" in block:
            assert hub.files_sent == ["pytorch_lora_weights.safetensors"]
            hub.forget()
            names["pipeline"].load_lora_weights("latent-consistency/lcm-lora-sdv1-5", "again")
            assert hub.requests == []  # from the cache
    assert [active for active, _ in seen] == [["style"], ["style"], ["style"], [], ["default_0"], ["again"]]
    pipeline = names["pipeline"]
    pipeline.unload_lora_weights()
    weights = pipeline.unet.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.unet.state_dict().items())
    assert pipeline.tokenizer.get_vocab() == plain.tokenizer.get_vocab()


def test_the_page_names_what_there_is() -> None:
    named = set(re.findall(r"(?:pipeline\.|`)(\w+_(?:lora|lora_weights|adapters|textual_inversion))\b", PAGE))
    assert len(named) >= 10
    assert all(hasattr(retouch.StableDiffusionInpaintPipeline, name) for name in named)
