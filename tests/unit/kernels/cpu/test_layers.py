"""Optimized layers against the plain ones in float64, and which calls use them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from closeness import assert_close
from optimized_layers import has_optimized_layers
from torch import Tensor, nn

from retouch.kernels import optimize, restore
from retouch.kernels.cpu import layers as optimized, onednn
from retouch.models import attention, layers

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="torch has no oneDNN for this processor")

DTYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(
        torch.bfloat16,
        id="bfloat16",
        marks=pytest.mark.skipif(not onednn.computes(torch.bfloat16), reason="no bfloat16 here"),
    ),
]


def seeded(layer: nn.Module) -> nn.Module:
    for number, parameter in enumerate(layer.parameters()):
        draw = torch.Generator().manual_seed(number)
        parameter.data.normal_(0, parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5, generator=draw)
    return layer.eval()


CASES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "linear": (lambda: nn.Linear(37, 53), [(2, 5, 37), (1, 37), (7, 1, 2, 37), (1, 300, 37)]),
    "linear without bias": (lambda: nn.Linear(64, 64, bias=False), [(1, 3, 64), (4, 9, 64)]),
    "3x3": (lambda: nn.Conv2d(20, 36, 3, padding=1), [(2, 20, 9, 7), (1, 20, 1, 1), (3, 20, 64, 5)]),
    "1x1": (lambda: nn.Conv2d(32, 48, 1), [(1, 32, 8, 8), (2, 32, 5, 3)]),
    "strided": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), [(2, 16, 9, 8), (1, 16, 2, 3)]),
    "dilated": (lambda: nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False), [(1, 16, 11, 6)]),
    "few channels in": (lambda: nn.Conv2d(4, 32, 3, padding=1), [(2, 4, 8, 8), (1, 4, 7, 9)]),
    "few channels out": (lambda: nn.Conv2d(32, 3, 3, padding=1), [(2, 32, 8, 8)]),
    "upsample": (lambda: layers.Upsample2D(24), [(2, 24, 5, 7), (1, 24, 1, 1), (1, 24, 16, 8)]),
    "gated": (lambda: attention.GEGLU(24, 40), [(2, 9, 24), (1, 1, 24)]),
    "feed forward": (lambda: attention.FeedForward(32), [(2, 600, 32), (1, 40, 32), (3, 1024, 32)]),
    "attention": (lambda: attention.Attention(48, heads=3, dim_head=16), [(2, 33, 48), (1, 200, 48)]),
    "resnet": (lambda: layers.ResnetBlock2D(32, 64, groups=8, eps=1e-5), [(2, 32, 6, 10), (1, 32, 3, 3)]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_plain_layers(name: str, dtype: torch.dtype) -> None:
    make, shapes = CASES[name]
    plain, layer = seeded(make()).to(dtype), optimize(seeded(make()).to(dtype))
    assert has_optimized_layers(layer)
    inputs = [
        torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)
        for number, shape in enumerate([*shapes, *shapes[:1]])  # one layer, another batch and size each time
    ]
    with torch.no_grad():
        found = [layer(x) for x in inputs]
        assert_close(found, lambda: [plain(x) for x in inputs])
        assert all(torch.equal(result, layer(x)) for result, x in zip(found, inputs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_other_orders(dtype: torch.dtype) -> None:
    linear, convolution = nn.Linear(24, 40), nn.Conv2d(24, 40, 3, padding=1)
    tokens = torch.randn(2, 24, 30).to(dtype).transpose(1, 2)
    image = torch.randn(2, 9, 8, 24).to(dtype).permute(0, 3, 1, 2)[:, :, ::2, 1:]
    kinds, inputs = (linear, convolution, layers.Upsample2D(24)), (tokens, image, image)
    plain = [seeded(layer).to(dtype) for layer in kinds]
    faster = [optimize(copy.deepcopy(layer)) for layer in plain]
    with torch.no_grad():
        assert_close(
            [layer(x) for layer, x in zip(faster, inputs, strict=True)],
            lambda: [layer(x) for layer, x in zip(plain, inputs, strict=True)],
        )


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of oneDNN's functions are called, in order."""
    seen: list[str] = []
    for name in ("linear", "linear_times", "convolution"):
        real = getattr(onednn, name)

        def spy(*args: Any, name: str = name, real: Any = real) -> Any:
            seen.append(name)
            return real(*args)

        monkeypatch.setattr(onednn, name, spy)
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "linear": ["linear"],
        "3x3": ["convolution"],
        "1x1": ["linear"],
        "strided": ["convolution"],
        "upsample": ["convolution"] * 4,
        "gated": ["linear", "linear_times"],
        "attention": ["linear"] * 4,
        "few channels in": [],
    }.items(),
)
def test_the_other_kernels_are_used(name: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make, shapes = CASES[name]
    layer, x, seen = optimize(make()), torch.randn(shapes[0]), calls(monkeypatch)
    with torch.no_grad():
        layer(x)
    assert seen == expected
    with torch.inference_mode():
        layer(x)
    assert seen == 2 * expected


def test_whoever_wants_gradients_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, seen = nn.Linear(16, 16), torch.randn(3, 16), calls(monkeypatch)
    layer(x).sum().backward()
    wanted = layer.weight.grad.clone()
    layer.zero_grad()
    optimize(layer)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert seen == ["linear"]
    assert torch.equal(layer.weight.grad, wanted)
    with torch.no_grad():
        layer(x)
    assert torch.equal(layer.weight.grad, wanted), "a gradient is not lost by a look at how far one is"


def test_other_dtypes_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    layer, x = optimize(nn.Linear(16, 16).double()), torch.randn(3, 16, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        layer.float()
        with pytest.raises(RuntimeError, match="dtype"):
            layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x.float()).dtype == torch.bfloat16
        assert not seen
        layer(x.float())
    assert seen == ["linear"]


def test_an_empty_batch() -> None:
    with torch.no_grad():
        assert optimize(nn.Linear(4, 5))(torch.empty(0, 4)).shape == (0, 5)
        assert optimize(nn.Conv2d(16, 17, 1))(torch.empty(0, 16, 4, 4)).shape == (0, 17, 4, 4)


def test_one_map_without_a_batch() -> None:
    layer, x = nn.Conv2d(16, 17, 3), torch.randn(16, 5, 5)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        assert_close(optimize(layer)(x), lambda: plain(x))


def test_pictures_and_latents_come_out_in_the_usual_order() -> None:
    with torch.no_grad():
        assert optimize(nn.Conv2d(32, 4, 3))(torch.randn(2, 32, 8, 8)).is_contiguous()
        features = optimize(nn.Conv2d(4, 32, 3))(torch.randn(2, 4, 8, 8))
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(9, 14), (10, 13), (3, 3)])
def test_other_sizes_than_twice(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, seen = seeded(layers.Upsample2D(16)), torch.randn(2, 16, 5, 7), calls(monkeypatch)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        optimize(layer)
        assert_close(layer(x, size=size), lambda: plain(x, size=size))
        assert seen == ["convolution"]
        layer(x, size=(10, 14))
    assert seen == ["convolution"] * 5


def test_layers_that_do_not_fit_stay_plain() -> None:
    odd = [
        nn.Conv2d(32, 32, 3, groups=4),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.Conv2d(32, 32, 3, padding_mode="reflect", padding=1),
        nn.ConvTranspose2d(32, 32, 3),
    ]
    for layer in odd:
        assert type(optimize(layer)) in (nn.Conv2d, nn.ConvTranspose2d) and not has_optimized_layers(layer)


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "another layer"])
@pytest.mark.parametrize("name", ["gated", "upsample"])
def test_a_layer_inside_is_called_if_somebody_listens(name: str, kind: str) -> None:
    make, shapes = CASES[name]
    whole: Any = optimize(seeded(make()))
    part = "proj" if name == "gated" else "conv"
    inside, heard = getattr(whole, part), []
    x = torch.randn(shapes[0])
    plain = seeded(make())
    with torch.no_grad():
        if kind == "hook":
            inside.register_forward_hook(lambda *_: heard.append(1))
        elif kind == "pre-hook":
            inside.register_forward_pre_hook(lambda *_: heard.append(1))
        else:

            class Other(nn.Module):
                def forward(self, x: Tensor) -> Tensor:
                    heard.append(1)
                    return inside(x)

            setattr(whole, part, Other())
        assert_close(whole(x), lambda: plain(x))
    assert heard == [1]


def test_plain_again() -> None:
    net = nn.Sequential(*(make() for make, _ in CASES.values()))
    kinds = [type(layer) for layer in net.modules()]
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    optimize(net)
    assert [type(layer) for layer in net.modules()] != kinds
    with torch.no_grad():
        net[0](torch.randn(1, 37))
    assert restore(net) is net and not has_optimized_layers(net)
    assert [type(layer) for layer in net.modules()] == kinds
    assert all(torch.equal(net.state_dict()[name], value) for name, value in weights.items())
    assert all(set(vars(layer)) == set(vars(type(layer)(*args))) for layer, args in ((net[0], (1, 1)),))


def test_preparing_twice_is_preparing_once() -> None:
    layer = optimize(optimize(nn.Linear(3, 3)))
    assert type(layer) is optimized.Linear
    assert type(restore(layer)) is nn.Linear


def test_torch_still_has_the_operations() -> None:
    """They are private. If this fails with a new torch, adapt onednn.py; until then layers stay plain."""
    assert onednn.missing() is None


def test_without_the_operations_layers_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onednn.SCHEMAS, ("_linear_pointwise", "default"), "(Tensor X) -> Tensor")
    assert onednn.missing() == "_linear_pointwise.default"
    onednn.is_available.cache_clear()
    try:
        assert type(optimize(nn.Linear(3, 3))) is nn.Linear
    finally:
        onednn.is_available.cache_clear()


def test_the_first_call_does_not_import_the_compiler() -> None:
    """Which takes longer than a step."""
    code = """
import sys, torch
from retouch.models.attention import Attention
from retouch.kernels import optimize
with torch.no_grad():
    optimize(Attention(64, heads=2, dim_head=32))(torch.randn(1, 256, 64))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
