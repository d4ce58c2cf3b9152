"""A packed weight is in memory once, and code that looks at it gets the plain parameter, bit for bit."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from optimized_layers import packed_layers
from torch import nn

from retouch.kernels import optimize, restore, weight_samples
from retouch.kernels.cpu import onednn
from retouch.models import attention, layers

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="torch has no oneDNN for this processor")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 32, 3, padding=1)
        self.up = layers.Upsample2D(32)
        self.conv = nn.Conv2d(32, 20, 3, stride=2, padding=1)
        self.ff = attention.FeedForward(20)
        self.out = nn.Linear(20, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.ff(attention.to_tokens(self.conv(self.up(self.conv_in(x))))))


PACKED = ["up.conv", "conv", "ff.net.0.proj", "ff.net.2", "out"]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not onednn.computes(request.param):
        pytest.skip("not native here")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def plain(dtype: torch.dtype) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype).eval()


@pytest.fixture
def net(plain: Net) -> Net:
    return optimize(copy.deepcopy(plain))


@pytest.fixture
def x(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x)


def assert_same_state(net: nn.Module, plain: nn.Module) -> None:
    found, wanted = net.state_dict(), plain.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(found[name].is_contiguous() for name in wanted)


def test_the_first_call_puts_weights_in_order(net: Net, x: torch.Tensor) -> None:
    assert packed_layers(net) == []
    first = run(net, x)
    assert packed_layers(net) == PACKED
    assert torch.equal(run(net, x), first)


def test_the_plain_weights_are_gone_meanwhile(net: Net, x: torch.Tensor) -> None:
    parameters = [weakref.ref(parameter) for name, parameter in net.named_parameters() if "weight" in name]
    run(net, x)
    gc.collect()
    assert sum(parameter() is not None for parameter in parameters) == len(parameters) - len(PACKED)


@pytest.mark.parametrize(
    "look",
    [
        lambda net: net.state_dict(),
        lambda net: list(net.named_parameters()),
        lambda net: (
            (net.conv.weight, net.ff.net[0].proj.weight, net.up.conv.weight, net.ff.net[2].weight)
            and net.out.weight
        ),
        lambda net: net.requires_grad_(False),
        lambda net: net.to(torch.float64),
    ],
    ids=["state_dict", "parameters", "weight", "requires_grad_", "to"],
)
def test_looking_gives_them_back(net: Net, plain: Net, x: torch.Tensor, look: Any) -> None:
    first = run(net, x)
    look(net)
    assert packed_layers(net) == []
    assert_same_state(net.to(x.dtype), plain)
    gc.collect()
    assert torch.equal(run(net, x), first)
    assert packed_layers(net) == PACKED


def test_the_dtype_and_device_of_a_model_are_told_without(net: Net, x: torch.Tensor) -> None:
    run(net, x)
    assert next(net.parameters()).dtype == x.dtype
    assert packed_layers(net) == PACKED


def test_a_weight_is_the_same_to_the_bit(net: Net, plain: Net, x: torch.Tensor) -> None:
    for _ in range(3):
        run(net, x)
        assert_same_state(net, plain)


def test_whether_it_is_trained_is_kept(net: Net, x: torch.Tensor) -> None:
    net.conv.weight.requires_grad_(False)
    run(net, x)
    assert not net.conv.weight.requires_grad and net.out.weight.requires_grad
    assert type(net.out.weight) is nn.Parameter and not net.out.weight.is_inference()


def test_after_inference_mode_it_can_be_trained(net: Net, x: torch.Tensor) -> None:
    with torch.inference_mode():
        net(x)
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_changes_count(net: Net, x: torch.Tensor) -> None:
    first = run(net, x)
    with torch.no_grad():
        net.out.weight.mul_(2)
    assert torch.equal(run(net, x), 2 * first)
    net.out.weight.data *= 2
    assert torch.equal(run(net, x), 4 * first)
    net.out.weight = nn.Parameter(torch.zeros_like(net.out.weight))
    assert not run(net, x).any()


def test_what_an_optimizer_holds_stays(net: Net, x: torch.Tensor) -> None:
    """Else its steps would change tensors that nobody uses any more."""
    run(net, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    before = run(net, x)
    assert packed_layers(net) == []
    net(x).sum().backward()
    run(net, x)
    optimizer.step()
    assert not torch.equal(run(net, x), before)
    del optimizer
    net.zero_grad()
    gc.collect()
    run(net, x)
    assert packed_layers(net) == PACKED


def test_a_weight_in_somebodys_hand_stays(net: Net, plain: Net, x: torch.Tensor) -> None:
    weight = net.out.weight
    wanted = run(net, x)
    assert packed_layers(net) == PACKED[:-1]
    assert torch.equal(weight, plain.out.weight) and net.out.weight is weight
    with torch.no_grad():
        weight.zero_()
    assert not run(net, x).any() and wanted.any()


def test_loading(net: Net, plain: Net, x: torch.Tensor) -> None:
    first = run(net, x)
    halved = {name: value / 2 for name, value in plain.state_dict().items()}
    for assign in (False, True):
        net.load_state_dict(halved, assign=assign)
        changed = run(net, x)
        assert not torch.equal(changed, first)
        net.load_state_dict(plain.state_dict(), assign=assign)
        gc.collect()
        assert torch.equal(run(net, x), first)


def test_copies(net: Net, plain: Net, x: torch.Tensor) -> None:
    first = run(net, x)
    twin = copy.deepcopy(net)
    run(net, x)
    with torch.no_grad():
        twin.out.weight.zero_()
    assert not run(twin, x).any() and torch.equal(run(net, x), first)
    assert_same_state(net, plain)
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(run(again, x), first) and packed_layers(again) == PACKED


def test_shared_weights_stay_shared(x: torch.Tensor) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).to(x.dtype)
    net[1].weight = net[0].weight
    optimize(net)
    run(net, x)
    assert net[1].weight is net[0].weight


def test_threads_that_compute_and_look(net: Net, plain: Net, x: torch.Tensor) -> None:
    wanted = run(plain, x).double()
    faults: list[str] = []

    def compute() -> None:
        for _ in range(30):
            if (run(net, x).double() - wanted).abs().max() > 0.02:
                faults.append("another result")

    def look() -> None:
        for _ in range(30):
            state = net.state_dict()
            if not all(torch.equal(state[name], value) for name, value in plain.state_dict().items()):
                faults.append("other weights")

    def guarded(work: Any) -> None:
        try:
            work()
        except Exception as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (compute, look, compute)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_samples_tell_of_a_change_and_leave_a_kept_weight_where_it_is() -> None:
    layer = optimize(nn.Sequential(nn.Linear(32, 48)))
    before = torch.cat(weight_samples(layer))
    with torch.no_grad():
        layer(torch.randn(2, 32))
        assert layer[0].__dict__["_packed"] is not None
        assert torch.equal(torch.cat(weight_samples(layer)), before)
        assert layer[0].__dict__["_packed"] is not None
        layer[0].weight[0, 0] += 1
    assert not torch.equal(torch.cat(weight_samples(layer)), before)


class Failing(nn.Module):
    """A net whose call fails before its first layer."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError


def fail(net: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        net(x)


def test_all_weights_are_packed_ahead_of_a_call(plain: Net, x: torch.Tensor) -> None:
    """Packed one by one between the results of layers, they would leave holes in memory."""
    net = copy.deepcopy(plain)
    net.pointwise = nn.Conv2d(32, 20, 1).to(x.dtype)
    model = optimize(Failing(net))
    fail(model, x)
    before = {name: vars(layer)["_packed"] for name, layer in net.named_modules() if "_packed" in vars(layer)}
    assert sorted(before) == sorted([*PACKED, "pointwise"])
    with torch.no_grad():
        run(net, x)
        net.pointwise(net.conv_in(x))
    fail(model, x)
    after = {name: vars(net.get_submodule(name))["_packed"] for name in before}
    assert all(after[name] is before[name] for name in before), "nothing is packed twice"
    del net.pointwise
    assert_same_state(net, plain)


def test_packing_ahead_leaves_plain_models_and_referred_weights_alone(plain: Net, x: torch.Tensor) -> None:
    model = optimize(Failing(copy.deepcopy(plain)))
    held = model.net.out.weight
    fail(model, x)
    assert packed_layers(model.net) == PACKED[:-1] and model.net.out.weight is held
    weights = list(plain.parameters())
    fail(restore(model), x)
    fail(Failing(plain), x)
    assert packed_layers(model.net) == []
    assert all(mine is theirs for mine, theirs in zip(plain.parameters(), weights, strict=True))


def test_calls_that_use_plain_weights_pack_nothing(plain: Net, x: torch.Tensor) -> None:
    model = optimize(Failing(copy.deepcopy(plain)))
    for context in (torch.enable_grad(), torch.autocast("cpu", torch.bfloat16)):
        with context, pytest.raises(ZeroDivisionError):
            model(x)
    fail(model, x.double())
    assert packed_layers(model.net) == []
