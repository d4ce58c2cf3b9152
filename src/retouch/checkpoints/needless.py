"""Loading options of the reference that ask for nothing here, so that code written for it runs.

Loading takes no more memory than the weights need, in any case. A value that would have to be heeded is
left for the caller to refuse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_SWITCHES = ("low_cpu_mem_usage", "offload_state_dict", "resume_download")  # how, not what
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
_NEEDLESS: Mapping[str, Collection[Any]] = {
    **dict.fromkeys(_SWITCHES, (None, True, False)),
    **dict.fromkeys(_OFF, (None, False)),
    **dict.fromkeys(_UNSET, (None,)),
}


def is_needless(option: str, value: Any) -> bool:
    """Whether this asks for nothing."""
    return any(value is accepted for accepted in _NEEDLESS.get(option, ()))
