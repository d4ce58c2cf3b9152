"""Run all stages of training in order, and resume each one where it was stopped.

`python -m training.run --state FOLDER` runs until the checkpoint is packaged. SIGTERM or Ctrl-C saves and
stops; `touch FOLDER/pause` saves and waits until that file is removed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.loop import Interrupt, Stopped
from training.state import default_state

# Chosen from measurements on two CPU cores; the README lists the time of each.
VAE_STEPS = 9_000
SAMPLES = 49_152
REGULAR_STEPS = 4_000
INPAINTING_STEPS = 9_600


def stages(
    state: Path, size: int, device: str, interrupt: Interrupt
) -> list[tuple[str, Callable[[], object]]]:
    """Return for each stage the file that marks it complete, and the function that runs it."""
    from training import fetch_data, latents, package, train_preview, train_unet, train_vae

    settings: dict[str, Any] = dict(size=size, device=device, interrupt=interrupt)
    return [
        ("data/sources.json", lambda: fetch_data.prepare(state)),
        ("vae/config.json", lambda: train_vae.train(state, VAE_STEPS, **settings)),
        (
            f"latents/{SAMPLES // latents.SHARD - 1:05d}.npz",
            lambda: latents.prepare(state, SAMPLES, **settings),
        ),
        ("unet_regular/config.json", lambda: train_unet.train_regular(state, REGULAR_STEPS, **settings)),
        ("unet/config.json", lambda: train_unet.train_inpainting(state, INPAINTING_STEPS, **settings)),
        (
            "preview_decoder/config.json",
            lambda: train_preview.train(state, train_preview.STEPS, **settings),
        ),
        ("checkpoint/model_index.json", lambda: package.package(state)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=default_state(), help="the state folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=128, help="side of the training pictures")
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    with open(options.state / "run.pid", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(
                f"Another run uses {options.state}. Wait for it, or stop it with SIGTERM."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            for result, work in stages(options.state, options.size, options.device, Interrupt()):
                if not (options.state / result).exists():
                    print(f"making {result}", flush=True)
                    work()
        except Stopped as stopped:
            print(stopped, flush=True)


if __name__ == "__main__":
    main()
