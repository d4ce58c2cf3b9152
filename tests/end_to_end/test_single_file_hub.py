"""Single files of the hub by their names, as users write them, against the stand-in for the hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_stand_in import HubStandIn

import retouch
from retouch.errors import CheckpointError, InputError, OfflineError

TinyFile = Callable[[str], tuple[Path, Path]]


@pytest.fixture
def published(hub: HubStandIn, tiny_single_file: TinyFile, tmp_path: Path) -> Path:
    """A repository of single files as "org/files", and the settings' repository as "org/settings"."""
    path, folder = tiny_single_file("tiny_sd")
    files = tmp_path / "files"
    (files / "older").mkdir(parents=True)
    shutil.copy(path, files / "model.safetensors")
    shutil.copy(path, files / "older" / "model-v1.safetensors")
    (files / "model.ckpt").write_bytes(b"never fetched")
    hub.add("org/files", files)
    hub.add("org/settings", folder)
    return folder


@pytest.mark.parametrize("name", ["org/files/model.safetensors", "org/files/older/model-v1.safetensors"])
def test_one_file_is_fetched_once(hub: HubStandIn, published: Path, name: str) -> None:
    pipeline = retouch.AutoPipelineForInpainting.from_pretrained(name, config=published)
    assert hub.files_sent == [name.removeprefix("org/files/")]
    expected = retouch.AutoPipelineForInpainting.from_pretrained(published)
    assert torch.equal(pipeline.unet.conv_in.weight, expected.unet.conv_in.weight)
    assert pipeline.name_or_path == name
    hub.forget()
    retouch.StableDiffusionInpaintPipeline.from_single_file(name, config=published, local_files_only=True)
    hub.close()
    retouch.UNet2DConditionModel.from_single_file(name, config=published, subfolder="unet")
    assert hub.requests == []


def test_settings_of_a_repository_come_without_its_weights(hub: HubStandIn, published: Path) -> None:
    retouch.AutoPipelineForInpainting.from_single_file("org/files/model.safetensors", config="org/settings")
    assert "model.safetensors" in hub.files_sent
    assert not [name for name in hub.files_sent if name.endswith(".safetensors") and "/" in name]
    assert "unet/config.json" in hub.files_sent and "tokenizer/vocab.json" in hub.files_sent


@pytest.mark.parametrize("kind", ["blob", "resolve"])
def test_the_address_of_a_file(hub: HubStandIn, published: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "files", other)
    (other / "README.md").write_text("another commit")
    hub.add("org/files", other, revision="next")
    for host in ("https://huggingface.co", "hf.co", hub.url):
        address = f"{host}/org/files/{kind}/next/model.safetensors"
        retouch.AutoPipelineForInpainting.from_single_file(f"{address}?download=true", config=published)
    assert hub.files_sent == ["model.safetensors"]
    with pytest.raises(InputError, match=r"names the revision 'next', and revision='main' another"):
        retouch.AutoPipelineForInpainting.from_single_file(address, config=published, revision="main")


def test_a_file_that_is_not_there(hub: HubStandIn, published: Path) -> None:
    load = retouch.AutoPipelineForInpainting.from_single_file
    with pytest.raises(
        CheckpointError, match=r"org/files has no file none\.safetensors.*: model\.ckpt, model\.safe"
    ):
        load("org/files/none.safetensors")
    with pytest.raises(
        CheckpointError, match=r"not a file on this machine .*neither a local folder nor a reposit"
    ):
        load("org/missing/model.safetensors")
    with pytest.raises(OfflineError, match=r"not a file on this machine .*local_files_only=True"):
        load("org/files/model.safetensors", local_files_only=True)


def test_a_pickled_file_is_not_even_fetched(hub: HubStandIn, published: Path) -> None:
    for name in ("org/files/model.ckpt", "hf.co/org/files/blob/main/model.ckpt?download=true"):
        with pytest.raises(CheckpointError, match=r"org/files/.*model\.ckpt.* is a pickled checkpoint"):
            retouch.AutoPipelineForInpainting.from_single_file(name)
    assert hub.files_sent == []
    with pytest.raises(CheckpointError, match=r"cannot be read as pickled weights"):
        retouch.AutoPipelineForInpainting.from_single_file("org/files/model.ckpt", use_safetensors=False)
