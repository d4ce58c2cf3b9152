"""Work that is reused from one step to the next. It changes the picture a little, so it has to be asked for.

What is here stands before a model and is called as the model is. A run makes its own, for what it remembers
is of the run's latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class DeepReuse:
    """Runs all of a UNet in every `every`-th evaluation, and its finest level alone in those between.

    What the deeper levels find changes slowly from step to step, and most of the work is theirs ("DeepCache:
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

    def apart(self) -> DeepReuse:
        """The same for other latents, with a memory of its own."""
        return DeepReuse(self.model, self.every)

    def _remembered(self, rows: int) -> Tensor | None:
        """The deep features to go by, or None where they are to be computed."""
        # Guidance that is switched on on the way asks for rows that nobody has computed yet.
        if self._deep is None or len(self._deep) < rows:
            self._evaluations = 0
        is_due = self._evaluations % self.every == 0
        self._evaluations += 1
        # Guidance that is switched off leaves the positive rows, which are the last ones.
        return None if is_due or self._deep is None else self._deep[-rows:]
