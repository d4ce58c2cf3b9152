"""Single files: their kinds, their faults, and that these are found before a value is read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_single_files import WRITERS, full_size, original_model, write, write_zeros
from torch import Tensor

from retouch.checkpoints.original_kinds import KINDS
from retouch.checkpoints.single_file import SingleFile, names_single_file
from retouch.checkpoints.tensors import TensorFile
from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.controlnet import ControlNetModel
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines.auto import AutoPipelineForInpainting

TinyFile = Callable[[str], tuple[Path, Path]]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "a/b/c.SAFETENSORS",
        "x.ckpt",
        "https://huggingface.co/a/b/blob/main/c.safetensors?x=1",
    ],
)
def test_names_of_files(name: str) -> None:
    assert names_single_file(name)


def test_names_of_others(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("org/name", "folder", "x.gguf", tmp_path / "folder.safetensors"):
        assert not names_single_file(name)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_told_from_the_tensors(name: str, tmp_path: Path) -> None:
    path = write_zeros(tmp_path / "model.safetensors", full_size(name))
    # If the file does not state which of the two SD 2 models it is, their predictions tell.
    assert SingleFile.open(path).kind() == name.replace("sd2-base", "sd2")


def test_controlnets_are_told_from_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorFile, "read", lambda self, name: torch.zeros(()).expand(self.shapes[name]))
    for name in ("sd15", "sd2", "sdxl"):
        settings = dict(KINDS[name].settings_of("unet"))
        del settings["sample_size"]
        settings.pop("up_block_types", None)
        with torch.device("meta"):
            own = ControlNetModel.from_config(settings).state_dict()
        path = write_zeros(tmp_path / "net.safetensors", own)
        net = ControlNetModel.from_single_file(path)
        assert net.config == ControlNetModel.from_single_file(path, config=name).config
        assert net.config == ControlNetModel.config_class.from_dict(settings)
        assert net.config.conditioning_embedding_out_channels == (16, 32, 96, 256)


@pytest.mark.parametrize(
    ("width", "channels", "problem"),
    [
        (768, 8, r"takes 8 input channels \(InstructPix2Pix\). Accepted: 4 or 9"),
        (1024, 5, r"takes 5 input channels \(depth-guided\). Accepted: 4 or 9"),
        (1280, 9, "takes 9 input channels. Accepted: 4"),
        (1000, 4, "reads text of width 1000. Accepted: 768, 1024, 2048, 1280"),
    ],
)
def test_other_unets(width: int, channels: int, problem: str, tmp_path: Path) -> None:
    prefix = "model.diffusion_model."
    state = {
        f"{prefix}input_blocks.0.0.weight": torch.ones(8, channels, 3, 3),
        f"{prefix}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(8, width),
    }
    path = write(tmp_path / "model.safetensors", state)
    with pytest.raises(CheckpointError, match=problem):
        AutoPipelineForInpainting.from_single_file(path)


OTHERS: dict[str, tuple[list[str], str]] = {
    "kohya's LoRA": (
        ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
        "is a LoRA.*then add it with the pipeline's load_lora_weights",
    ),
    "PEFT's LoRA": (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "is a LoRA"),
    "LoHa": (["lora_te_text_model.hada_w1_a"], "is a LoRA"),
    "embedding": (["emb_params"], "is a textual inversion embedding"),
    "XL embedding": (["clip_g", "clip_l"], "is a textual inversion embedding"),
    "IP-Adapter": (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "is an IP-Adapter"),
    "ControlNet": (
        ["control_model.input_hint_block.0.weight"],
        r"is a ControlNet.*ControlNetModel\.from_single",
    ),
    "ControlNet of diffusers": (["controlnet_cond_embedding.conv_in.weight"], "is a ControlNet"),
    "VAE": (["decoder.mid.block_1.conv1.weight"], r"is a VAE alone.*AutoencoderKL\.from_single_file.*vae="),
    "VAE of diffusers": (["decoder.mid_block.resnets.0.conv1.weight"], "is a VAE alone"),
    "text encoder": (["text_model.encoder.layers.0.mlp.fc1.weight"], "is a text encoder alone"),
    "Flux": (["double_blocks.0.img_attn.qkv.weight"], "is a Flux model.*Use a Stable Diffusion"),
    "SD 3": (
        ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
        "is a Stable Diffusion 3 model",
    ),
    "anything": (["a", "b", "c", "d"], r"is a file of 4 tensors of an unknown kind \(a, b, c\)"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_file_is_called_by_its_name(kind: str, tmp_path: Path) -> None:
    names, message = OTHERS[kind]
    path = write(tmp_path / "file.safetensors", {name: torch.ones(2, 2) for name in names})
    with pytest.raises(CheckpointError, match=message) as caught:
        AutoPipelineForInpainting.from_pretrained(path)
    assert "A checkpoint with a UNet is expected: Stable Diffusion 1.x, 2.x or XL" in str(caught.value)


def test_a_unet_of_diffusers_is_no_checkpoint_but_a_unet(tiny_sd: Path) -> None:
    path = tiny_sd / "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(
        CheckpointError, match=r"has no text_encoder, unet, vae: .*It is a UNet alone.*Pass text_encoder="
    ):
        AutoPipelineForInpainting.from_single_file(path, config=tiny_sd)
    options: dict[str, Any] = {"config": tiny_sd, "local_files_only": True, "low_cpu_mem_usage": False}
    unet = UNet2DConditionModel.from_single_file(path, subfolder="unet", **options)
    assert torch.equal(unet.conv_in.weight, load_file(path)["conv_in.weight"])


def test_a_truncated_file(tiny_single_file: TinyFile, tmp_path: Path) -> None:
    path, folder = tiny_single_file("tiny_sd")
    short = tmp_path / "short.safetensors"
    content = path.read_bytes()
    short.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        CheckpointError, match=r"is cut short or damaged: it has \d+ bytes.*Download it again"
    ):
        AutoPipelineForInpainting.from_single_file(short, config=folder)


class _Hostile:
    """A pickle that creates a file if it is read without restrictions."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_pickle_does_not_run(archive: bool, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "model.ckpt"
    content = {
        "state_dict": {"model.diffusion_model.out.2.bias": torch.ones(4)},
        "callbacks": _Hostile(victim),
    }
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(CheckpointError, match=r"is a pickled checkpoint.*pass use_safetensors=False"):
        AutoPipelineForInpainting.from_single_file(path)
    with pytest.raises(CheckpointError, match=r"cannot be read as pickled weights.*no code in it was run"):
        AutoPipelineForInpainting.from_single_file(path, use_safetensors=False)
    disguised = path.rename(tmp_path / "model.safetensors")
    for use_safetensors in (None, False):
        with pytest.raises(CheckpointError, match="is a pickled file under another name"):
            AutoPipelineForInpainting.from_single_file(disguised, use_safetensors=use_safetensors)
    assert not victim.exists()
    # This shows that the file is hostile: an unrestricted reader runs it.
    torch.load(disguised.rename(path), weights_only=False)
    assert victim.exists()


def test_a_bare_pickle(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(_Hostile(victim), protocol=2))
    with pytest.raises(CheckpointError, match="cannot be read as pickled weights"):
        AutoPipelineForInpainting.from_single_file(path, use_safetensors=False)
    assert not victim.exists()


@pytest.mark.parametrize("archive", [True, False])
def test_a_training_checkpoint_in_a_pickle(archive: bool, tiny_single_file: TinyFile, tmp_path: Path) -> None:
    _, folder = tiny_single_file("tiny_sd")
    content = {"state_dict": WRITERS["tiny_sd"](folder), "global_step": 7, "epoch": 1}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=archive)
    file = SingleFile.open(tmp_path / "model.ckpt", use_safetensors=False)
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in content["state_dict"].items()}
    pipeline = AutoPipelineForInpainting.from_single_file(
        tmp_path / "model.ckpt", config=folder, use_safetensors=False
    )
    expected = AutoPipelineForInpainting.from_pretrained(folder)
    for part in ("unet", "vae", "text_encoder"):
        for name, tensor in getattr(expected, part).state_dict().items():
            assert torch.equal(getattr(pipeline, part).state_dict()[name], tensor)


def changed(folder: Path, path: Path, **changes: Tensor | None) -> Path:
    """Write a tiny SD file with tensors added or replaced; None leaves out those with such a prefix."""
    state = WRITERS["tiny_sd"](folder)
    for name, value in changes.items():
        if value is None:
            state = {key: tensor for key, tensor in state.items() if not key.startswith(name)}
        else:
            state[name] = value
    return write(path, state)


PROBLEMS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "missing": (
        {"model.diffusion_model.out.": None, "model.diffusion_model.middle_block.1.norm.": None},
        r"the unet that was expected: of its \d+ tensors 6 are missing \(model\.diffusion.*, \.\.\.\)",
    ),
    "misshapen": (
        {"first_stage_model.quant_conv.bias": torch.ones(5)},
        r"the vae .* tensors 1 have another shape \(first_stage_model\.quant_conv\.bias \(5,\)\)",
    ),
    "without text": (
        {"cond_stage_model.": None},
        r"has no text_encoder: there are no tensors below cond_stage_model\.transformer or .*"
        r"It is a checkpoint.*Pass text_encoder=the text_encoder of another pipeline",
    ),
    "without a VAE": (
        {"first_stage_model.": None},
        r"has no vae: there are no tensors below first_stage_model\..*Pass vae=AutoencoderKL\.from_pre",
    ),
    "unknown": (
        {"model.diffusion_model.extra.weight": torch.ones(1), "ladder": torch.ones(1)},
        r"holds 2 tensors that have no place in the model \(.*ladder.*\).*remove them",
    ),
    "with a ControlNet": (
        {"control_model.input_blocks.0.0.weight": torch.ones(1)},
        r"no place in the model \(control_model.*look like a ControlNet.*ControlNetModel\.from_single_file",
    ),
    "with a LoRA": ({"lora_unet_a.lora_up.weight": torch.ones(1)}, r"have no place.*look like a LoRA"),
    "quantised": (
        {"model.diffusion_model.out.2.weight": torch.ones(4, 8, 3, 3, dtype=torch.int8)},
        r"holds model\.diffusion_model\.out\.2\.weight as torch\.int8\. Floating-point weights are accepted",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_wrong_checkpoint_says_what_is_wrong(
    problem: str, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, message = PROBLEMS[problem]
    path = changed(tiny_sd, tmp_path / "model.safetensors", **changes)
    if problem != "quantised":  # all other faults are found by names and shapes
        monkeypatch.setattr(TensorFile, "read", lambda *_: pytest.fail("a value was read before the check"))
    with pytest.raises(CheckpointError, match=message):
        AutoPipelineForInpainting.from_single_file(path, config=tiny_sd)


def test_mixed_dtypes_become_one(tiny_sd: Path, tmp_path: Path) -> None:
    state = WRITERS["tiny_sd"](tiny_sd)
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    for number, name in enumerate(names):
        state[name] = state[name].to(dtypes[number % len(dtypes)])
    path = write(tmp_path / "model.safetensors", state)
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = AutoPipelineForInpainting.from_single_file(path, config=tiny_sd, dtype=dtype)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            assert {tensor.dtype for tensor in part.state_dict().values()} == {dtype}
    stored = state["model.diffusion_model.out.2.bias"]
    assert torch.equal(pipeline.unet.conv_out.bias, stored.to(torch.bfloat16))


def test_one_tensor_at_a_time_is_held_as_stored(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    state = {name: tensor.half() for name, tensor in WRITERS["tiny_sd"](tiny_sd).items()}
    path = write(tmp_path / "model.safetensors", state)
    read, alive, most = TensorFile.read, [], 0

    def watched(self: TensorFile, name: str) -> Tensor:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in alive))
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(TensorFile, "read", watched)
    pipeline = AutoPipelineForInpainting.from_single_file(path, config=tiny_sd, dtype=torch.float32)
    assert pipeline.dtype == torch.float32 and len(alive) > 300 and most <= 2


def test_models_alone(tiny_sd: Path, tmp_path: Path) -> None:
    for part, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        expected = cls.from_pretrained(tiny_sd, subfolder=part).state_dict()
        whole = write(tmp_path / "whole.safetensors", WRITERS["tiny_sd"](tiny_sd))
        bare = write(tmp_path / "bare.safetensors", original_model(tiny_sd / part, part, prefix=""))
        ours = tiny_sd / part / "diffusion_pytorch_model.safetensors"
        for path in (whole, bare, ours):
            model = cls.from_single_file(path, config=tiny_sd, subfolder=part)
            assert model.state_dict().keys() == expected.keys()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        state = original_model(tiny_sd / part, part, prefix="") | {"ladder": torch.ones(1)}
        path = write(tmp_path / "more.safetensors", state)
        with pytest.raises(CheckpointError, match="no place in the model"):
            cls.from_single_file(path, config=tiny_sd, subfolder=part)


def test_a_vae_that_training_left_its_loss_in(tiny_sd: Path, tmp_path: Path) -> None:
    state = original_model(tiny_sd / "vae", "vae", prefix="")
    left = {
        "loss.logvar": torch.ones(1),
        "loss.discriminator.main.0.weight": torch.ones(1),
        "model_ema.decay": torch.ones(1),
    }
    path = write(tmp_path / "vae.safetensors", state | left)
    loaded = AutoencoderKL.from_single_file(path, config=tiny_sd, subfolder="vae").state_dict()
    expected = AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_a_vae_alone_does_not_tell_its_family(tmp_path: Path) -> None:
    prefix = "first_stage_model."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in full_size("sdxl").items()
        if name.startswith(prefix)
    }
    path = write_zeros(tmp_path / "vae.safetensors", state)
    with pytest.warns(UserWarning, match=r"is a VAE alone.*Pass config='sdxl' for one of XL") as caught:
        assert AutoencoderKL.from_single_file(path).config.scaling_factor == 0.18215
    assert caught[0].filename == __file__
    assert AutoencoderKL.from_single_file(path, config="sd15").config.scaling_factor == 0.18215
    assert AutoencoderKL.from_single_file(path, config="sdxl").config.scaling_factor == 0.13025


def test_options_that_do_not_fit(tmp_path: Path, tiny_sd: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(InputError, match="is one file, and subfolder='vae'") as caught:
        AutoencoderKL.from_pretrained(path, subfolder="vae")
    assert caught.value.parameter == "subfolder"
    with pytest.raises(InputError, match="is one file, and variant='fp16'"):
        AutoPipelineForInpainting.from_pretrained(tiny_sd).__class__.from_pretrained(path, variant="fp16")
    with pytest.raises(CheckpointError, match=r"does not name a file of weights.*use from_pretrained"):
        AutoPipelineForInpainting.from_single_file(tiny_sd)
    for load in (AutoPipelineForInpainting.from_single_file, AutoencoderKL.from_single_file):
        with pytest.raises(CheckpointError, match="neither a folder on this machine nor a hub id") as caught:
            load(path, config="no such kind")
        assert caught.value.parameter == "config"
    with pytest.raises(CheckpointError, match=r"is not there\. A path, 'org/name/file\.safetensors'"):
        AutoPipelineForInpainting.from_single_file(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"is an address outside the hub.*Download the file"):
        AutoPipelineForInpainting.from_single_file("https://example.org/models/1.safetensors")


def test_a_model_that_was_never_published_so(tmp_path: Path) -> None:
    from retouch.models.movq import VQModel

    path = write(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(InputError, match=r"VQModel has no original layout\. UNet2DConditionModel"):
        VQModel.from_single_file(path)


def test_the_settings_are_checked_like_any_config(tiny_single_file: TinyFile, tmp_path: Path) -> None:
    path, _ = tiny_single_file("tiny_sd")
    with pytest.raises(ConfigError, match=r"the settings for .*brush"):
        UNet2DConditionModel.loader(SingleFile.open(path), {"brush": 3})
