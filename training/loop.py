"""One training loop for every network: it can be killed and resumed, paused, and is deterministic.

A step depends only on the weights and its own number, so a resumed run ends with the same weights as one that
was never stopped.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from training.state import load_tensors, save_tensors

SAVE_EVERY = 180.0  # seconds; the most work that a kill can lose
WRITE_EVERY = 50  # steps between lines of the log


class Stopped(Exception):
    """The loop was stopped on request; everything is saved."""


@dataclass(frozen=True)
class Schedule:
    """A learning rate with a short warm-up, a constant part and a linear decay."""

    steps: int
    peak: float
    warmup: int = 100
    decay: float = 0.5  # share of the steps with a falling rate

    def rate(self, step: int) -> float:
        left = (self.steps - step) / max(1, round(self.steps * self.decay))
        return self.peak * min(1.0, (step + 1) / self.warmup, 0.01 + 0.99 * left)


class Interrupt:
    """A handler that turns SIGTERM and SIGINT into a request to stop between two steps."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, *_: object) -> None:
        self.requested = True


def wait_while_paused(state: Path, interrupt: Interrupt | None = None) -> None:
    while is_paused(state) and not (interrupt and interrupt.requested):
        time.sleep(1)


def is_paused(state: Path) -> bool:
    return (state / "pause").exists()


@dataclass(frozen=True)
class Share:
    """A part of each batch, and the network that processes it; all networks share their weights."""

    network: nn.Module
    index: int
    count: int

    def of(self, rows: Tensor) -> Tensor:
        return rows[self.index :: self.count]


class Loop:
    def __init__(
        self,
        state: Path,
        stage: str,
        network: nn.Module,
        schedule: Schedule,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        ema_decay: float = 0.999,
        seed: int = 0,
        device: str = "cpu",
        shares: int = 1,
        interrupt: Interrupt | None = None,
    ):
        """Use `shares` threads, each on a part of the batch; they wait once a step, not at every layer."""
        state.mkdir(parents=True, exist_ok=True)
        self.state, self.stage, self.schedule = state, stage, schedule
        self.network = network.to(device)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._averaged = [
            mean
            for mean, parameter in zip(self.average.parameters(), self.network.parameters(), strict=True)
            if parameter.requires_grad
        ]
        self.optimiser = torch.optim.AdamW(
            self.parameters, schedule.peak, betas, weight_decay=weight_decay, fused=True
        )
        self.ema_decay, self.seed, self.device = ema_decay, seed, device
        self.interrupt = interrupt
        self.step = 0
        self.seconds = 0.0  # of training, over all runs
        self.threads = Threads() if device == "cpu" and shares == 1 else None
        self._resume()
        self.shares = [Share(self.network, 0, shares)]
        self.shares += [Share(self._twin(), index, shares) for index in range(1, shares)]
        self.pool = ThreadPoolExecutor(shares)

    def _twin(self) -> nn.Module:
        """Return a copy that shares the weights but has its own gradients."""
        twin = copy.deepcopy(self.network)
        for mine, its in zip(self.network.parameters(), twin.parameters(), strict=True):
            its.data = mine.data
        return twin

    @property
    def file(self) -> Path:
        return self.state / f"{self.stage}.state"

    @property
    def log(self) -> Path:
        return self.state / f"{self.stage}.jsonl"

    def run(
        self,
        loss_at: Callable[[int, Generator, Share], Tensor],
        measure: Callable[[], dict[str, float]] | None = None,
        measure_every: int = 1000,
    ) -> nn.Module:
        """Train to the end of the schedule and return the averaged network."""
        started, saved, losses = time.monotonic(), time.monotonic(), []
        first = self.step
        while self.step < self.schedule.steps:
            if is_paused(self.state):
                self.seconds += time.monotonic() - started
                self._save()
                wait_while_paused(self.state, self.interrupt)
                started, first = time.monotonic(), self.step
            if self.interrupt and self.interrupt.requested:
                self.seconds += time.monotonic() - started
                self._save()
                raise Stopped(f"{self.stage} stopped at step {self.step} of {self.schedule.steps}")
            if self.threads:
                self.threads.before_step()
            losses.append(self._advance(loss_at))
            now = time.monotonic()
            if self.step % WRITE_EVERY == 0:
                line = dict(step=self.step, loss=round(sum(losses) / len(losses), 5))
                line["rate"] = round(self.schedule.rate(self.step), 7)
                line["hours"] = round((self.seconds + now - started) / 3600, 3)
                line["steps_per_second"] = round((self.step - first) / (now - started), 3)
                losses.clear()
                if measure and (self.step % measure_every == 0 or self.step == self.schedule.steps):
                    line.update(measure())
                self._write(line)
            if now - saved > SAVE_EVERY:
                self.seconds += now - started
                self._save()
                started, saved, first = now, time.monotonic(), self.step
        self.seconds += time.monotonic() - started
        self._save()
        return self.average

    def _advance(self, loss_at: Callable[[int, Generator, Share], Tensor]) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(self.step)

        def work(share: Share) -> float:
            generator = Generator().manual_seed(self.seed * 1_000_003 + self.step)
            loss = loss_at(self.step, generator, share) / share.count
            share.network.zero_grad(set_to_none=True)
            loss.backward()
            return loss.item()

        if len(self.shares) == 1:
            value = work(self.shares[0])
        else:
            value = sum(self.pool.map(_on_one_thread, [work] * len(self.shares), self.shares))
        for share in self.shares[1:]:
            gradients = [
                parameter.grad for parameter in share.network.parameters() if parameter.requires_grad
            ]
            torch._foreach_add_([parameter.grad for parameter in self.parameters], gradients)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self.parameters, 1 - decay)
        if not math.isfinite(value):
            raise SystemExit(
                f"{self.stage}: the loss at step {self.step} is {value}. The state on disk is older: run "
                "again; if the error repeats, lower the learning rate."
            )
        return value

    def _save(self) -> None:
        save_tensors(
            self.file,
            dict(
                network=self.network.state_dict(),
                average=self.average.state_dict(),
                optimiser=self.optimiser.state_dict(),
                step=self.step,
                seconds=self.seconds,
            ),
        )

    def _resume(self) -> None:
        if not self.file.exists():
            return
        saved = load_tensors(self.file)
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        # Removes lines that were written after the state was saved, because they will be written again.
        if self.log.exists():
            lines = self.log.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            self.log.write_text("".join(line + "\n" for line in kept))

    def _write(self, line: dict[str, float]) -> None:
        with open(self.log, "a") as file:
            file.write(json.dumps(line) + "\n")


def _on_one_thread(work: Callable[[Share], float], share: Share) -> float:
    torch.set_num_threads(1)  # for the operations of this thread
    return work(share)


class Threads:
    """A choice of threads: all cores while no other program runs, otherwise one.

    Threads wait for each other at every layer. While other programs run, two threads are several times slower
    than one.
    """

    LOOK_EVERY = 40  # steps

    def __init__(self) -> None:
        self.fixed = bool(os.environ.get("OMP_NUM_THREADS"))
        self.clock = 0
        self.count = 1
        if not self.fixed:
            torch.set_num_threads(self.count)

    def before_step(self) -> None:
        self.clock += 1
        if self.fixed or self.clock % self.LOOK_EVERY:
            return
        others = os.getloadavg()[0] - self.count
        count = (os.cpu_count() or 1) if others < 0.5 else 1
        if count != self.count:
            self.count = count
            torch.set_num_threads(count)
