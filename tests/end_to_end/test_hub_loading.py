"""Checkpoints by hub id, as users name them, against the stand-in for the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import HubStandIn
from huggingface_hub import constants
from torch import nn

from retouch.checkpoints.config import Config
from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.pretrained import Pretrained
from retouch.errors import CheckpointError, OfflineError

PARTS = ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
TOKENIZER = [
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
]
UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class WideConfig(Config):
    width: int = 64


class Wide(Pretrained, nn.Module):
    """Large enough that a download can break in the middle."""

    config_class = WideConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config: WideConfig = WideConfig.from_dict(settings)
        self.one = nn.Linear(self.config.width, self.config.width)
        self.two = nn.Linear(self.config.width, self.config.width)


@pytest.fixture
def wide(hub: HubStandIn, tmp_path: Path) -> Wide:
    """A model alone in its repository, "org/wide"."""
    model = Wide(width=128)
    model.save_pretrained(tmp_path / "wide")
    hub.add("org/wide", tmp_path / "wide")
    return model


def _same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def _pollute(folder: Path) -> Path:
    """What lies in real repositories beside the files that we need."""
    for name in (
        "README.md",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_flax_model.msgpack",
        "unet/model.onnx",
        "vae_decoder/model.onnx",
        "text_encoder/pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


@pytest.fixture
def crowded(hub: HubStandIn, tiny_sd_fp16: Path, tmp_path: Path) -> Path:
    """A whole pipeline in two variants, with everything else that people publish, as "org/sd"."""
    folder = _pollute(shutil.copytree(tiny_sd_fp16, tmp_path / "sd"))
    hub.add("org/sd", folder)
    return folder


@pytest.mark.parametrize(("variant", "dot"), [(None, ""), ("fp16", ".fp16")])
def test_only_the_files_that_are_needed_are_fetched(
    hub: HubStandIn, crowded: Path, variant: str | None, dot: str
) -> None:
    checkpoint = Checkpoint.open("org/sd", variant=variant)
    assert checkpoint.index()["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert hub.files_sent == ["model_index.json"]
    folder = checkpoint.fetch(PARTS)
    expected = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        f"text_encoder/model{dot}.safetensors",
        *TOKENIZER,
        "unet/config.json",
        f"unet/diffusion_pytorch_model{dot}.safetensors",
        "vae/config.json",
        f"vae/diffusion_pytorch_model{dot}.safetensors",
    ]
    assert hub.files_sent == expected
    assert all((folder / name).read_bytes() == (crowded / name).read_bytes() for name in expected)
    hub.forget()
    assert checkpoint.fetch(["feature_extractor"]) == folder
    assert hub.files_sent == ["feature_extractor/preprocessor_config.json"]


def test_a_cached_checkpoint_makes_no_request(hub: HubStandIn, crowded: Path) -> None:
    first = Checkpoint.open("org/sd")
    first.index()
    folder = first.fetch(PARTS)
    hub.forget()
    for options in ({}, {"local_files_only": True}, {"revision": "main"}, {"revision": folder.name}):
        again = Checkpoint.open("org/sd", **options)
        assert again.index() == first.index()
        assert again.fetch(PARTS) == folder
    assert hub.requests == []
    hub.close()
    assert Checkpoint.open("org/sd").fetch(PARTS) == folder


def test_what_is_missing_from_the_cache_is_added(hub: HubStandIn, crowded: Path) -> None:
    folder = Checkpoint.open("org/sd").fetch(["unet", "tokenizer"])
    hub.forget()
    assert Checkpoint.open("org/sd").fetch(PARTS) == folder
    assert hub.files_sent == [
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    # The listing is cached, so nothing but the files had to be asked for.
    assert not [path for _, path in hub.requests if path.startswith("/api")]


def test_a_broken_cache_entry_is_fetched_again(hub: HubStandIn, crowded: Path) -> None:
    folder = Checkpoint.open("org/sd").fetch(PARTS)
    (folder / UNET).resolve().unlink()
    (folder / "tokenizer" / "merges.txt").unlink()
    hub.forget()
    with pytest.raises(
        OfflineError, match=r"lacks 2 of its files, first tokenizer/merges.*local_files_only=True"
    ):
        Checkpoint.open("org/sd", local_files_only=True).fetch(PARTS)
    assert hub.requests == []
    Checkpoint.open("org/sd").fetch(PARTS)
    assert (folder / UNET).read_bytes() == (crowded / UNET).read_bytes()
    assert (folder / "tokenizer" / "merges.txt").exists()


def test_a_missing_file_is_fetched_at_the_cached_commit(
    hub: HubStandIn, crowded: Path, tmp_path: Path
) -> None:
    old = Checkpoint.open("org/sd").fetch(["unet"])
    newer = shutil.copytree(crowded, tmp_path / "newer")
    (newer / "vae" / "config.json").write_text('{"newer": true}')
    hub.add("org/sd", crowded, revision="before")
    hub.add("org/sd", newer)
    # One commit for all parts, until the caller asks for the present one.
    assert Checkpoint.open("org/sd").fetch(PARTS) == old
    assert "newer" not in (old / "vae" / "config.json").read_text()
    fresh = Checkpoint.open("org/sd", force_download=True).fetch(PARTS)
    assert fresh != old
    assert "newer" in (fresh / "vae" / "config.json").read_text()
    assert Checkpoint.open("org/sd").fetch(PARTS) == fresh


def test_a_commit_that_is_gone(hub: HubStandIn, crowded: Path, tmp_path: Path) -> None:
    Checkpoint.open("org/sd").fetch(["unet"])
    newer = shutil.copytree(crowded, tmp_path / "newer")
    (newer / "vae" / "config.json").write_text('{"newer": true}')
    hub.add("org/sd", newer)
    with pytest.raises(CheckpointError, match=r"cached in part.*force_download=True"):
        Checkpoint.open("org/sd").fetch(PARTS)
    Checkpoint.open("org/sd", force_download=True).fetch(PARTS)


def test_revisions(hub: HubStandIn, crowded: Path, tmp_path: Path) -> None:
    other = shutil.copytree(crowded, tmp_path / "other")
    (other / "vae" / "config.json").write_text('{"other": true}')
    hub.add("org/sd", other, revision="other")
    assert (
        "other"
        in (Checkpoint.open("org/sd", revision="other").fetch(["vae"]) / "vae/config.json").read_text()
    )
    assert "other" not in (Checkpoint.open("org/sd").fetch(["vae"]) / "vae/config.json").read_text()
    with pytest.raises(CheckpointError, match=r"org/sd has no revision 'fp16'.*pass it as variant="):
        Checkpoint.open("org/sd", revision="fp16").fetch(["vae"])


def test_a_checkpoint_that_diffusers_fetched_is_found(hub: HubStandIn, crowded: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = DiffusionPipeline.download("org/sd", variant="fp16")
    hub.forget()
    checkpoint = Checkpoint.open("org/sd", variant="fp16")
    checkpoint.index()
    assert checkpoint.fetch([*PARTS]) == Path(folder)
    assert hub.requests == []


def test_a_cache_without_a_listing(hub: HubStandIn, crowded: Path) -> None:
    # Older releases of huggingface_hub wrote none, so the files that are there have to tell.
    folder = Checkpoint.open("org/sd").fetch(PARTS)
    listing = folder.parents[1] / "trees"

    def forget_listing() -> None:
        from huggingface_hub import _tree_cache

        shutil.rmtree(listing)
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()
        hub.forget()

    forget_listing()
    assert Checkpoint.open("org/sd").fetch(PARTS) == folder
    assert hub.requests == []

    # What such a cache lacks is told by what it has; then the hub's listing tells all of it.
    for name in ("merges.txt", "special_tokens_map.json"):
        (folder / "tokenizer" / name).resolve().unlink()
        (folder / "tokenizer" / name).unlink()
    with pytest.raises(OfflineError, match=r"first tokenizer/merges\.txt"):
        Checkpoint.open("org/sd", local_files_only=True).fetch(PARTS)
    Checkpoint.open("org/sd").fetch(PARTS)
    assert hub.files_sent == ["tokenizer/merges.txt", "tokenizer/special_tokens_map.json"]

    # The plain weights that happen to be there do not stand for the variant that is on the hub.
    Checkpoint.open("org/sd", variant="fp16").fetch(["unet"])
    forget_listing()
    Checkpoint.open("org/sd", variant="fp16").fetch(PARTS)
    assert hub.files_sent == [
        "text_encoder/model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


@pytest.mark.parametrize("max_shard_size", ["10GB", "100KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_model_by_its_id(hub: HubStandIn, tmp_path: Path, max_shard_size: str, variant: str | None) -> None:
    model = Wide(width=128)
    model.save_pretrained(tmp_path / "it" / "unet", variant=variant, max_shard_size=max_shard_size)
    hub.add("org/pipeline", tmp_path / "it")
    loaded = Wide.from_pretrained("org/pipeline", subfolder="unet", variant=variant)
    assert _same(model, loaded)
    assert len([name for name in hub.files_sent if name.endswith("safetensors")]) == (
        1 if max_shard_size == "10GB" else 2
    )
    hub.forget()
    assert _same(model, Wide.from_pretrained("org/pipeline", subfolder="unet", variant=variant))
    assert hub.requests == []


def test_a_repository_without_an_organisation(hub: HubStandIn, tmp_path: Path) -> None:
    model = Wide()
    model.save_pretrained(tmp_path / "here")
    hub.add("wide", tmp_path / "here")
    assert _same(model, Wide.from_pretrained("wide"))


def test_a_folder_of_the_same_name_comes_first(
    hub: HubStandIn, wide: Wide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Wide(width=128)
    model.save_pretrained(tmp_path / "org" / "wide")
    monkeypatch.chdir(tmp_path)
    assert _same(model, Wide.from_pretrained("org/wide"))
    assert hub.requests == []


def test_cache_dir(hub: HubStandIn, wide: Wide, tmp_path: Path) -> None:
    assert _same(wide, Wide.from_pretrained("org/wide", cache_dir=tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "models--org--wide").is_dir()
    assert not Path(constants.HF_HUB_CACHE).exists()
    hub.close()
    assert _same(wide, Wide.from_pretrained("org/wide", cache_dir=tmp_path / "elsewhere"))
    with pytest.raises(OfflineError):
        Wide.from_pretrained("org/wide")


def test_a_download_that_breaks_once_is_resumed(
    hub: HubStandIn, wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What arrived is kept in pieces of this size, on the real hub 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.break_off("diffusion_pytorch_model.safetensors", after=50_000)
    assert _same(wide, Wide.from_pretrained("org/wide"))
    ranges = hub.bytes_sent["diffusion_pytorch_model.safetensors"]
    size = (
        (hub.repositories["org/wide"].revisions["main"] / "diffusion_pytorch_model.safetensors")
        .stat()
        .st_size
    )
    assert ranges == size  # not a byte twice


def test_a_download_that_stays_broken_is_reported_and_can_be_repeated(hub: HubStandIn, wide: Wide) -> None:
    hub.break_off("diffusion_pytorch_model.safetensors", after=50_000)
    hub.break_off("diffusion_pytorch_model.safetensors", after=0, times=100)
    with pytest.raises(CheckpointError, match=r"download of org/wide broke off.*same call again"):
        Wide.from_pretrained("org/wide")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    with pytest.raises(OfflineError, match=r"first diffusion_pytorch_model\.safetensors"):
        Wide.from_pretrained("org/wide", local_files_only=True)

    hub.recover()
    hub.forget()
    assert _same(wide, Wide.from_pretrained("org/wide"))
    assert hub.files_sent == ["diffusion_pytorch_model.safetensors"]


def test_a_hub_that_fails_between_files(hub: HubStandIn, wide: Wide) -> None:
    hub.fail("diffusion_pytorch_model.safetensors", 500)
    with pytest.raises(OfflineError, match=r"gave no answer.*500"):
        Wide.from_pretrained("org/wide")
    hub.recover()
    assert _same(wide, Wide.from_pretrained("org/wide"))


def test_no_hub_and_no_cache(hub: HubStandIn) -> None:
    hub.close()
    with pytest.raises(OfflineError) as caught:
        Wide.from_pretrained("org/wide", variant="fp16")
    message = str(caught.value)
    assert message.startswith("org/wide (variant='fp16') is not on this machine (nothing of it is cached)")
    assert f"{hub.url} gave no answer" in message
    assert "HF_HOME or cache_dir" in message


def test_a_hub_in_trouble(hub: HubStandIn, wide: Wide) -> None:
    hub.fail("org/wide", 503)
    with pytest.raises(OfflineError, match=r"gave no answer.*503"):
        Wide.from_pretrained("org/wide")


def test_a_slow_hub(hub: HubStandIn, wide: Wide) -> None:
    hub.delay = 0.1
    assert _same(wide, Wide.from_pretrained("org/wide"))


def test_local_files_only_makes_no_request(hub: HubStandIn, wide: Wide) -> None:
    with pytest.raises(OfflineError, match=r"nothing of it is cached\), and local_files_only=True"):
        Wide.from_pretrained("org/wide", local_files_only=True)
    with pytest.raises(OfflineError, match="local_files_only=True"):
        Checkpoint.open("org/wide", local_files_only=True).index()
    assert hub.requests == []


def test_hf_hub_offline_makes_no_request(
    hub: HubStandIn, wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
        Wide.from_pretrained("org/wide")
    assert hub.requests == []


def test_a_repository_that_does_not_exist(hub: HubStandIn) -> None:
    with pytest.raises(CheckpointError, match=r"org/none is neither a local folder nor a repository.*token="):
        Wide.from_pretrained("org/none")
    with pytest.raises(CheckpointError, match=r"org/none is neither"):
        Checkpoint.open("org/none", token="hf_any").index()


def test_a_private_repository(hub: HubStandIn, wide: Wide) -> None:
    hub.repositories["org/wide"].token = "hf_secret"
    for token in (None, False, "hf_wrong"):
        with pytest.raises(CheckpointError, match=r"private one with its token"):
            Wide.from_pretrained("org/wide", token=token)
    assert _same(wide, Wide.from_pretrained("org/wide", token="hf_secret"))


def test_a_gated_repository(hub: HubStandIn, wide: Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/wide"].token = "hf_secret"
    hub.repositories["org/wide"].is_gated = True
    for token in (None, "hf_other"):
        with pytest.raises(CheckpointError, match=rf"org/wide is gated.*{hub.url}/org/wide.*hf auth login"):
            Wide.from_pretrained("org/wide", token=token)
    # The token of whoever is logged in is used without being named.
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert _same(wide, Wide.from_pretrained("org/wide"))


def test_a_token_is_not_sent_to_the_store_of_large_files(hub: HubStandIn, wide: Wide) -> None:
    hub.repositories["org/wide"].token = "hf_secret"
    Wide.from_pretrained("org/wide", token="hf_secret")
    assert any(hub.authorizations)
    to_the_store = [
        sent for (_, path), sent in zip(hub.requests, hub.authorizations, strict=True) if "/stored/" in path
    ]
    assert to_the_store and not any(to_the_store)


def test_variants_that_are_there_are_named_without_fetching_weights(hub: HubStandIn, crowded: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no variant='bf16'.*'fp16', 'non_ema', none"):
        Checkpoint.open("org/sd", variant="bf16").fetch(PARTS)
    with pytest.raises(CheckpointError, match=r"no folder 'prior'.*feature_extractor.*unet, vae"):
        Checkpoint.open("org/sd").fetch(["prior"])
    assert hub.files_sent == []


def test_a_variant_of_some_parts(hub: HubStandIn, crowded: Path) -> None:
    (crowded / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    checkpoint = Checkpoint.open("org/sd", variant="fp16")
    with pytest.warns(UserWarning, match=r"For vae those without a variant are used") as caught:
        checkpoint.fetch(PARTS)
    assert len(caught) == 1
    assert [checkpoint.variant_in(part) for part in PARTS] == ["fp16", None, "fp16", None, None]
    assert "vae/diffusion_pytorch_model.safetensors" in hub.files_sent
    assert UNET not in hub.files_sent


def test_pickled_weights_are_not_fetched_unless_asked_for(
    hub: HubStandIn, wide: Wide, tmp_path: Path
) -> None:
    folder = tmp_path / "wide"
    torch.save(wide.state_dict(), folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"only pickled weights.*use_safetensors=False"):
        Wide.from_pretrained("org/wide")
    assert hub.files_sent == []
    assert _same(wide, Wide.from_pretrained("org/wide", use_safetensors=False))


def test_what_is_no_pipeline(hub: HubStandIn, wide: Wide) -> None:
    with pytest.raises(CheckpointError, match=r"org/wide has no model_index\.json.*single model"):
        Checkpoint.open("org/wide").index()


def test_a_damaged_file_of_the_cache_is_named_and_can_be_refreshed(hub: HubStandIn, wide: Wide) -> None:
    path = Checkpoint.open("org/wide").fetch([None]) / "diffusion_pytorch_model.safetensors"
    path.resolve().write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut short.*force_download=True"):
        Wide.from_pretrained("org/wide")
    assert _same(wide, Wide.from_pretrained("org/wide", force_download=True))


_SCRIPT = """
import json, sys
from retouch.checkpoints.locate import Checkpoint
checkpoint = Checkpoint.open("org/sd")
checkpoint.index()
print(json.dumps(str(checkpoint.fetch(["unet", "vae", "text_encoder"]))))
"""


def _in_another_process(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_another_process_with_one_progress_bar(hub: HubStandIn, crowded: Path) -> None:
    shown = {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "TQDM_POSITION": "-1"}
    result = _in_another_process(**shown)
    assert result.returncode == 0, result.stderr
    folder = Path(json.loads(result.stdout))
    assert (folder / UNET).is_file()
    bars = {
        line.split(":")[0].strip() for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()
    }
    assert bars == {"Downloading"}
    sizes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert "100%" in result.stderr and sizes > 100_000

    hub.forget()
    result = _in_another_process(**shown)
    assert (result.returncode, result.stderr) == (0, "")
    assert hub.requests == []


def test_another_process_offline(hub: HubStandIn, crowded: Path) -> None:
    result = _in_another_process(HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert "OfflineError: org/sd is not on this machine" in result.stderr
    assert "HF_HUB_OFFLINE is set" in result.stderr
    assert hub.requests == []


def test_pictures_by_their_address(hub: HubStandIn, tmp_path: Path) -> None:
    import urllib.request

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat.png").write_bytes(b"picture")
    hub.add("datasets/org/pictures", tmp_path / "data")
    with urllib.request.urlopen(f"{hub.url}/datasets/org/pictures/resolve/main/cat.png") as answer:
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.read() == b"picture"
