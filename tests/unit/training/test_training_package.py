from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[3]))  # training is no part of the installed package

import retouch
from retouch.checkpoints.profile import Profile
from training import package
from training.networks import make_autoencoder, make_preview_decoder, make_unet
from training.text import make_text_encoder, make_tokenizer
from training.train_unet import widen
from training.vocabulary import NAMES, RELATED

SMALL = (32, 32, 32)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder at the end of training, with small networks that were not trained."""
    state = tmp_path_factory.mktemp("state")
    torch.manual_seed(0)
    make_autoencoder(widths=(8, 8, 16, 16)).save_pretrained(state / "vae")
    make_preview_decoder(width=8).save_pretrained(state / "preview_decoder")
    make_text_encoder(make_tokenizer(state / "tokenizer")).save_pretrained(state / "text_encoder")
    regular = make_unet(widths=SMALL)
    regular.save_pretrained(state / "unet_regular")
    widen(regular, 128).save_pretrained(state / "unet")
    source = {
        "client": "npm",
        "package": "some-pictures",
        "version": "1.2",
        "licence": "MIT",
        "attribution": "Somebody",
        "pictures_made": 1234,
    }
    (state / "data").mkdir()
    (state / "data" / "sources.json").write_text(json.dumps([source]))
    (state / "vae.jsonl").write_text('{"step": 50, "hours": 0.1}\n{"step": 9000, "hours": 1.25}\n')
    return state


@pytest.fixture(scope="module")
def folder(state: Path) -> Path:
    return package.package(state)


def test_it_loads_and_paints(folder: Path) -> None:
    photo = torch.zeros(140, 150, 3, dtype=torch.uint8).numpy()
    editor = retouch.load(folder, device="cpu", progress=False)
    edit = editor.inpaint(photo, (30, 30, 100, 100), "a kitten", steps=1, seed=0)
    assert edit.image.size == (150, 140) and edit.settings["guidance_scale"] < 7.5
    regular = retouch.UNet2DConditionModel.from_pretrained(folder, subfolder="unet_regular")
    assert regular.config.in_channels == 4
    assert editor.pipeline.preview_decoder.config.decoder_block_out_channels == (8,) * 4


def test_it_is_half_precision_and_readable(folder: Path) -> None:
    files = list(folder.rglob("*.safetensors"))
    assert len(files) >= 4, "UNets, VAE and text encoder"
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.rglob("*"))
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {
        path.name for path in folder.rglob("tokenizer/*")
    }


def test_the_names_are_those_of_the_vocabulary_and_whole_words(folder: Path) -> None:
    names = Profile.of(folder).names
    assert [known.word for known in names] == [name.word for name in NAMES]
    assert next(known for known in names if known.word == "chair").related.count("sofa") == 1
    tokenizer = retouch.AutoPipelineForInpainting.from_pretrained(folder).tokenizer
    for known in names:
        for spelling in known.spellings:
            words = re.findall("[a-z]+|-", spelling)
            assert len(tokenizer.tokenize(spelling)) == len(words), spelling


def test_related_words_lead_to_names_and_are_none() -> None:
    spellings = {spelling for name in NAMES for spelling in name.spellings}
    assert {name for names in RELATED.values() for name in names} <= {name.word for name in NAMES}
    assert not spellings & set(RELATED)


def test_the_card_is_filled(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "{{" not in card and f"knows {len(NAMES)} things" in card
    assert "| npm `some-pictures` 1.2 | MIT | Somebody | 1,234 |" in card
    assert "| vae | 9,000 | 1.2 |" in card and "| regular | not trained |" in card
    assert "| preview_decoder | not trained |" in card
    assert card.startswith("---\nlicense: apache-2.0\n")


def test_what_is_too_large_is_not_written(state: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model_index.json").stat().st_mtime_ns
    for name, word in (("LIMIT", "The checkpoint"), ("LIMIT_REGULAR", "Its regular UNet")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=word):
            patch.setattr(package, name, 1000)
            package.package(state)
    assert (folder / "model_index.json").stat().st_mtime_ns == before


def test_installing_replaces_what_is_there(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "builtin"
    target.mkdir()
    (target / "old.json").write_text("{}")
    package.install(folder, target)
    files = {path.relative_to(target) for path in target.rglob("*")}
    assert files == {path.relative_to(folder) for path in folder.rglob("*")}
    assert [path.name for path in tmp_path.iterdir()] == ["builtin"]


def test_it_goes_where_the_package_looks_for_it() -> None:
    from retouch.checkpoints import shipped

    assert package.PACKAGE.resolve() == shipped._FOLDER.resolve()
