"""The frame around every command: options in groups, exit codes, and errors in one line.

A command is a function whose parameters are arguments, options, or dataclasses of options. An error of the
library names the parameter that it concerns; the line shows the flag of the command that stands for it.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, get_type_hints

import typer

from retouch.cli.options import KEYWORDS
from retouch.cli.say import answer, complain, one_line
from retouch.errors import RetouchError

FAILED, STOPPED = 1, 130  # 0 is done, 2 wrong usage (Typer's)

_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]

Function = Callable[..., None]


def command(app: typer.Typer, name: str | None = None) -> Callable[[Function], Function]:
    """Make a function a command; with its `--json`, errors are printed as JSON too."""

    def register(function: Function) -> Function:
        app.command(name)(guarded(function))
        return function

    return register


def guarded(function: Function) -> Function:
    """Return a function for Typer that takes the options one by one and reports what goes wrong."""
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
    flags = _flags(parameters)

    def run(**given: Any) -> None:
        debug = given.pop("debug")
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        as_json = any(getattr(value, "json", False) for value in given.values()) or given.get("json", False)
        with _reported(debug=debug, as_json=as_json, flags=flags):
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


def _flags(parameters: Sequence[inspect.Parameter]) -> dict[str, str]:
    """Return how each parameter of the library is written in a command: "--steps", or "MASK"."""
    flags = {}
    for parameter in parameters:
        (described,) = getattr(parameter.annotation, "__metadata__", (None,))[:1]
        names = [name for name in getattr(described, "param_decls", None) or () if name.startswith("--")]
        is_argument = described is None and parameter.default is parameter.empty
        if is_argument or isinstance(described, typer.models.ArgumentInfo):
            flag = getattr(described, "metavar", None) or parameter.name.upper()
        else:
            flag = names[0].split("/")[0] if names else "--" + parameter.name.replace("_", "-")
        flags[KEYWORDS.get(parameter.name, parameter.name)] = flag
    return flags


@contextmanager
def _reported(*, debug: bool, as_json: bool, flags: Mapping[str, str]) -> Iterator[None]:
    """Turn an error into a line on stderr and an exit code; Typer's own errors pass through."""
    try:
        with _warnings_in_a_line(debug):
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit):
            raise
        complain("stopped; files that were being written are removed")
        raise typer.Exit(STOPPED) from None
    except Exception as error:
        if _is_typers(error):
            raise
        if debug:
            traceback.print_exc()
        message = one_line(_message(error, flags))
        complain(message, "error")
        if as_json:
            answer({"error": {"kind": type(error).__name__, "message": message}})
        raise typer.Exit(FAILED) from None


def _is_typers(error: Exception) -> bool:
    # Exit, Abort, BadParameter and the like; some releases of Typer include click, others import it.
    return any("click" in base.__module__ or "typer" in base.__module__ for base in type(error).__mro__)


def _message(error: Exception, flags: Mapping[str, str]) -> str:
    if isinstance(error, RetouchError):
        flag = flags.get(error.parameter or "")
        return str(error) if flag is None else f"{flag}: {error}"
    if _ran_out_of_memory(error):
        return (
            f"Memory ran out ({one_line(error)[:120]}), with the fallbacks tried. A smaller working size "
            f"takes less. Give --size 512 or less, a smaller --context, or --device cpu."
        )
    return (
        f"{type(error).__name__}: {error} (unexpected: a fault in retouch, or in a file or setting that it "
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
    """Show each user warning once, without file and line; with `debug` show all warnings, with both."""
    shown: set[str] = set()

    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        text = one_line(message)
        if text not in shown:
            shown.add(text)
            complain(f"{text} ({category.__name__}, {filename}:{lineno})" if debug else text, "warning")

    with warnings.catch_warnings():
        warnings.simplefilter("default" if debug else "ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
