"""Loading arguments of the reference that are accepted and ignored, so that code written for it runs.

They have no effect here with these values: loading takes no more memory than the weights need in any case.
The caller refuses other values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_SWITCHES = ("low_cpu_mem_usage", "offload_state_dict", "resume_download")  # they change no result
_OFF = ("add_watermarker", "disable_mmap", "ignore_mismatched_sizes", "output_loading_info", "use_flashpack")
_UNSET = (
    "custom_pipeline",
    "device_map",
    "max_memory",
    "offload_folder",
    "parallel_config",
    "proxies",
    "quantization_config",
)
_IGNORED: Mapping[str, Collection[Any]] = {
    **dict.fromkeys(_SWITCHES, (None, True, False)),
    **dict.fromkeys(_OFF, (None, False)),
    **dict.fromkeys(_UNSET, (None,)),
}


def is_ignored(argument: str, value: Any) -> bool:
    """Return whether an argument with this value is accepted and ignored."""
    return any(value is accepted for accepted in _IGNORED.get(argument, ()))
