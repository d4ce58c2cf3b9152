"""What every command has in common: options in groups, exit codes, and errors in one line.

A command is a function whose parameters are arguments, options, or dataclasses of options. The library's
messages speak of keywords; here they are put in the words of the command line.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_type_hints

import typer

from retouch.cli.say import answer, complain, one_line
from retouch.errors import RetouchError

FAILED, STOPPED = 1, 130  # 0 is done, 2 wrong usage (Typer's)

_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]

Function = Callable[..., None]


def command(app: typer.Typer, name: str | None = None) -> Callable[[Function], Function]:
    """Make a function a command; its `--json` decides how errors are told."""

    def register(function: Function) -> Function:
        app.command(name)(guarded(function))
        return function

    return register


def guarded(function: Function) -> Function:
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if dataclasses.is_dataclass(hint):
            groups[parameter.name] = hint
            parameters += _parameters_of(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    parameters.append(
        inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    )

    def run(**given: Any) -> None:
        debug = given.pop("debug")
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        as_json = any(getattr(value, "json", False) for value in given.values()) or given.get("json", False)
        with reported(debug=debug, as_json=as_json):
            function(**given)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(group)
    ]


@contextmanager
def reported(*, debug: bool, as_json: bool) -> Iterator[None]:
    """Turn what goes wrong into a line on stderr and an exit code; Typer's own errors pass through."""
    try:
        with _warnings_in_a_line(debug):
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit):
            raise
        complain("stopped; what was being written is not left behind")
        raise typer.Exit(STOPPED) from None
    except Exception as error:
        if _is_typers(error):
            raise
        if debug:
            traceback.print_exc()
        message = one_line(_message(error))
        complain(message, "error")
        if as_json:
            answer({"error": {"kind": type(error).__name__, "message": message}})
        raise typer.Exit(FAILED) from None


def _is_typers(error: Exception) -> bool:
    # Exit, Abort, BadParameter and their like; some releases of Typer bring click along, others use it.
    return any("click" in base.__module__ or "typer" in base.__module__ for base in type(error).__mro__)


def _message(error: Exception) -> str:
    if isinstance(error, RetouchError):
        return in_words_of_the_command_line(str(error))
    if _ran_out_of_memory(error):
        return (
            f"Memory ran out ({one_line(error)[:120]}), with the fallbacks tried. A smaller working size "
            f"takes less. Give --size 512 or less, a smaller --context, or --device cpu."
        )
    return (
        f"{type(error).__name__}: {error} (not foreseen: a fault in retouch, or in a file or setting that it "
        f"should have refused; --debug shows where)"
    )


def _ran_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from retouch.editing.memory import ran_out

    return ran_out(error)


@contextmanager
def _warnings_in_a_line(debug: bool) -> Iterator[None]:
    """Each warning that is meant for a person once, without file and line; with `debug` all, with both."""
    told: set[str] = set()

    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        text = in_words_of_the_command_line(one_line(message))
        if text not in told:
            told.add(text)
            complain(f"{text} ({category.__name__}, {filename}:{lineno})" if debug else text, "warning")

    with warnings.catch_warnings():
        warnings.simplefilter("default" if debug else "ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


# Keywords of the library whose option here is not simply the same word.
_OPTIONS = {
    "use_safetensors=False": "--pickled",
    "force_download=True": "`retouch models pull --force`",
    "negative_prompt": "--negative",
    "guidance_scale": "--guidance",
}
_SAME = (
    *("steps", "strength", "seed", "variations", "scheduler", "context", "size", "feather", "join", "fill"),
    *("mask_mode", "invert", "grow", "fit_mask", "one_pass", "model", "variant", "device", "dtype", "left"),
    *("right", "top", "bottom", "aspect", "color", "tolerance"),
    *("speed", "guidance_interval", "reuse_deep_features", "int8"),
)
_KEYWORD = re.compile(
    rf"\b({'|'.join([*(name for name in _OPTIONS if '=' not in name), *_SAME])})="
    r"""(True\b|"[^"]*"|'[^']*'|[\w.%+-]*\w%?)?"""
)


def in_words_of_the_command_line(message: str) -> str:
    """`fit_mask=True` becomes `--fit-mask`, and so on."""
    for keyword, option in _OPTIONS.items():
        if "=" in keyword:
            message = message.replace(keyword, option)

    def replaced(match: re.Match[str]) -> str:
        option = _OPTIONS.get(match[1], "--" + match[1].replace("_", "-"))
        value = match[2] or ""
        return option if value in ("", "True") else f"{option} {value}"

    return _KEYWORD.sub(replaced, message)
