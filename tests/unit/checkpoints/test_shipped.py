from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from setuptools.dist import Distribution

import retouch
from retouch import AutoencoderKL, CheckpointError, UNet2DConditionModel
from retouch.checkpoints import shipped
from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.shipped import BUILT_IN, shipped_folder
from retouch.pipelines.auto import AutoPipelineForInpainting, AutoPipelineForText2Image
from retouch.pipelines.progress import linear_colours, preview

ROOT = Path(__file__).parents[3]
INPAINTING, REGULAR = "builtin", "builtin-regular"


@pytest.fixture(scope="module")
def regular() -> Any:
    return AutoPipelineForText2Image.from_pretrained(REGULAR)


def test_it_is_an_ordinary_folder() -> None:
    folder = shipped_folder()
    assert (folder / "model_index.json").is_file() and folder.is_relative_to(Path(shipped.__file__).parent)
    assert AutoPipelineForInpainting.from_pretrained(folder).joins_mask


def test_it_is_as_small_as_was_promised() -> None:
    files = [path for path in shipped_folder().rglob("*") if path.is_file()]
    regular = sum(path.stat().st_size for path in files if "unet_regular" in path.parts)
    assert sum(path.stat().st_size for path in files) - regular <= 40e6 and regular <= 30e6


def test_its_files_may_be_read_by_everybody() -> None:
    paths = list(shipped_folder().rglob("*"))
    assert len(paths) > 14
    for path in paths:
        assert path.stat().st_mode & 0o444 == 0o444, path


def test_half_precision_is_stored_and_float32_comes_out() -> None:
    from safetensors import safe_open

    with safe_open(shipped_folder() / "vae" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    assert AutoencoderKL.from_pretrained(INPAINTING, subfolder="vae").dtype == torch.float32


def test_the_names_load_what_they_say(regular: Any, hub: Any) -> None:
    inpainting = AutoPipelineForInpainting.from_pretrained(INPAINTING)
    assert inpainting.unet.config.in_channels == 9 and inpainting.joins_mask
    assert regular.unet.config.in_channels == 4 and regular.keeps_original
    assert inpainting.default_size == regular.default_size == 128
    assert (inpainting.name_or_path, regular.name_or_path) == (INPAINTING, REGULAR)
    for part in ("vae", "text_encoder"):
        ours, theirs = getattr(inpainting, part).state_dict(), getattr(regular, part).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert hub.requests == []


def test_the_regular_one_paints_from_text(regular: Any) -> None:
    regular.set_progress_bar_config(disable=True)
    image = regular("a red apple", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[
        0
    ]
    assert image.size == (128, 128)


def test_one_model_of_it_comes_by_its_name() -> None:
    unets = [UNet2DConditionModel.from_pretrained(name, subfolder="unet") for name in BUILT_IN]
    assert [unet.config.in_channels for unet in unets] == [9, 4]


def test_a_part_may_be_replaced(regular: Any) -> None:
    mixed = AutoPipelineForInpainting.from_pretrained(INPAINTING, unet=regular.unet)
    assert mixed.unet is regular.unet and mixed.keeps_original


@torch.no_grad()
def test_its_preview_decoder_is_small_and_nearer_to_the_vae_than_a_linear_map(hub: Any) -> None:
    inpainting, regular = (AutoPipelineForInpainting.from_pretrained(name) for name in (INPAINTING, REGULAR))
    files = (shipped_folder() / "preview_decoder").iterdir()
    assert sum(path.stat().st_size for path in files) < 1e6
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    disc = torch.where(rows**2 + columns**2 < 0.4, 0.7, -0.3)
    pixels = torch.stack([disc, -disc * rows, columns * 0.5])[None]
    latents = inpainting.encode(pixels, torch.Generator())
    exact = inpainting.decode(latents).clamp(-1, 1)

    def distance(found: torch.Tensor) -> float:
        return (found - exact).square().mean().item()

    for pipeline in (inpainting, regular):
        assert distance(preview(pipeline, latents)) < 0.2 * distance(linear_colours(pipeline, latents))
    assert hub.requests == []


def test_the_name_goes_before_a_folder_that_is_called_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "builtin").mkdir()
    (tmp_path / "builtin" / "model_index.json").write_text(json.dumps({"_class_name": "Mine"}))
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.open("builtin").index()["_class_name"] == "StableDiffusionInpaintPipeline"
    for own in ("./builtin", Path("builtin")):
        assert Checkpoint.open(own).index()["_class_name"] == "Mine"


def test_an_installation_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"not in this installation.*model= takes"):
        AutoPipelineForInpainting.from_pretrained("builtin")


@pytest.mark.filterwarnings("ignore")  # of setuptools, about itself
def test_every_file_of_it_goes_into_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    package = Path(retouch.__file__).parent
    packed = {path for pattern in distribution.package_data["retouch"] for path in package.glob(pattern)}
    expected = {path for path in shipped_folder().rglob("*") if path.is_file()}
    assert len(expected) >= 14 and expected <= packed
