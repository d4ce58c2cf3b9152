"""A small classifier that recognises the known names in pictures, for judging painted objects.

It is trained on the same cut-outs as the checkpoint, pasted on the training backgrounds, and tested on
backgrounds that neither has seen. It knows only these names, and it is more lenient than a person, because
many names differ in colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data import Composer, Pictures
from training.sheets import to_pixels
from training.vocabulary import NAMES

SIDE = 128
BATCH = 64
STEPS = 1000
PEAK = 3e-3


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, given: int, made: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(given, made, 3, stride, 1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
            nn.Conv2d(made, made, 3, 1, 1, bias=False),
            nn.BatchNorm2d(made),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Classifier(nn.Module):
    """A network from pixels of -1 to 1, (n, 3, 128, 128), to one score for each name."""

    def __init__(self, names: int = len(NAMES)):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 40, 7, 4, 3, bias=False),
            nn.BatchNorm2d(40),
            nn.ReLU(),
            Block(40, 80, 2),
            Block(80, 160, 2),
            Block(160, 240, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(240, names),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def composites(composer: Composer, numbers: range, rough: bool = False) -> tuple[Tensor, Tensor]:
    """Return the pixels and names of samples; `rough` adds blur and grain, as painting does."""
    pictures, labels = [], []
    for number in numbers:
        sample = composer.sample(number, empty=0)
        picture = sample.picture
        if rough:
            random = np.random.default_rng([9, number])
            if random.random() < 0.7:
                picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.3, 1.8))
            light = random.normal(1, 0.06, 3) * random.uniform(0.85, 1.15)
            grain = random.normal(0, random.uniform(0, 8), (SIDE // 2, SIDE // 2, 1)).astype(np.float32)
            grain = cv2.resize(grain, (SIDE, SIDE))[..., None]
            picture = (picture * light + grain).clip(0, 255).astype(np.uint8)
        pictures.append(picture)
        labels.append(sample.name)
    return to_pixels(np.stack(pictures)), torch.tensor(labels)


def train(state: Path, steps: int = STEPS, log: bool = False) -> Classifier:
    torch.manual_seed(0)
    composer = Composer(Pictures.load(state), SIDE, seed=7)
    network = Classifier().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), PEAK, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        pixels, labels = composites(composer, range(step * BATCH, (step + 1) * BATCH), rough=True)
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(scores.float(), labels, label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if log and step % 50 == 49:
            right = (scores.argmax(1) == labels).float().mean().item()
            print(
                f"classifier, step {step + 1} of {steps}: loss {loss.item():.2f}, right {right:.2f}",
                flush=True,
            )
    return network.eval()


def load_or_train(state: Path, cache: Path) -> Classifier:
    """Load the classifier from the cache folder, or train and save one (6 minutes on two cores)."""
    file = cache / "classifier.pt"
    if file.exists():
        network = Classifier()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return network.eval()
    network = train(state, log=True)
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(network.state_dict(), partial)
    partial.replace(file)
    return network


@dataclass(frozen=True)
class Answers:
    """The classifier's answers for pictures that should show `wanted`."""

    wanted: Tensor  # (n,)
    ranked: Tensor  # (n, names), best first

    @property
    def right(self) -> Tensor:
        return self.ranked[:, 0] == self.wanted

    def top(self, count: int) -> float:
        return (self.ranked[:, :count] == self.wanted[:, None]).any(1).float().mean().item()

    def by_name(self) -> dict[str, float]:
        return {
            NAMES[index].word: self.right[self.wanted == index].float().mean().item()
            for index in self.wanted.unique().tolist()
        }

    def taken_for(self, word: str) -> dict[str, int]:
        """Return the names that were confused with this one, most frequent first."""
        index = next(index for index, name in enumerate(NAMES) if name.word == word)
        said = self.ranked[self.wanted == index, 0].tolist()
        others = [NAMES[answer].word for answer in said if answer != index]
        return dict(sorted(((each, others.count(each)) for each in set(others)), key=lambda pair: -pair[1]))


@torch.inference_mode()
def judge(network: Classifier, pixels: Tensor, wanted: Tensor) -> Answers:
    scores = torch.cat([network(part) for part in pixels.split(64)])
    return Answers(wanted, scores.argsort(1, descending=True))


def on_new_backgrounds(state: Path, size: int = SIDE, seed: int = 8) -> Composer:
    """Return a composer that pastes the training cut-outs on held-out backgrounds."""
    known, held_out = Pictures.load(state), Pictures.load(state, held_out=True)
    return Composer(replace(held_out, objects=known.objects), size, seed=seed)


def batches(composer: Composer, count: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, count, size):
        yield composites(composer, range(start, min(count, start + size)))


def merged(found: Sequence[Answers]) -> Answers:
    return Answers(torch.cat([each.wanted for each in found]), torch.cat([each.ranked for each in found]))
