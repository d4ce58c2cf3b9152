"""Pipelines with ControlNets from the hub: which files are fetched, one net or several."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_stand_in import HubStandIn
from pipeline_pairs import Pair
from tiny_controls import control_inputs, control_pair, drawing

import retouch


@pytest.mark.parametrize("nets", [1, 3])
def test_all_nets_of_a_pipeline_are_fetched(
    nets: int, hub: HubStandIn, tiny_sd_inpaint: Path, tmp_path: Path
) -> None:
    made = control_pair(tiny_sd_inpaint, "inpaint", nets).ours
    made.save_pretrained(tmp_path / "saved")
    hub.add("someone/controlled", tmp_path / "saved")
    found = retouch.AutoPipelineForInpainting.from_pretrained("someone/controlled")
    found.set_progress_bar_config(disable=True)
    assert type(found) is retouch.StableDiffusionControlNetInpaintPipeline
    assert len(getattr(found.controlnet, "nets", [0])) == nets
    control = drawing() if nets == 1 else [drawing(seed) for seed in range(nets)]
    Pair(found, made, "inpaint").compare(**control_inputs("inpaint", control))


def test_nets_stay_where_they_are_if_another_is_given(
    hub: HubStandIn, tiny_sd_inpaint: Path, tmp_path: Path
) -> None:
    made = control_pair(tiny_sd_inpaint, "inpaint", 2).ours
    made.save_pretrained(tmp_path / "saved")
    hub.add("someone/controlled", tmp_path / "saved")
    net = made.controlnet.nets[1]
    found = retouch.AutoPipelineForInpainting.from_pretrained("someone/controlled", controlnet=net)
    plain = retouch.StableDiffusionInpaintPipeline.from_pretrained("someone/controlled")
    assert found.controlnet is net and "controlnet" not in plain.components
    assert hub.files_sent and not any("controlnet" in path for path in hub.files_sent)
