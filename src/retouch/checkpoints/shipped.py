"""The checkpoint that ships inside the package: its names, and the folder that it is in.

The folder is an ordinary one, as any program that reads this layout expects it. How it was made is in
`training/` of the repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from retouch.errors import CheckpointError

# By name: the parts that come from another folder than the one called like them. The regular UNet shares
# everything else with the one for inpainting.
BUILT_IN: Mapping[str, Mapping[str, str]] = {"builtin": {}, "builtin-regular": {"unet": "unet_regular"}}

_FOLDER = Path(__file__).parent / "builtin"


def shipped_folder() -> Path:
    """Where the built-in checkpoint is."""
    if not (_FOLDER / "model_index.json").is_file():
        raise CheckpointError(
            f"The built-in checkpoint is not in this installation; {_FOLDER} is expected to hold it. Install "
            f"retouch again, or name another one: model= takes a folder, a file of weights or a hub id."
        )
    return _FOLDER
