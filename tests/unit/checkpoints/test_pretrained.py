from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retouch.checkpoints.config import Config
from retouch.checkpoints.pretrained import Pretrained
from retouch.errors import CheckpointError, ConfigError, InputError, RetouchError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TinyConfig(Config):
    width: int = 6
    sizes: tuple[int, ...] = (1, 2)


class Tiny(Pretrained, nn.Module):
    config_class = TinyConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config: TinyConfig = TinyConfig.from_dict(settings)
        self.enter = nn.Linear(self.config.width, 4)
        self.norm = nn.BatchNorm1d(4)  # it has an integer buffer

    @classmethod
    def legacy_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.replace("entrance.", "enter."): tensor for key, tensor in state.items()}


class Computing(Tiny):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer("table", torch.arange(3), persistent=False)


@pytest.fixture
def model() -> Tiny:
    model = Tiny(width=8)
    model.norm.num_batches_tracked.fill_(5)
    return model


def _same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("max_shard_size", ["10GB", 100])
def test_save_then_load_changes_nothing(
    model: Tiny, tmp_path: Path, variant: str | None, max_shard_size: Any
) -> None:
    model.save_pretrained(tmp_path / "new" / "folder", variant=variant, max_shard_size=max_shard_size)
    loaded = Tiny.from_pretrained(tmp_path / "new" / "folder", variant=variant)
    assert _same(model, loaded)
    assert loaded.config == model.config
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    assert not loaded.training
    assert (loaded.dtype, loaded.device) == (torch.float32, torch.device("cpu"))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_config_says_what_the_folder_holds(model: Tiny, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("_diffusers_version").split(".")[0].isdigit()
    assert config == {"_class_name": "Tiny", "width": 8, "sizes": [1, 2]}


def test_a_part_of_a_pipeline(model: Tiny, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "unet")
    assert _same(model, Tiny.from_pretrained(str(tmp_path), subfolder="unet"))
    with pytest.raises(CheckpointError, match=r"no folder 'vae'.*: unet") as caught:
        Tiny.from_pretrained(tmp_path, subfolder="vae")
    assert caught.value.parameter == "subfolder"
    with pytest.raises(CheckpointError, match=r"config\.json is not there.*subfolder"):
        Tiny.from_pretrained(tmp_path)


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_weights_come_in_the_dtype_that_is_asked(
    model: Tiny, tmp_path: Path, argument: str, dtype: Any
) -> None:
    model.save_pretrained(tmp_path)
    loaded = Tiny.from_pretrained(tmp_path, **{argument: dtype})
    assert loaded.dtype == loaded.norm.running_mean.dtype == torch.bfloat16
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(loaded.enter.weight, model.enter.weight.bfloat16())


def test_half_precision_files_load_as_float32_unless_asked(model: Tiny, tmp_path: Path) -> None:
    model.half().save_pretrained(tmp_path, variant="fp16")
    assert load_file(tmp_path / "diffusion_pytorch_model.fp16.safetensors")["enter.bias"].dtype == torch.half
    loaded = Tiny.from_pretrained(tmp_path, variant="fp16")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.enter.weight, model.enter.weight.float())


def test_two_names_of_the_dtype_may_not_contradict(model: Tiny, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    Tiny.from_pretrained(tmp_path, dtype=torch.bfloat16, torch_dtype=torch.bfloat16)
    with pytest.raises(InputError, match="contradict"):
        Tiny.from_pretrained(tmp_path, dtype=torch.bfloat16, torch_dtype=torch.float32)


@pytest.mark.parametrize("is_asked", [False, True])
def test_options_of_the_reference_that_ask_for_nothing_here(
    model: Tiny, tmp_path: Path, is_asked: bool
) -> None:
    model.save_pretrained(tmp_path)
    switches = dict.fromkeys(("low_cpu_mem_usage", "offload_state_dict", "resume_download"), is_asked)
    off = {"ignore_mismatched_sizes": False, "output_loading_info": False, "disable_mmap": False}
    unset = dict.fromkeys(("device_map", "max_memory", "offload_folder", "quantization_config", "proxies"))
    assert _same(model, Tiny.from_pretrained(tmp_path, **switches, **off, **unset))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device_map": "auto"}, r"^Tiny cannot be loaded with device_map\..*help text.*device="),
        ({"output_loading_info": True, "low_cpu_mem_usage": True}, "with output_loading_info"),
        ({"ignore_mismatched_sizes": True, "wdith": 4}, "with ignore_mismatched_sizes, wdith"),
        ({"low_cpu_mem_usage": "some"}, "with low_cpu_mem_usage"),
    ],
)
def test_other_options_are_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    for load in (Tiny.from_pretrained, Tiny.from_single_file):
        with pytest.raises(InputError, match=said) as caught:
            load(tmp_path / "not-there", **options)
        assert caught.value.parameter == next(iter(options))


def test_a_variant_that_is_not_there(model: Tiny, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no variant='fp16'.*there: none"):
        Tiny.from_pretrained(tmp_path, variant="fp16")


def _without(key: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_without("norm.weight"), r"1 missing \(norm\.weight\)"),
        (lambda state: state.update(lora_up=torch.zeros(1)), r"1 unexpected \(lora_up\)"),
        (
            lambda state: state.update({"enter.weight": torch.zeros(4, 9)}),
            r"1 of another shape \(enter\.weight \(4, 9\) instead of \(4, 8\)\)",
        ),
        (lambda state: state.clear(), r"7 missing \(enter\.weight, enter\.bias, norm\.weight, \.\.\.\)"),
    ],
)
@pytest.mark.parametrize("max_shard_size", ["10GB", 100])
def test_weights_that_do_not_fit_are_an_error(
    model: Tiny, tmp_path: Path, harm: Callable[[dict[str, Tensor]], Any], says: str, max_shard_size: Any
) -> None:
    state = model.state_dict()
    harm(state)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    index = tmp_path / f"{WEIGHTS}.index.json"
    if index.exists():
        for shard in set(json.loads(index.read_text())["weight_map"].values()):
            save_file(state, tmp_path / shard)
    else:
        save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=says) as caught:
        Tiny.from_pretrained(tmp_path)
    assert caught.value.parameter == "name"
    assert str(index if index.exists() else tmp_path / WEIGHTS) in str(caught.value)


def test_legacy_names_are_translated(model: Tiny, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({key.replace("enter.", "entrance."): value for key, value in state.items()}, tmp_path / WEIGHTS)
    assert _same(model, Tiny.from_pretrained(tmp_path))


def test_a_tensor_that_no_file_holds_does_not_stay_empty(tmp_path: Path) -> None:
    Computing().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no file holds: table.*compute such a buffer in forward"):
        Computing.from_pretrained(tmp_path)


def test_a_model_of_another_class(model: Tiny, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderKL"}))
    with pytest.raises(CheckpointError, match=r"class AutoencoderKL, which Tiny"):
        Tiny.from_pretrained(tmp_path)
    del config["_class_name"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert _same(model, Tiny.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", CheckpointError),
        ("[]", CheckpointError),
        ("\xff", CheckpointError),
        ('{"width": 8, "magic": 3}', ConfigError),
    ],
)
def test_a_broken_config_is_named(model: Tiny, tmp_path: Path, text: str, error: type[RetouchError]) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(error) as caught:
        Tiny.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert caught.value.parameter == ("name" if error is CheckpointError else "magic")


def test_from_config_takes_what_a_file_says(model: Tiny) -> None:
    assert Tiny.from_config({"width": 3, "_class_name": "Tiny"}).enter.in_features == 3
    assert Tiny.from_config(model.config).enter.in_features == 8


def test_saving_over_the_folder_that_weights_came_from(model: Tiny, tmp_path: Path) -> None:
    # Loaded weights may still be mapped from the file that is overwritten.
    model.save_pretrained(tmp_path)
    loaded = Tiny.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path, max_shard_size=100)
    loaded.save_pretrained(tmp_path)
    assert _same(model, loaded)
    again = Tiny.from_pretrained(tmp_path)
    assert _same(model, again)
    Tiny(width=8).save_pretrained(tmp_path)
    assert _same(model, again)
    assert sorted(os.listdir(tmp_path)) == ["config.json", WEIGHTS]


def test_pickled_weights_only_by_name(model: Tiny, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="only pickled"):
        Tiny.from_pretrained(tmp_path)
    assert _same(model, Tiny.from_pretrained(tmp_path, use_safetensors=False))


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RetouchError, match="device='cuda:63'"):
        Tiny.from_pretrained(tmp_path / "nowhere", device="cuda:63")
