"""Make two real edits in a minute, offline: `make demo`.

A rock disappears from the photo of a coast, filled with the photo's own texture. Then the built-in checkpoint
paints a sailboat. The results are one picture (before above, after below) and a GIF of the painting.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import retouch
from retouch.utils import load_image, make_image_grid

HERE = Path(__file__).parent
PHOTO, ROCK, PLACE = HERE / "coast.jpg", HERE / "coast-rock.png", HERE / "coast-boat.png"
PROMPT, SEED = "a sailboat", 2

EXPLANATION = """
Done in {seconds:.0f} s. Look at these:

    {folder}/before-after.png  the photo, and the photo without the rock and with a sailboat
    {folder}/process.gif       the sailboat after each step

Outside the masks every pixel is unchanged. The rock went without a model: its place is filled with patches of
the photo. The checkpoint that painted the boat is part of retouch. It is small: it paints at 128 pixels and
knows about 100 things by name. Paint another one of them, or erase the boat again:

    retouch models show builtin
    retouch inpaint {folder}/erased.png {folder}/boat-mask.png "a hot air balloon" -o {folder}/balloon.png
    retouch erase {folder}/result.png {folder}/boat-mask.png -o {folder}/empty-sea.png

For any prompt at full size, download Stable Diffusion for inpainting (4.3 GB, once):

    retouch models pull sd15-inpaint
    retouch inpaint {folder}/photo.png {folder}/rock-mask.png "a lighthouse on a rock" --model sd15-inpaint

The command is {command} here. See also docs/cli.md and docs/editing.md."""


def main(folder: Path) -> None:
    """Make the edits and write all files to `folder`."""
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in ((PHOTO, "photo"), (ROCK, "rock-mask"), (PLACE, "boat-mask")):
        load_image(source).save(folder / f"{name}.png")

    erased = retouch.erase(folder / "photo.png", folder / "rock-mask.png")
    erased.save(folder / "erased.png")

    edit = retouch.inpaint(
        folder / "erased.png", folder / "boat-mask.png", PROMPT, model="builtin", seed=SEED, record=True
    )
    edit.save(folder / "result.png")
    edit.process().save_gif(folder / "process.gif")
    make_image_grid([load_image(PHOTO), edit.image], rows=2, cols=1).save(folder / "before-after.png")
    command = Path(sys.executable).with_name("retouch")
    print(EXPLANATION.format(folder=folder, seconds=time.perf_counter() - start, command=command))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
