"""What must hold for any call of a pipeline, without a reference to ask."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from closeness import assert_close
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image
from pipeline_pairs import as_tensor, load, mask, photo
from torch import Generator, Tensor

import retouch
from retouch.errors import Cancelled, NumericsError
from retouch.pipelines.placement import ModelOffload, SequentialOffload

MULTISTEP = [
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LMSDiscreteScheduler",
]
SOME = ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", *MULTISTEP[:2]]
NAMES = {
    "text2image": "StableDiffusionPipeline",
    "image2image": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}


def with_scheduler(pipeline: Any, name: str, library: Any = retouch) -> Any:
    other = type(pipeline).from_pipe(pipeline)
    other.scheduler = getattr(library, name).from_config(dict(pipeline.scheduler.config))
    return other


def seeded(*seeds: int) -> Any:
    sources = [Generator().manual_seed(seed) for seed in seeds]
    return sources if len(sources) > 1 else sources[0]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A pipeline of its own over shared models."""

    def build(checkpoint: str, task: str = "inpaint") -> Any:
        kind = getattr(retouch, NAMES[task])
        return kind.from_pipe(load(retouch, NAMES["inpaint"], request.getfixturevalue(checkpoint)))

    return build


BOTH = pytest.mark.parametrize("checkpoint", ["tiny_sd", "tiny_sd_inpaint"])
CALL: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "pt"}
HOLE: dict[str, Any] = {**CALL, "image": photo(), "mask_image": mask()}


def original_latents(pipeline: Any) -> Tensor:
    """What a call with this seed takes for the picture's latents."""
    arguments = {**HOLE, "mask_image": Image.new("L", (64, 64)), "output_type": "latent"}
    with pytest.warns(UserWarning, match="mask is empty"):
        return pipeline(**arguments, generator=seeded(1)).images


class TestMasks:
    @BOTH
    def test_an_empty_mask_returns_the_picture(self, make: Any, checkpoint: str) -> None:
        pipeline = make(checkpoint)
        odd = photo(0, 61, 43)
        with pytest.warns(UserWarning, match="mask is empty.*invert"):
            (same,) = pipeline("a cat", odd, Image.new("L", odd.size), num_inference_steps=2).images
        assert same.tobytes() == odd.tobytes()

    def test_an_empty_mask_leaves_the_latents(self, make: Any) -> None:
        pipeline = make("tiny_sd")
        pixels = pipeline.image_processor.preprocess(photo())
        with torch.no_grad():
            assert_close(original_latents(pipeline), lambda: pipeline.encode(pixels, seeded(1)))

    def test_an_empty_mask_of_one_picture_in_a_batch(self, make: Any) -> None:
        both = {**HOLE, "image": [photo(1), photo(2)], "mask_image": [mask(), Image.new("L", (64, 64))]}
        first, second = make("tiny_sd")(**{**both, "output_type": "pil"}, generator=seeded(1)).images
        assert second.tobytes() == photo(2).tobytes() and first.tobytes() != photo(1).tobytes()

    @pytest.mark.parametrize("scheduler", SOME)
    @pytest.mark.parametrize("strength", [1.0, 0.7])
    def test_kept_latents_are_the_originals_exactly(self, make: Any, scheduler: str, strength: float) -> None:
        pipeline = with_scheduler(make("tiny_sd"), scheduler)
        arguments = {**HOLE, "output_type": "latent", "strength": strength}
        latents = pipeline(**arguments, generator=seeded(1)).images
        original = original_latents(pipeline)
        hole = torch.nn.functional.interpolate(pipeline.mask_processor.preprocess(mask()), size=(8, 8))
        kept = (hole == 0).expand_as(latents)
        assert torch.equal(latents[kept], original[kept])
        assert (latents - original)[~kept].abs().min() > 0

    @pytest.mark.parametrize("scheduler", SOME)
    def test_repainting_everything_is_text2image(self, make: Any, scheduler: str) -> None:
        noise = torch.randn(1, 4, 8, 8, generator=seeded(3))
        white = Image.new("L", (64, 64), 255)
        painted = with_scheduler(make("tiny_sd"), scheduler)(
            **CALL, image=photo(), mask_image=white, latents=noise, generator=seeded(1)
        ).images
        source = seeded(1)
        for _ in ("picture", "masked picture"):  # inpainting draws for their encodings before the first step
            torch.randn(1, 4, 8, 8, generator=source)
        drawn = with_scheduler(make("tiny_sd", "text2image"), scheduler)(
            **CALL, latents=noise, generator=source
        ).images
        assert torch.equal(painted, drawn)

    @BOTH
    @pytest.mark.parametrize("kind", ["L", "RGB", "1", "P", "array", "bytes", "bool", "tensor", "JPEG"])
    @pytest.mark.parametrize("size", [{}, {"height": 48, "width": 72}], ids=["own size", "resized"])
    def test_a_black_and_white_mask_is_the_same_soft_and_binary(
        self, make: Any, checkpoint: str, kind: str, size: dict[str, int]
    ) -> None:
        hole = mask()
        values = np.asarray(hole)
        given: Any = {
            "array": values.astype(np.float32) / 255,
            "bytes": values,
            "bool": values > 0,
            "tensor": torch.from_numpy(values / np.float32(255))[None, None],
            "JPEG": speckled(values),
        }.get(kind) if kind not in ("L", "RGB", "1", "P") else hole.convert(kind)  # fmt: skip
        if size and kind in ("L", "RGB", "P", "JPEG"):
            hole = given = given.resize((72, 48), Image.Resampling.NEAREST)
            picture = photo(0, 72, 48)
        else:
            picture = photo()
        pictures = [
            make(checkpoint)(
                **{**HOLE, "image": picture, "mask_image": given, "mask_mode": mode, **size},
                generator=seeded(1),
            ).images
            for mode in ("soft", "binary")
        ]
        assert torch.equal(*pictures)

    @BOTH
    def test_the_later_released_the_closer_to_the_original(self, make: Any, checkpoint: str) -> None:
        pipeline = with_scheduler(make(checkpoint), "DDIMScheduler")
        original = original_latents(pipeline)
        distances = []
        for grey in (15, 40, 65, 90, 115):  # from there on, these random weights wander
            arguments = {**HOLE, "mask_image": Image.new("L", (64, 64), grey), "num_inference_steps": 12}
            latents = pipeline(**{**arguments, "output_type": "latent"}, generator=seeded(1)).images
            distances.append(float((latents - original).abs().mean()))
        assert distances == sorted(distances) and distances[0] < 0.7 * distances[-1]

    def test_an_inpainting_model_sees_the_hardened_mask(self, make: Any) -> None:
        pipeline = make("tiny_sd_inpaint")
        seen: list[Tensor] = []
        keep = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 4:5]))
        ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
        try:
            soft, hard = (
                pipeline(**{**HOLE, "mask_image": ramp, "mask_mode": mode}, generator=seeded(1)).images
                for mode in ("soft", "binary")
            )
        finally:
            keep.remove()
        wanted = torch.tensor([0.0] * 4 + [1.0] * 4).expand(2, 1, 8, 8)
        assert all(torch.equal(channel, wanted) for channel in seen)
        assert not torch.equal(soft, hard)

    def test_softness_changes_no_seeds_noise(self, make: Any) -> None:
        pipeline = with_scheduler(make("tiny_sd_inpaint"), "DDIMScheduler")
        hard, soft = np.asarray(mask(), np.float32) / 255, np.asarray(mask(), np.float32) / 255
        soft[18:26, 10:18] = 0.6
        first: list[Tensor] = []
        states = []
        for values in (hard, soft):
            source = seeded(1)
            run = pipeline.start(**{**HOLE, "mask_image": values}, generator=source)
            keep = pipeline.unet.register_forward_pre_hook(lambda module, args: first.append(args[0]))
            next(run)
            keep.remove()
            states.append(source.get_state())
        assert torch.equal(*first) and torch.equal(*states)


def speckled(values: np.ndarray) -> Image.Image:
    """As a JPEG's black and white come out."""
    noise = np.random.default_rng(0).integers(-9, 10, values.shape)
    return Image.fromarray((values + noise).clip(0, 255).astype(np.uint8))


class TestBatches:
    PROMPTS = ("a cat", "a castle", "a bench")

    def in_batch_and_alone(self, pipeline: Any, each: int = 1, **several: Any) -> None:
        """`several` holds lists; the batch must be what its rows are when called alone."""
        count = len(self.PROMPTS)
        shared = {**CALL, "num_images_per_prompt": each} | (
            {"output_type": "pil"} if "padding_mask_crop" in several else {}
        )
        seeds = list(range(1, count * each + 1))
        together = pipeline(**{**shared, **several, "prompt": list(self.PROMPTS)}, generator=seeded(*seeds))

        def alone() -> list[Any]:
            pictures = []
            for row, prompt in enumerate(self.PROMPTS):
                own = {
                    name: value[row] if isinstance(value, list) else value for name, value in several.items()
                }
                source = [Generator().manual_seed(seed) for seed in seeds[row * each : (row + 1) * each]]
                pictures += pipeline(**{**shared, **own, "prompt": prompt}, generator=source).images
            return pictures

        assert_close(list(together.images), alone)

    PICTURES: ClassVar = [photo(seed) for seed in (1, 2, 3)]
    MASKS: ClassVar = [mask(), mask((3, 20, 60, 37)), mask((0, 0, 20, 64))]

    @pytest.mark.parametrize("each", [1, 2])
    @pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
    @pytest.mark.parametrize("strength", [1.0, 0.7])
    @BOTH
    def test_different_pictures_and_masks(
        self, make: Any, checkpoint: str, strength: float, scheduler: str, each: int
    ) -> None:
        pipeline = with_scheduler(make(checkpoint), scheduler)
        several = {"image": self.PICTURES, "mask_image": self.MASKS, "negative_prompt": ["", "a park", "of"]}
        self.in_batch_and_alone(pipeline, each, strength=strength, **several)

    @pytest.mark.parametrize("each", [1, 2])
    def test_image2image(self, make: Any, each: int) -> None:
        self.in_batch_and_alone(make("tiny_sd", "image2image"), each, image=self.PICTURES, strength=0.7)

    def test_text2image(self, make: Any) -> None:
        self.in_batch_and_alone(make("tiny_sd", "text2image"), 2)

    @BOTH
    def test_soft_masks(self, make: Any, checkpoint: str) -> None:
        soft = [make(checkpoint).mask_processor.blur(hole, 6) for hole in self.MASKS]
        self.in_batch_and_alone(make(checkpoint), image=self.PICTURES, mask_image=soft)
        mixed = [soft[0], self.MASKS[1], soft[2]]
        pipeline = with_scheduler(make(checkpoint), "EulerAncestralDiscreteScheduler")
        self.in_batch_and_alone(pipeline, image=self.PICTURES, mask_image=mixed)

    @pytest.mark.parametrize("each", [1, 2])
    @BOTH
    def test_each_picture_has_its_own_crop(self, make: Any, checkpoint: str, each: int) -> None:
        several = {
            "image": [photo(1, 100, 80), photo(2, 70, 130), photo(3, 64, 64)],
            "mask_image": [
                mask((5, 9, 30, 40), 100, 80), mask((40, 90, 66, 120), 70, 130), mask((30, 30, 50, 40)),
            ],
        }  # fmt: skip
        self.in_batch_and_alone(make(checkpoint), each, **several, padding_mask_crop=6, strength=0.8)


@BOTH
def test_guidance_of_one_is_no_guidance(make: Any, checkpoint: str) -> None:
    pipeline = make(checkpoint)
    rows: list[int] = []
    keep = pipeline.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))

    def guided(scale: float) -> Tensor:
        return pipeline(**HOLE, guidance_scale=scale, negative_prompt="a castle", generator=seeded(1)).images

    try:
        one, less = guided(1.0), guided(0.3)
    finally:
        keep.remove()
    assert torch.equal(one, less) and set(rows) == {1}

    def force(run: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        run.guidance.scale = 1.0  # both sides are still computed
        return {}

    slightly_more = pipeline(
        **HOLE, guidance_scale=1.0000001, negative_prompt="a castle", generator=seeded(1),
        callback_on_step_end=force,
    ).images  # fmt: skip
    assert_close(slightly_more, lambda: guided(1.0))


class TestInterleaving:
    CALLS: tuple[dict[str, Any], ...] = (
        {"prompt": "a cat", "num_inference_steps": 6, "image": photo(1), "mask_image": mask()},
        {
            "prompt": ["a castle", "a bench"],
            "num_inference_steps": 4,
            "image": photo(2, 48, 72),
            "mask_image": mask((0, 0, 30, 30), 48, 72),
            "strength": 0.8,
            "guidance_scale": 2.0,
        },
    )

    def expected(self, pipeline: Any) -> list[Tensor]:
        return [pipeline(**call, output_type="pt", generator=seeded(4)).images for call in self.CALLS]

    @pytest.mark.parametrize("library", [retouch, diffusers])
    @pytest.mark.parametrize(
        "scheduler", [*MULTISTEP, "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"]
    )
    def test_two_runs_in_turns(self, make: Any, scheduler: str, library: Any) -> None:
        pipeline = with_scheduler(make("tiny_sd_inpaint"), scheduler, library)
        expected = self.expected(pipeline)
        runs = [pipeline.start(**call, output_type="pt", generator=seeded(4)) for call in self.CALLS]
        going = list(runs)
        while going:
            for run in list(going):
                if next(run, None) is None:
                    going.remove(run)
        for run, wanted in zip(runs, expected, strict=True):
            assert torch.equal(run.result().images, wanted)

    @pytest.mark.parametrize("strategy", [None, ModelOffload, SequentialOffload])
    @BOTH
    def test_two_threads(self, make: Any, checkpoint: str, strategy: Any) -> None:
        pipeline = make(checkpoint)
        expected = self.expected(pipeline)
        if strategy:
            pipeline.placement = strategy(pipeline, torch.device("cpu"))
        found: dict[int, list[Tensor]] = {0: [], 1: []}
        faults: list[BaseException] = []
        together = threading.Barrier(2)

        def work(number: int) -> None:
            try:
                for _ in range(3):
                    together.wait(30)
                    output = pipeline(
                        **self.CALLS[number], output_type="pt", generator=seeded(4), clip_skip=None
                    )
                    found[number].append(output.images)
            except BaseException as fault:
                faults.append(fault)
                together.abort()

        threads = [threading.Thread(target=work, args=(number,)) for number in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults, faults
        assert [len(images) for images in found.values()] == [3, 3]
        if strategy is SequentialOffload:  # layers with hooks round differently
            assert_close([found[0], found[1]], lambda: [3 * [images] for images in self.expected(pipeline)])
        else:
            assert all(torch.equal(images, expected[number]) for number in found for images in found[number])

    def test_two_threads_with_different_text_layers(self, make: Any) -> None:
        """The text encoder's other layers are asked for by one thread and not by the other."""
        pipeline = make("tiny_sd", "text2image")
        skips = (None, 1)
        expected = [pipeline.encode_prompt("a cat", clip_skip=skip)[0] for skip in skips]
        faults: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for _ in range(20):
                    states = pipeline.encode_prompt("a cat", clip_skip=skips[number])[0]
                    assert torch.equal(states, expected[number])
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults, faults


def test_saving_and_loading_changes_nothing(make: Any, tmp_path: Path) -> None:
    for checkpoint, task in (("tiny_sd2_inpaint", "inpaint"), ("tiny_sd", "text2image")):
        before = make(checkpoint, task)
        before.save_pretrained(tmp_path / checkpoint)
        after = type(before).from_pretrained(tmp_path / checkpoint)
        assert after.config == before.config
        assert after.scheduler.config == before.scheduler.config
        inputs = HOLE if task == "inpaint" else CALL
        first, second = (pipe(**inputs, generator=seeded(1)).images for pipe in (before, after))
        assert torch.equal(first, second)


SIZES = strategies.integers(9, 100)


class TestSizes:
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        width=SIZES, height=SIZES, kind=strategies.sampled_from(["pil", "np", "pt"]), data=strategies.data()
    )
    def test_the_result_has_the_pictures_size(
        self, make: Any, width: int, height: int, kind: str, data: Any
    ) -> None:
        checkpoint, task = data.draw(
            strategies.sampled_from(
                [("tiny_sd", "image2image"), ("tiny_sd", "inpaint"), ("tiny_sd_inpaint", "inpaint")]
            )
        )
        pixels = np.asarray(photo(0, width, height), np.float32) / 255
        arguments: dict[str, Any] = {**CALL, "num_inference_steps": 1, "output_type": kind, "strength": 1.0}
        if task == "inpaint":
            box = (0, 0, width - width // 4, height)
            arguments["mask_image"] = mask(box, width, height)
        given_as = {
            "pil": photo(0, width, height),
            "np": pixels,
            "pt": torch.from_numpy(pixels).movedim(-1, 0),
        }

        def result(image: Any) -> Any:
            return make(checkpoint, task)(**arguments, image=image, generator=seeded(1)).images

        found = result(given_as[kind])
        assert as_tensor(found).shape == ((1, 3, height, width) if kind == "pt" else (1, height, width, 3))
        assert_close(found, lambda: result(given_as["pil"]))

    def test_the_picture_is_filled_up_and_not_squeezed(self, make: Any) -> None:
        """Its pixels stay where they are: what comes out is the corner of a call with the filled picture."""
        odd = photo(0, 61, 43)
        filled = Image.fromarray(np.pad(np.asarray(odd), ((0, 5), (0, 3), (0, 0)), mode="edge"))
        pipeline = make("tiny_sd", "image2image")
        small, large = (
            pipeline(**CALL, image=image, strength=0.7, generator=seeded(1)).images for image in (odd, filled)
        )
        assert small.shape[-2:] == (43, 61) and torch.equal(small, large[..., :43, :61])

    def test_the_hole_stays_where_it_is(self, make: Any) -> None:
        odd, hole = photo(0, 61, 43), mask((20, 10, 61, 43), 61, 43)
        filled = Image.fromarray(np.pad(np.asarray(odd), ((0, 5), (0, 3), (0, 0)), mode="edge"))
        for larger in (hole, hole.resize((122, 86), Image.Resampling.NEAREST)):
            wide = Image.fromarray(np.pad(np.asarray(hole), ((0, 5), (0, 3))))
            if larger is hole:
                small = make("tiny_sd")(**{**HOLE, "image": odd, "mask_image": larger}, generator=seeded(1))
            else:
                with pytest.warns(UserWarning, match="122x86 but image is 61x43"):
                    small = make("tiny_sd")(
                        **{**HOLE, "image": odd, "mask_image": larger}, generator=seeded(1)
                    )
            large = make("tiny_sd")(**{**HOLE, "image": filled, "mask_image": wide}, generator=seeded(1))
            assert torch.equal(small.images, large.images[..., :43, :61])


def snapshot(pipeline: Any) -> dict[str, Any]:
    """Everything that a pipeline and its parts hold, but for the numbers of the weights."""
    held: dict[str, Any] = {"pipeline": {name: id(value) for name, value in vars(pipeline).items()}}
    held["scheduler"] = {name: repr(value) for name, value in vars(pipeline.scheduler).items()}
    held["config"] = dict(pipeline.scheduler.config)
    held["progress bar"] = dict(pipeline._progress_bar)
    for name, part in pipeline._modules().items():
        for path, layer in part.named_modules():
            held[f"{name}.{path}"] = {
                key: id(value) for key, value in vars(layer).items() if not key.startswith("_")
            } | {
                "hooks": len(layer._forward_hooks) + len(layer._forward_pre_hooks),
                "training": layer.training,
            }
            for key, parameter in layer.named_parameters(recurse=False):
                held[f"{name}.{path}.{key}"] = (
                    parameter.data_ptr(),
                    parameter._version,
                    parameter.requires_grad,
                )
    return held


class TestState:
    @pytest.mark.parametrize("scheduler", ["PNDMScheduler", "UniPCMultistepScheduler", "LCMScheduler"])
    def test_nothing_of_a_call_stays(self, make: Any, scheduler: str) -> None:
        pipeline = with_scheduler(make("tiny_sd_inpaint"), scheduler)
        pipeline.optimize(False)  # prepared layers make the parameter anew for whoever looks
        # Tables that the scheduler computes on first use, and hooks that transformers leaves in its encoder
        # when it is asked for another layer, are not of a request.
        pipeline(**HOLE, clip_skip=1)
        before = snapshot(pipeline)

        def listen(run: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            run._guidance_scale = 2.0
            run._interrupt = index == 1
            run.my_own_note = "a note"
            return tensors

        pipeline(**HOLE, generator=seeded(1), callback_on_step_end=listen, clip_skip=1, eta=0.5)
        assert snapshot(pipeline) == before
        with pytest.raises(ZeroDivisionError):
            pipeline(**HOLE, callback_on_step_end=lambda *_: 1 // 0)
        assert snapshot(pipeline) == before
        run = pipeline.start(**HOLE)
        next(run)
        run.cancel()
        with pytest.raises(Cancelled):
            run.result()
        assert snapshot(pipeline) == before

    def test_arguments_are_left_alone(self, make: Any) -> None:
        noise = torch.randn(1, 4, 8, 8)
        embeds = torch.randn(1, 77, 32)
        picture, hole = torch.rand(1, 3, 64, 64), torch.zeros(64, 64)
        hole[10:30, 10:50] = 0.7
        given_tensors = {"latents": noise, "prompt_embeds": embeds, "image": picture, "mask_image": hole}
        copies = {name: value.clone() for name, value in given_tensors.items()}
        make("tiny_sd")(**given_tensors, num_inference_steps=2, output_type="pt")
        for name, value in given_tensors.items():
            assert torch.equal(value, copies[name])

    def test_gradients_are_not_switched_off_for_the_caller(self, make: Any) -> None:
        run = make("tiny_sd").start(**HOLE)
        for progress in run:
            assert torch.is_grad_enabled() and not progress.latents.requires_grad
        assert not run.result().images.requires_grad


class TestStopping:
    def test_cancelled_by_another_thread(self, make: Any) -> None:
        pipeline = make("tiny_sd")
        expected = pipeline(**HOLE, generator=seeded(1)).images
        run = pipeline.start(**{**HOLE, "num_inference_steps": 900})
        threading.Timer(0.2, run.cancel).start()
        with pytest.raises(Cancelled, match=r"cancelled after \d+ of 901 steps"):
            run.result()
        with pytest.raises(Cancelled):  # and what is half done is not given out afterwards
            run.result()
        assert torch.equal(pipeline(**HOLE, generator=seeded(1)).images, expected)

    def test_cancelled_by_a_callback(self, make: Any) -> None:
        seen: list[int] = []

        def cancel(run: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(index)
            if index == 1:
                run.cancel()
            return tensors

        with pytest.raises(Cancelled, match="after 2 of 5"):
            make("tiny_sd")(**{**HOLE, "num_inference_steps": 4}, callback_on_step_end=cancel)
        assert seen == [0, 1]

    def test_cancelled_before_it_began(self, make: Any) -> None:
        pipeline = make("tiny_sd")
        evaluations: list[int] = []
        keep = pipeline.unet.register_forward_pre_hook(lambda module, args: evaluations.append(1))
        try:
            run = pipeline.start(**HOLE)
            run.cancel()
            with pytest.raises(Cancelled, match="after 0 of 4"):
                run.result()
        finally:
            keep.remove()
        assert not evaluations

    def test_stopped(self, make: Any) -> None:
        """What there is by then is decoded."""
        pipeline = make("tiny_sd")
        run = pipeline.start(**HOLE, generator=seeded(1))
        progress = next(run)
        run.stop()
        with torch.no_grad():
            wanted = pipeline.image_processor.postprocess(pipeline.decode(progress.latents), output_type="pt")
        assert torch.equal(run.result().images, wanted)
        assert torch.equal(run.result().images, wanted)

    def test_closed(self, make: Any) -> None:
        with make("tiny_sd").start(**HOLE) as run:
            next(run)
        with pytest.raises(Cancelled, match="closed"):
            run.result()
        with make("tiny_sd").start(**HOLE) as run:
            finished = run.result().images
        assert torch.equal(run.result().images, finished)

    def test_steps_can_be_taken_one_by_one(self, make: Any) -> None:
        pipeline = make("tiny_sd")
        run = pipeline.start(**HOLE, generator=seeded(1))
        timesteps = [float(progress.step.timestep) for progress in run]
        assert timesteps == sorted(timesteps, reverse=True) and len(timesteps) == run.num_timesteps == 4
        assert torch.equal(run.result().images, pipeline(**HOLE, generator=seeded(1)).images)


class TestNumerics:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_broken_latents_are_detected(self, make: Any, value: float) -> None:
        pipeline = make("tiny_sd", "text2image")
        pipeline.unet = copy.deepcopy(pipeline.unet)
        torch.nn.init.constant_(pipeline.unet.conv_out.bias, value)
        with pytest.raises(NumericsError, match=r"NaN or infinite in step 1.*torch\.float32.*checkpoint"):
            pipeline(**CALL)

    def test_they_are_detected_in_the_step_where_they_come_up(self, make: Any) -> None:
        def spoil(run: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"latents": tensors["latents"] / (index != 1)}

        with pytest.raises(NumericsError, match="in step 3"):
            make("tiny_sd", "text2image")(**{**CALL, "num_inference_steps": 4}, callback_on_step_end=spoil)

    @pytest.mark.parametrize("part", ["decoder", "encoder"])
    def test_a_vae_that_overflows_in_half_precision(self, make: Any, part: str) -> None:
        pipeline = make("tiny_sd", "image2image")
        wide = copy.deepcopy(pipeline.vae)
        weight = getattr(wide, part).conv_out.weight.data
        scale = 6e4 / float(weight.abs().max())  # a weight that float16 holds, and sums that it does not
        weight.mul_(scale)
        if part == "encoder":
            wide.quant_conv.weight.data.div_(scale)
        pictures = []
        for dtype in (torch.float32, torch.float16):
            pipeline.vae = copy.deepcopy(wide).to(dtype)
            arguments = {**CALL, "image": photo(), "strength": 0.7, "output_type": "pt"}
            if dtype == torch.float16:
                with pytest.warns(UserWarning, match=r"VAE overflowed in torch\.float16.*float32"):
                    pictures.append(pipeline(**arguments, generator=seeded(1)).images)
                assert pipeline.vae.dtype == torch.float16
            else:
                pictures.append(pipeline(**arguments, generator=seeded(1)).images)
        assert pictures[1].isfinite().all()
        # float16 has rounded the weights, and a decoder of such weights gives black and white only.
        assert ((pictures[0] - pictures[1]).abs() > 0.05).float().mean() < 0.02
