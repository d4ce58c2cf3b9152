"""The choice of a device and a dtype, and seeded noise.

It asks what this machine can do and needs no model. A request that this machine cannot meet is an error; only
half precision on a CPU is replaced, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from retouch.errors import DeviceError, InputError

_ACCELERATORS = ("cuda", "xpu", "mps", "npu", "mlu")
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

_warned_of_float16 = False


def available_devices() -> list[str]:
    """Return the devices of this machine, spelled as `resolve_device` takes them, the CPU last."""
    found = []
    for kind in _ACCELERATORS:
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            count = module.device_count()
            found += [kind] if count == 1 else [f"{kind}:{index}" for index in range(count)]
    return [*found, "cpu"]


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device to use and check that this machine has it; None means the CPU."""
    if device is None:
        return torch.device("cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        wanted = None
    if wanted is not None and wanted.type == "cpu":
        return torch.device("cpu")
    if wanted is not None and wanted.type in _ACCELERATORS:
        module = getattr(torch, wanted.type, None)
        if module is not None and module.is_available() and (wanted.index or 0) < module.device_count():
            return wanted
    raise DeviceError(
        f"device={str(device)!r} is not on this machine. Its devices are {', '.join(available_devices())}. "
        f"Pass one of those; a GPU that is missing from the list needs its driver and a PyTorch for it.",
        parameter="device",
    )


def resolve_dtype(
    dtype: str | torch.dtype | None, device: str | torch.device | None = None
) -> torch.dtype | None:
    """Return the dtype to load weights in; None stays None.

    float16 on a CPU without float16 arithmetic becomes bfloat16 if the CPU has instructions for that,
    otherwise float32: emulated half precision is many times slower than either.
    """
    if dtype is None:
        return None
    wanted = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if wanted not in _DTYPES.values():
        raise InputError(
            f"dtype={dtype!r} is not a dtype for weights. Pass one of {', '.join(_DTYPES)}.",
            parameter="dtype",
        )
    if wanted is not torch.float16 or torch.device(device or "cpu").type != "cpu":
        return wanted

    if _cpu_abilities() & {"avx512_fp16", "amx_fp16", "fp16_arith"}:
        return torch.float16
    instead = str(fast_dtype("cpu")).removeprefix("torch.")
    global _warned_of_float16
    if not _warned_of_float16:
        _warned_of_float16 = True
        warnings.warn(
            f"float16 was asked for on a CPU that has no float16 arithmetic. {instead} is used instead, "
            f"which this CPU computes well. Pass dtype=torch.{instead} to avoid this warning, or use a GPU.",
            stacklevel=3,
        )
    return _DTYPES[instead]


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """Return the dtype that a device computes fastest with enough precision for a good picture."""
    if torch.device(device).type == "cpu":
        return torch.bfloat16 if _cpu_abilities() & {"avx512_bf16", "amx_bf16", "bf16"} else torch.float32
    return torch.float16


def _cpu_abilities() -> set[str]:
    # Older releases of PyTorch do not report them; then float32 is used.
    query = getattr(torch.cpu, "get_capabilities", None)
    return {name for name, value in query().items() if value is True} if query else set()


def randn(
    shape: Sequence[int],
    generator: Generator | Sequence[Generator] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return standard normal noise. A list of generators has one for each row of the batch.

    A CPU generator draws on the CPU for every device, so a seed gives the same picture on every machine. The
    noise is drawn in `dtype`: the same seed gives other numbers in float64.
    """
    target = torch.device(device or "cpu")
    if generator is None:
        return torch.randn(tuple(shape), device=target, dtype=dtype)
    if not isinstance(generator, Generator):
        if len(generator) not in (1, shape[0]):
            raise InputError(
                f"generator is a list of {len(generator)}, but the batch has {shape[0]} pictures. Pass one "
                f"generator, or a list with one for each picture.",
                parameter="generator",
            )
        if len(generator) == shape[0]:
            return torch.cat([randn((1, *shape[1:]), each, device, dtype) for each in generator])
        generator = generator[0]
    source = generator.device
    if source.type not in ("cpu", target.type):
        raise InputError(
            f"generator is on {source}, but the noise is for {target}. A generator on the CPU or on the same "
            f"device is accepted. Make it with torch.Generator('cpu').manual_seed(...).",
            parameter="generator",
        )
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(target)
