"""The safety checker's verdicts compared with the reference's, for files of both nestings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import _safety_checker, randomised

from retouch.models.safety_checker import StableDiffusionSafetyChecker


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    checker = randomised(_safety_checker("never flags"))
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, name).data.normal_()
    return checker.eval()


@pytest.mark.parametrize("thresholds", [(0.55, 0.9), (0.5, 0.3), (0.9, -1.0)])
def test_verdicts(reference, thresholds, tmp_path: Path) -> None:
    reference.concept_embeds_weights.data.fill_(thresholds[0])
    reference.special_care_embeds_weights.data.fill_(thresholds[1])
    reference.save_pretrained(tmp_path)
    ours = StableDiffusionSafetyChecker.from_pretrained(tmp_path)
    seen = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 3
    _, verdicts = reference(images=torch.zeros(200, 3, 1, 1), clip_input=seen)
    assert ours(seen) == verdicts
    if thresholds[0] < 0.9:
        assert 5 < sum(verdicts) < 195, "the thresholds decide nothing"


def test_published_nesting_loads(reference, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    nested = {
        key.replace("vision_model.", "vision_model.vision_model.", 1): value for key, value in state.items()
    }
    save_file(nested, tmp_path / "model.safetensors", {"format": "pt"})
    ours, report = StableDiffusionSafetyChecker.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    seen = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.vision_model(seen)[1], reference.vision_model(seen)[1])
