"""Stopping and resuming gives the weights of an uninterrupted run; pausing waits."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[3]))  # training is no part of the installed package

from training.loop import Interrupt, Loop, Schedule, Share, Stopped

STEPS = 100


class Request(Interrupt):
    """An interrupt without signals: asked for at a step."""

    def __init__(self, at: int | None = None) -> None:
        self.requested = False
        self.at = at


def train(state: Path, stop_at: int | None = None) -> Loop:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    request = Request(stop_at)
    loop = Loop(state, "toy", network, Schedule(STEPS, peak=0.05, warmup=10), seed=3, interrupt=request)

    def loss_at(step: int, generator: Generator, _: Share) -> Tensor:
        request.requested = step + 1 == request.at
        inputs = torch.randn(16, 4, generator=generator)
        return (loop.network(inputs)[:, 0] - inputs.sum(1)).square().mean()

    loop.run(loss_at)
    return loop


def test_a_run_stopped_twice_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    for stop_at in (30, 77):
        with pytest.raises(Stopped, match=f"step {stop_at} of {STEPS}"):
            train(tmp_path / "parts", stop_at)
    parts = train(tmp_path / "parts")
    assert parts.step == whole.step == STEPS
    for network in ("network", "average"):
        expected = getattr(whole, network).state_dict()
        for key, value in getattr(parts, network).state_dict().items():
            assert torch.equal(value, expected[key]), (network, key)
    lines = [json.loads(line) for line in parts.log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100]
    assert lines[1]["loss"] < lines[0]["loss"]


def test_a_kill_loses_what_came_after_the_last_save_and_no_more(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=60)
    loop = Loop(tmp_path, "toy", train_less(), Schedule(STEPS, peak=0.05))
    loop._write({"step": 90, "loss": 1.0})  # written after the save, by a run that was then killed
    (tmp_path / "toy.state.partial").write_bytes(b"half a file")
    resumed = train(tmp_path)
    assert resumed.step == STEPS
    steps = [json.loads(line)["step"] for line in resumed.log.read_text().splitlines()]
    assert steps == [50, 100]


def train_less() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def test_two_shares_of_each_batch_do_the_work_of_one(tmp_path: Path) -> None:
    def trained(shares: int) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        loop = Loop(tmp_path / str(shares), "toy", network, Schedule(STEPS, peak=0.05), shares=shares)
        rows_seen = []

        def loss_at(step: int, generator: Generator, share: Share) -> Tensor:
            inputs = share.of(torch.randn(16, 4, generator=generator))
            rows_seen.append(len(inputs))
            return (share.network(inputs)[:, 0] - inputs.sum(1)).square().mean()

        loop.run(loss_at)
        assert rows_seen == [16 // shares] * (STEPS * shares)
        return network

    one, two = trained(1), trained(2)
    for mine, its in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-3)
        assert mine.grad is not None and torch.allclose(mine.grad, its.grad, atol=1e-3)


def test_the_average_lags_behind_and_differs(tmp_path: Path) -> None:
    loop = train(tmp_path)
    differences = [
        (a - b).abs().max().item()
        for a, b in zip(loop.average.parameters(), loop.network.parameters(), strict=True)
    ]
    assert 0 < max(differences) < 1


def test_a_pause_file_stops_the_clock_until_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "pause").touch()
    worker = threading.Thread(target=train, args=(tmp_path,))
    worker.start()
    deadline = time.monotonic() + 10
    while not (tmp_path / "toy.state").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "toy.state").exists() and not (tmp_path / "toy.jsonl").exists()
    (tmp_path / "pause").unlink()
    worker.join(timeout=20)
    assert (tmp_path / "toy.jsonl").read_text().count("\n") == STEPS // 50


def test_the_rate_warms_up_stays_and_falls_to_a_hundredth() -> None:
    schedule = Schedule(steps=1000, peak=2.0, warmup=100, decay=0.5)
    assert schedule.rate(0) == pytest.approx(0.02)
    assert schedule.rate(100) == schedule.rate(499) == pytest.approx(2.0)
    assert schedule.rate(750) == pytest.approx(2 * (0.01 + 0.99 * 0.5))
    assert schedule.rate(1000) == pytest.approx(0.02)
