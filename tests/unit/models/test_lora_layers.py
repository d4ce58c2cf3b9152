"""Layers with updates: what they compute, and that nothing of it is left once the updates are gone."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from closeness import assert_close
from lora_files import Side, merged, sides
from torch import Tensor, nn

from retouch.checkpoints.lora import Update
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


def test_the_scale_of_a_call(net: Net, x: Tensor) -> None:
    attach(net, "a", updates())
    whole = net(x)
    with lora.scaled(0.5), lora.scaled(None):
        assert_close(net(x), lambda: output(net, merged(net, updates(), 0.5), x))
        with lora.scaled(0.0):
            assert_close(net(x), lambda: output(net, net.state_dict(), x))
    with pytest.raises(ZeroDivisionError), lora.scaled(3.0):
        raise ZeroDivisionError
    assert torch.equal(net(x), whole)


def test_a_compiled_model_notices(net: Net, x: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)

    def check() -> None:
        for scale in (1.0, 0.5, 0.25, 0.0):
            with lora.scaled(scale):
                assert torch.equal(compiled(x), net(x))

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
