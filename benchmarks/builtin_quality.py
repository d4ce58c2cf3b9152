"""Measure the quality of the built-in checkpoint on photos that it was never trained on.

Measures its VAE, whether a classifier recognises what it paints, how well it continues a plain background
compared with OpenCV, and which settings are best. Makes sheets for a person to look at. Settings are chosen
on training photos and reported on held-out ones. Needs the state folder of `training.run` for the photos and
cut-outs.

    python -m benchmarks.builtin_quality --state FOLDER [--checkpoint FOLDER] [--quick] [--only naming,sheets]

Sections: vae, classifier, naming, sweep, removal, sheets; all but the sweep run by default. The first run
trains the classifier (6 minutes on two cores) and keeps it in --cache; everything else takes about 10
minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks import naming, perceptual
from benchmarks.builtin_painting import (
    SIDE,
    Edit,
    Painters,
    Setting,
    defaults,
    framed,
    joined,
    photo_and_hole,
    plain_background,
    prompt_for,
)
from benchmarks.filling import Measure, classical
from retouch.models.autoencoder import AutoencoderKL
from training.data import Pictures
from training.sheets import to_bytes, to_pixels
from training.state import default_state, write_json
from training.train_vae import HeldOut
from training.vocabulary import NAMES

ROOT = Path(__file__).parents[1]
SECTIONS = ("vae", "classifier", "naming", "sweep", "removal", "sheets")
RESULTS = ROOT / "benchmarks" / "results" / "builtin_quality.json"
PICTURES = ROOT / "docs" / "pictures"
GUIDANCES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
STEPS = (6, 8, 12, 20, 30)
CONTEXTS = ("10%", "21%", "35%", "50%")
# (steps, guidance, fill, strength)
FILLINGS: list[tuple[int, float, str, float]] = [
    *((steps, 1.0, "original", 1.0) for steps in (2, 4, 10, 20)),
    *((steps, 1.0, "telea", strength) for steps in (4, 10) for strength in (0.3, 0.5, 0.7)),
    *((4, 1.0, "blur", strength) for strength in (0.5, 0.7)),
]
JOINS = ("match", "poisson")
# The context cannot be larger than the picture of 128 pixels, and OpenCV repaints only the hole, too.
SAME_HOLE = {"context": "100%", "grow": 0}
THROUGH = "the truth through the VAE"


class Bench:
    def __init__(self, given: argparse.Namespace):
        self.state, self.folder, self.cache = given.state, given.checkpoint, given.cache
        self.quick, self.options = given.quick, dict(given.set)
        self.inpainting = Painters(given.checkpoint, count=given.workers)
        self.regular = Painters(given.checkpoint, regular=True, count=given.workers)
        self.held_out = Pictures.load(given.state, held_out=True)
        self.known = Pictures.load(given.state)
        self.judge = naming.load_or_train(given.state, given.cache)
        kinds = () if given.no_lpips else ("alexnet",) if given.quick else ("alexnet", "vgg16")
        self.measure = Measure(*(perceptual.load(given.cache, kind) for kind in kinds))
        self.pictures = given.pictures

    def some(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def of_verb(self, verb: str) -> dict[str, Any]:
        return {**defaults(self.folder, verb), **self.options}

    def vae(self) -> dict[str, Any]:
        network = AutoencoderKL.from_pretrained(self.folder, subfolder="vae").eval()
        held_out = HeldOut(self.state, SIDE, "cpu", self.some(64, 16))
        held_out.sheet = self.cache / "vae.png"
        return held_out(network)

    def classifier(self) -> dict[str, Any]:
        """Test the classifier on real composites on held-out backgrounds, before and after the VAE."""
        count = self.some(1024, 128)
        network = AutoencoderKL.from_pretrained(self.folder, subfolder="vae").eval()
        answers, through = [], []
        for pixels, wanted in naming.batches(naming.on_new_backgrounds(self.state), count):
            answers.append(naming.judge(self.judge, pixels, wanted))
            with torch.inference_mode():
                decoded = network.decode(network.encode(pixels).latent_dist.mode()).sample
            through.append(naming.judge(self.judge, decoded.clamp(-1, 1), wanted))
        own, blurred = naming.merged(answers), naming.merged(through)
        weak = {word: round(share, 2) for word, share in own.by_name().items() if share < 0.8}
        return {
            "pictures": count,
            "top1": own.top(1),
            "top5": own.top(5),
            "top1_through_vae": blurred.top(1),
            "names_below_80_percent": weak,
        }

    def naming(self) -> dict[str, Any]:
        """Test whether the classifier recognises what whole edits paint into the crops of unseen photos."""
        draws = self.some(4, 1)
        names = range(len(NAMES)) if not self.quick else range(0, len(NAMES), 9)
        options = self.of_verb("inpaint")
        jobs, wanted = [], []
        for draw in range(draws):
            for name in names:
                photo, hole = photo_and_hole(self.held_out, draw * len(NAMES) + name)
                prompt = prompt_for(NAMES[name].word)
                jobs.append(Edit("inpaint", photo, hole, 1000 * draw + name, prompt, options))
                wanted.append(name)
        found: dict[str, Any] = {"draws": len(jobs), "options": options}
        for label in ("inpainting", "regular"):
            chosen = jobs if label == "inpainting" else jobs[: self.some(len(NAMES), len(jobs))]
            started = time.perf_counter()
            painters = self.regular if label == "regular" else self.inpainting
            crops = [_cut(*result) for result in painters.edits(chosen)]
            answers = naming.judge(self.judge, _pixels(crops), torch.tensor(wanted[: len(crops)]))
            shares = answers.by_name()
            worst = sorted(shares, key=lambda word: shares[word])[:15]
            found[label] = {
                "draws": len(crops),
                "top1": answers.top(1),
                "top5": answers.top(5),
                "names_at_least_half_right": sum(share >= 0.5 for share in shares.values()),
                "by_name": {word: round(share, 2) for word, share in shares.items()},
                "worst_taken_for": {word: answers.taken_for(word) for word in worst},
                "seconds_per_edit_and_core": (time.perf_counter() - started) * painters.count / len(crops),
            }
            print(f"naming, {label}: top-1 {answers.top(1):.3f}, top-5 {answers.top(5):.3f}", flush=True)
        return found

    def sweep(self) -> dict[str, Any]:
        """Find the best default settings on training backgrounds, one after the other."""
        count = self.some(2 * len(NAMES), 12)
        wanted = [number % len(NAMES) for number in range(count)]
        prompts = [prompt_for(NAMES[name].word) for name in wanted]
        scenes = [photo_and_hole(self.known, 50_000 + number) for number in range(count)]
        crops = [framed(*scene) for scene in scenes]
        pictures, holes = np.stack([crop[0] for crop in crops]), np.stack([crop[1] for crop in crops])
        found: dict[str, Any] = {"draws": count}
        painters = self.inpainting

        def share(setting: Setting) -> float:
            painted = joined(pictures, painters.batch(prompts, pictures, holes, setting), holes, "match")
            right = naming.judge(self.judge, _pixels(painted), torch.tensor(wanted)).top(1)
            print(f"sweep, {setting}: {right:.3f}", flush=True)
            return right

        guidances = GUIDANCES if not self.quick else (1.5, 3.0)
        found["guidance"] = {scale: share(Setting(12, scale)) for scale in guidances}
        best = max(found["guidance"], key=lambda scale: found["guidance"][scale])
        steps = STEPS if not self.quick else (8,)
        found["steps"] = {number: share(Setting(number, best)) for number in steps}
        found["context"] = {}
        for context in CONTEXTS if not self.quick else CONTEXTS[:1]:
            options = {"steps": 12, "guidance_scale": best, "context": context}
            edits = [
                Edit("inpaint", *scene, number, prompt, options)
                for number, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True))
            ][: self.some(len(NAMES), count)]
            # All contexts are judged in the same frame.
            seen = [
                framed(result, edit.hole)[0]
                for (result, _), edit in zip(painters.edits(edits), edits, strict=True)
            ]
            right = naming.judge(self.judge, _pixels(seen), torch.tensor(wanted[: len(edits)])).top(1)
            found["context"][context] = right
            print(f"sweep, context {context}: {right:.3f}", flush=True)
        return found

    def removal(self) -> dict[str, Any]:
        """Compare an empty prompt over plain background with OpenCV; then erase objects by whole edits."""
        found: dict[str, Any] = {}
        settings = [Setting(*each) for each in (FILLINGS if not self.quick else FILLINGS[:1] + FILLINGS[-1:])]
        painters = self.inpainting

        def ours(setting: Setting, pictures: np.ndarray, holes: np.ndarray) -> dict[str, np.ndarray]:
            painted = painters.batch([""] * len(pictures), pictures, holes, setting)
            return {f"{setting}, join {way}": joined(pictures, painted, holes, way) for way in JOINS}

        pictures, holes = plain_background(self.known, self.some(64, 8))
        chosen_on = {}
        for setting in settings:
            for label, results in ours(setting, pictures, holes).items():
                chosen_on[label] = self.measure(pictures, holes, {label: results})[label]
                print(f"removal, choosing: {label}: {chosen_on[label]}", flush=True)
        for label, results in classical(pictures, holes).items():
            chosen_on[label] = self.measure(pictures, holes, {label: results})[label]
            print(f"removal, choosing: {label}: {chosen_on[label]}", flush=True)
        key, sign = ("lpips", 1) if self.measure.lpips is not None else ("psnr_in_hole", -1)

        def best_of(settings: Sequence[Setting]) -> str:
            labels = [f"{setting}, join {way}" for setting in settings for way in JOINS]
            return min(labels, key=lambda label: sign * chosen_on[label][key])

        best, alone = best_of(settings), best_of([each for each in settings if each.strength == 1])
        found |= {"chosen_on_training_photos": chosen_on, "chosen": best, "chosen_alone": alone}
        pictures, holes = plain_background(self.held_out, self.some(256, 8))
        results = classical(pictures, holes)
        results[THROUGH] = np.where(holes[..., None], self._through_vae(pictures), pictures)
        for setting in settings:
            if {f"{setting}, join {way}" for way in JOINS} & {best, alone}:
                results |= ours(setting, pictures, holes)
        found["held_out"] = self.measure(pictures, holes, results, best)
        for label, figures in found["held_out"].items():
            print(f"removal, held out: {label}: {figures}", flush=True)
        setting, way = next((s, w) for s in settings for w in JOINS if f"{s}, join {w}" == best)
        options = {"steps": setting.steps, "strength": setting.strength, "fill": setting.fill, "join": way}
        found["chosen_options"] = options
        found["objects"] = self._objects(options)
        return found

    @torch.inference_mode()
    def _through_vae(self, pictures: np.ndarray) -> np.ndarray:
        """Return the pictures after the VAE: the best that a model with this VAE could paint."""
        network = AutoencoderKL.from_pretrained(self.folder, subfolder="vae").eval()
        parts = [network.encode(part).latent_dist.mode() for part in _pixels(pictures).split(16)]
        return np.concatenate([to_bytes(network.decode(part).sample) for part in parts])

    def _objects(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Erase known objects on unseen backgrounds; measure the error, and whether they are recognised."""
        count = self.some(107, 8)
        composer = naming.on_new_backgrounds(self.state, seed=31)
        samples = [composer.sample(number, empty=0) for number in range(count)]
        truth = np.stack([composer.background(composer.random(number)) for number in range(count)])
        pictures, holes = (np.stack([getattr(s, key) for s in samples]) for key in ("picture", "hole"))
        wanted = torch.tensor([sample.name for sample in samples])
        results = {"before": pictures} | classical(pictures, holes)
        for label, regular, verb, options in (
            ("erase", False, "erase", self.of_verb("erase")),
            ("erase as chosen here", False, "erase", {**self.of_verb("erase"), **chosen}),
            ("inpaint with an empty prompt", False, "inpaint", self.of_verb("inpaint")),
            ("regular UNet, inpaint with an empty prompt", True, "inpaint", self.of_verb("inpaint")),
            ("regular UNet, erase", True, "erase", self.of_verb("erase")),
        ):
            edits = [
                Edit(verb, picture, hole, number, "", {**options, **SAME_HOLE})
                for number, (picture, hole) in enumerate(zip(pictures, holes, strict=True))
            ]
            painters = self.regular if regular else self.inpainting
            results[label] = np.stack([result for result, _ in painters.edits(edits)])
        figures = self.measure(truth, holes, results)
        for label, shown in results.items():
            still = naming.judge(self.judge, _pixels(shown), wanted).top(1)
            figures[label]["still_named"] = round(still, 3)
            print(f"removal of objects: {label}: {figures[label]}", flush=True)
        return figures

    def sheets(self) -> dict[str, Any]:
        """Make sheets of fifty randomly chosen prompts, and of photos before and after erasing."""
        chosen = random.Random(0).sample(range(len(NAMES)), self.some(50, 5))
        scenes = [photo_and_hole(self.held_out, 90_000 + number) for number in range(len(chosen))]
        prompts = [prompt_for(NAMES[name].word) for name in chosen]
        edits = [
            Edit("inpaint", *scene, number, prompt, self.of_verb("inpaint"))
            for number, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True))
        ]
        composer = naming.on_new_backgrounds(self.state, seed=32)
        samples = [composer.sample(number, empty=0) for number in range(self.some(8, 2))]
        pictures, holes = (np.stack([getattr(s, key) for s in samples]) for key in ("picture", "hole"))
        erasures = [
            Edit("erase", picture, hole, number, "", {**self.of_verb("erase"), **SAME_HOLE})
            for number, (picture, hole) in enumerate(zip(pictures, holes, strict=True))
        ]
        painters = self.inpainting
        shown = [_cut(*result) for result in painters.edits(edits)]
        erased = [result for result, _ in painters.edits(erasures)]
        write_captioned(self.pictures / "builtin_names.jpg", shown, prompts, 10)
        marked = [np.where(hole[..., None], 255, pic) for pic, hole in zip(pictures, holes, strict=True)]
        columns = [list(pictures), marked, erased, *map(list, list(classical(pictures, holes).values())[:2])]
        captions = ["photo", "hole", "retouch.erase", *list(classical(pictures[:1], holes[:1]))[:2]]
        rows = [cell for row in zip(*columns, strict=True) for cell in row]
        write_captioned(self.pictures / "builtin_erase.jpg", rows, captions * len(samples), len(columns))
        return {"names": [NAMES[name].word for name in chosen], "options": self.of_verb("inpaint")}


def _cut(result: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    return cv2.resize(result[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _pixels(pictures: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    return to_pixels(np.stack(list(pictures)))


def write_captioned(
    path: Path, pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int
) -> None:
    """Write pictures of one size in rows, with a caption under each."""
    height, width = pictures[0].shape[:2]
    line, gap = 18, 4
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + line)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = index % columns * (width + gap), index // columns * (height + line)
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8)), (left, top))
        draw.text((left + width // 2, top + height + 1), caption, "black", font, anchor="ma")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=85, optimize=True)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=default_state(), help="the state folder of training")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "src/retouch/checkpoints/builtin")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "retouch-benchmarks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="the folder for the sheets")
    parser.add_argument("--quick", action="store_true", help="few samples, to test the script")
    parser.add_argument("--only", help="sections, separated by commas", default="")
    parser.add_argument("--set", action="append", type=_setting, default=[], metavar="OPTION=VALUE")
    parser.add_argument(
        "--workers", type=int, help="number of processes that paint; default: one for each core"
    )
    parser.add_argument(
        "--no-lpips", action="store_true", help="do not compute LPIPS, which needs another package"
    )
    given = parser.parse_args()
    sections = [name for name in given.only.split(",") if name] or [s for s in SECTIONS if s != "sweep"]
    if unknown := set(sections) - set(SECTIONS):
        raise SystemExit(f"There is no section {', '.join(unknown)}. There are {', '.join(SECTIONS)}.")
    bench = Bench(given)
    found = json.loads(given.results.read_text()) if given.results.exists() else {}
    for name in sections:
        started = time.perf_counter()
        found[name] = getattr(bench, name)()
        found[name]["seconds"] = round(time.perf_counter() - started)
        if not given.quick or given.results != RESULTS:
            write_json(given.results, found)
        print(f"{name}: {json.dumps(found[name])[:600]}", flush=True)


if __name__ == "__main__":
    main()
