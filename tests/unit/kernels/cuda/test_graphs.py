"""Recorded calls give what the UNet itself gives, whatever happens to it, and no call gets another's result.

A stand-in records on the CPU (tests/recorded_ops.py); the last tests are for a GPU.
"""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import pytest
import torch
from closeness import assert_close
from ip_adapter_files import ip_adapter, tiny_image_encoder
from lora_files import peft, sides
from optimized_layers import has_optimized_layers
from pipeline_pairs import mask, photo
from recorded_ops import OpRecorder
from torch import Tensor, nn

import retouch
from retouch.kernels import is_optimized, optimization, optimize, release_memory, restore
from retouch.kernels.cuda import graphs
from retouch.models.unet import UNet2DConditionModel

SETTINGS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 + 6 * 4,
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[OpRecorder]:
    """The CPU counts as a GPU; the recorders that were made."""
    made: list[OpRecorder] = []
    monkeypatch.setattr(OpRecorder, "made", made, raising=False)
    monkeypatch.setattr(OpRecorder, "error", None)
    monkeypatch.setenv("RETOUCH_CUDA_GRAPHS", "1")
    monkeypatch.setitem(graphs.RECORDERS, "cpu", OpRecorder)
    monkeypatch.setattr(optimization, "GPUS", ["cuda", "cpu"])
    return made


def new_unet(**settings: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**SETTINGS, **settings).eval()
    for number, parameter in enumerate(unet.parameters()):
        draw = torch.Generator().manual_seed(number)
        parameter.data.normal_(0, 0.1, generator=draw).add_(parameter.ndim == 1)
    return unet


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return new_unet()


def inputs(seed: int, rows: int = 2, side: int = 8, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 4, side, side, generator=draw)
    return sample, torch.tensor(900 - seed), torch.randn(rows, tokens, 12, generator=draw)


def computed(unet: Any, *given: Any, **options: Any) -> Any:
    """The result of the plain UNet's own `forward`."""
    return UNet2DConditionModel.forward(unet, *given, **options)


def check(unet: Any, seed: int, **options: Any) -> None:
    given = inputs(seed, **options)
    with torch.no_grad():
        assert torch.equal(unet(*given, return_dict=False)[0], computed(unet, *given)[0])


def test_the_same_numbers_of_other_inputs_each_time(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    for seed in range(6):
        check(unet, seed)
    (recorder,) = recorders
    assert (recorder.recorded, recorder.played) == (1, 5)  # the first computes as ever


def test_results_stay_when_the_next_call_comes(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    with torch.inference_mode():
        found = [unet(*inputs(seed))[0] for seed in range(4)]
        wanted = [computed(unet, *inputs(seed))[0] for seed in range(4)]
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    check(unet, 9)  # outside of inference mode, with what was recorded in it
    assert recorders[0].recorded == 1


def test_numbers_and_tensors_as_timesteps(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    sample, _, text = inputs(0)
    with torch.no_grad():
        for timestep in (3, 901, 17, 2.5, 400.25, 7.75):
            assert torch.equal(unet(sample, timestep, text)[0], computed(unet, sample, timestep, text)[0])
    assert recorders[0].recorded == 2  # one of whole numbers, one of others; not one for each


def test_each_kind_of_call_has_its_own(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    for seed in range(3):
        check(unet, seed)
        check(unet, seed, rows=1)
        check(unet, seed, side=12)
        check(unet, seed, tokens=7)
    assert recorders[0].recorded == 4 and recorders[0].played == 8


def test_deep_features_go_from_one_kind_to_the_other(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    with torch.no_grad():
        for seed in range(4):
            whole, part = inputs(seed), inputs(seed + 10)
            found = unet(*whole, deep=None, return_deep=True)
            wanted = computed(unet, *whole, return_deep=True)
            again = unet(*part, deep=found.deep, return_deep=True)
            assert torch.equal(found.sample, wanted.sample) and torch.equal(found.deep, wanted.deep)
            assert torch.equal(again.sample, computed(unet, *part, deep=wanted.deep).sample)
    assert recorders[0].recorded == 2


def test_nested_inputs(recorders: list[OpRecorder]) -> None:
    unet = optimize(new_unet(**XL))
    with torch.no_grad():
        for seed in range(4):
            sample, timestep, text = inputs(seed)
            shapes = [(2, 8, 8, 8)] * 2 + [(2, 8, 4, 4), (2, 16, 4, 4)]
            given = {
                "added_cond_kwargs": {"text_embeds": text[:, 0, :6], "time_ids": text[:, 1, :6] * 100},
                "down_block_additional_residuals": [torch.full(shape, seed / 9) for shape in shapes],
                "mid_block_additional_residual": torch.full((2, 16, 4, 4), seed / 7),
            }
            assert torch.equal(
                unet(sample, timestep, text, **given)[0], computed(unet, sample, timestep, text, **given)[0]
            )
    assert recorders[0].played == 3


def test_weights_that_change_in_place(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    for seed in range(3):
        check(unet, seed)
        with torch.no_grad():
            unet.conv_out.weight.mul_(1.5)
            unet.mid_block.resnets[0].conv1.weight.add_(0.1)
    assert recorders[0].recorded == 1


def test_weights_in_another_place(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    for change in (
        lambda: None,
        lambda: unet.load_state_dict(
            {name: value * 2 for name, value in unet.state_dict().items()}, assign=True
        ),
        lambda: unet.to(torch.float64).to(torch.float32),
        lambda: setattr(unet, "conv_out", copy.deepcopy(unet.conv_out)),
        lambda: setattr(unet.conv_in, "bias", nn.Parameter(torch.ones(8))),
    ):
        change()
        before = recorders[0].recorded if recorders else 0
        for seed in range(3):
            check(unet, seed)
        assert recorders[0].recorded == before + 1


def test_what_a_recording_would_not_notice(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    check(unet, 0)
    check(unet, 1)

    heard: list[Any] = []
    hook = unet.mid_block.register_forward_hook(lambda *_: heard.append(1))
    check(unet, 2)
    assert len(heard) == 2
    hook.remove()

    plain = unet.conv_out.forward
    unet.conv_out.forward = lambda x: plain(x) * 2
    check(unet, 3)
    del unet.conv_out.forward

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        given = inputs(4)
        assert torch.equal(unet(*given)[0], computed(unet, *given)[0])

    given = inputs(5)
    assert unet(given[0].requires_grad_(), *given[1:])[0].grad_fn is not None
    assert recorders[0].played == 1

    check(unet, 6)  # and what was recorded is still good
    assert (recorders[0].recorded, recorders[0].played) == (1, 2)


def test_the_oldest_kind_is_forgotten(unet: Any, recorders: list[OpRecorder], monkeypatch: Any) -> None:
    monkeypatch.setattr(graphs, "MAX_KINDS", 2)
    optimize(unet)
    for side in (8, 8, 12, 12, 16, 16):
        check(unet, side, side=side)
    assert recorders[0].recorded == 3
    check(unet, 0, side=16)
    assert recorders[0].recorded == 3
    for _ in range(3):  # more kinds in turns than are kept: none is recorded in vain
        for side in (8, 12, 16):
            check(unet, 1, side=side)
    assert recorders[0].recorded == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("not while capturing")])
def test_what_cannot_be_recorded_is_computed(
    error: Exception, unet: Any, recorders: list[OpRecorder], monkeypatch: Any, caplog: Any
) -> None:
    optimize(unet)
    check(unet, 0)
    check(unet, 1)
    monkeypatch.setattr(OpRecorder, "error", error)
    for seed in range(4):
        check(unet, seed, side=12)
        check(unet, seed)
    assert caplog.text.count(str(error)) == 1
    assert recorders[0].recorded == 1
    assert not graphs._recordings[unet].kinds  # their memory is free


def test_memory_on_demand(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    for seed in range(3):
        check(unet, seed)
    held = weakref.ref(graphs._recordings[unet].kinds.copy().popitem()[1].inputs[0])
    release_memory()
    gc.collect()
    assert held() is None
    for seed in range(3):
        check(unet, seed)
    assert recorders[0].recorded == 2


def test_recordings_go_with_the_model(recorders: list[OpRecorder]) -> None:
    unet = optimize(new_unet())
    check(unet, 0)
    check(unet, 0)
    twin = copy.deepcopy(unet)
    for seed in range(3):
        check(twin, seed)
    assert len(recorders) == 2 and recorders[1].recorded == 1  # its weights are elsewhere
    gone = weakref.ref(unet)
    del unet
    gc.collect()
    assert gone() is None


def test_threads_take_turns(unet: Any, recorders: list[OpRecorder]) -> None:
    optimize(unet)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for seed in range(first, first + 6):
                check(unet, seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(recorders) == 1 and recorders[0].recorded == 1


def test_only_an_optimized_unet_is_recorded(unet: Any, recorders: list[OpRecorder]) -> None:
    for change, recorded in ((lambda unet: unet, 0), (optimize, 2), (restore, 0)):
        change(unet)
        for seed in range(3):
            check(unet, seed)
        assert sum(recorder.played for recorder in recorders) == recorded
        recorders.clear()
    assert type(unet) is UNet2DConditionModel
    net = optimize(nn.Linear(2, 2))
    assert type(net) is nn.Linear and is_optimized(net)


@pytest.mark.parametrize("value", [None, "0", ""])
def test_only_if_the_environment_asks_for_it(
    value: str | None, unet: Any, recorders: list[OpRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RETOUCH_CUDA_GRAPHS")
    if value is not None:
        monkeypatch.setenv("RETOUCH_CUDA_GRAPHS", value)
    optimize(unet)
    for seed in range(3):
        check(unet, seed)
    assert type(unet) is UNet2DConditionModel and not recorders


def test_not_on_a_cpu(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CUDA_GRAPHS", "1")
    assert type(optimize(unet)) is UNet2DConditionModel


@pytest.mark.parametrize(
    ("dtype", "by_pixels"), [(torch.float16, True), (torch.bfloat16, True), (torch.float32, False)]
)
def test_layers_on_a_gpu(dtype: torch.dtype, by_pixels: bool, unet: Any, recorders: list[OpRecorder]) -> None:
    values = {name: value.clone() for name, value in unet.to(dtype).state_dict().items()}
    optimize(unet)
    assert not has_optimized_layers(unet.mid_block)
    weight = unet.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == by_pixels
    assert all(torch.equal(value, values[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("free", [3, 2])
def test_what_is_asked_of_cuda(free: int, monkeypatch: Any) -> None:
    """One pool and one stream for all, other threads left alone, and each turn after the one before."""
    cuda = MagicMock()
    cuda.mem_get_info.return_value = (free * 10**9, 10 * 10**9)
    for name in ("device", "Stream", "Event", "graph_pool_handle", "current_stream", "stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "graph", cuda.graph)
    monkeypatch.setattr(torch.cuda, "mem_get_info", cuda.mem_get_info)
    recorder, calls = graphs.CudaRecorder(torch.device("cuda", 1)), []
    if free < 3:
        with pytest.raises(torch.OutOfMemoryError, match=r"leaves 2\.0 GB"), recorder.turn():
            recorder.record(lambda: calls.append(1))
        return
    for _ in range(2):
        with recorder.turn():
            play, _ = recorder.record(lambda: calls.append(1))
            play()
    assert len(calls) == 4  # each once before it is recorded
    assert cuda.CUDAGraph().replay.call_count == 2
    alike = {"pool": cuda.graph_pool_handle(), "stream": cuda.Stream(), "capture_error_mode": "thread_local"}
    assert [each.kwargs for each in cuda.graph.call_args_list] == [alike] * 2
    stream, event = cuda.current_stream(), cuda.Event()
    assert stream.wait_event.call_args_list == [call(event)] * 2
    assert event.record.call_args_list == [call(stream)] * 2
    cuda.device.assert_called_with(torch.device("cuda", 1))


# Whole pipelines.


def loaded(folder: Path, **options: Any) -> Any:
    pipeline = retouch.AutoPipelineForInpainting.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def painted(pipeline: Any, **options: Any) -> Tensor:
    place = {"generator": torch.Generator().manual_seed(1), "output_type": "pt", "num_inference_steps": 4}
    found = pipeline("a cat", image=photo(), mask_image=mask(), **(place | options)).images
    assert isinstance(found, Tensor)
    return found


@pytest.fixture(params=["tiny_sd_inpaint", "tiny_sdxl", "tiny_kandinsky_whole"])
def family(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_pictures_are_the_same(family: Path, recorders: list[OpRecorder]) -> None:
    wanted = painted(loaded(family, optimize=False))
    assert not recorders
    pipeline = loaded(family)
    assert torch.equal(painted(pipeline), wanted)
    played = recorders[0].played
    assert played >= 2
    assert torch.equal(painted(pipeline), wanted)  # the next run goes on with them
    assert (recorders[0].recorded, recorders[0].played) == (1, 2 * played + 1)
    pipeline.optimize(False)
    assert torch.equal(painted(pipeline), wanted)
    assert recorders[0].played == 2 * played + 1


def test_switches_of_a_call(tiny_sd_inpaint: Path, recorders: list[OpRecorder]) -> None:
    plain, pipeline = loaded(tiny_sd_inpaint, optimize=False), loaded(tiny_sd_inpaint)
    options = {"num_inference_steps": 8, "reuse_deep_features": 2, "guidance_interval": (0.4, 1.0)}
    assert torch.equal(painted(pipeline, **options), painted(plain, **options))
    assert recorders[0].recorded == 4  # whole and in part, with guidance and without
    assert recorders[0].played > 3


def test_lora(tiny_sd_inpaint: Path, recorders: list[OpRecorder]) -> None:
    pipeline, plain = loaded(tiny_sd_inpaint), loaded(tiny_sd_inpaint, optimize=False)
    before = painted(pipeline)
    file = peft(sides(plain, unet=""))
    for each in (pipeline, plain):
        each.load_lora_weights(dict(file))
    played = recorders[0].played
    for scale in (1.0, 0.3):
        assert torch.equal(
            painted(pipeline, cross_attention_kwargs={"scale": scale}),
            painted(plain, cross_attention_kwargs={"scale": scale}),
        )
    assert recorders[0].played == played
    pipeline.unload_lora_weights()
    assert torch.equal(painted(pipeline), before)


def test_ip_adapters(tiny_sd_inpaint: Path, recorders: list[OpRecorder]) -> None:
    pipeline, plain = loaded(tiny_sd_inpaint), loaded(tiny_sd_inpaint, optimize=False)
    file = ip_adapter(plain.unet, "plain", 0)
    for each in (pipeline, plain):
        each.image_encoder = tiny_image_encoder()
        each.load_ip_adapter(copy.deepcopy(file), None, "")
    for scale in (1.0, 0.2):
        for each in (pipeline, plain):
            each.set_ip_adapter_scale(scale)
        assert torch.equal(
            painted(pipeline, ip_adapter_image=photo()), painted(plain, ip_adapter_image=photo())
        )
    assert not recorders[0].recorded


def test_offloaded_models_are_not_recorded(
    tiny_sd_inpaint: Path, recorders: list[OpRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights are elsewhere each time, and a recording would keep memory on the GPU between calls."""
    pipeline = loaded(tiny_sd_inpaint)
    assert type(pipeline.unet) is graphs.UNet2DConditionModel
    monkeypatch.setattr(optimization, "GPUS", ["cuda"])
    monkeypatch.setattr("retouch.pipelines.parts.resolve_device", lambda device: torch.device("cuda"))
    pipeline.enable_model_cpu_offload()
    assert type(pipeline.unet) is UNet2DConditionModel and is_optimized(pipeline.unet)


def test_a_move_optimizes_for_the_place(
    tiny_sd_inpaint: Path, recorders: list[OpRecorder], monkeypatch: Any
) -> None:
    monkeypatch.setattr(optimization, "GPUS", ["cuda"])
    pipeline = loaded(tiny_sd_inpaint)
    was_optimized = has_optimized_layers(pipeline.unet)
    monkeypatch.setattr(optimization, "GPUS", ["cuda", "cpu"])
    pipeline.to("cpu", torch.bfloat16)
    weight = pipeline.unet.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not has_optimized_layers(pipeline.unet.mid_block)
    monkeypatch.setattr(optimization, "GPUS", ["cuda"])
    assert has_optimized_layers(pipeline.to("cpu").unet) == was_optimized
    assert type(pipeline.unet) is UNet2DConditionModel
    assert not has_optimized_layers(loaded(tiny_sd_inpaint, optimize=False).to("cpu").unet)


def test_saved_in_the_usual_order(tiny_sd_inpaint: Path, recorders: list[OpRecorder], tmp_path: Path) -> None:
    pipeline = loaded(tiny_sd_inpaint, dtype=torch.bfloat16)
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(painted(loaded(tmp_path, dtype=torch.bfloat16)), painted(pipeline))


# On a GPU.


def check_on_a_gpu(unet: Any, *given: Any) -> None:
    assert_close(unet(*given)[0], lambda: computed(unet, *given)[0])


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cuda_plays_what_it_computes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CUDA_GRAPHS", "1")
    unet = optimize(new_unet().to("cuda", dtype))

    def given(seed: int, **options: Any) -> list[Tensor]:
        sample, timestep, text = inputs(seed, **options)
        return [sample.to("cuda", dtype), timestep.to("cuda"), text.to("cuda", dtype)]

    with torch.no_grad():
        for side in (8, 16, 8):
            for seed in range(4):
                check_on_a_gpu(unet, *given(seed, side=side))
        unet.conv_out.weight.mul_(2)
        check_on_a_gpu(unet, *given(7))
    kinds = graphs._recordings[unet].kinds
    assert len(kinds) == 2 and all(kinds.values()) and not graphs._recordings[unet].has_failed


@needs_gpu
def test_cuda_in_threads_and_after_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CUDA_GRAPHS", "1")
    unet = optimize(new_unet().to("cuda"))
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                for seed in range(first, first + 5):
                    check_on_a_gpu(unet, *[part.to("cuda") for part in inputs(seed)])
        except BaseException as error:
            failures.append(error)

    for _ in range(2):
        threads = [threading.Thread(target=work, args=(10 * number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        release_memory()


@needs_gpu
def test_cuda_paints_the_same(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CUDA_GRAPHS", "1")
    options = {"dtype": torch.float16}
    plain = loaded(family, optimize=False, **options).to("cuda")
    pipeline = loaded(family, **options).to("cuda")
    weight = next(value for value in pipeline.unet.parameters() if value.ndim == 4 and min(value.shape) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        assert_close(painted(pipeline), lambda: painted(plain))
    assert not graphs._recordings[pipeline.unet].has_failed
