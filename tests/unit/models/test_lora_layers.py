"""Layers with updates: what they compute, and that nothing of it is left once the updates are gone."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from closeness import assert_close
from lora_files import Side, merged, sides
from optimized_layers import packed_layers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from retouch.checkpoints.lora import Update
from retouch.kernels import optimize, restore
from retouch.kernels.cpu import onednn
from retouch.models import lora
from retouch.pipelines.placement import SequentialOffload


class Net(nn.Module):
    """A convolution of each kind, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.same = nn.Conv2d(6, 5, 3, padding=2, dilation=2, bias=False)
        self.point = nn.Conv2d(5, 4, 1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.point(self.same(self.halve(x))).flatten(2).transpose(1, 2))


def updates(seed: int = 0) -> dict[str, Side]:
    """Of another rank and alpha for each layer."""
    return dict(sides(SimpleNamespace(unet=Net()), rank=[2, 3, 1], alpha=[1.0, 4.0], seed=seed)["unet"])


def attach(net: nn.Module, name: str, of_layers: dict[str, Side], weight: float = 1.0) -> None:
    made = {
        layer: Update(side.down, side.up.flatten(1), side.alpha / len(side.down))
        for layer, side in of_layers.items()
    }
    lora.attach(net, name, made)
    lora.use(net, {name: weight})


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 9, 8)


def output(net: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """What a net with these weights gives."""
    other = Net()
    other.load_state_dict(state)
    return other(x)


def test_it_is_as_if_the_product_were_added_to_the_weights(net: Net, x: Tensor) -> None:
    plain = net(x)
    attach(net, "a", updates(), weight=0.5)
    assert (net(x) - plain).abs().max() > 0.1
    assert_close(net(x), lambda: output(net, merged(net, updates(), 0.5), x))


def test_several_at_once(net: Net, x: Tensor) -> None:
    first, second = updates(), {name: side for name, side in updates(1).items() if name != "same"}
    attach(net, "a", first)
    attach(net, "b", second)
    lora.use(net, {"b": 0.3, "a": -2.0})
    state = merged(net, first, -2.0)
    also = merged(net, second, 0.3)
    plain = net.state_dict()
    both = {name: state[name] + also[name] - plain[name] for name in state}
    assert_close(net(x), lambda: output(net, both, x))
    assert lora.adapters(net) == ["a", "b"] and lora.active(net) == ["b", "a"]
    lora.detach(net, ["a"])
    assert_close(net(x), lambda: output(net, also, x))
    assert type(net.same) is nn.Conv2d  # it had updates of the first alone


def test_the_state_dict_is_that_of_the_plain_model(net: Net, x: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names = [name for name, _ in net.named_parameters()]
    attach(net, "a", updates())
    after = net.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in net.named_parameters()] == names
    other = Net()
    attach(other, "a", updates())
    other.load_state_dict(before, strict=True)
    assert torch.equal(other(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_comes_back_bit_for_bit(net: Net, x: Tensor, dtype: torch.dtype) -> None:
    net, x = net.to(dtype), x.to(dtype)
    plain, before = net(x), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kinds = [(type(layer), sorted(vars(layer))) for layer in net.modules()]
    attach(net, "a", updates())
    apart = net(x)
    for layer in lora.adapted(net):
        layer.fuse(["a"], 0.5)
        layer.fuse(["a"], 0.5)  # it is in already
    assert lora.fused(net) == ["a"]
    same = net_of(merged(net_of(before), updates(), 0.5)).to(dtype)
    assert_close(net(x), lambda: same(x))
    for layer in lora.adapted(net):
        layer.unfuse()
    assert torch.equal(net(x), apart)
    lora.detach(net)
    after = net.state_dict()
    assert torch.equal(net(x), plain) and all(torch.equal(after[name], before[name]) for name in before)
    assert [(type(layer), sorted(vars(layer))) for layer in net.modules()] == kinds


def net_of(state: dict[str, Tensor]) -> Net:
    net = Net()
    net.load_state_dict(state)
    return net


def test_fused_beside_another(net: Net, x: Tensor) -> None:
    attach(net, "a", updates())
    for layer in lora.adapted(net):
        layer.fuse(["a"], 1.0)
    attach(net, "b", updates(1))
    second = merged(net, updates(1))  # on top of the weights that have the first in them
    assert_close(net(x), lambda: output(net, second, x))


def test_copies_and_dtypes(net: Net, x: Tensor) -> None:
    attach(net, "a", updates())
    expected = net(x)
    twin = copy.deepcopy(net)
    lora.detach(net)
    assert torch.equal(twin(x), expected)
    single = copy.deepcopy(twin)
    assert_close(twin.double()(x.double()).float(), lambda: single(x))
    lora.use(twin, {"a": 0.5})
    assert_close(twin(x.double()).float(), lambda: output(twin, merged(net, updates(), 0.5), x))


def test_moved_one_layer_at_a_time(net: Net, x: Tensor) -> None:
    """float64 in the place of an accelerator: a layer runs only if all that it needs is there."""
    attach(net, "a", updates())
    expected = net(x)
    accelerator: Any = torch.float64
    placement = SequentialOffload(SimpleNamespace(unet=net), accelerator)
    with placement.using("unet") as unet:
        found = unet(x.double()).float()
    assert_close(found, lambda: net(x))
    assert torch.equal(net(x), expected)


def test_a_rescaled_copy(net: Net, x: Tensor) -> None:
    attach(net, "a", updates())
    whole, attributes = net(x), [sorted(vars(layer)) for layer in net.modules()]
    half = lora.rescaled(net, 0.5)
    assert_close(half(x), lambda: output(net, merged(net, updates(), 0.5), x))
    assert_close(lora.rescaled(net, 0.0)(x), lambda: output(net, net.state_dict(), x))
    assert_close(lora.rescaled(half, -4.0)(x), lambda: output(net, merged(net, updates(), -2.0), x))
    assert torch.equal(net(x), whole)
    assert [sorted(vars(layer)) for layer in net.modules()] == attributes
    assert {id(part) for part in half.parameters()} == {id(part) for part in net.parameters()}
    assert half.linear.weight is net.linear.weight and half.linear.out_features == 3


def test_nothing_to_rescale(net: Net) -> None:
    assert lora.rescaled(net, 0.5) is net
    attach(net, "a", updates())
    assert lora.rescaled(net, 1.0) is net and lora.rescaled(net, None) is net
    lora.detach(net)
    assert lora.rescaled(net, 0.5) is net


def test_a_copy_follows_changes_of_the_adapters(net: Net, x: Tensor) -> None:
    plain = net(x)
    attach(net, "a", updates())
    half = lora.rescaled(net, 0.5)
    lora.use(net, {"a": 3.0})
    torch.testing.assert_close(half(x), output(net, merged(net, updates(), 1.5), x))
    lora.detach(net)
    assert torch.equal(half(x), plain)


def test_threads_with_different_scales(x: Tensor) -> None:
    """Each gets what it would get alone, plain and optimized."""
    net = nn.Sequential(Net(), nn.Linear(3, 40), nn.Linear(40, 20)).eval()
    attach(net, "a", {f"0.{name}": side for name, side in updates().items()})
    for change in (restore, optimize):
        change(net)
        scales = [0.0, 0.25, 1.0, -3.0]
        with torch.no_grad():
            alone = [lora.rescaled(net, scale)(x) for scale in scales]
        assert len({tuple(result.flatten().tolist()) for result in alone}) == len(scales)
        wrong: list[float] = []

        def work(scale: float, wanted: Tensor, wrong: list[float] = wrong) -> None:
            with torch.no_grad():
                for _ in range(30):
                    if not torch.equal(lora.rescaled(net, scale)(x), wanted):
                        wrong.append(scale)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(scales, alone, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.skipif(not onednn.is_available(), reason="torch has no oneDNN for this processor")
def test_a_copy_of_an_optimized_model_shares_the_packed_weights(x: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Flatten(2), nn.Linear(20, 7)).eval()
    wanted = copy.deepcopy(net)
    attach(net, "a", dict(sides(SimpleNamespace(unet=net))["unet"]))
    attach(wanted, "a", dict(sides(SimpleNamespace(unet=net))["unet"]))
    optimize(net)
    with torch.no_grad():
        net(x)
        packed = [vars(layer)["_packed"] for layer in (net[1], net[3])]
        assert all(packed)
        torch.testing.assert_close(lora.rescaled(net, 0.5)(x), lora.rescaled(wanted, 0.5)(x))
        assert all(vars(layer)["_packed"] is own for layer, own in zip((net[1], net[3]), packed, strict=True))
    net.state_dict()  # which unpacks
    with torch.no_grad():
        lora.rescaled(net, 0.5)(x)
    assert packed_layers(net) == ["1", "3"], "the copy packs for the model"


def test_hooks_of_the_model_run_in_a_copy(net: Net, x: Tensor) -> None:
    attach(net, "a", updates())
    calls: list[str] = []
    net.register_forward_hook(lambda *_: calls.append("net"))
    net.point.register_forward_pre_hook(lambda *_: calls.append("layer"))
    half = lora.rescaled(net, 0.5)
    half.register_forward_hook(lambda *_: calls.append("copy"))
    half(x)
    assert calls == ["layer", "net", "copy"]
    calls.clear()
    net(x)
    assert calls == ["layer", "net"]


def test_a_copy_moved_one_layer_at_a_time(net: Net, x: Tensor) -> None:
    attach(net, "a", updates())
    expected = lora.rescaled(net, 0.5)(x)
    accelerator: Any = torch.float64
    placement = SequentialOffload(SimpleNamespace(unet=net), accelerator)
    with placement.using("unet") as unet:
        torch.testing.assert_close(lora.rescaled(unet, 0.5)(x.double()).float(), expected)
    assert torch.equal(lora.rescaled(net, 0.5)(x), expected)
    assert all(tensor.dtype == torch.float32 for tensor in (*net.parameters(), *net.buffers()))


TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
@pytest.mark.parametrize("is_first", [True, False], ids=["copied first", "called first"])
def test_a_text_encoder_of_transformers(is_first: bool, kind: Any) -> None:
    """It collects hidden states by hooks of its own, which must be there once in the model and in a copy."""
    torch.manual_seed(0)
    model = kind(CLIPTextConfig(**TEXT, vocab_size=50)).eval()
    given = {"input_ids": torch.randint(3, 48, (2, 9)), "output_hidden_states": True}
    side = dict(sides(SimpleNamespace(text_encoder=model))["text_encoder"])
    # One layer is left without updates, so a copy could share more of it.
    attach(model, "a", {name: part for name, part in side.items() if ".layers.1." not in name})
    with torch.no_grad():
        whole = None if is_first else model(**given)
        half = lora.rescaled(model, 0.5)(**given)
        again = model(**given)
        lora.use(model, {"a": 0.5})
        wanted = model(**given)
    assert len(half.hidden_states) == len(again.hidden_states) == 4
    torch.testing.assert_close(half.hidden_states, wanted.hidden_states)
    assert not torch.allclose(half[0], again[0], atol=1e-3)
    assert whole is None or torch.equal(whole[0], again[0])


def test_a_compiled_model_notices(net: Net, x: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)

    def check() -> None:
        assert torch.equal(compiled(x), net(x))
        for scale in (0.5, 0.0):
            assert torch.equal(lora.rescaled(compiled, scale)(x), lora.rescaled(net, scale)(x))

    with torch.no_grad():
        check()
        plain = net(x)
        attach(net, "a", updates())
        assert not torch.equal(compiled(x), plain)
        check()
        attach(net, "b", updates(1))
        lora.use(net, {"a": 0.3, "b": 1.0})
        check()
        lora.detach(net)
        check()
        assert torch.equal(compiled(x), plain)
