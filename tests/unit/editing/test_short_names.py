from __future__ import annotations

from pathlib import Path

import pytest

from retouch.checkpoints.original_kinds import KINDS
from retouch.checkpoints.shipped import BUILT_IN
from retouch.editing import models
from retouch.editing.models import BUILT_IN_NAMES, DEFAULT, SHORT_NAMES, chosen, resolve, short_name
from retouch.errors import InputError


def test_a_short_name_stands_for_its_repository_and_back() -> None:
    for name, entry in SHORT_NAMES.items():
        assert resolve(name) == entry.repository
        assert short_name(entry.repository) == name
    assert short_name("someone/else") is None


@pytest.mark.parametrize(
    "name", ["org/name", "./folder", "~/models/sd", "model.safetensors", "C:\\models\\sd"]
)
def test_paths_and_ids_are_left_alone(name: str) -> None:
    assert resolve(name) == name
    assert resolve(Path(name)) == Path(name)


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert resolve("mine") == "mine"


def test_a_folder_of_a_short_name_needs_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin").mkdir()
    assert resolve("builtin") == "builtin" and resolve("./builtin") == "./builtin"


def test_the_built_in_ones_are_those_that_ship() -> None:
    assert set(BUILT_IN_NAMES) == set(BUILT_IN) and DEFAULT in BUILT_IN
    for name in BUILT_IN_NAMES:
        assert resolve(name) == name and short_name(name) is None


@pytest.mark.parametrize("name", [None, ""])
def test_no_name_means_the_built_in_one_and_says_so_once(
    name: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RETOUCH_MODEL", raising=False)
    monkeypatch.setattr(models, "_noticed", False)
    assert chosen(name) == chosen(name) == DEFAULT
    (record,) = caplog.records
    message = record.getMessage()
    assert record.name == "retouch" and "\n" not in message
    assert "built-in" in message and "retouch models pull sd15-inpaint" in message


def test_a_name_brings_no_notice(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(models, "_noticed", False)
    monkeypatch.setenv("RETOUCH_MODEL", "sd15")
    assert (chosen("builtin"), chosen(None), chosen(Path("mine"))) == ("builtin", "sd15", Path("mine"))
    assert caplog.records == []


def test_a_slip_of_the_pen_is_answered_with_the_near_name() -> None:
    with pytest.raises(InputError, match=r"sd15-inpant.*Did you mean sd15-inpaint\?"):
        resolve("sd15-inpant")
    with pytest.raises(InputError, match="one of builtin, builtin-regular, sd15-inpaint"):
        resolve("qqqqqqqq")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd15-inpaint", "sd15-inpainting"),
        ("sd15", "sd15"),
        ("sd2-inpaint", "sd2-inpainting"),
        ("sdxl-inpaint", "sdxl-inpainting"),
        ("sdxl", "sdxl"),
        ("sdxl-refiner", "sdxl-refiner"),
    ],
)
def test_the_sizes_are_those_of_the_parts(name: str, kind: str) -> None:
    import torch

    from retouch.checkpoints.original_layout import text_encoder_shapes
    from retouch.pipelines.components import model_class

    count = 0
    for class_name, settings in KINDS[kind].parts.values():
        if class_name.startswith("CLIPTextModel"):
            shapes = text_encoder_shapes(settings, class_name.endswith("WithProjection"))
            count += sum(torch.Size(shape).numel() for shape in shapes.values())
        elif (model := model_class(class_name)) is not None:
            with torch.device("meta"):
                count += sum(p.numel() for p in model.from_config(settings).parameters())
    assert SHORT_NAMES[name].size_gb == pytest.approx(4 * count / 1e9, abs=0.05)
