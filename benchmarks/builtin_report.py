"""Write the figures of `builtin_quality` into the model card and docs/builtin.md.

Both have a block between two comments, "figures" and "end of figures", which is replaced. `--seen` is a
person's judgement of the sheet of names.

    python -m benchmarks.builtin_report --seen "37 of 50"
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "builtin_quality.json"
PLACES = (ROOT / "training" / "card.md", ROOT / "docs" / "builtin.md")
SHEETS = {
    "builtin_names.jpg": "Fifty randomly chosen prompts on unseen photos",
    "builtin_erase.jpg": "Photo, hole, the result of `erase`, and the results of OpenCV's two methods",
}
BLOCK = re.compile(r"(<!-- figures.*?-->\n).*?(<!-- end of figures -->)", re.DOTALL)


def table(found: dict[str, Any], seen: str) -> str:
    vae, judge, named, removal = (found[key] for key in ("vae", "classifier", "naming", "removal"))
    filled = {label: figures["lpips"] for label, figures in removal["held_out"].items()}
    telea, stokes = (
        min(value for label, value in filled.items() if label.startswith(kind))
        for kind in ("Telea", "Navier-Stokes")
    )
    best, alone = removal["chosen"], removal["chosen_alone"]
    rows = [
        ("VAE: PSNR on unseen photos", "25 dB, better 27", f"{vae['psnr_photos']:.1f} dB"),
        (
            "VAE: share of red and of green that is kept",
            "1 means all of it",
            f"{vae['red_kept']:.2f}, {vae['green_kept']:.2f}",
        ),
        (
            f"a classifier recognises the painted thing ({named['inpainting']['draws']} pictures)",
            "60 %",
            f"{named['inpainting']['top1']:.0%}; among its best five {named['inpainting']['top5']:.0%}",
        ),
        ("the same, painted by the regular UNet", "", f"{named['regular']['top1']:.0%}"),
        (
            "the classifier on real cut-outs on unseen photos; after encoding and decoding them with the VAE",
            "over 90 %",
            f"{judge['top1']:.0%}; {judge['top1_through_vae']:.0%}",
        ),
        ("a person recognises the thing, 50 prompts on unseen photos", "most", seen),
        (
            "empty prompt over plain background, LPIPS (lower is closer to the truth)",
            f"below Telea's {telea:.3f} and Navier-Stokes' {stokes:.3f}",
            f"{filled[best]:.3f} ({best}); the model alone {filled[alone]:.3f} ({alone})",
        ),
    ]
    lines = ["| measure | goal | result |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seen", default="not judged yet", help="a person's judgement of the sheet")
    parser.add_argument("--print", action="store_true", help="show the table and write nothing")
    given = parser.parse_args()
    text = table(json.loads(given.results.read_text()), given.seen)
    print(text)
    for place in () if given.print else PLACES:
        shown = [text]
        if place.parent.name == "docs":
            shown += [f"![{what}](pictures/{name})" for name, what in SHEETS.items()]
        block = "\n\n".join(shown)
        page, count = BLOCK.subn(
            lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", place.read_text()
        )
        if count != 1:
            raise SystemExit(f"{place} has {count} blocks of figures; one is expected.")
        place.write_text(page)


if __name__ == "__main__":
    main()
