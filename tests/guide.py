"""The inpainting guide's examples as code, and the hub and the pictures that they name."""

from __future__ import annotations

import re
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from hub_stand_in import HubStandIn
from PIL import Image
from pipeline_pairs import mask, photo

from retouch import devices

COPY = Path(__file__).with_name("guide_blocks.md")
REGULAR = "stable-diffusion-v1-5/stable-diffusion-v1-5"
INPAINTING = "runwayml/stable-diffusion-inpainting"
# A UNet whose attention is at half the resolution, since one example works at 512 x 512.
SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}

Names = dict[str, Any]


def guide_blocks(page: Path = COPY) -> dict[str, list[str]]:
    """Return the guide's Python blocks by the heading that they stand under."""
    blocks: dict[str, list[str]] = {}
    heading = ""
    found = re.finditer(r"^#+ ([^\n]+)$|^```py\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    for title, code in (match.groups() for match in found):
        if title:
            heading = title
        else:
            blocks.setdefault(heading, []).append(code)
    return blocks


class ToStandIn(urllib.request.HTTPSHandler):
    """Sends requests for pictures to the stand-in, whatever host they name."""

    def __init__(self, hub: HubStandIn) -> None:
        super().__init__()
        self.hub = hub

    def https_open(self, request: urllib.request.Request) -> Any:
        address = urlsplit(request.full_url)
        path = address.path
        if address.hostname == "raw.githubusercontent.com":
            _, owner, repository, *rest = path.split("/")
            path = "/".join(["", owner, repository, "raw", *rest])
        return self.parent.open(self.hub.url + path, timeout=request.timeout)


@pytest.fixture
def world(
    hub: HubStandIn, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The hub as the guide knows it, an empty working folder, and no warning given yet."""
    hub.add(REGULAR, tiny_checkpoint("guide_regular", variant="fp16", seed=31, **SMALL))
    hub.add(INPAINTING, tiny_checkpoint("guide_inpaint", variant="fp16", in_channels=9, seed=32, **SMALL))
    examples = "data/inpainting_examples/overture-creations-5sI6fQgYIuo"
    shore = (30, 20, 66, 50)
    pictures = {
        "datasets/huggingface/documentation-images/diffusers/inpaint.png": photo(1),
        "datasets/huggingface/documentation-images/diffusers/inpaint_mask.png": mask(),
        "datasets/huggingface/documentation-images/diffusers/road-mask.png": mask((0, 40, 64, 64)),
        "datasets/huggingface/documentation-images/diffusers/inpaint_text-chain-mask.png": mask(),
        "datasets/YiYiXu/testing-images/seashore.png": photo(2, 90, 70),
        "datasets/YiYiXu/testing-images/seashore_mask.png": mask(shore, 90, 70),
        f"CompVis/latent-diffusion/{examples}.png": photo(3),
        f"CompVis/latent-diffusion/{examples}_mask.png": mask(),
    }
    for name, picture in pictures.items():
        depth = 3 if name.startswith("datasets/") else 2
        repository, file = "/".join(name.split("/")[:depth]), "/".join(name.split("/")[depth:])
        folder = tmp_path / "published" / repository
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(folder / file)
        hub.add(repository, folder)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(devices, "_warned_of_float16", False)
    urllib.request.install_opener(urllib.request.build_opener(ToStandIn(hub)))
    yield work
    urllib.request.install_opener(None)  # type: ignore[arg-type]


def run(blocks: list[str], names: Names, *told: str) -> Names:
    """Run the blocks one after the other in one namespace.

    Half precision alone may be warned of, once, and what `told` says.
    """
    for block in blocks:
        code = re.sub(r"^from diffusers\b", "from retouch", block, flags=re.M)
        if not torch.cuda.is_available():
            code = re.sub(r"""(["'])cuda\1""", '"cpu"', code)
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", "float16 was asked for")
            for message in told:
                warnings.filterwarnings("ignore", message)
            exec(compile(code, "inpainting-guide.md", "exec"), names)
        names["warnings"] = names.get("warnings", 0) + len(caught)
    assert names["warnings"] == (names["pipeline"].dtype != torch.float16)
    return names


def a_picture(names: Names, size: tuple[int, int] = (64, 64)) -> None:
    image = names["image"]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and image.size == size
    assert np.asarray(image).std() > 1


def another_picture(names: Names) -> None:
    a_picture(names)
    assert names["image"].tobytes() != names["init_image"].tobytes()


OPEN = """
import torch
from diffusers import AutoPipelineForInpainting
from diffusers.utils import load_image, make_image_grid
pipeline = AutoPipelineForInpainting.from_pretrained("{name}", torch_dtype=torch.float16, variant="fp16")
pipeline.enable_model_cpu_offload()
pipeline.enable_xformers_memory_efficient_attention()
where = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/"
init_image, mask_image = load_image(where + "inpaint.png"), load_image(where + "inpaint_mask.png")
generator = torch.Generator("cuda").manual_seed(92)
options = dict(image=init_image, mask_image=mask_image, num_inference_steps=3)
"""
CALL = "image = pipeline(prompt='an elven castle', **options, {extra}).images[0]"
