from __future__ import annotations

import json
from pathlib import Path

import pytest

from retouch.checkpoints.locate import Checkpoint
from retouch.errors import CheckpointError, InputError

PARTS = ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]


def _write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Make files with the names of a pipeline's; no test here reads their contents."""
    return _write(
        tmp_path / "pipeline",
        "model_index.json",
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json")),
        "scheduler/scheduler_config.json",
    )


@pytest.mark.parametrize("kind", [str, Path])
def test_a_local_folder_is_used_where_it_is(pipeline: Path, kind: type) -> None:
    checkpoint = Checkpoint.open(kind(pipeline))
    assert checkpoint.index() == {}
    assert checkpoint.fetch(PARTS) == pipeline
    assert checkpoint.fetch(["unet", None]) == pipeline
    assert checkpoint.name == str(pipeline)


def test_a_relative_folder_and_one_at_home(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pipeline.parent)
    assert Checkpoint.open("pipeline").fetch(["unet"]) == Path("pipeline")
    assert Checkpoint.open("./pipeline").fetch(["unet"]) == Path("pipeline")
    monkeypatch.setenv("HOME", str(pipeline.parent))
    monkeypatch.setenv("USERPROFILE", str(pipeline.parent))
    assert Checkpoint.open("~/pipeline").fetch(["unet"]) == pipeline


def test_linked_components_are_followed(pipeline: Path) -> None:
    (pipeline / "unet").rename(pipeline.parent / "unet-elsewhere")
    (pipeline / "unet").symlink_to(pipeline.parent / "unet-elsewhere")
    assert Checkpoint.open(pipeline).fetch(["unet"]) == pipeline


def test_what_is_missing_is_named(pipeline: Path) -> None:
    checkpoint = Checkpoint.open(pipeline)
    with pytest.raises(
        CheckpointError, match=r"no folder 'prior'.*scheduler, text_encoder, tokenizer, unet"
    ) as caught:
        checkpoint.fetch(["unet", "prior"])
    assert caught.value.parameter == "subfolder"
    (pipeline / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pipeline/vae holds no weights"):
        checkpoint.fetch(PARTS)
    with pytest.raises(CheckpointError, match=r"has no model_index\.json.*single model"):
        Checkpoint.open(pipeline / "unet").index()
    with pytest.raises(CheckpointError, match=r"has no model_index\.json.*Check the name"):
        Checkpoint.open(pipeline / "scheduler").index()


def test_a_part_without_the_variant_is_taken_plain_with_a_warning(pipeline: Path) -> None:
    checkpoint = Checkpoint.open(pipeline, variant="fp16")
    with pytest.warns(UserWarning, match=r"variant='fp16' only for some.*For vae "):
        checkpoint.fetch(PARTS)
    assert checkpoint.variant_in("unet") == checkpoint.variant_in("text_encoder") == "fp16"
    assert checkpoint.variant_in("vae") is None


def test_a_variant_that_no_part_has(pipeline: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no variant='bf16'.*there: 'fp16', none"):
        Checkpoint.open(pipeline, variant="bf16").fetch(PARTS)
    # A part that is loaded alone must have the variant.
    with pytest.raises(CheckpointError, match=r"vae holds no variant='fp16'"):
        Checkpoint.open(pipeline, variant="fp16").fetch(["vae", "tokenizer"])


def test_a_variant_alone_is_not_taken_for_plain_weights(pipeline: Path) -> None:
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet holds no weights without a variant.*'fp16'"):
        Checkpoint.open(pipeline).fetch(PARTS)


def test_pickled_weights_are_refused_unless_asked_for(pipeline: Path) -> None:
    (pipeline / "vae" / "diffusion_pytorch_model.safetensors").rename(
        pipeline / "vae" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(CheckpointError, match=r"vae holds only pickled weights"):
        Checkpoint.open(pipeline).fetch(PARTS)
    assert Checkpoint.open(pipeline, use_safetensors=False).fetch(PARTS) == pipeline


def test_a_missing_shard_of_a_local_folder(pipeline: Path) -> None:
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    _write(
        pipeline / "unet",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model-00001-of-00002.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*00002-of-00002\.safetensors"):
        Checkpoint.open(pipeline).fetch(PARTS)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_card(pipeline: Path, text: str) -> None:
    (pipeline / "model_index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        Checkpoint.open(pipeline).index()
    (pipeline / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    assert Checkpoint.open(pipeline).index()["unet"][1] == "UNet2DConditionModel"


@pytest.mark.parametrize(
    "name",
    [
        "./missing",
        "../missing",
        "/missing/folder",
        "~/missing",
        "a/b/c",
        "models\\missing",
        Path("org/missing"),
        "https://huggingface.co/org/name",
    ],
)
def test_a_path_that_is_not_there_is_not_taken_for_a_repository(name: str | Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist.*hub id like 'org/name'") as caught:
        Checkpoint.open(name)
    assert caught.value.parameter == "name"


@pytest.mark.parametrize("name", ["", "a b/c", "-x/y", "org/..name"])
def test_what_is_neither_a_path_nor_an_id(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder on this machine nor a hub id"):
        Checkpoint.open(name)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "org/name/v1-5-pruned.ckpt", "/here/x.SAFETENSORS", "https://h.co/x.pt"]
)
def test_a_single_file_is_sent_to_its_own_function(name: str) -> None:
    with pytest.raises(CheckpointError, match="from_single_file"):
        Checkpoint.open(name)


def test_a_file_is_no_folder(pipeline: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json is a file"):
        Checkpoint.open(pipeline / "model_index.json")


def test_contradicting_wishes() -> None:
    with pytest.raises(InputError, match="contradict") as caught:
        Checkpoint.open("org/name", force_download=True, local_files_only=True)
    assert caught.value.parameter == "force_download"
