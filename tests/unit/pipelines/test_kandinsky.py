"""Kandinsky's family where it is more than the reference: batches, sizes, soft masks, loading, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close, assert_differ
from kandinsky_pairs import (
    COMBINED,
    DECODERS,
    FEW,
    PRIOR,
    combined_pair,
    embeds,
    loaded,
    made,
    prompts,
    task_inputs,
)
from pipeline_pairs import as_tensor, generators, load, mask, photo
from tiny_checkpoints_kandinsky import WIDTH
from torch import Tensor

import retouch
from retouch.errors import Cancelled, InputError
from retouch.families.kandinsky22 import grow
from retouch.pipelines.placement import ModelOffload, SequentialOffload

CPU = torch.device("cpu")


@pytest.fixture
def inpainting(tiny_kandinsky_inpaint: Path) -> Any:
    return loaded(retouch, DECODERS["inpaint"], tiny_kandinsky_inpaint)


@pytest.fixture
def whole(tiny_kandinsky_inpaint: Path, tiny_kandinsky_prior: Path) -> Any:
    return combined_pair(tiny_kandinsky_inpaint, tiny_kandinsky_prior, "inpaint").ours


def by_the_reference(keep: Tensor) -> Tensor:
    """The mask means 1 = keep there."""
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import prepare_mask

    return prepare_mask(keep.clone())


class TestTheHole:
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
    @pytest.mark.parametrize("size", [(12, 12), (7, 13), (1, 5), (1, 1)], ids=str)
    def test_grows_as_the_references(self, share: float, size: tuple[int, int]) -> None:
        for _ in range(5):
            repaint = (torch.rand(2, 1, *size) < share).float()
            assert torch.equal(grow(repaint), 1 - by_the_reference(1 - repaint))

    def test_six_neighbours(self) -> None:
        repaint = torch.zeros(1, 1, 5, 5)
        repaint[..., 2, 2] = 1
        assert grow(repaint)[0, 0, 1:4, 1:4].tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
        assert grow(repaint).sum() == 7

    def test_a_soft_one_grows_level_by_level(self) -> None:
        repaint = torch.rand(1, 1, 9, 9)
        for level in (0.1, 0.5, 0.9):
            assert torch.equal((grow(repaint) > level).float(), grow((repaint > level).float()))


def different(count: int) -> dict[str, Any]:
    """Pictures and holes that are all different."""
    boxes = [(4, 4, 30, 40), (20, 10, 60, 30), (0, 30, 50, 64)]
    return {
        "image": [photo(seed) for seed in range(count)],
        "mask_image": [mask(box) for box in boxes[:count]],
    }


def test_a_batch_of_different_pictures_is_that_many_calls(inpainting: Any) -> None:
    """The reference puts the first picture's surroundings into all of them."""
    inputs, given = different(3), embeds(3)
    batch = made(inpainting, [1, 2, 3], **given, **inputs)

    def alone(row: int) -> Tensor:
        pictures = {name: value[row] for name, value in inputs.items()}
        own = {name: value[row : row + 1] for name, value in given.items()}
        return made(inpainting, row + 1, **own, **pictures)

    assert_close(batch, lambda: torch.cat([alone(row) for row in range(3)]))
    assert (batch[0] - batch[1]).abs().max() > 0.05


def test_a_batch_from_prompts_is_that_many_calls(whole: Any) -> None:
    inputs = different(2)
    texts = {"prompt": ["a cat", "a castle"], "negative_prompt": ["a", "a park"]}
    few = {"prior_num_inference_steps": 3}
    batch = made(whole, [1, 2], **texts, **inputs, **few)
    rows = [{name: value[row] for name, value in {**texts, **inputs}.items()} for row in range(2)]
    assert_close(
        batch, lambda: torch.cat([made(whole, row + 1, **alone, **few) for row, alone in enumerate(rows)])
    )


def test_one_prompt_for_several_pictures(whole: Any) -> None:
    inputs, few = different(2), {"prior_num_inference_steps": 3}
    texts = {"prompt": "a cat", **few}
    batch = made(whole, [1, 2], **texts, **inputs)
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(2)]
    assert_close(
        batch, lambda: torch.cat([made(whole, row + 1, **texts, **alone) for row, alone in enumerate(rows)])
    )


class TestSizes:
    @pytest.mark.parametrize("size", [(72, 40), (61, 83), (64, 64)], ids=str)
    @pytest.mark.parametrize("task", ["inpaint", "image2image"])
    def test_a_picture_keeps_its_size(
        self, task: str, size: tuple[int, int], tiny_kandinsky: Path, inpainting: Any
    ) -> None:
        width, height = size
        picture = photo(width=width, height=height)
        inputs: dict[str, Any] = {"image": picture, "strength": 0.7}
        pipeline = loaded(retouch, DECODERS[task], tiny_kandinsky) if task != "inpaint" else inpainting
        if task == "inpaint":
            inputs = {"image": picture, "mask_image": mask((8, 8, 30, 30), width, height)}
        assert made(pipeline, **embeds(), **inputs).shape == (1, height, width, 3)

    def test_any_multiple_of_eight(self, tiny_kandinsky: Path) -> None:
        """The reference rounds up to 64."""
        pipeline = loaded(retouch, DECODERS["text2image"], tiny_kandinsky)
        assert made(pipeline, **embeds(), height=72, width=104).shape == (1, 72, 104, 3)
        with pytest.raises(InputError, match=r"height=70 is not a multiple of 8. The nearest is 72"):
            made(pipeline, **embeds(), height=70, width=64)

    def test_not_square_image_to_image(self, tiny_kandinsky: Path) -> None:
        """The reference takes the width for the height."""
        pipeline = loaded(retouch, DECODERS["image2image"], tiny_kandinsky)
        inputs = {"image": photo(width=100, height=50), "strength": 0.2, "num_inference_steps": 10}
        result = made(pipeline, **embeds(), **inputs, height=64, width=128)
        assert result.shape == (1, 64, 128, 3)

    def test_tiles_and_slices_of_the_decoder(self, inpainting: Any) -> None:
        inputs = {**embeds(2), **different(2), "num_images_per_prompt": 1}
        pipeline = type(inpainting).from_pipe(inpainting)
        pipeline.enable_vae_tiling()
        pipeline.enable_vae_slicing()
        try:
            found = made(pipeline, **inputs)
        finally:
            pipeline.disable_vae_tiling()
            pipeline.disable_vae_slicing()
        assert_close(found, lambda: made(inpainting, **inputs))

    def test_windows(self, inpainting: Any) -> None:
        inputs = {"image": photo(width=128, height=64), "mask_image": mask((30, 10, 110, 50), 128, 64)}
        one, several = (made(inpainting, **embeds(), **inputs, tile_size=side) for side in (128, 64))
        assert_close(one, lambda: made(inpainting, **embeds(), **inputs))
        assert several.shape == one.shape
        assert_differ(several, one)


class TestMasks:
    def test_outside_nothing_changes(self, inpainting: Any) -> None:
        options = {"output_type": "latent", "generator": generators(3), "num_inference_steps": 3}
        box = (16, 16, 40, 40)
        latents = inpainting(**embeds(), image=photo(), mask_image=mask(box), **options).images
        pixels = 2 * as_tensor([photo()]).movedim(-1, 1) - 1
        original = inpainting.encode(pixels, None)
        hole = torch.zeros(1, 1, 8, 8)
        hole[..., 2:5, 2:5] = 1
        kept = grow(hole).expand_as(latents) == 0
        latents = latents.as_subclass(Tensor)
        assert_close(latents[kept], lambda: inpainting.encode(pixels, None)[kept])
        assert (latents - original)[~kept].abs().max() > 0.1

    def test_a_soft_mask(self, inpainting: Any) -> None:
        ramp = np.tile(np.linspace(0, 255, 64), (64, 1)).astype(np.uint8)
        inputs = {"image": photo(), "num_inference_steps": 12}
        soft = made(inpainting, **embeds(), **inputs, mask_image=ramp)
        hard = made(inpainting, **embeds(), **inputs, mask_image=ramp, mask_mode="binary")
        assert (soft - hard).abs().max() > 0.01
        black_and_white = {"mask_image": mask()}
        assert torch.equal(
            made(inpainting, **embeds(), **inputs, **black_and_white),
            made(inpainting, **embeds(), **inputs, **black_and_white, mask_mode="binary"),
        )

    def test_an_empty_mask(self, whole: Any) -> None:
        """The prior is not even asked."""
        whole.prior_prior.register_forward_pre_hook(lambda *_: pytest.fail("the prior ran"))
        try:
            with pytest.warns(UserWarning, match="mask is empty"):
                images = whole("a cat", photo(), mask((0, 0, 0, 0))).images
        finally:
            whole.prior_prior._forward_pre_hooks.clear()
        assert images[0].tobytes() == photo().tobytes()

    def test_a_regular_decoder_inpaints_too(self, tiny_kandinsky: Path) -> None:
        """It sees no mask, but the loop holds the rest of the picture for it; the reference fails."""
        regular = loaded(retouch, DECODERS["text2image"], tiny_kandinsky)
        pipeline = retouch.AutoPipelineForInpainting.from_pipe(regular)
        assert type(pipeline) is retouch.KandinskyV22InpaintPipeline
        result = made(pipeline, **embeds(), image=photo(), mask_image=mask((40, 40, 64, 64)))
        assert result.shape == (1, 64, 64, 3) and np.isfinite(result.numpy()).all()

    def test_a_crop_is_pasted_back(self, whole: Any) -> None:
        picture, hole = photo(width=120, height=90), mask((70, 30, 90, 50), 120, 90)
        options = {"padding_mask_crop": 8, "num_inference_steps": 2, "prior_num_inference_steps": 2}
        image = whole("a cat", picture, hole, **options).images[0]
        before, after, white = (np.asarray(each) for each in (picture, image, hole))
        assert (before[white == 0] == after[white == 0]).all() and (before != after).any()

    def test_strength(self, inpainting: Any) -> None:
        inputs = {"image": photo(), "mask_image": mask(), "num_inference_steps": 10}
        little, much = (made(inpainting, **embeds(), **inputs, strength=part) for part in (0.1, 1.0))
        plain = as_tensor([photo()])
        assert (little - plain).abs().mean() < (much - plain).abs().mean()


class TestLatents:
    def test_in_and_out(self, inpainting: Any) -> None:
        pixels = 2 * as_tensor([photo()]).movedim(-1, 1) - 1
        with torch.no_grad():
            latents = inpainting.movq.encode(pixels).latents
        given = {**embeds(), "mask_image": mask()}
        assert_close(
            made(inpainting, **given, image=latents[0]), lambda: made(inpainting, **given, image=photo())
        )
        result = inpainting(**given, image=photo(), num_inference_steps=1, output_type="latent").images
        assert result.vae == "VQModel with scaling_factor 0.18215"

    def test_those_of_stable_diffusion_are_refused_and_the_other_way_round(
        self, whole: Any, inpainting: Any, tiny_sd: Path
    ) -> None:
        """The guide: Kandinsky 2.2 uses a different VAE class, so it won't work."""
        sd = load(retouch, "StableDiffusionPipeline", tiny_sd)
        latents = sd("a cat", num_inference_steps=1, output_type="latent").images
        with pytest.raises(InputError, match=r"latents of AutoencoderKL .*VAE is VQModel .*make a picture"):
            whole("a waterfall", latents[0], mask())
        options = {"num_inference_steps": 1, "output_type": "latent"}
        painted = inpainting(**embeds(), image=photo(), mask_image=mask(), **options).images
        with pytest.raises(InputError, match=r"latents of VQModel .*VAE is AutoencoderKL"):
            retouch.AutoPipelineForInpainting.from_pipe(sd)("a cat", painted[0], mask())

    def test_noise_for_the_decoder(self, whole: Any) -> None:
        """By its shape; the prior's is compared with the reference."""
        inputs = prompts("inpaint")
        first, second = (made(whole, **inputs, latents=torch.randn(1, 4, 8, 8)) for _ in range(2))
        assert (first - second).abs().max() > 0.01


def test_windows_of_the_prior_and_the_decoder_are_recorded(whole: Any) -> None:
    recorded = whole(**prompts("inpaint"), num_inference_steps=3, record=True).recording
    assert len(recorded.frames) == 3 and recorded.frames[0].image.size == (64, 64)


class Watched(ModelOffload):
    """Notes which parts are used, and how many at a time."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        super().__init__(owner, device)
        self.order: list[str] = []
        self.most = 0

    def using(self, name: str) -> Any:
        if not self.order or self.order[-1] != name:
            self.order.append(name)
        return super().using(name)

    def _borrow(self, module: Any) -> None:
        self.most = max(self.most, sum(count > 0 for count in self._users.values()))
        super()._borrow(module)


class TestOffload:
    def test_prior_and_decoder_in_turn(self, whole: Any) -> None:
        whole.placement = watched = Watched(whole, CPU)
        made(whole, **prompts("inpaint"))
        assert watched.order == [
            *("prior_text_encoder", "prior_prior", "prior_image_encoder", "movq", "unet", "movq")
        ]
        assert watched.most == 1

    @pytest.mark.parametrize("strategy", [ModelOffload, SequentialOffload])
    def test_the_same_picture(self, whole: Any, strategy: Any) -> None:
        resident = whole.placement

        def hooks() -> list[int]:
            parts = whole._modules().values()
            return [sum(len(layer._forward_pre_hooks) for layer in part.modules()) for part in parts]

        made(whole, **prompts("inpaint"))  # optimized models have a hook of their own before the first call
        before = hooks()
        whole.placement = strategy(whole, CPU)
        found = made(whole, **prompts("inpaint"))
        whole.placement = resident
        assert_close(found, lambda: made(whole, **prompts("inpaint")))  # layers with hooks round differently
        assert hooks() == before

    def test_the_halves_go_where_the_whole_goes(self, whole: Any) -> None:
        whole.placement = ModelOffload(whole, CPU)
        assert whole.prior_pipe.device == whole.decoder_pipe.device == CPU
        assert whole.prior_pipe.prior is whole.prior_prior and whole.decoder_pipe.unet is whole.unet
        with whole.decoder_pipe.placement.using("unet"):
            assert whole.placement._users[whole.unet] == 1
        assert type(whole.decoder_pipe).__name__ == DECODERS["inpaint"]


class TestRuns:
    def test_step_by_step(self, whole: Any) -> None:
        run = whole.start(**prompts("inpaint"), **FEW, generator=generators(7))
        steps = [progress.step.index for progress in run]
        assert steps == [0, 1, 2]
        assert torch.equal(as_tensor(run.result().images), made(whole, **prompts("inpaint")))

    def test_cancelled_while_the_prior_runs(self, whole: Any) -> None:
        inputs = prompts("inpaint")
        heard: list[int] = []

        def cancel(prior: Any, index: int, timestep: Any, tensors: Any) -> dict[str, Any]:
            heard.append(index)
            run.cancel()
            return {}

        run = whole.start(**inputs, **FEW, prior_callback_on_step_end=cancel)
        with pytest.raises(Cancelled, match="after 1 of 3 steps"):
            run.result()
        assert heard == [0]

    def test_stopped(self, whole: Any) -> None:
        run = whole.start(**prompts("inpaint"), **FEW)
        next(run)
        run.stop()
        assert np.isfinite(run.result().images).all()

    def test_outputs(self, whole: Any, tiny_kandinsky_prior: Path) -> None:
        output = whole(**prompts("inpaint"), **FEW, return_dict=False)
        assert isinstance(output, tuple) and len(output) == 1
        prior = loaded(retouch, PRIOR, tiny_kandinsky_prior)
        embeddings, negative = prior("a cat", num_inference_steps=2, return_dict=False, output_type="np")
        assert embeddings.shape == negative.shape == (1, WIDTH) and isinstance(embeddings, np.ndarray)
        both = prior("a cat", num_inference_steps=2)
        assert both["image_embeds"] is both.image_embeds is both[0]

    def test_two_at_a_time(self, whole: Any) -> None:
        alone = [made(whole, seed, **prompts("inpaint")) for seed in (1, 2)]
        runs = [whole.start(**prompts("inpaint"), **FEW, generator=generators(seed)) for seed in (1, 2)]
        for _ in zip(*runs, strict=True):
            pass
        for run, expected in zip(runs, alone, strict=True):
            assert torch.equal(as_tensor(run.result().images), expected)

    def test_a_list_of_one_generator_is_that_generator(self, tiny_kandinsky_prior: Path) -> None:
        """Also with a negative prompt, whose embedding is made in a row of its own."""
        prior = loaded(retouch, PRIOR, tiny_kandinsky_prior)
        options = {"negative_prompt": "a bench", "num_inference_steps": 3}
        one = prior("a cat", generator=generators(5), **options)
        other = prior("a cat", generator=generators([5]), **options)
        assert torch.equal(one.image_embeds, other.image_embeds)
        assert torch.equal(one.negative_image_embeds, other.negative_image_embeds)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_a_movq_that_overflows_in_half_precision(part: str, inpainting: Any) -> None:
    wide = copy.deepcopy(inpainting.movq)
    weight = getattr(wide, part).conv_out.weight.data
    scale = 6e4 / float(weight.abs().max())  # a weight that float16 holds, and sums that it does not
    weight.mul_(scale)
    if part == "encoder":
        wide.quant_conv.weight.data.div_(scale)
    pipeline = type(inpainting).from_pipe(inpainting, vae=wide.half())
    assert pipeline.movq is pipeline.vae is wide
    inputs = {**embeds(), "image": photo(), "mask_image": mask()}
    with pytest.warns(UserWarning, match=r"VAE overflowed in torch\.float16.*float32"):
        assert np.isfinite(made(pipeline, **inputs).numpy()).all()
    assert pipeline.movq.dtype == torch.float16


def test_repainting_everything_is_text2image(tiny_kandinsky: Path) -> None:
    regular = loaded(retouch, DECODERS["text2image"], tiny_kandinsky)
    inpainting = retouch.KandinskyV22InpaintPipeline.from_pipe(regular)
    white = mask((0, 0, 64, 64))
    assert torch.equal(
        made(inpainting, **embeds(), image=photo(), mask_image=white),
        made(regular, **embeds(), height=64, width=64),
    )


def test_half_precision(tiny_kandinsky_whole: Path) -> None:
    name = COMBINED["inpaint"]
    half = getattr(retouch, name).from_pretrained(tiny_kandinsky_whole, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert {part.dtype for part in half._modules().values()} == {torch.bfloat16}
    assert np.isfinite(made(half, **prompts("inpaint")).numpy()).all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"image_embeds": None}, r"inpaint needs image_embeds"),
            ({"negative_image_embeds": None}, r"guidance_scale=4.0 needs negative_image_embeds"),
            ({"image_embeds": "a cat"}, r"image_embeds is not a tensor \(pictures, width\)"),
            ({"image_embeds": torch.zeros(1, 5)}, rf"image_embeds has the width 5, .* width {WIDTH}"),
            ({"negative_image_embeds": torch.zeros(3, WIDTH)}, r"has 3 rows and image_embeds 1"),
            ({"guidance_scale": "high"}, r"guidance_scale='high' is not a finite number"),
            ({"prompt": "a cat"}, r"has no argument 'prompt'"),
            ({"output_type": "jpeg"}, r"output_type='jpeg' is unknown"),
            ({"latents": torch.zeros(1, 4, 9, 9)}, r"latents has the shape .* but this call makes"),
            ({"callback_on_step_end_tensor_inputs": ["mask"]}, r"mask.*callback can get latents, image_em"),
        ],
    )
    def test_the_decoder(self, inpainting: Any, arguments: dict[str, Any], message: str) -> None:
        given = {**embeds(), **task_inputs("inpaint"), **arguments}
        with pytest.raises(InputError, match=message):
            inpainting(**given)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prompt": None}, r"inpaint needs prompt"),
            ({"prompt": 3}, r"prompt is 3.*string"),
            ({"prior_num_inference_steps": 0}, r"For the prior: num_inference_steps=0 is not a whole number"),
            ({"prior_guidance_scale": float("nan")}, r"For the prior: guidance_scale=nan is not a finite"),
            (
                {"prior_callback_on_step_end_tensor_inputs": ["image_embeds"]},
                r"For the prior: .*callback can get latents, prompt_embeds, text_encoder_hidden_states",
            ),
            ({"latents": torch.zeros(1, WIDTH + 1)}, r"this call of the prior makes \(1, 32\)"),
            ({"image_embeds": torch.zeros(1, WIDTH)}, r"has no argument 'image_embeds'"),
            ({"generator": generators([1, 2])}, r"2 generators were given for 1 pictures"),
        ],
    )
    def test_the_combined_pipeline(self, whole: Any, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            whole(**{**prompts("inpaint"), **arguments})

    def test_an_inpainting_decoder_without_a_mask(self, inpainting: Any) -> None:
        other = retouch.AutoPipelineForText2Image.from_pipe(inpainting)
        with pytest.raises(InputError, match=r"inpainting decoder.* no mask_image .*regular decoder"):
            other(**embeds())

    def test_a_prior_of_another_width(self, whole: Any) -> None:
        from retouch.models.prior_transformer import PriorTransformer

        prior = PriorTransformer(num_attention_heads=1, attention_head_dim=4, num_layers=1, embedding_dim=24)
        broken = type(whole).from_pipe(whole, prior_prior=prior)
        with pytest.raises(InputError, match=r"embeddings of width 24, and the decoder's UNet reads 32"):
            broken(**prompts("inpaint"))

    def test_a_unet_of_another_family(self, inpainting: Any, tiny_sd: Path) -> None:
        unet = load(retouch, "StableDiffusionPipeline", tiny_sd).unet
        broken = retouch.KandinskyV22Pipeline.from_pipe(inpainting, unet=unet)
        with pytest.raises(InputError, match=r"takes 4 channels and predicts 4.*decoder of Kandinsky 2.2"):
            broken(**embeds())

    def test_interpolation(self, tiny_kandinsky_prior: Path) -> None:
        prior = loaded(retouch, PRIOR, tiny_kandinsky_prior)
        with pytest.raises(InputError, match=r"1 weights were given for 2 prompts and pictures"):
            prior.interpolate(["a cat", "a castle"], [1.0])
        with pytest.raises(InputError, match=r"images_and_prompts holds a int.*prompts, PIL"):
            prior.interpolate([3], [1.0])
