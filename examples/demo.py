"""Make a real edit in a minute, offline: `make demo`.

The built-in checkpoint paints a sailboat onto the photo of a lake. The results are one picture (photo, mask
and result side by side) and a GIF of the process.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import retouch
from retouch.utils import load_image, make_image_grid

HERE = Path(__file__).parent
PHOTO, MASK = HERE / "lake.jpg", HERE / "lake-mask.png"
PROMPT, SEED = "a sailboat", 1

EXPLANATION = """
Done in {seconds:.0f} s. Look at these:

    {folder}/grid.png     photo, mask and result side by side
    {folder}/process.gif  the picture after each step

Outside the mask every pixel is unchanged. The checkpoint that painted this is part of retouch. It is small:
it paints at 128 pixels and knows about 100 things by name. Paint another one of them, or erase something:

    retouch models show builtin
    retouch inpaint {folder}/photo.png {folder}/mask.png "a red apple" -o {folder}/apple.png
    retouch erase {folder}/result.png {folder}/mask.png -o {folder}/erased.png

For any prompt at full size, download Stable Diffusion for inpainting (4.3 GB, once):

    retouch models pull sd15-inpaint
    retouch inpaint {folder}/photo.png {folder}/mask.png "an old wooden sailing ship" --model sd15-inpaint

The command is {command} here. See also docs/cli.md and docs/editing.md."""


def main(folder: Path) -> None:
    """Make the edit and write all files to `folder`."""
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    photo, mask = load_image(PHOTO), load_image(MASK)
    photo.save(folder / "photo.png")
    mask.save(folder / "mask.png")

    edit = retouch.inpaint(
        folder / "photo.png", folder / "mask.png", PROMPT, model="builtin", seed=SEED, record=True
    )

    edit.save(folder / "result.png")
    edit.recording.save_gif(folder / "process.gif")
    make_image_grid([photo, mask, edit.image], rows=1, cols=3).save(folder / "grid.png")
    command = Path(sys.executable).with_name("retouch")
    print(EXPLANATION.format(folder=folder, seconds=time.perf_counter() - start, command=command))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
