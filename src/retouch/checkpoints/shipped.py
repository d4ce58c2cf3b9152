"""The checkpoint that ships in the package: its names and its folder.

The folder has the usual layout, which other programs can read too. The repository's `training/` has the
programs that trained it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from retouch.errors import CheckpointError

# Name -> the folders of parts that are not in a folder of their own name. Apart from the UNet, both
# checkpoints have the same parts.
BUILT_IN: Mapping[str, Mapping[str, str]] = {"builtin": {}, "builtin-regular": {"unet": "unet_regular"}}

_FOLDER = Path(__file__).parent / "builtin"


def shipped_folder() -> Path:
    """Return the folder of the built-in checkpoint."""
    if not (_FOLDER / "model_index.json").is_file():
        raise CheckpointError(
            f"The built-in checkpoint is not in this installation; it is expected in {_FOLDER}. Install "
            f"retouch again, or name another one: model= takes a folder, a file of weights or a hub id.",
            parameter="model",
        )
    return _FOLDER
