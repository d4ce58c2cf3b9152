"""The built-in settings are those of the published repositories."""

from __future__ import annotations

from typing import Any

import pytest
from published_configs import AUTOENCODERS, UNETS

from retouch.checkpoints.original_kinds import KINDS
from retouch.errors import InputError
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.unet import UNet2DConditionModel
from retouch.schedulers import by_name

PUBLISHED = {
    "sd15": "SD 1.5",
    "sd15-inpainting": "SD 1.5 inpainting",
    "sd2": "SD 2.1",
    "sd2-inpainting": "SD 2 inpainting",
    "sdxl": "SDXL base",
    "sdxl-inpainting": "SDXL inpainting",
    "sdxl-refiner": "SDXL refiner",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_unet(name: str) -> None:
    config = UNet2DConditionModel.config_class.from_dict
    published = dict(UNETS[PUBLISHED[name]])
    published["upcast_attention"] = bool(
        published.get("upcast_attention")
    )  # null in some repositories, which means the same
    assert config(KINDS[name].settings_of("unet")) == config(published)


def test_the_two_of_stable_diffusion_2() -> None:
    base, large = (
        UNet2DConditionModel.config_class.from_dict(KINDS[name].settings_of("unet"))
        for name in ("sd2-base", "sd2")
    )
    differing = {key for key in base if base[key] != large[key]}
    assert differing == {"sample_size", "upcast_attention"}
    assert KINDS["sd2"].twin == "sd2-base"


@pytest.mark.parametrize("name", KINDS)
def test_vae(name: str) -> None:
    published = AUTOENCODERS["SDXL" if name.startswith("sdxl") else "SD"]
    config = AutoencoderKL.config_class.from_dict
    # The size of a tile, if tiling is enabled.
    side = KINDS[name].settings_of("vae")["sample_size"]
    assert config(KINDS[name].settings_of("vae")) == config(published | {"sample_size": side})


# From the scheduler_config.json of each repository.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("PNDMScheduler", {}),
    "sd15-inpainting": ("DDIMScheduler", {}),
    "sd2": ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    "sd2-base": ("PNDMScheduler", {}),
    "sd2-inpainting": ("PNDMScheduler", {}),
    "sdxl": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "sdxl-inpainting": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "sdxl-refiner": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_scheduler(name: str) -> None:
    class_name, particular = SCHEDULERS[name]
    assert KINDS[name].parts["scheduler"][0] == class_name
    settings = by_name(class_name).from_config(KINDS[name].settings_of("scheduler")).config
    common = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
    }
    for key, value in (common | particular).items():
        assert settings[key] == value, key
    if class_name != "EulerDiscreteScheduler":
        assert settings["clip_sample"] is settings["set_alpha_to_one"] is False


def test_families_and_tasks() -> None:
    for name, kind in KINDS.items():
        assert kind.family == ("stable_diffusion_xl" if "xl" in name else "stable_diffusion")
        if name == "sdxl-refiner":
            assert kind.task == "image2image"
        else:
            assert kind.task == ("inpaint" if name.endswith("inpainting") else "text2image")


def test_parts() -> None:
    for name, kind in KINDS.items():
        both = {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"} & set(kind.parts)
        expected = {"text_encoder", "tokenizer"}
        if name == "sdxl-refiner":
            expected = {"text_encoder_2", "tokenizer_2"}
        elif "xl" in name:
            expected |= {"text_encoder_2", "tokenizer_2"}
        assert both == expected
    assert KINDS["sd2"].settings_of("text_encoder")["num_hidden_layers"] == 23
    assert (
        KINDS["sd2"].settings_of("tokenizer")
        == KINDS["sdxl"].settings_of("tokenizer_2")
        == {"pad_token": "!"}
    )
    assert KINDS["sdxl"].settings_of("tokenizer") == {"pad_token": "<|endoftext|>"}
    assert KINDS["sdxl-refiner"].switches["requires_aesthetics_score"] is True


def test_a_part_that_a_kind_lacks() -> None:
    with pytest.raises(InputError, match=r"no text_encoder_2. Its parts are vae, text") as caught:
        KINDS["sd15"].settings_of("text_encoder_2")
    assert caught.value.parameter == "config"
