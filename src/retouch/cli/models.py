"""`retouch models`: list the checkpoints in the cache, fetch and remove them.

The cache is that of huggingface_hub, shared with all programs that use it.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.command import command, guarded
from retouch.cli.options import JsonFlag, PickledFlag, short_names
from retouch.cli.say import answer, complain, megabytes
from retouch.editing.models import (
    BUILT_IN_NAMES,
    DEFAULT,
    ERASER_NAMES,
    SHORT_NAMES,
    repository_of,
    resolve,
    short_name,
)
from retouch.errors import InputError

if TYPE_CHECKING:
    from retouch.checkpoints.profile import Known

app = typer.Typer()

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A short name or a hub id like org/name.", autocompletion=short_names
    ),
]


@app.callback(invoke_without_command=True)
@guarded
def models(
    context: typer.Context,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Show what other programs cached, too.")] = False,
    json: JsonFlag = False,
) -> None:
    """List, show, pull and remove checkpoints."""
    if context.invoked_subcommand is not None:
        return
    folder, cached = _cached()
    ours = [entry for entry in cached if entry["pipeline"] or entry["short_name"]]
    others = [entry for entry in cached if entry not in ours]
    known = {name: dataclasses.asdict(entry) for name, entry in SHORT_NAMES.items()}
    if json:
        shown = cached if everything else ours
        built_in = {name: dataclasses.asdict(entry) for name, entry in BUILT_IN_NAMES.items()}
        erasers = {name: dataclasses.asdict(entry) for name, entry in ERASER_NAMES.items()}
        tables = {"short_names": known, "erasers": erasers, "built_in": built_in}
        answer({"cache": str(folder), "cached": shown, **tables})
        return
    typer.echo("Built in:")
    _print_table(
        ("name", "licence", "note"),
        [(name, entry.licence, entry.note) for name, entry in BUILT_IN_NAMES.items()],
    )
    typer.echo(f"In the cache ({folder}):")
    _print_cached(cached if everything else ours)
    if others and not everything:
        size = megabytes(sum(entry["bytes"] for entry in others))
        count = "1 repository" if len(others) == 1 else f"{len(others)} repositories"
        typer.echo(f"  and {count} of other kinds, {size} (--all shows them)")
    there = {entry["short_name"] for entry in cached}
    rows = [
        (name, f"{entry.size_gb:g} GB", entry.licence, entry.note)
        for name, entry in SHORT_NAMES.items()
        if name not in there
    ]
    if rows:
        typer.echo("To pull:")
        _print_table(("name", "size", "licence", "note"), rows)
        typer.echo("Sizes are those of float32; `--variant fp16` has half, where a repository offers it.")
    rows = [
        (name, f"{1000 * entry.size_gb:.0f} MB", entry.licence, entry.note)
        for name, entry in ERASER_NAMES.items()
        if name not in there
    ]
    if rows:
        typer.echo("To pull, networks for erasing:")
        _print_table(("name", "size", "licence", "note"), rows)


@command(app)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A short name, a folder or a hub id.", autocompletion=short_names
        ),
    ] = DEFAULT,
    *,
    json: JsonFlag = False,
) -> None:
    """Show a checkpoint's purpose, and the things that it knows by name if they are few."""
    from retouch.checkpoints.profile import Profile
    from retouch.cli.recognition import recognised

    facts = recognised(name)
    if facts["kind"] not in ("checkpoint", "eraser"):
        raise InputError(
            f"{name} is {facts['what']}, no checkpoint. A short name, a folder or a hub id of one is "
            f"accepted. `retouch info` shows other files.",
            parameter="name",
        )
    is_built_in = name in BUILT_IN_NAMES
    facts["cached"] = not is_built_in and "repository" in facts and "path" in facts
    profile = Profile.of(name if is_built_in else facts.get("path", ""))
    facts |= {"names": [dataclasses.asdict(known) for known in profile.names], "limits": list(profile.limits)}
    if json:
        answer(facts)
        return
    typer.echo(f"{name}: {facts['what']}")
    lines = {
        "note": facts.get("note"),
        "licence": facts.get("licence"),
        "repository": facts.get("repository"),
        "in": facts.get("path"),
        "size": megabytes(facts["bytes"]) if "bytes" in facts else facts.get("size"),
        "works at": f"{facts['works_at']} px" if facts.get("works_at") else None,
    }
    for key, value in lines.items():
        if value:
            typer.echo(f"  {key:12}{value}")
    if profile.names:
        typer.echo(f"It knows {len(profile.names)} things by name, other names for them in brackets:")
        typer.echo(_wrapped(", ".join(_spelled(known) for known in profile.names)))
    if profile.limits:
        typer.echo("What it cannot do:")
        for limit in profile.limits:
            typer.echo(_wrapped(limit, "- "))
    typer.echo(f"use:\n  {facts['use']}")


@command(app)
def pull(
    name: Name,
    *,
    variant: Annotated[
        str | None, typer.Option(help="The kind of weights, such as fp16; name it again to use them.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is in the cache.")] = False,
    pickled: PickledFlag = False,
    json: JsonFlag = False,
) -> None:
    """Fetch a checkpoint into the cache: only the files that it is loaded from."""
    if name in BUILT_IN_NAMES:
        raise InputError(
            f"{name} comes with retouch, so there is nothing to pull. Others are pulled by a short name "
            f"({', '.join([*SHORT_NAMES, *ERASER_NAMES])}) or a hub id.",
            parameter="name",
        )
    from retouch.editing.erasers import names_eraser

    repository = str(resolve(name))
    if names_eraser(name):
        _pull_eraser(name, repository, {"revision": revision, "force_download": force}, json=json)
        return
    entry = SHORT_NAMES.get(name)
    if entry is not None and not json:
        complain(f"{name} is {repository}, {entry.size_gb:g} GB in float32. Its licence is {entry.licence}.")

    from retouch.pipelines.auto import AutoPipelineForInpainting

    location: dict[str, Any] = {"variant": variant, "revision": revision, "force_download": force}
    if repository.endswith((".safetensors", ".ckpt")):
        del location["variant"]
    if pickled:
        location["use_safetensors"] = False
    places = AutoPipelineForInpainting.download(repository, **location)
    _tell_pulled(repository, places, json=json)


def _pull_eraser(name: str, file: str, location: dict[str, Any], *, json: bool) -> None:
    """Fetch the one file of a network for erasing."""
    from retouch.editing.erasers import eraser_files

    entry = ERASER_NAMES.get(name)
    if entry is not None and not json:
        complain(f"{name} is {file}, {1000 * entry.size_gb:.0f} MB. Its licence is {entry.licence}.")
    places = eraser_files(name, **location)
    _tell_pulled(repository_of(file), places, json=json)


def _tell_pulled(repository: str, places: Sequence[Path], *, json: bool) -> None:
    size = sum(_size_of(place) for place in places)
    if json:
        answer({"repository": repository, "places": [str(place) for place in places], "bytes": size})
        return
    typer.echo(f"{repository} is there, {megabytes(size)}:")
    for place in places:
        typer.echo(f"  {place}")


@command(app)
def remove(
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Remove a checkpoint from the cache, for all programs that share it."""
    from huggingface_hub import scan_cache_dir

    repository = repository_of(str(resolve(name)))
    folder, cached = _cached()
    found = next((entry for entry in cached if entry["repository"] == repository), None)
    if found is None:
        there = ", ".join(entry["repository"] for entry in cached) or "nothing"
        raise InputError(
            f"{repository} is not in the cache. There is {there}. Check `retouch models --all`.",
            parameter="name",
        )
    if not yes and not _is_confirmed(f"Remove {repository}, {megabytes(found['bytes'])}?", ask=not json):
        complain("kept")
        return
    scan = scan_cache_dir(folder)
    its = [repo for repo in scan.repos if (repo.repo_type, repo.repo_id) == ("model", repository)]
    # Revisions are identified by their commit alone, and a copy of a repository has the same commits.
    alone = dataclasses.replace(scan, repos=frozenset(its))
    plan = alone.delete_revisions(*(revision.commit_hash for repo in its for revision in repo.revisions))
    plan.execute()
    if json:
        answer({"repository": repository, "freed_bytes": plan.expected_freed_size})
    else:
        typer.echo(f"{repository} is removed; {megabytes(plan.expected_freed_size)} freed")


def _spelled(known: Known) -> str:
    return f"{known.word} ({', '.join(known.synonyms)})" if known.synonyms else known.word


def _wrapped(text: str, mark: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=f"  {mark}", subsequent_indent="  " + " " * len(mark))


def _is_confirmed(question: str, *, ask: bool) -> bool:
    try:
        if ask:
            return typer.confirm(question, err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
    raise InputError(
        f"{question} There is no terminal to confirm it on. Give --yes.", parameter="yes"
    ) from None


def _cached() -> tuple[Path, list[dict[str, Any]]]:
    """Return the cache's folder and the models in it, the largest first."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    folder = Path(constants.HF_HUB_CACHE)
    try:
        repositories = scan_cache_dir(folder).repos
    except CacheNotFound:
        return folder, []
    entries = [
        {
            "repository": repository.repo_id,
            "short_name": short_name(repository.repo_id),
            "bytes": repository.size_on_disk,
            "pipeline": _pipeline_in(repository),
            "last_used": repository.last_accessed,
            "path": str(repository.repo_path),
        }
        for repository in repositories
        if repository.repo_type == "model"
    ]
    return folder, sorted(entries, key=lambda entry: -entry["bytes"])


def _pipeline_in(repository: Any) -> str | None:
    """Return the pipeline class that a cached repository names, if it is a checkpoint."""
    from retouch.cli.recognition import json_in

    for revision in sorted(repository.revisions, key=lambda revision: -revision.last_modified):
        name = json_in(revision.snapshot_path / "model_index.json").get("_class_name")
        if name:
            return str(name)
    return None


def _print_cached(entries: list[dict[str, Any]]) -> None:
    from datetime import datetime

    if not entries:
        typer.echo("  nothing yet")
        return
    rows = [
        (
            entry["short_name"] or entry["repository"],
            megabytes(entry["bytes"]),
            entry["pipeline"] or ("eraser" if entry["short_name"] in ERASER_NAMES else "-"),
            f"{datetime.fromtimestamp(entry['last_used']):%Y-%m-%d}",
            entry["repository"] if entry["short_name"] else "",
        )
        for entry in entries
    ]
    _print_table(("name", "size", "pipeline", "last used", "repository"), rows)


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print aligned columns, not cut to the terminal's width, so that `grep` finds whole lines."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(("  " + "  ".join(cells)).rstrip())


def _size_of(place: Path) -> int:
    from retouch.cli.recognition import bytes_in

    return place.stat().st_size if place.is_file() else bytes_in(place)
