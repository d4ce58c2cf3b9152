"""The command line in its own process: start time, imports, exit codes, a terminal, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from cli_runs import read, write_mask, write_photo

from retouch import __version__

COMMANDS = ("inpaint", "erase", "outpaint", "mask", "compare", "info", "models", "doctor")
HEAVY = ("torch", "transformers", "diffusers", "PIL", "numpy", "cv2", "huggingface_hub", "safetensors")


def run(*arguments: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retouch.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def test_the_console_script_is_this_one() -> None:
    (script,) = entry_points(group="console_scripts", name="retouch")
    assert script.value == "retouch.cli.app:main"


def test_help_imports_nothing_heavy() -> None:
    program = f"""
import sys
from retouch.cli.app import app
for words in ([], *([name] for name in {COMMANDS}), ["models", "pull"], ["models", "remove"]):
    try:
        app([*words, "--help"], prog_name="retouch")
    except SystemExit as leaving:
        assert leaving.code == 0, words
print("heavy:", *sorted(set({HEAVY}) & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "heavy:"
    for name in COMMANDS:
        assert f"Usage: retouch {name}" in found.stdout


def test_help_names_all_commands_and_the_exit_codes() -> None:
    text = run("--help").stdout
    assert all(f"  {name} " in text for name in COMMANDS)
    assert "0 done" in text and "130 Ctrl-C" in " ".join(text.split())


def test_version_and_wrong_usage() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"retouch {__version__}\n")
    for words in (["--no-such"], ["paint"], ["mask", "photo.png", "--box"]):
        result = run(*words)
        assert (result.returncode, result.stdout) == (2, "") and "Error:" in result.stderr


def test_completion_knows_commands_and_models() -> None:
    program = "import sys; sys.argv[:1] = ['retouch']; from retouch.cli.app import main; main()"
    for words, offered in (("retouch er", "erase"), ("retouch erase a b --model sdxl-i", "sdxl-inpaint")):
        environment = {
            **os.environ,
            "_RETOUCH_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60
        )
        assert offered in found.stdout.split()


def test_json_is_all_that_stdout_holds(tmp_path: Path, tiny_sd_inpaint: Path) -> None:
    write_photo(tmp_path / "photo.png")
    words = ("erase", "photo.png", "24,16,56,48", "-m", tiny_sd_inpaint, "-o", "out.jpg", "--json")
    result = run(*words, "--steps", 2, "--size", 64, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["outputs"] == ["out.jpg"]
    (line,) = result.stderr.splitlines()  # no progress where stderr is no terminal
    assert line.startswith("warning: JPEG")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_and_ctrl_c_in_a_terminal(tmp_path: Path, tiny_sd_inpaint: Path) -> None:
    write_photo(tmp_path / "photo.png")
    write_mask(tmp_path / "mask.png")
    words = ("inpaint", "photo.png", "mask.png", "-m", tiny_sd_inpaint, "-o", "out.png", "--gif", "out.gif")
    command = [sys.executable, "-m", "retouch.cli", *map(str, words), "--size", "256", "--steps", "900"]
    shown, code = in_terminal(command, tmp_path, until=(b"\x1b_Ga=T", b"/900"))
    assert code == 130
    assert b"painting" in shown and b"left" in shown and shown.rstrip().endswith(b"are removed")
    assert sorted(os.listdir(tmp_path)) == ["mask.png", "photo.png"]
    assert read(tmp_path / "photo.png").shape == (64, 80, 3)


def in_terminal(command: list[str], folder: Path, until: tuple[bytes, ...]) -> tuple[bytes, int]:
    """Run in a terminal that says it is kitty; interrupt when all of `until` was shown."""
    import pty
    import select

    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-kitty", "COLUMNS": "100", "LINES": "40"}
    for name in ("TMUX", "STY"):
        environment.pop(name, None)

    def accept_interrupts() -> None:  # shells start background processes with these ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, cwd=folder, env=environment, preexec_fn=accept_interrupts
    )
    os.close(its)
    shown, interrupted, deadline = b"", False, time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # on Linux, the other side is closed
                    break
            if not interrupted and all(mark in shown for mark in until):
                process.send_signal(signal.SIGINT)
                interrupted = True
        return shown, process.wait(timeout=30)
    finally:
        process.kill()
        os.close(ours)
