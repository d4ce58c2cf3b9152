"""The methods that deal with adapters: what they keep apart, what they refuse, and what they say of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_differ
from lora_files import ATTENTION, kohya, kohya_xl, peft, sides
from pipeline_pairs import NAMES, XL_NAMES, load
from refusals import refuses
from safetensors.torch import save_file
from torch import Tensor

import retouch
from retouch.errors import CheckpointError, InputError
from retouch.models.unet import UNet2DConditionModel


@pytest.fixture
def pipeline(tiny_sd: Path) -> Iterator[Any]:
    made = load(retouch, NAMES["text2image"], tiny_sd)
    made.load_lora_weights(kohya(sides(made)))
    yield made
    made.unload_lora_weights()


def start(pipeline: Any, scale: float | None) -> Any:
    given = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
    draw = torch.Generator().manual_seed(3)
    return pipeline.start("a cat", num_inference_steps=3, output_type="pt", generator=draw, **given)


def test_interleaved_runs_keep_their_scales(pipeline: Any) -> None:
    scales = (0.2, None, 2.0)
    alone = [start(pipeline, scale).result().images for scale in scales]
    for one, other in pairwise(alone):
        assert_differ(one, other)
    runs = [start(pipeline, scale) for scale in scales]
    for _ in range(2):
        for run in runs:
            next(run)
    for run, expected in zip(runs, alone, strict=True):
        assert torch.equal(run.result().images, expected)


def test_threads_keep_their_scales(pipeline: Any) -> None:
    scales = (0.2, None, 2.0)
    alone = [start(pipeline, scale).result().images for scale in scales]
    found: dict[int, Tensor] = {}
    turn = threading.Barrier(len(scales))

    def work(index: int) -> None:
        run = start(pipeline, scales[index])
        turn.wait()
        found[index] = run.result().images

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(scales))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        assert torch.equal(found[index], expected)


def test_saved_and_loaded_while_it_has_updates(pipeline: Any, tmp_path: Path) -> None:
    pipeline.unet.save_pretrained(tmp_path)
    saved = UNet2DConditionModel.from_pretrained(tmp_path).state_dict()
    kept = pipeline.unet.state_dict()
    assert list(saved) == list(kept) and all(torch.equal(saved[name], kept[name]) for name in saved)


@pytest.fixture
def plain(tiny_sd: Path) -> Iterator[Any]:
    made = load(retouch, NAMES["text2image"], tiny_sd)
    yield made
    made.unload_lora_weights()


@pytest.fixture
def xl(tiny_sdxl: Path) -> Iterator[Any]:
    made = load(retouch, XL_NAMES["text2image"], tiny_sdxl)
    yield made
    made.unload_lora_weights()


def test_names_are_given_and_may_not_be_there_twice(plain: Any) -> None:
    state = kohya(sides(plain, unet="to_q", text=None))
    plain.load_lora_weights(state)
    plain.load_lora_weights(state)
    assert plain.get_list_adapters() == {"unet": ["default_0", "default_1"]}
    assert plain.get_active_adapters() == ["default_1"]
    plain.delete_adapters("default_0")
    plain.load_lora_weights(state)
    assert plain.get_list_adapters() == {"unet": ["default_1", "default_0"]}
    with pytest.raises(InputError, match=r"adapter named default_1 already.*delete_adapters"):
        plain.load_lora_weights(state, "default_1")


def test_pipelines_that_share_a_model_share_its_adapters(plain: Any) -> None:
    other = retouch.StableDiffusionInpaintPipeline.from_pipe(plain)
    plain.load_lora_weights(kohya(sides(plain)), "a")
    assert other.get_active_adapters() == ["a"]
    other.unload_lora_weights()
    assert plain.get_list_adapters() == {}


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("set_adapters", ("b",), "no adapter named b. Loaded: a.*load_lora_weights"),
        ("set_adapters", (["a", "b"], [1, 2]), "no adapter named b"),
        ("set_adapters", (["a"], [1, 2]), "2 weights were given for 1 adapters"),
        ("set_adapters", ("a", "strong"), "is 'strong'; it takes a finite number"),
        ("set_adapters", ("a", float("nan")), "is nan; it takes a finite number"),
        ("set_adapters", ("a", {"vae": 1}), "names vae; a mapping has one weight for each of unet"),
        ("set_adapters", ("a", {"unet": {"down": 1}}), "takes a finite number"),
        ("delete_adapters", ("b",), "no adapter named b"),
        ("fuse_lora", (["vae"],), "names vae; adapters can be in unet, text_encoder"),
        ("fuse_lora", (None, "x"), "lora_scale is 'x'"),
        ("unfuse_lora", (["vae"],), "names vae"),
    ],
)
def test_refused(plain: Any, method: str, arguments: tuple[Any, ...], message: str) -> None:
    plain.load_lora_weights(kohya(sides(plain, unet="to_q", text=None)), "a")
    with pytest.raises(InputError, match=message):
        getattr(plain, method)(*arguments)
    assert plain.get_active_adapters() == ["a"] and plain.fused_loras == set()


def test_what_is_fused_is_not_weighed_or_deleted(plain: Any) -> None:
    plain.load_lora_weights(kohya(sides(plain, unet="to_q", text=None)), "a")
    plain.fuse_lora(["unet"])
    with pytest.raises(InputError, match=r"a is part of the models' weights now.*unfuse_lora"):
        plain.set_adapters("a", 0.5)
    with pytest.raises(InputError, match=r"a is part of the models' weights now.*unfuse_lora"):
        plain.delete_adapters("a")
    plain.set_adapters("a")
    plain.unfuse_lora()
    plain.delete_adapters("a")


def test_saving_says_what_is_left_out(plain: Any, tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in plain.unet.state_dict().items()}
    plain.load_lora_weights(kohya(sides(plain)), "a")
    with pytest.warns(UserWarning, match=r"without the adapters \(a\).*fuse_lora"):
        plain.save_pretrained(tmp_path / "apart")
    apart = retouch.StableDiffusionPipeline.from_pretrained(tmp_path / "apart")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in apart.unet.state_dict().items())
    plain.fuse_lora()
    plain.save_pretrained(tmp_path / "fused")
    fused = retouch.StableDiffusionPipeline.from_pretrained(tmp_path / "fused")
    # The layers under an adapter round differently.
    assert_close(start(plain, None).result().images, lambda: start(fused, None).result().images)
    plain.unfuse_lora()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.unet.state_dict().items())


def test_a_lora_of_another_family(plain: Any, xl: Any) -> None:
    source = "pretrained_model_name_or_path_or_dict"
    with refuses(source, "keys name layers", "width 72", "32", error=CheckpointError):
        plain.load_lora_weights(kohya_xl(sides(xl, unet=ATTENTION)))
    with refuses(source, "another family", "width 32", "72", error=CheckpointError):
        xl.load_lora_weights(kohya(sides(plain, unet=ATTENTION)))
    with refuses(source, "1 updates", "shapes", "another family", error=CheckpointError):
        xl.load_lora_weights(kohya(sides(plain, unet=r"mid_block.*attn2\.to_k", text=None)))
    assert plain.get_list_adapters() == xl.get_list_adapters() == {}


def test_text_encoders_that_are_not_loaded(xl: Any) -> None:
    state = kohya_xl(sides(xl, unet="to_q"))
    without = retouch.StableDiffusionXLPipeline.from_pipe(xl, text_encoder=None, tokenizer=None)
    with pytest.warns(UserWarning, match=r"has 54 tensors for text_encoder, which this pipeline lacks"):
        without.load_lora_weights(state, "a")
    assert without.get_list_adapters() == {"unet": ["a"], "text_encoder_2": ["a"]}
    without.unload_lora_weights()


def test_files_and_folders(plain: Any, tmp_path: Path) -> None:
    one, two = kohya(sides(plain, text=None)), peft(sides(plain, alpha=4.0, seed=1))
    (tmp_path / "deep").mkdir()
    save_file(one, tmp_path / "deep/style.safetensors")
    plain.load_lora_weights(tmp_path / "deep/style.safetensors", "file")
    plain.load_lora_weights(tmp_path / "deep", "folder")
    plain.load_lora_weights(str(tmp_path), "subfolder", subfolder="deep", weight_name="style.safetensors")
    plain.load_lora_weights(str(tmp_path), "path", weight_name="deep/style.safetensors")
    pictures = []
    for name in ("file", "folder", "subfolder", "path"):
        plain.set_adapters(name)
        pictures.append(start(plain, None).result().images)
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)

    save_file(two, tmp_path / "deep/other.safetensors")
    listed = "other.safetensors, style.safetensors"
    with refuses("weight_name", "2 files with weights", listed, error=CheckpointError):
        plain.load_lora_weights(tmp_path / "deep")
    save_file(two, tmp_path / "deep/pytorch_lora_weights.safetensors")
    plain.load_lora_weights(tmp_path / "deep", "usual")  # the name that diffusers writes comes first
    with refuses("weight_name", "no file x.safetensors", error=CheckpointError):
        plain.load_lora_weights(tmp_path / "deep", weight_name="x.safetensors")
    source = "pretrained_model_name_or_path_or_dict"
    with refuses(source, "x.safetensors is not there", error=CheckpointError):
        plain.load_lora_weights(tmp_path / "x.safetensors")


def test_pickles_are_read_when_asked_for(plain: Any, tmp_path: Path) -> None:
    torch.save(kohya(sides(plain, text=None)), tmp_path / "style.bin")
    for where in (tmp_path, tmp_path / "style.bin"):
        with refuses("use_safetensors", "style.bin", "use_safetensors=False", error=CheckpointError):
            plain.load_lora_weights(where)
        plain.load_lora_weights(where, use_safetensors=False)
    (tmp_path / "bad").mkdir()
    torch.save({"x": re.compile("a")}, tmp_path / "bad/x.bin")
    source = "pretrained_model_name_or_path_or_dict"
    with refuses(source, "no code in it was run", error=CheckpointError):
        plain.load_lora_weights(tmp_path / "bad", use_safetensors=False)
