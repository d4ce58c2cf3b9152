"""`retouch info`: every kind of file is recognised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import answered, done, refused, write_photo
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from tiny_controls import tiny_controlnet
from tiny_single_files import full_size, write_zeros

from retouch.checkpoints.original_kinds import KINDS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def with_text(**text: str) -> None:
    chunk = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunk.add_text(key, value)
    Image.new("RGB", (5, 4)).save("photo.png", pnginfo=chunk)


def test_a_plain_picture() -> None:
    write_photo(Path("photo.png"), mode="L")
    facts = answered("info", "photo.png")
    assert facts["kind"] == "picture" and "settings" not in facts
    assert (facts["width"], facts["height"], facts["mode"], facts["format"]) == (80, 64, "L", "PNG")


def test_a_picture_of_another_program() -> None:
    with_text(parameters="a cat\nSteps: 20, Sampler: Euler a, Seed: 5")
    facts = answered("info", "photo.png")
    assert "another program" in facts["what"] and "Seed: 5" in facts["parameters"]
    assert "command" not in facts


@pytest.mark.parametrize("text", ["{", "[1, 2]", "null", '{"seed": 1}', ""])
def test_settings_that_are_none_are_no_settings(text: str) -> None:
    with_text(retouch=text)
    assert "command" not in answered("info", "photo.png")


def test_hostile_settings_are_only_words() -> None:
    settings = {"verb": "inpaint; rm -rf /", "photo": "$(x)", "prompt": "\x1b[2J`id`\n", "seed": None}
    with_text(retouch=json.dumps(settings))
    facts = answered("info", "photo.png")
    assert facts["command"] == "retouch 'inpaint; rm -rf /' '$(x)' MASK '\x1b[2J`id`\n'"
    assert "\x1b" not in done("info", "photo.png").stdout


@pytest.mark.parametrize(
    ("name", "what", "channels", "side"),
    [
        ("tiny_sd", "a checkpoint of Stable Diffusion, regular", 4, 64),
        ("tiny_sd_inpaint", "a checkpoint of Stable Diffusion, made for inpainting", 9, 64),
        ("tiny_sdxl_inpaint", "a checkpoint of Stable Diffusion XL, made for inpainting", 9, 64),
    ],
)
def test_a_folder(name: str, what: str, channels: int, side: int, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(name)
    facts = answered("info", place)
    assert (facts["kind"], facts["what"]) == ("checkpoint", what)
    assert (facts["input_channels"], facts["works_at"]) == (channels, side)
    assert {"unet", "vae", "text_encoder"} <= set(facts["parts"]) and facts["variants"] == ["plain"]
    assert facts["bytes"] > 100_000 and f"--model {place}" in facts["use"]


def test_a_folder_with_variants_and_one_model_of_it(tiny_sd_fp16: Path) -> None:
    assert answered("info", tiny_sd_fp16)["variants"] == ["fp16", "plain"]
    facts = answered("info", tiny_sd_fp16 / "vae")
    assert (facts["kind"], facts["what"]) == ("model", "one part of a checkpoint: AutoencoderKL")
    assert "from_pretrained" in facts["use"]


@pytest.mark.parametrize("kind", ["sd15-inpainting", "sdxl", "sdxl-refiner"])
def test_one_file_of_full_size(kind: str, tmp_path: Path) -> None:
    path = write_zeros(tmp_path / "it is.safetensors", full_size(kind))
    facts = answered("info", path)
    assert facts["what"] == f"a checkpoint of {KINDS[kind].title}, in one file"
    assert facts["dtype"] == "float32" and facts["bytes"] == path.stat().st_size
    assert "unet" in facts["parts"] and f"--model '{path}'" in facts["use"]
    assert "GB" in done("info", path).stdout


def test_a_controlnet(tiny_sd: Path, tmp_path: Path) -> None:
    tiny_controlnet(tiny_sd).save_pretrained(tmp_path / "net")
    facts = answered("info", "net")
    assert facts["kind"] == "model" and "ControlNetModel" in facts["what"]
    assert answered("info", "net/diffusion_pytorch_model.safetensors")["kind"] == "controlnet"


def lora(width: int, spelling: str) -> dict[str, torch.Tensor]:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    if spelling == "kohya":
        down = f"lora_unet_{layer.replace('.', '_')}.lora_down.weight"
    else:
        down = f"unet.{layer}.lora_A.weight"
    up = down.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
    return {down: torch.zeros(4, width, dtype=torch.float16), up: torch.zeros(320, 4, dtype=torch.float16)}


@pytest.mark.parametrize("spelling", ["kohya", "peft"])
@pytest.mark.parametrize(("width", "family"), [(768, "Stable Diffusion 1.x"), (2048, "Stable Diffusion XL")])
def test_a_lora(spelling: str, width: int, family: str) -> None:
    save_file(lora(width, spelling), "style.safetensors")
    facts = answered("info", "style.safetensors")
    assert (facts["kind"], facts["what"]) == ("lora", f"a LoRA for {family}")
    assert (facts["rank"], facts["layers"], facts["dtype"]) == (4, 1, "float16")


def test_a_folder_with_a_lora_alone(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    save_file(lora(768, "peft"), "trained/pytorch_lora_weights.safetensors")
    assert answered("info", "trained")["kind"] == "lora"


def test_other_weights() -> None:
    save_file({"emb_params": torch.zeros(2, 768)}, "word.safetensors")
    assert answered("info", "word.safetensors")["kind"] == "embedding"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, "flux.safetensors")
    assert "Flux" in answered("info", "flux.safetensors")["what"]
    save_file({"x": torch.zeros(2)}, "x.safetensors")
    assert "unknown" in answered("info", "x.safetensors")["what"]


def test_pickled_weights_only_when_asked_for() -> None:
    torch.save({"emb_params": torch.zeros(2, 768)}, "word.pt")
    assert "--pickled" in refused("info", "word.pt")
    assert answered("info", "word.pt", "--pickled")["kind"] == "embedding"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.safetensors", b"", "is empty"),
        ("b.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("c.safetensors", b"<html>404</html>", "text file"),
        ("d.safetensors", (10**6).to_bytes(8, "little") + b'{"x":', "cut short"),
        ("e.png", b"not a picture", "e.png"),
        ("f.txt", b"hello", "f.txt"),
        ("g.png", b"", "g.png"),
    ],
)
def test_broken_files_are_one_line(name: str, content: bytes, word: str) -> None:
    Path(name).write_bytes(content)
    assert word in refused("info", name)


@pytest.mark.parametrize("name", ["nothere", "nothere.png", "no/photo.png", "a b", "folder", "x/y/z"])
def test_what_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert name in refused("info", name)


def test_only_the_head_of_a_picture_is_read() -> None:
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save("huge.png", compress_level=1)
    with Path("huge.png").open("r+b") as file:
        file.truncate(2000)  # the pixels are gone
    assert answered("info", "huge.png")["width"] == 9000
