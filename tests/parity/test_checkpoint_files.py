"""Files of one model, written by the reference and read by us, and the reverse."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from retouch.checkpoints.config import Config
from retouch.checkpoints.pretrained import Pretrained


class Layers(nn.Module):
    """A model with the same layers in both libraries; only loading and saving differ."""

    def build(self, width: int, kernels: Any) -> None:
        self.enter = nn.Conv2d(3, width, 3)
        self.blocks = nn.ModuleList([nn.Conv2d(width, width, size) for size in kernels])
        self.norm = nn.BatchNorm2d(width)
        self.norm.num_batches_tracked.fill_(3)


class Twin(Layers, ModelMixin, ConfigMixin):
    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(self, width: int = 4, kernels: Any = (1, 3)) -> None:
        super().__init__()
        self.build(width, kernels)


@dataclass(frozen=True)
class OurConfig(Config):
    width: int = 4
    kernels: tuple[int, ...] = (1, 3)


class Ours(Layers, Pretrained):
    config_class = OurConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = OurConfig.from_dict(settings)
        self.build(self.config.width, self.config.kernels)


Ours.__name__ = "Twin"

SETTINGS = {"width": 16, "kernels": [3, 1, 3]}


def _assert_same(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("max_shard_size", ["10GB", "6KB"])
def test_the_reference_s_folder_loads(tmp_path: Path, variant: str | None, max_shard_size: str) -> None:
    theirs = Twin(**SETTINGS)
    theirs.save_pretrained(tmp_path, variant=variant, max_shard_size=max_shard_size)
    ours = Ours.from_pretrained(tmp_path, variant=variant)
    assert ours.config.to_dict() == SETTINGS
    _assert_same(ours, theirs)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("max_shard_size", ["10GB", "6KB"])
def test_our_folder_loads_there(tmp_path: Path, variant: str | None, max_shard_size: str) -> None:
    ours = Ours(**SETTINGS)
    ours.save_pretrained(tmp_path / "ours", variant=variant, max_shard_size=max_shard_size)
    theirs = Twin.from_pretrained(tmp_path / "ours", variant=variant)
    assert (theirs.config.width, list(theirs.config.kernels)) == (16, [3, 1, 3])
    _assert_same(ours, theirs)
    # The files have the same names as the reference's.
    theirs.save_pretrained(tmp_path / "theirs", variant=variant, max_shard_size=max_shard_size)
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(os.listdir(tmp_path / "theirs"))


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_same_dtype_as_the_reference_loads(
    tmp_path: Path, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a CPU that computes float16; on others we would choose another dtype.
    monkeypatch.setattr("retouch.devices._cpu_abilities", lambda: {"avx512_fp16"})
    Twin(**SETTINGS).half().save_pretrained(tmp_path, variant="fp16")
    theirs = Twin.from_pretrained(tmp_path, variant="fp16", torch_dtype=dtype)
    ours = Ours.from_pretrained(tmp_path, variant="fp16", torch_dtype=dtype)
    assert ours.dtype == theirs.dtype
    assert ours.training is theirs.training is False
    _assert_same(ours, theirs)


def test_pickled_weights_of_the_reference(tmp_path: Path) -> None:
    theirs = Twin(**SETTINGS)
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert "diffusion_pytorch_model.bin" in os.listdir(tmp_path)
    _assert_same(Ours.from_pretrained(tmp_path, use_safetensors=False), theirs)
