"""Pipelines out of one original file: the parts and settings of its kind, and parts that a caller brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from PIL import Image
from tiny_checkpoints import tiny_unet
from tiny_single_files import WRITERS, full_size, write, write_zeros
from torch import Tensor, nn

import retouch
from retouch.checkpoints.tensors import TensorFile
from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines import loading
from retouch.pipelines.loading import predicts_v

TinyFile = Callable[[str], tuple[Path, Path]]

# Of each kind: the class for inpainting, the scheduler and what it predicts, the size of pictures.
EXPECTED = {
    "sd15": ("StableDiffusionInpaintPipeline", "PNDMScheduler", "epsilon", 512),
    "sd15-inpainting": ("StableDiffusionInpaintPipeline", "DDIMScheduler", "epsilon", 512),
    "sd2": ("StableDiffusionInpaintPipeline", "DDIMScheduler", "v_prediction", 768),
    "sd2-base": ("StableDiffusionInpaintPipeline", "PNDMScheduler", "epsilon", 512),
    "sd2-inpainting": ("StableDiffusionInpaintPipeline", "PNDMScheduler", "epsilon", 512),
    "sdxl": ("StableDiffusionXLInpaintPipeline", "EulerDiscreteScheduler", "epsilon", 1024),
    "sdxl-inpainting": ("StableDiffusionXLInpaintPipeline", "EulerDiscreteScheduler", "epsilon", 1024),
    "sdxl-refiner": ("StableDiffusionXLInpaintPipeline", "EulerDiscreteScheduler", "epsilon", 1024),
}


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is one zero, seen as often as the shape asks: full-size models in no memory."""
    monkeypatch.setattr(TensorFile, "read", lambda self, name: torch.zeros(()).expand(self.shapes[name]))


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_checkpoint_needs_nothing_but_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_name, scheduler, predicted, size = EXPECTED[name]
    asked = []
    monkeypatch.setattr(loading, "predicts_v", lambda unet: asked.append(unet) or name == "sd2")
    path = write_zeros(tmp_path / "model.safetensors", full_size(name))
    pipeline = retouch.AutoPipelineForInpainting.from_pretrained(path)
    assert (type(pipeline).__name__, type(pipeline.scheduler).__name__) == (class_name, scheduler)
    assert pipeline.scheduler.config.prediction_type == predicted
    assert (pipeline.default_size, pipeline.vae.config.sample_size) == (size, size)
    assert pipeline.joins_mask is name.endswith("-inpainting")
    assert len(asked) == (name in ("sd2", "sd2-base"))
    assert pipeline.name_or_path == str(path)

    parts = pipeline.components
    tokenizers = [parts.get("tokenizer"), parts.get("tokenizer_2")]
    pads = [None if tokenizer is None else tokenizer.pad_token for tokenizer in tokenizers]
    end = "<|endoftext|>"
    assert (
        pads
        == {
            "sd1": [end, None],
            "sd2": ["!", None],
            "sdxl": [end, "!"],
            "sdxl-refiner": [None, "!"],
        }[name if name == "sdxl-refiner" else name.split("-")[0].removesuffix("5")]
    )
    encoders = [parts.get("text_encoder"), parts.get("text_encoder_2")]
    layers = [None if encoder is None else encoder.config.num_hidden_layers for encoder in encoders]
    assert layers == [
        None if name == "sdxl-refiner" else 23 if name.startswith("sd2") else 12,
        32 if name.startswith("sdxl") else None,
    ]
    if name.startswith("sdxl"):
        assert pipeline.requires_aesthetics_score is (name == "sdxl-refiner")
        assert pipeline.force_zeros_for_empty_prompt is (name != "sdxl-refiner")
        assert pipeline.vae.config.scaling_factor == 0.13025


def picture(pipeline: Any) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    generator = torch.Generator().manual_seed(1)
    arguments = {"num_inference_steps": 2, "generator": generator, "output_type": "np"}
    return pipeline("a photo of a cat", image=image, mask_image=mask, **arguments).images


@pytest.mark.parametrize("name", ["tiny_sd_inpaint", "tiny_sd2", "tiny_sdxl", "tiny_sdxl_refiner"])
def test_the_pictures_are_those_of_the_folder(name: str, tiny_single_file: TinyFile) -> None:
    path, folder = tiny_single_file(name)
    from_file = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder)
    from_folder = retouch.AutoPipelineForInpainting.from_pretrained(folder)
    assert type(from_file) is type(from_folder)
    # The same weights at other addresses: matrix products then sum in another order.
    assert_close(picture(from_file), lambda: picture(from_folder))


def test_other_tasks(tiny_single_file: TinyFile) -> None:
    for name, start in (("tiny_sd", "StableDiffusion"), ("tiny_sdxl", "StableDiffusionXL")):
        path, folder = tiny_single_file(name)
        for task, end in (("Text2Image", ""), ("Image2Image", "Img2Img"), ("Inpainting", "Inpaint")):
            auto = getattr(retouch, f"AutoPipelineFor{task}")
            assert type(auto.from_pretrained(path, config=folder)).__name__ == f"{start}{end}Pipeline"


def test_a_text_encoder_without_its_outer_level(tiny_single_file: TinyFile, tmp_path: Path) -> None:
    _, folder = tiny_single_file("tiny_sd")
    level, state = "cond_stage_model.transformer.text_model.", WRITERS["tiny_sd"](folder)
    flat = {name.replace(level, level.removesuffix("text_model.")): value for name, value in state.items()}
    path = write(tmp_path / "model.safetensors", flat)
    pipeline = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder)
    expected = retouch.AutoPipelineForInpainting.from_pretrained(folder).text_encoder.state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in pipeline.text_encoder.state_dict().items()
    )


def test_a_saved_pipeline_loads_again(tiny_single_file: TinyFile, tmp_path: Path) -> None:
    path, folder = tiny_single_file("tiny_sdxl")
    pipeline = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder)
    pipeline.save_pretrained(tmp_path / "saved")
    again = retouch.AutoPipelineForInpainting.from_pretrained(tmp_path / "saved")
    assert_close(picture(again), lambda: picture(pipeline))


def test_parts_that_the_caller_brings(tiny_single_file: TinyFile, tmp_path: Path) -> None:
    path, folder = tiny_single_file("tiny_sd")
    other = retouch.AutoPipelineForInpainting.from_pretrained(folder)
    state = WRITERS["tiny_sd"](folder)
    without = {name: value for name, value in state.items() if not name.startswith(("first_", "cond_"))}
    bare = write(tmp_path / "unet.safetensors", without)
    given = {"vae": other.vae, "text_encoder": other.text_encoder, "tokenizer": other.tokenizer}
    for file in (path, bare):
        pipeline = retouch.AutoPipelineForInpainting.from_single_file(file, config=folder, **given)
        assert all(getattr(pipeline, part) is value for part, value in given.items())
        assert torch.equal(pipeline.unet.conv_in.weight, other.unet.conv_in.weight)
    # What the file holds in place of them is not looked at.
    broken = state | {
        "first_stage_model.quant_conv.weight": torch.ones(1),
        "first_stage_model.x": torch.ones(1),
    }
    broken_path = write(tmp_path / "broken.safetensors", broken)
    retouch.AutoPipelineForInpainting.from_single_file(broken_path, config=folder, vae=other.vae)
    with pytest.raises(CheckpointError, match="vae"):
        retouch.AutoPipelineForInpainting.from_single_file(broken_path, config=folder)

    scheduler = retouch.EulerDiscreteScheduler(steps_offset=1)
    pipeline = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder, scheduler=scheduler)
    assert pipeline.scheduler is scheduler
    with pytest.raises(InputError, match="cannot be made with brush"):
        retouch.AutoPipelineForInpainting.from_single_file(path, config=folder, brush=1)


def test_a_controlnet_beside_the_file(tiny_single_file: TinyFile) -> None:
    from retouch.models.controlnet import ControlNetModel

    path, folder = tiny_single_file("tiny_sd")
    net = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(folder, subfolder="unet"))
    pipeline = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder, controlnet=net)
    assert type(pipeline).__name__ == "StableDiffusionControlNetInpaintPipeline"
    assert pipeline.controlnet is net


def test_the_schedule_that_a_file_states(tiny_single_file: TinyFile, tmp_path: Path) -> None:
    _, folder = tiny_single_file("tiny_sdxl")
    state, empty = WRITERS["tiny_sdxl"](folder), torch.empty(0)
    auto = retouch.AutoPipelineForInpainting

    marked = write(tmp_path / "marked.safetensors", state | {"v_pred": empty, "ztsnr": empty})
    config = auto.from_single_file(marked, config=folder).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    config = auto.from_single_file(marked, config=folder, prediction_type="epsilon").scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("epsilon", True)

    described = write(tmp_path / "described.safetensors", state, **{"modelspec.prediction_type": "v"})
    config = auto.from_single_file(described, config=folder).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", False)

    plain = write(tmp_path / "plain.safetensors", state)
    assert auto.from_single_file(plain, config=folder).scheduler.config.prediction_type == "epsilon"
    with pytest.raises(ConfigError, match="sideways"):
        auto.from_single_file(plain, config=folder, prediction_type="sideways")


@pytest.mark.usefixtures("weightless")
def test_a_kind_that_the_caller_names_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "predicts_v", lambda unet: pytest.fail("the model was asked"))
    path = write_zeros(tmp_path / "model.safetensors", full_size("sd2"))
    load = retouch.AutoPipelineForInpainting.from_single_file
    seen = [
        (pipeline.scheduler.config.prediction_type, pipeline.default_size)
        for pipeline in (
            load(path, config="sd2"),
            load(path, config="sd2-base"),
            load(path, prediction_type="epsilon"),
            load(path, prediction_type="v_prediction"),
        )
    ]
    assert seen == [("v_prediction", 768), ("epsilon", 512), ("epsilon", 512), ("v_prediction", 768)]


class _Answers(nn.Module):
    """A UNet that answers as a well-trained one at the last timestep: noise, or the negative of a picture."""

    def __init__(self, predicted: str, in_channels: int = 4) -> None:
        super().__init__()
        self.config = type("Config", (), {"in_channels": in_channels, "cross_attention_dim": 8})
        self.predicted = predicted
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Any:
        assert timestep == 999 and sample.shape[1] == self.config.in_channels and text.shape == (1, 77, 8)
        noise = sample[:, :4]
        guess = torch.linspace(-1.5, 1.5, 8)[None, None, None] * torch.ones_like(noise)
        answer = noise - 0.07 * guess if self.predicted == "epsilon" else 0.07 * noise - guess
        return type("Output", (), {"sample": answer})


@pytest.mark.parametrize("in_channels", [4, 9])
def test_what_a_model_predicts_shows_in_its_answer(in_channels: int) -> None:
    assert not predicts_v(_Answers("epsilon", in_channels))
    assert predicts_v(_Answers("v_prediction", in_channels))


def test_a_real_unet_is_asked() -> None:
    """One that hands on what it sees, through its outermost connection, and one that does not."""
    unet = UNet2DConditionModel.from_config(tiny_unet().config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
        for channel in range(4):
            unet.conv_in.weight[channel, channel, 1, 1] = 1
            unet.conv_out.weight[channel, channel, 1, 1] = 1
            unet.up_blocks[-1].resnets[-1].conv_shortcut.weight[channel, 8 + channel] = 1
        unet.conv_norm_out.weight.fill_(1)
        assert not predicts_v(unet)
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.fill_(0.3)
        assert predicts_v(unet)


def test_a_class_loads_its_own_family(tmp_path: Path) -> None:
    xl = write_zeros(tmp_path / "xl.safetensors", full_size("sdxl"))
    with pytest.raises(ConfigError, match=r"of Stable Diffusion XL, and StableDiffusionInpaintPipeline is"):
        retouch.StableDiffusionInpaintPipeline.from_single_file(xl)
    sd = write_zeros(tmp_path / "sd.safetensors", full_size("sd15"))
    with pytest.raises(ConfigError, match=r"1\.x, and StableDiffusionXLInpaintPipeline is for .*Use a "):
        retouch.StableDiffusionXLInpaintPipeline.from_single_file(sd)


def test_the_safety_checker_is_in_no_file(tiny_single_file: TinyFile) -> None:
    path, folder = tiny_single_file("tiny_sd")
    load = retouch.StableDiffusionInpaintPipeline.from_single_file
    with pytest.raises(InputError, match="a single file has none"):
        load(path, config=folder, safety_checker=True)
    assert (
        load(path, config=folder, safety_checker=None, requires_safety_checker=False).safety_checker is None
    )


def test_dtype(tiny_single_file: TinyFile) -> None:
    path, folder = tiny_single_file("tiny_sd")
    for option in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}):
        pipeline = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder, **option)
        dtypes = {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)}
        assert dtypes == {torch.bfloat16}
