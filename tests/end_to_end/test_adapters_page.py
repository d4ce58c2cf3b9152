"""The examples of docs/adapters.md run as they stand, against the hub's stand-in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import HubStandIn
from ip_adapter_files import flat, ip_adapter, tiny_image_encoder
from lora_files import kohya, peft, sides
from pages import examples, page
from pipeline_pairs import mask, photo
from safetensors.torch import save_file

import retouch

PAGE = page("docs/adapters.md")
BLOCKS = examples(PAGE)


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
    tiny_image_encoder().save_pretrained("ip/models/image_encoder")
    for name, kind in (("ip-adapter_sd15", "plain"), ("ip-adapter-plus_sd15", "plus")):
        save_file(flat(ip_adapter(plain.unet, kind)), f"ip/models/{name}.safetensors")
    hub.add("h94/IP-Adapter", tmp_path / "ip")
    for name, box in (("example", (0, 0, 9, 9)), ("style", (0, 9, 9, 18))):
        photo(5).crop(box).resize((50, 40)).save(f"{name}.png")
    mask((0, 0, 35, 45), 70, 45).save("left.png")
    mask((35, 0, 70, 45), 70, 45).save("right.png")

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
    in_use = [["style"], ["style"], ["style"], [], ["default_0"], *[["again"]] * 4]
    assert [active for active, _ in seen] == in_use
    pipeline = names["pipeline"]
    assert pipeline.num_ip_adapters == 0
    pipeline.unload_lora_weights()
    weights = pipeline.unet.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.unet.state_dict().items())
    assert pipeline.tokenizer.get_vocab() == plain.tokenizer.get_vocab()


def test_the_page_names_what_there_is() -> None:
    kinds = "lora|lora_weights|adapters|textual_inversion|ip_adapter|ip_adapter_scale|image_embeds"
    named = set(re.findall(rf"(?:pipeline\.|`)((?!ip_)\w+_(?:{kinds}))\b", PAGE))
    assert len(named) >= 14
    assert all(hasattr(retouch.StableDiffusionInpaintPipeline, name) for name in named)
