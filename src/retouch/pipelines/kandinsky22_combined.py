"""Kandinsky 2.2 from a prompt: the prior and the decoder as one pipeline, which keeps the prior's parts under
names with "prior_" before them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from retouch.checkpoints.locate import Checkpoint
from retouch.errors import CheckpointError, InputError
from retouch.pipelines.kandinsky22 import Kandinsky22
from retouch.pipelines.kandinsky22_prior import PREFIX, KandinskyV22PriorPipeline
from retouch.pipelines.picture_run import PictureRun
from retouch.pipelines.placement import Prefixed
from retouch.pipelines.request import Request, argument
from retouch.pipelines.stored import PartNames


@dataclass(frozen=True)
class CombinedRequest(Request):
    """A request with the prior's settings besides."""

    latents: Tensor | None = argument(
        None, "The noise to start from: (pictures, width) the prior's, (pictures, 4, ...) the decoder's."
    )
    prior_guidance_scale: float = argument(4.0, "How strongly the prior follows the prompt.")
    prior_num_inference_steps: int = argument(25, "Denoising steps of the prior.")
    prior_callback_on_step_end: Callable[..., Mapping[str, Any]] | None = argument(
        None, "As callback_on_step_end, after each step of the prior."
    )
    prior_callback_on_step_end_tensor_inputs: Sequence[str] = argument(
        ("latents",), "Names of the tensors that it gets."
    )
    prior_latents: Tensor | None = argument(None, "Those of `latents` that are the prior's.")

    def prior_call(self, count: int = 1) -> dict[str, Any]:
        """The arguments of the prior for so many prompts."""

        def for_each(texts: str | Sequence[str] | None) -> Any:
            listed = [texts] if isinstance(texts, str) else list(texts or ())
            return listed * count if len(listed) == 1 else listed or None

        return {
            "prompt": for_each(self.prompt),
            "negative_prompt": for_each(self.negative_prompt),
            "num_images_per_prompt": self.num_images_per_prompt,
            "num_inference_steps": self.prior_num_inference_steps,
            "generator": self.generator,
            "latents": self.prior_latents,
            "guidance_scale": self.prior_guidance_scale,
            "callback_on_step_end": self.prior_callback_on_step_end,
            "callback_on_step_end_tensor_inputs": self.prior_callback_on_step_end_tensor_inputs,
        }


class Kandinsky22Combined(Kandinsky22):
    """The family with its prior; kandinsky22_names.py gives it its fronts."""

    component_names = (
        *Kandinsky22.component_names,
        *(PREFIX + name for name in KandinskyV22PriorPipeline.component_names),
    )
    prior_prior: Any

    decoder: ClassVar[type[Kandinsky22]]  # the front that does the same without a prior

    @property
    def prior_pipe(self) -> KandinskyV22PriorPipeline:
        """The prior as a pipeline of its own, with the same models."""
        parts = {name: getattr(self, PREFIX + name) for name in KandinskyV22PriorPipeline.component_names}
        prior = KandinskyV22PriorPipeline(**parts)
        prior.placement = Prefixed(self.placement, PREFIX)
        prior._progress_bar = self._progress_bar
        return prior

    @property
    def decoder_pipe(self) -> Kandinsky22:
        """The decoder as a pipeline of its own, with the same models."""
        return self.decoder.from_pipe(self)

    def start(self, *args: Any, **kwargs: Any) -> PictureRun:
        request: Any = self.task.bind(args, kwargs)
        if isinstance(request.latents, Tensor) and request.latents.ndim == 2:
            request = replace(request, latents=None, prior_latents=request.latents)
        return PictureRun(self, self.task, request)

    def _check_embeds(self, request: Any) -> None:
        prior = self.prior_pipe
        try:
            prior.task.bind((), request.prior_call()).check(prior.size_factor, prior.tensor_names)
        except InputError as error:
            raise InputError(f"For the prior: {error}") from None
        made, read = self.prior_prior.config.embedding_dim, self.unet.config.encoder_hid_dim
        if made != read:
            raise InputError(
                f"The prior makes embeddings of width {made}, and the decoder's UNet reads {read}. They are "
                "of different checkpoints; load a prior and a decoder that belong together."
            )

    def embeds(self, run: PictureRun) -> tuple[Tensor, Tensor | None]:
        """The prior's answer to the prompts, drawn before anything else is."""
        request: Any = run.request
        prior = self.prior_pipe.start(**request.prior_call(run.prompts))
        prior.cancelled = run.cancelled
        made = prior.result()
        return made.image_embeds, made.negative_image_embeds

    @classmethod
    def _sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        """A decoder's checkpoint names in its card the prior that belongs to it."""
        own = cls._named(index, given)
        if all(name in own or name in given for name in cls.component_names):
            return [(checkpoint, own)]
        names = checkpoint.card().get("prior")
        name = names[0] if isinstance(names, list) and names else names
        if not isinstance(name, str):
            raise CheckpointError(
                f"{checkpoint.name} is a decoder of Kandinsky 2.2, and its card (README.md) names no prior "
                "for it. A head with 'prior:' and the name of a repository is expected. Add it; or load the "
                "two apart, with KandinskyV22PriorPipeline and KandinskyV22Pipeline."
            )
        prior = checkpoint.beside(name)
        return [(checkpoint, own), (prior, cls._named(prior.index(), given, lambda part: PREFIX + part))]
