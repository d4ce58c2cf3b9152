"""`retouch doctor`: show what this machine has and what retouch will use, and test whether that works."""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from retouch import __version__
from retouch.cli.options import JsonFlag
from retouch.cli.say import answer, complain, megabytes

_PACKAGES = (
    *("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "Pillow"),
    *("opencv-python-headless", "typer", "rich"),
)
_LOW_DISK = _LOW_MEMORY = 5e9  # bytes: less than Stable Diffusion 1.5 takes

Section = dict[str, Any]


def doctor(
    *,
    device: Annotated[str | None, typer.Option(show_default="the best there is")] = None,
    dtype: Annotated[str | None, typer.Option(show_default="what the device computes fastest")] = None,
    json: JsonFlag = False,
) -> None:
    """Show what this machine has, and try a tiny edit."""
    from retouch.devices import fast_dtype, resolve_device, resolve_dtype

    begin = time.perf_counter()
    import torch

    place = resolve_device(device if device is not None else _devices()[0])
    precision = (fast_dtype(place) if dtype is None else resolve_dtype(dtype, place)) or torch.float32
    report: dict[str, Section] = {
        "versions": _versions(),
        "compute": _compute(place, precision),
        "memory": _memory(place),
        "cache": _cache(),
    }
    advice = _advice(report)
    try:
        from retouch.cli.self_test import run_self_test

        test = run_self_test(place, precision)
        report["self-test"] = {"passed": test.fault is None, "seconds": round(test.seconds, 2)}
        fault = test.fault
    except Exception as error:  # the report above helps to find the cause
        report["self-test"] = {"passed": False, "seconds": None}
        fault = f"{type(error).__name__}: {error}"
    report["self-test"] |= {"fault": fault, "with_imports": round(time.perf_counter() - begin, 2)}
    if json:
        answer({**report, "advice": advice})
    else:
        _print(report, advice)
    if fault is not None:
        complain(f"The self-test failed on {place} in {_name(precision)}: {fault}", "error")
        raise typer.Exit(1)


def _devices() -> list[str]:
    from retouch.devices import available_devices

    return available_devices()


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _versions() -> Section:
    from importlib.metadata import PackageNotFoundError, version

    found: Section = {
        "retouch": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed under this name"
    return found


def _compute(place: Any, precision: Any) -> Section:
    import torch

    names = {
        name: torch.cuda.get_device_name(index)
        for index, name in enumerate(name for name in _devices() if name.startswith("cuda"))
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "devices": [f"{name} ({names[name]})" if name in names else name for name in _devices()],
        "used": str(place),
        "precision": _name(precision),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "kernels": _kernels(place),
    }


def _kernels(place: Any) -> str:
    """Return what computes the models; on a GPU torch chooses among several attention kernels."""
    import torch

    if place.type == "cpu":
        from retouch.kernels import description

        return description()
    if place.type != "cuda":
        return "torch's scaled dot product"
    backends = torch.backends.cuda
    kernels = [
        name
        for name, is_on in (
            ("flash", backends.flash_sdp_enabled()),
            ("memory-efficient", backends.mem_efficient_sdp_enabled()),
            ("cuDNN", getattr(backends, "cudnn_sdp_enabled", lambda: False)()),
            ("plain", backends.math_sdp_enabled()),
        )
        if is_on
    ]
    return f"torch's scaled dot product ({', '.join(kernels)})"


def _memory(place: Any) -> Section:
    import torch

    total, free = _main_memory()
    found: Section = {"main_bytes": total, "main_free_bytes": free}
    if place.type == "cuda":
        found["device_free_bytes"], found["device_bytes"] = torch.cuda.mem_get_info(place)
    return found


def _main_memory() -> tuple[int | None, int | None]:
    """Return the main memory's size and what is free of it in bytes; None where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return 1024 * kilobytes["MemTotal"], 1024 * kilobytes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, ValueError, OSError):
        return None, None


def _cache() -> Section:
    from huggingface_hub import constants, get_token

    from retouch.cli.recognition import bytes_in

    folder = Path(constants.HF_HUB_CACHE)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "folder": str(folder),
        "bytes": bytes_in(folder) if folder.is_dir() else 0,
        "disk_free_bytes": shutil.disk_usage(nearest).free,
        "hub": constants.ENDPOINT + (" (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""),
        "logged_in": get_token() is not None,
    }


def _advice(report: dict[str, Section]) -> list[str]:
    """Return advice on what could be better on this machine."""
    import torch

    found = []
    if report["compute"]["used"] == "cpu" and torch.version.cuda is None and shutil.which("nvidia-smi"):
        found.append(
            "There is an NVIDIA driver, but this torch is built without CUDA. Install one with it: see "
            "pytorch.org."
        )
    if report["cache"]["disk_free_bytes"] < _LOW_DISK:
        free = megabytes(report["cache"]["disk_free_bytes"])
        found.append(f"Only {free} are free for the cache. Set HF_HOME to a folder on a larger disk.")
    memory = report["memory"].get("main_free_bytes")
    if memory is not None and memory < _LOW_MEMORY and report["compute"]["used"] == "cpu":
        found.append(
            f"Only {megabytes(memory)} of main memory are free; Stable Diffusion 1.5 takes about 5 GB in "
            f"float32. Close other programs."
        )
    return found


def _print(report: dict[str, Section], advice: list[str]) -> None:
    for title, section in report.items():
        typer.echo(title)
        for key, value in section.items():
            if value is None:
                continue
            typer.echo(f"  {key.removesuffix('_bytes').replace('_', ' '):22} {_shown(key, value)}")
    for line in advice:
        complain(line, "warning")


def _shown(key: str, value: Any) -> str:
    if key.endswith("bytes"):
        return megabytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value} s" if key in ("seconds", "with_imports") else str(value)
