"""The frame around every command: options in groups, exit codes, and errors in one line.

A command is a function whose parameters are arguments, options, or dataclasses of options. An error of the
library names the parameter that it concerns; the line shows the flag of the command that stands for it. Its
advice names flags too: "give invert=True" becomes "give --invert".
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_type_hints

import typer

from retouch.cli.options import KEYWORDS, OPPOSITES
from retouch.cli.say import answer, complain, one_line
from retouch.errors import RetouchError

FAILED, STOPPED = 1, 130  # 0 is done, 2 wrong usage (Typer's)

_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]

Function = Callable[..., None]

# A keyword of the library within a sentence: with a value, or as in "pass it as variant=.". A space precedes
# it, or a bracket after one, so that neither the query of a URL nor the argument of a function matches.
_KEYWORD = re.compile(
    r"""(?:(?<!\S)|(?<=\s\())(\w+)=(\([^()]*\)|'[^']*'|"[^"]*"|[\w.+-]*\w|(?=[\s.,;)]|$))"""
)


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
    """Return how parameters of the library are written in a command: "steps" is "--steps", "mask" is "MASK".

    Switches have entries with their values too: "invert=True" is "--invert".
    """
    flags = {}
    for parameter in parameters:
        keyword = KEYWORDS.get(parameter.name, parameter.name)
        (described,) = getattr(parameter.annotation, "__metadata__", (None,))[:1]
        # Typer keeps the first name in `default`.
        written = (getattr(described, "default", None), *(getattr(described, "param_decls", None) or ()))
        names = [name for name in written if isinstance(name, str) and name.startswith("--")]
        is_argument = described is None and parameter.default is parameter.empty
        if is_argument or isinstance(described, typer.models.ArgumentInfo):
            flags[keyword] = getattr(described, "metavar", None) or parameter.name.upper()
            continue
        flags[keyword], _, off = (names or ["--" + parameter.name.replace("_", "-")])[0].partition("/")
        kind = getattr(parameter.annotation, "__origin__", parameter.annotation)
        if bool in (kind, *get_args(kind)):
            flags[f"{keyword}={keyword not in OPPOSITES}"] = flags[keyword]
            flags[f"{keyword}={keyword in OPPOSITES}"] = off
    return flags


def _in_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a message with flags in place of the keywords that the command has as options."""

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if switch := flags.get(match[0]):
            return switch
        if not flags.get(name, "").startswith("--") or value in ("True", "False", "None"):
            return match[0]
        bare = value[1:-1].replace(", ", ",") if value[:1] in ("'", '"', "(") else value
        return f"{flags[name]} {value if bare.split() != [bare] else bare}".strip()

    return _KEYWORD.sub(flag, text)


@contextmanager
def _reported(*, debug: bool, as_json: bool, flags: Mapping[str, str]) -> Iterator[None]:
    """Turn an error into a line on stderr and an exit code; Typer's own errors pass through."""
    try:
        with _warnings_in_a_line(debug, flags):
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
        flag, text = flags.get(error.parameter or ""), _in_flags(str(error), flags)
        return text if flag is None or f"{text} ".startswith(f"{flag} ") else f"{flag}: {text}"
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
def _warnings_in_a_line(debug: bool, flags: Mapping[str, str]) -> Iterator[None]:
    """Show each user warning once, without file and line; with `debug` show all warnings, with both."""
    shown: set[str] = set()

    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        text = one_line(_in_flags(str(message), flags))
        if text not in shown:
            shown.add(text)
            complain(f"{text} ({category.__name__}, {filename}:{lineno})" if debug else text, "warning")

    with warnings.catch_warnings():
        warnings.simplefilter("default" if debug else "ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
