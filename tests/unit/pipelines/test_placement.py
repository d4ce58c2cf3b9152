"""Where models live: what is borrowed comes back, whoever else uses it and whatever happens meanwhile."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from closeness import assert_close
from pipeline_pairs import load, mask, photo
from torch import nn

import retouch
from retouch.errors import DeviceError
from retouch.pipelines.placement import ModelOffload, Resident, SequentialOffload

CPU = torch.device("cpu")
# For layers moved one at a time another dtype serves as the accelerator: input of that dtype runs
# through a layer only if its weights are there, too.
ACCELERATOR: Any = torch.float64


class Recorded(nn.Module):
    """A model that notes where it is sent."""

    def __init__(self, fails_on: str = "") -> None:
        super().__init__()
        self.moves: list[str] = []
        self.fails_on = fails_on

    def to(self, device: Any) -> Any:
        self.moves.append(str(device))
        if str(device) == self.fails_on:
            raise torch.cuda.OutOfMemoryError("it is full")
        return self


def offload_of(**parts: nn.Module) -> ModelOffload:
    return ModelOffload(SimpleNamespace(**parts), torch.device("cuda"))


def hooks_in(module: nn.Module) -> int:
    return sum(len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in module.modules())


def test_resident_moves_nothing() -> None:
    unet = Recorded()
    with Resident(SimpleNamespace(unet=unet), CPU).using("unet") as used:
        assert used is unet
    assert unet.moves == []


def test_a_model_is_brought_and_sent_home() -> None:
    unet, vae = Recorded(), Recorded()
    placement = offload_of(unet=unet, vae=vae)
    with placement.using("unet") as used:
        assert used is unet and unet.moves == ["cuda"] and vae.moves == []
    assert unet.moves == ["cuda", "cpu"]


def test_a_model_is_sent_home_when_its_user_fails() -> None:
    unet = Recorded()
    with pytest.raises(ZeroDivisionError), offload_of(unet=unet).using("unet"):
        raise ZeroDivisionError
    assert unet.moves == ["cuda", "cpu"]


def test_a_model_is_sent_home_when_there_is_no_room_for_it() -> None:
    unet = Recorded(fails_on="cuda")
    placement = offload_of(unet=unet)
    for _ in range(2):
        unet.moves.clear()
        with pytest.raises(torch.cuda.OutOfMemoryError), placement.using("unet"):
            pass
        assert unet.moves == ["cuda", "cpu"]


def test_a_model_stays_while_anyone_uses_it() -> None:
    unet = Recorded()
    placement = offload_of(unet=unet)
    elsewhere = placement.shared_by(SimpleNamespace(unet=unet))
    first, second, third = placement.using("unet"), placement.using("unet"), elsewhere.using("unet")
    for context in (first, second, third):
        context.__enter__()
    first.__exit__(None, None, None)
    third.__exit__(None, None, None)
    assert unet.moves == ["cuda"]
    second.__exit__(None, None, None)
    assert unet.moves == ["cuda", "cpu"]


def two_layers() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2)))


def test_one_layer_at_a_time() -> None:
    model = two_layers()
    placement = SequentialOffload(SimpleNamespace(unet=model), ACCELERATOR)
    dtypes: list[list[torch.dtype]] = []

    def look(layer: nn.Module, args: Any) -> None:
        dtypes.append([parameter.dtype for parameter in model.parameters()])

    homes = [parameter.data_ptr() for parameter in model.parameters()]
    x = torch.randn(5, 3)
    with placement.using("unet") as unet:
        model[0].register_forward_pre_hook(look)
        model[1][1].register_forward_pre_hook(look)
        found = unet(x.double())
        assert next(model.parameters()).dtype == torch.float32
    here, there = torch.float32, torch.float64
    assert dtypes == [[there, there, here, here], [here, here, there, there]]
    assert_close(found.float(), lambda: model(x))
    assert homes == [parameter.data_ptr() for parameter in model.parameters()]
    assert hooks_in(model) == 2  # those of this test


def test_a_layer_comes_back_when_it_fails() -> None:
    model = two_layers()
    placement = SequentialOffload(SimpleNamespace(unet=model), ACCELERATOR)
    with pytest.raises(RuntimeError), placement.using("unet") as unet:
        unet(torch.randn(5, 7).double())
    assert hooks_in(model) == 0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with placement.using("unet") as unet:  # and nothing stays locked
        unet(torch.randn(5, 3).double())


def test_two_runs_of_one_thread_take_turns_layer_by_layer() -> None:
    model = two_layers()
    placement = SequentialOffload(SimpleNamespace(unet=model), ACCELERATOR)
    elsewhere = placement.shared_by(SimpleNamespace(unet=model))
    with placement.using("unet") as first, elsewhere.using("unet") as second:
        assert torch.equal(first(torch.ones(1, 3).double()), second(torch.ones(1, 3).double()))
    assert hooks_in(model) == 0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_two_threads_share_a_model() -> None:
    model = two_layers()
    placement = SequentialOffload(SimpleNamespace(unet=model), ACCELERATOR)
    inputs = [torch.randn(2, 3) for _ in range(4)]
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        for _ in range(20):
            with torch.no_grad(), placement.using("unet") as unet:
                found[number] = unet(inputs[number].double())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [found[number].float() for number in range(4)]
    assert_close(results, lambda: [model(x) for x in inputs])
    assert hooks_in(model) == 0


def test_a_copy_made_meanwhile_works_by_itself() -> None:
    """As the float32 copy of a VAE is made, in the middle of its use."""
    model = two_layers()
    placement = SequentialOffload(SimpleNamespace(vae=model), ACCELERATOR)
    with placement.using("vae") as vae:
        twin = copy.deepcopy(vae)
        nn.init.zeros_(vae[1][1].weight)
        changed, kept = vae(torch.ones(1, 3).double()), twin(torch.ones(1, 3).double())
    assert_close(kept.float(), lambda: two_layers()(torch.ones(1, 3)))
    assert not torch.allclose(changed, kept)


@pytest.fixture
def pipeline(tiny_sd_inpaint: Path) -> Any:
    return retouch.StableDiffusionInpaintPipeline.from_pipe(
        load(retouch, "StableDiffusionInpaintPipeline", tiny_sd_inpaint)
    )


def picture_of(pipeline: Any, **changes: Any) -> Any:
    arguments = {"image": photo(), "mask_image": mask(), "num_inference_steps": 3, "output_type": "pt"}
    source = torch.Generator().manual_seed(1)
    return pipeline("a cat", **{**arguments, **changes}, generator=source).images


@pytest.mark.parametrize("strategy", [ModelOffload, SequentialOffload])
def test_a_pipeline_gives_the_same_picture(pipeline: Any, strategy: Any) -> None:
    # transformers leaves some of its own in a text encoder that was asked for other layers.
    before = [hooks_in(part) for part in pipeline._modules().values()]
    pipeline.placement = strategy(pipeline, CPU)
    # Layers with hooks compute one by one, not as a part of another, which rounds differently.
    found = picture_of(pipeline)
    pipeline.placement = Resident(pipeline, CPU)
    assert_close(found, lambda: picture_of(pipeline))
    pipeline.placement = strategy(pipeline, CPU)
    pipeline.optimize(False)
    before = [hooks_in(part) for part in pipeline._modules().values()]
    plainly = picture_of(pipeline)
    pipeline.placement = Resident(pipeline, CPU)
    assert torch.equal(picture_of(pipeline), plainly)
    assert [hooks_in(part) for part in pipeline._modules().values()] == before


def test_a_pipeline_has_one_model_at_a_time_on_the_accelerator(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[str] = []
    log: list[str] = []
    names = {id(part): name for name, part in pipeline._modules().items()}
    move = nn.Module.to

    def record(module: nn.Module, device: Any = None, **other: Any) -> nn.Module:
        name = names.get(id(module))
        if name is not None:
            arrives = isinstance(device, torch.device)  # home is named by a string
            (there.append if arrives else there.remove)(name)
            log.append(name) if arrives else None
            assert len(there) <= 1
        return move(module, device, **other)

    monkeypatch.setattr(nn.Module, "to", record)
    pipeline.placement = ModelOffload(pipeline, CPU)
    picture_of(pipeline)
    assert there == []
    assert list(dict.fromkeys(log)) == ["text_encoder", "vae", "unet"] and log[-1] == "vae"


@pytest.mark.parametrize("strategy", [ModelOffload, SequentialOffload])
def test_a_failing_pipeline_leaves_nothing_behind(pipeline: Any, strategy: Any) -> None:
    pipeline.placement = placement = strategy(pipeline, CPU)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        picture_of(pipeline, callback_on_step_end=fail)
    assert not placement._users
    with pipeline.start("a cat", image=photo(), mask_image=mask(), num_inference_steps=3) as run:
        next(run)
        assert list(placement._users) == [pipeline.unet]
    assert not placement._users
    assert hooks_in(pipeline.unet) == 0


def test_another_front_shares_the_count(pipeline: Any) -> None:
    pipeline.placement = ModelOffload(pipeline, CPU)
    other = retouch.StableDiffusionInpaintPipeline.from_pipe(pipeline)
    assert isinstance(other.placement, ModelOffload) and other.placement.owner is other
    with other.placement.using("unet"):
        assert list(pipeline.placement._users) == [pipeline.unet]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
class TestWithoutAccelerator:
    def test_offload_is_a_quiet_no_op(self, pipeline: Any) -> None:
        pipeline.enable_model_cpu_offload()
        pipeline.enable_sequential_cpu_offload()
        pipeline.enable_model_cpu_offload(gpu_id=0)
        assert type(pipeline.placement) is Resident and pipeline.device == CPU

    def test_a_device_by_name_must_be_there(self, pipeline: Any) -> None:
        with pytest.raises(DeviceError, match=r"'cuda' is not on this machine.*cpu"):
            pipeline.to("cuda")
        with pytest.raises(DeviceError, match="cuda"):
            pipeline.enable_model_cpu_offload(device="cuda:3")
        assert pipeline.device == CPU
