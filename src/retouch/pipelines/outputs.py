"""The results of calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retouch.pipelines.progress import Recording


class Output(ABC):
    """The result of a call: fields by name, and as the tuple that the reference returns."""

    @abstractmethod
    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that the reference has, as a plain tuple."""

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())


@dataclass
class PipelineOutput(Output):
    """The pictures, and for each whether the safety checker objects (None: it is not loaded)."""

    images: Any
    nsfw_content_detected: list[bool] | None = None
    recording: Recording | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return self.images, self.nsfw_content_detected


@dataclass
class PriorOutput(Output):
    """Image embeddings, and those to push away from, a row for each picture."""

    image_embeds: Any
    negative_image_embeds: Any

    def to_tuple(self) -> tuple[Any, ...]:
        return self.image_embeds, self.negative_image_embeds
