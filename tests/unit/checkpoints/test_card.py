"""A repository's README.md, and the other repositories that it names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn
from huggingface_hub import _tree_cache, constants

from retouch.checkpoints.locate import Checkpoint
from retouch.errors import CheckpointError, OfflineError

HEAD = "---\nlicense: mit\nprior:\n- org/prior\n---\n# A decoder\n"


def repository(folder: Path, card: str | None = HEAD) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "Any"}')
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("card", "found"),
    [(HEAD, {"license": "mit", "prior": ["org/prior"]}), ("# No head\n", {}), ("---\n---\n", {}), (None, {})],
)
def test_the_head_of_a_local_card(card: str | None, found: dict[str, object], tmp_path: Path) -> None:
    assert Checkpoint.open(repository(tmp_path / "decoder", card)).card() == found


@pytest.mark.parametrize("head", ["prior: [", "- a\n- list"])
def test_a_head_that_cannot_be_read(head: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(repository(tmp_path / "decoder", f"---\n{head}\n---\n"))
    with pytest.raises(CheckpointError, match=r"README\.md has a head that cannot be read"):
        checkpoint.card()


def test_from_the_hub_and_then_from_the_cache(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add("org/decoder", repository(tmp_path / "decoder"))
    assert Checkpoint.open("org/decoder").card()["prior"] == ["org/prior"]
    assert hub.files_sent == ["README.md"]
    hub.forget()
    assert Checkpoint.open("org/decoder", local_files_only=True).card()["license"] == "mit"
    assert hub.requests == []


def test_a_repository_without_a_card(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add("org/decoder", repository(tmp_path / "decoder", None))
    checkpoint = Checkpoint.open("org/decoder")
    assert checkpoint.index() and checkpoint.card() == {}
    assert hub.files_sent == ["model_index.json"]


def test_a_cache_that_does_not_know_what_it_lacks(hub: HubStandIn, tmp_path: Path) -> None:
    """Older releases of the client cache no listing: the README.md may be on the hub and not here."""
    hub.add("org/decoder", repository(tmp_path / "decoder"))
    Checkpoint.open("org/decoder").index()
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--org--decoder" / "trees")
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    with pytest.raises(OfflineError, match=r"lacks 1 of its files, first README\.md"):
        Checkpoint.open("org/decoder", local_files_only=True).card()
    assert Checkpoint.open("org/decoder").card()["prior"] == ["org/prior"]


def test_beside(hub: HubStandIn, tmp_path: Path) -> None:
    """A folder in a local one, or a repository, to which this one's revision does not apply."""
    local = repository(tmp_path / "decoder")
    repository(local / "prior")
    hub.add("org/prior", repository(tmp_path / "prior"))
    options = {"cache_dir": tmp_path / "cache", "variant": "fp16"}
    whole = Checkpoint.open(local, **options)
    inside, outside = whole.beside("prior"), whole.beside("org/prior")
    assert inside.name == str(local / "prior") and inside.variant == outside.variant == "fp16"
    assert outside.index()["_class_name"] == "Any" and (tmp_path / "cache").is_dir()
    elsewhere = Checkpoint.open("org/decoder", revision="v2").beside("org/prior")
    assert elsewhere.index()["_class_name"] == "Any"
