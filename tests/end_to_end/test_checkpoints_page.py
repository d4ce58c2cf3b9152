"""The examples of docs/checkpoints.md run as they stand, on files of published names, sizes and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pages import examples, page
from tiny_single_files import full_size, meta_model, write_zeros

from retouch.checkpoints.original_kinds import KINDS
from retouch.checkpoints.original_layout import origins, to_original
from retouch.checkpoints.tensors import TensorFile

PAGE = page("docs/checkpoints.md")
BLOCKS = examples(PAGE)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page names, in the working folder; their values are all zero."""
    monkeypatch.chdir(tmp_path)
    sd_1, prefix = full_size("sd15"), "first_stage_model."
    write_zeros(tmp_path / "v1-5-pruned-emaonly.safetensors", sd_1)
    write_zeros(tmp_path / "v2-1_768.safetensors", full_size("sd2"))
    vae = {name.removeprefix(prefix): value for name, value in sd_1.items() if name.startswith(prefix)}
    write_zeros(tmp_path / "vae-ft-mse-840000-ema-pruned.safetensors", vae)
    net = meta_model("controlnet", {"cross_attention_dim": 768})
    own = net.state_dict()
    original = to_original(own, origins("ControlNetModel", net.config, own))
    control = {f"control_model.{name}": value for name, value in original.items()}
    write_zeros(tmp_path / "control_v11p_sd15_inpaint.safetensors", control)
    monkeypatch.setattr(TensorFile, "read", lambda self, name: torch.zeros(()).expand(self.shapes[name]))


@pytest.mark.usefixtures("files")
def test_examples(hub: Any, tiny_sd: Path, tiny_sd_inpaint: Path, tmp_path: Path) -> None:
    hub.add("stable-diffusion-v1-5/stable-diffusion-inpainting", tiny_sd_inpaint)
    (tmp_path / "folder").symlink_to(tiny_sd)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "checkpoints.md", "exec"), names)
    assert names["pipeline"].controlnet is names["net"]
    assert names["net"].config.cross_attention_dim == 768


def test_every_kind_is_named() -> None:
    assert [name for name in KINDS if f"`{name}`" not in PAGE] == []
