"""The frame around commands: option groups, exit codes, errors and warnings in one line."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from retouch.cli.command import command
from retouch.cli.options import Hole, Model, Painting, Reading, flag_of
from retouch.editing.options import Options
from retouch.errors import InputError

Flag = Annotated[bool, typer.Option("--json")]
Long = Annotated[int, typer.Option("-l", "--long")]
Name = Annotated[str, typer.Argument(metavar="NAME")]


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(min=1)] = 3
    json: Flag = False


def invoke(function: Any, *arguments: str) -> Any:
    app = typer.Typer()
    command(app)(function)
    return CliRunner().invoke(app, list(arguments))


def test_a_group_of_options_arrives_as_its_dataclass() -> None:
    seen = []

    def paint(name: str, *, size: Size, times: int = 1) -> None:
        """Paint."""
        seen.append((name, size, times))

    assert invoke(paint, "a", "--width", "7", "--times", "2").exit_code == 0
    assert invoke(paint, "b").exit_code == 0
    assert seen == [("a", Size(7), 2), ("b", Size(3), 1)]
    assert invoke(paint, "a", "--width", "0").exit_code == 2
    assert "Paint." in invoke(paint, "--help").output


def test_our_errors_are_one_line_and_exit_1() -> None:
    def fail(*, size: Size) -> None:
        raise InputError("mask is\nwrong \x1b[31m. Use fit_mask=True.", parameter="width")

    result = invoke(fail)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: --width: mask is wrong [31m. Use fit_mask=True.\n"


def test_with_json_the_error_is_an_object_on_stdout_too() -> None:
    def fail(*, size: Size) -> None:
        raise InputError("no")

    result = invoke(fail, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"error": {"kind": "InputError", "message": "no"}}


def test_what_is_not_foreseen_says_so_and_debug_shows_where() -> None:
    def fail(*, json: Flag = False) -> None:
        raise KeyError("x")

    result = invoke(fail)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "KeyError" in result.stderr and "--debug" in result.stderr
    result = invoke(fail, "--debug")
    assert result.exit_code == 1 and "Traceback" in result.stderr and 'KeyError("x")' in result.stderr


@pytest.mark.parametrize("error", [MemoryError("4 GB"), RuntimeError("CUDA out of memory. Tried 2 GiB")])
def test_out_of_memory_says_what_takes_less(error: Exception) -> None:
    import torch  # noqa: F401  an error of torch's can only come where it is imported

    def fail() -> None:
        raise error

    result = invoke(fail)
    assert result.exit_code == 1 and "Memory ran out" in result.stderr and "--size" in result.stderr


def test_ctrl_c_exits_130() -> None:
    def wait() -> None:
        raise KeyboardInterrupt

    result = invoke(wait)
    assert (result.exit_code, result.stdout) == (130, "") and result.stderr.startswith("stopped")


def test_typers_own_errors_and_exits_pass() -> None:
    def fail(kind: str) -> None:
        raise {"usage": typer.BadParameter("bad"), "exit": typer.Exit(7), "abort": typer.Abort()}[kind]

    assert invoke(fail, "usage").exit_code == 2
    assert invoke(fail, "exit").exit_code == 7
    assert invoke(fail, "abort").exit_code == 1


def test_warnings_for_people_are_one_line_each_and_once() -> None:
    def warn() -> None:
        for _ in range(2):
            warnings.warn("a mask\n is odd; give invert=True", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    result = invoke(warn)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "warning: a mask is odd; give invert=True\n"
    assert "test_command.py" in invoke(warn, "--debug").stderr


def test_warnings_are_as_before_afterwards() -> None:
    before = warnings.showwarning, list(warnings.filters)
    invoke(lambda: None)
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_an_error_begins_with_the_flag_of_its_parameter() -> None:
    def fail(name: Name, *, size: Size, length: Long = 1) -> None:
        raise InputError("no", parameter=name)

    for parameter, shown in (
        ("width", "--width: no"),
        ("name", "NAME: no"),
        ("length", "--long: no"),
        ("elsewhere", "no"),
    ):
        assert invoke(fail, parameter).stderr == f"error: {shown}\n"


def test_every_option_of_the_verbs_has_its_flag() -> None:
    def fail(name: str, *, painting: Painting, reading: Reading, hole: Hole) -> None:
        raise InputError("no", parameter=name)

    for field in dataclasses.fields(Options):
        if field.name not in ("prompt", "record", "progress"):
            assert invoke(fail, field.name).stderr == f"error: {flag_of(field.name)}: no\n"


@pytest.mark.parametrize(
    ("advice", "shown"),
    [
        ("use invert=True if it marks what to keep", "use --invert if it marks what to keep"),
        ("give fit_mask=True, or another", "give --fit-mask, or another"),
        ("with mask_mode='luma' or mask_mode='alpha'.", "with --mask-mode luma or --mask-mode alpha."),
        ("less guidance (guidance_scale=7.5)", "less guidance (--guidance 7.5)"),
        ("guidance_interval=(0.9, 0.2) is empty", "--guidance-interval 0.9,0.2 is empty"),
        ("scheduler='euler x' is unknown", "--scheduler 'euler x' is unknown"),
        ("feather=-1.0 is negative", "--feather -1.0 is negative"),
        ("Give int8=False, one_pass=False or int8=True.", "Give --no-int8, --two-passes or --int8."),
        ("pass use_safetensors=False if you trust it", "pass --pickled if you trust it"),
        (
            "Pass variant= with one of those; or as variant=.",
            "Pass --variant with one of those; or as --variant.",
        ),
        # Neither an option of this command, nor a keyword at all.
        ("name=3, force_download=True, use_safetensors=True, invert=False, seed=None", None),
        ("https://example.org/a?seed=3, retouch.load(seed=3), seed == 3, steps=[1]", None),
    ],
)
def test_advice_names_the_flags_of_the_command(advice: str, shown: str | None) -> None:
    def fail(
        name: str, *, painting: Painting, reading: Reading, hole: Hole, model: Model, warned: bool = False
    ) -> None:
        if warned:
            warnings.warn(advice, stacklevel=1)
        else:
            raise InputError(advice)

    assert invoke(fail, "a").stderr == f"error: {shown or advice}\n"
    assert invoke(fail, "a", "--warned").stderr == f"warning: {shown or advice}\n"


def test_an_error_that_begins_with_its_flag_has_it_once() -> None:
    def fail(*, painting: Painting) -> None:
        raise InputError("strength=2.0 is outside 0 to 1.", parameter="strength")

    assert invoke(fail).stderr == "error: --strength 2.0 is outside 0 to 1.\n"
