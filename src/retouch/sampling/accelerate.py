"""Reuse of work between steps. It changes the picture a little, so it is off unless asked for.

The wrappers here are called as the model is. Each run makes its own, because they remember features of the
run's latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class DeepReuse:
    """Runs the whole UNet in every `every`-th evaluation, and only its finest level in the others.

    The deeper levels' features change slowly from step to step, and most of the work is theirs ("DeepCache:
    Accelerating Diffusion Models for Free").
    """

    model: Callable[..., Any]
    every: int
    _evaluations: int = field(default=0, init=False)
    _deep: Tensor | None = field(default=None, init=False)

    def __call__(self, x: Tensor, timestep: Tensor, **inputs: Any) -> Any:
        deep = self._remembered(rows=len(x))
        prediction, self._deep = self.model(x, timestep, **inputs, deep=deep, return_deep=True)
        return (prediction,)

    def fresh(self) -> DeepReuse:
        """Return the same wrapper with an empty memory, for other latents."""
        return DeepReuse(self.model, self.every)

    def _remembered(self, rows: int) -> Tensor | None:
        """Return the deep features to reuse, or None when they must be computed."""
        # When guidance is turned on during a run, it needs rows that were not computed yet.
        if self._deep is None or len(self._deep) < rows:
            self._evaluations = 0
        is_due = self._evaluations % self.every == 0
        self._evaluations += 1
        # When guidance is turned off, the positive rows remain, which come last.
        return None if is_due or self._deep is None else self._deep[-rows:]
