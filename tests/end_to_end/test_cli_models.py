"""`retouch models` against the hub's stand-in: what is listed, fetched and removed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_runs import answered, done, read, refused, retouch, write_photo
from huggingface_hub import constants
from tiny_checkpoints_kandinsky import PRIOR_ID

from retouch.editing.models import SHORT_NAMES
from retouch.pipelines.auto import AutoPipelineForInpainting

SD15 = SHORT_NAMES["sd15-inpaint"].repository


def cached() -> dict[str, dict[str, Any]]:
    return {entry["repository"]: entry for entry in answered("models")["cached"]}


def test_an_empty_cache_lists_what_there_is_to_pull(hub: Any) -> None:
    answer = answered("models")
    assert answer["cached"] == [] and answer["cache"] == constants.HF_HUB_CACHE
    assert answer["short_names"]["sdxl"]["licence"] == SHORT_NAMES["sdxl"].licence
    text = done("models").stdout
    assert "nothing yet" in text
    for name, entry in SHORT_NAMES.items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert f"{entry.size_gb:g} GB" in line and entry.licence in line and entry.note in line
        assert len(line) <= 90
    assert hub.requests == []


def test_pull_fetches_what_loading_needs_and_nothing_else(hub: Any, tiny_sd_checked: Path) -> None:
    hub.add(SD15, tiny_sd_checked)
    result = done("models", "pull", "sd15-inpaint")
    assert SD15 in result.stdout and SHORT_NAMES["sd15-inpaint"].licence in result.stderr
    assert not any("safety" in name for name in hub.files_sent)  # 1.2 GB that loading does not need
    hub.forget()
    AutoPipelineForInpainting.from_pretrained(SD15)
    assert hub.requests == []
    entry = cached()[SD15]
    assert (entry["short_name"], entry["pipeline"]) == ("sd15-inpaint", "StableDiffusionPipeline")
    assert entry["bytes"] > 100_000
    text = done("models").stdout
    before, after = text.split("To pull:")
    assert "sd15-inpaint" in before and "sd15-inpaint" not in after


def test_pull_a_variant_or_again(hub: Any, tiny_sd_fp16: Path) -> None:
    hub.add("org/half", tiny_sd_fp16)
    answer = answered("models", "pull", "org/half", "--variant", "fp16")
    assert answer["repository"] == "org/half" and answer["bytes"] > 0
    weights = [name for name in hub.files_sent if name.endswith(".safetensors")]
    assert weights and all(".fp16." in name for name in weights)
    hub.forget()
    done("models", "pull", "org/half", "--variant", "fp16")
    assert hub.requests == []
    done("models", "pull", "org/half", "--variant", "fp16", "--force")
    assert len(hub.files_sent) > 5


def test_pull_a_single_file(hub: Any, tiny_single_file: Any, tmp_path: Path) -> None:
    source, _ = tiny_single_file("tiny_sd")
    (tmp_path / "own.safetensors").write_bytes(source.read_bytes())
    hub.add("org/files", tmp_path)
    # The tiny file is no published checkpoint, so it cannot be loaded, only fetched.
    answer = answered("models", "pull", "org/files/own.safetensors")
    assert Path(answer["places"][0]).read_bytes() == source.read_bytes()


def test_a_repository_of_another_kind_is_hidden_unless_asked_for(hub: Any, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    hub.add("org/language", tmp_path)
    snapshot_download("org/language")
    assert "org/language" not in cached()
    text = done("models").stdout
    assert "org/language" not in text and "1 repository of other kinds" in text
    assert "org/language" in done("models", "--all").stdout
    assert [entry["repository"] for entry in answered("models", "--all")["cached"]] == ["org/language"]


def test_remove_asks_and_removes_all_of_it(hub: Any, tiny_sd: Path) -> None:
    hub.add(SD15, tiny_sd)
    done("models", "pull", "sd15-inpaint")
    result = retouch("models", "remove", "sd15-inpaint", input="n\n")
    assert result.exit_code == 0 and SD15 in cached()
    assert "Give --yes" in retouch("models", "remove", "sd15-inpaint", input="").stderr
    assert retouch("models", "remove", "sd15-inpaint", "--json").exit_code == 1
    assert SD15 in cached()
    result = retouch("models", "remove", "sd15-inpaint", input="y\n")
    assert result.exit_code == 0 and "freed" in result.stdout
    assert cached() == {} and not list(Path(constants.HF_HUB_CACHE).glob("models--*"))
    assert f"{SD15} is not in the cache" in refused("models", "remove", "sd15-inpaint", "--yes")


def test_remove_with_json(hub: Any, tiny_sd: Path) -> None:
    hub.add("org/one", tiny_sd)
    hub.add("org/two", tiny_sd)
    for name in ("org/one", "org/two"):
        done("models", "pull", name)
    answer = answered("models", "remove", "org/one", "--yes")
    assert answer["repository"] == "org/one" and answer["freed_bytes"] > 100_000
    assert list(cached()) == ["org/two"]


def test_info_says_what_of_the_hub_is_here(hub: Any, tiny_sd_inpaint: Path) -> None:
    facts = answered("info", "sd15-inpaint")
    assert "not in the cache" in facts["what"] and facts["use"] == "retouch models pull sd15-inpaint"
    assert facts["licence"] == SHORT_NAMES["sd15-inpaint"].licence and hub.requests == []
    hub.add(SD15, tiny_sd_inpaint)
    done("models", "pull", SD15)
    hub.forget()
    facts = answered("info", "sd15-inpaint")
    assert "made for inpainting" in facts["what"] and facts["repository"] == SD15
    assert "--model sd15-inpaint" in facts["use"]
    assert facts["path"] == answered("info", SD15)["path"] and hub.requests == []


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("org/nothere", "neither a local folder nor a repository"),
        ("sd15-inpant", "Did you mean sd15-inpaint?"),
        ("org/empty", "model_index.json"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(hub: Any, tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / "README.md").write_text("nothing")
    hub.add("org/empty", tmp_path)
    assert word in refused("models", "pull", name)


def test_without_a_network_pull_says_so(hub: Any) -> None:
    hub.close()
    assert "gave no answer" in refused("models", "pull", "org/name")


def test_kandinsky_comes_with_its_prior_and_paints(
    hub: Any,
    tiny_kandinsky_inpaint: Path,
    tiny_kandinsky_prior: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add(SHORT_NAMES["kandinsky22"].repository, tiny_kandinsky_inpaint)
    hub.add(PRIOR_ID, tiny_kandinsky_prior)
    assert len(answered("models", "pull", "kandinsky22")["places"]) == 2
    hub.close()
    pixels = write_photo(tmp_path / "photo.png")
    words = ("24,16,56,48", "a cat", "-m", "kandinsky22", "-o", "out.png", "--steps", 2, "--size", 64)
    done("inpaint", "photo.png", *words)
    assert (read("out.png") != pixels)[16:48, 24:56].any(axis=-1).mean() > 0.9
    facts = answered("info", "kandinsky22")
    assert facts["what"] == "a checkpoint of Kandinsky 2.2, made for inpainting"
    assert answered("info", shlex.split(facts["use"])[-1])["path"] == facts["path"]
