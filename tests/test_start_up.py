"""The command answers at once: help and version load nothing heavy, and print plain text where no terminal is."""

import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy
import pytest
import tifffile
from PIL import Image

import deconv_cli
from deconv_cli.allocator import load_torch
from deconv_cli.commands.app import ErrorBoundary, KernelGroup, first_sentence

HEAVY = ["torch", "numpy", "tifffile", "PIL", "imagecodecs", "safetensors", "psutil", "matplotlib", "jinja2"]

LEFT_OUT = ["torch", "scipy", "zarr", "safetensors", "urllib.request", "deconv_cli.commands.invert"]
"""Modules that an inspection of a picture does without."""

# The words by which rich and typer are talked into colors or other widths, whatever the test runs under.
FORCING = ("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "NO_COLOR", "TERMINAL_WIDTH", "LINES")

RUN_AND_LIST = """
import json, sys
from deconv_cli.commands.app import main
sys.argv = ["deconv", *json.loads(sys.argv[1])]
try:
    main()
finally:
    loaded = [name for name in HEAVY if name in sys.modules]
    sys.stderr.write("\\nloaded: " + json.dumps(loaded))
"""


def environment(**changes):
    return {name: value for name, value in os.environ.items() if name not in FORCING} | {"COLUMNS": "80"} | changes


def python(*args, **changes):
    return subprocess.run(
        [sys.executable, *args], capture_output=True, env=environment(**changes), timeout=300, check=False
    )


def deconv(*args, **changes):
    return python("-m", "deconv_cli", *args, **changes)


def loaded_by(*args):
    """Run the command in a fresh process; give its output and which heavy modules it loaded."""
    done = python("-c", f"HEAVY = {HEAVY!r}\n{RUN_AND_LIST}", json.dumps(args))
    return done.stdout.decode(), json.loads(done.stderr.decode().rpartition("loaded: ")[2])


COMMANDS = ("forward", "invert", "inspect", "check-grad", "fisher", "demo")


@pytest.mark.parametrize("name", [*COMMANDS, None])
def test_help_loads_nothing_heavy_fits_eighty_columns_and_shows_an_example(name):
    text, loaded = loaded_by(*([name] if name else []), "--help")
    assert loaded == []
    assert "Usage: deconv" in text
    assert "[[" not in text
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "\x1b" not in text
    words = text.split()
    assert name is None or words[words.index("Example:") + 1 :][:2] == ["deconv", name]


def test_a_wrong_option_is_refused_before_torch_is_loaded():
    _, loaded = loaded_by("invert", "x.png", "--kernel", "k.npy", "--boundary", "sideways")
    assert loaded == []


def test_the_list_of_commands_loads_none_of_them():
    done = python("-X", "importtime", "-m", "deconv_cli", "--help")
    assert b"deconv_cli.commands.app" in done.stderr
    assert b"deconv_cli.commands.option_groups" not in done.stderr


@pytest.mark.parametrize("command", ["forward", "invert"])
@pytest.mark.parametrize(
    ("content", "kernel", "refusal"),
    [
        (None, "box:3", "the input '{}' does not exist; check the path."),
        (b"words", "box:3", "'{}' is not a supported file; deconv reads TIFF"),
        (b"\x89PNG\r\n\x1a\n", "blob:3", "there is no file 'blob:3', and the name of a formula must be one of"),
    ],
)
def test_a_wrong_input_or_formula_is_refused_before_torch_is_loaded(tmp_path, command, content, kernel, refusal):
    path = tmp_path / "y.png"
    if content is not None:
        path.write_bytes(content)
    done = python("-c", f"HEAVY = {HEAVY!r}\n{RUN_AND_LIST}", json.dumps([command, str(path), "-k", kernel]))
    told, _, loaded = done.stderr.decode().partition("\nloaded: ")
    assert told.startswith(f"error: {refusal.format(path)}")
    assert "torch" not in json.loads(loaded)
    assert content is not None or json.loads(loaded) == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".npy"])
def test_a_picture_is_inspected_without_torch(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    pixels = numpy.arange(192, dtype=numpy.uint8).reshape(12, 16)
    write = {".npy": numpy.save, ".tif": tifffile.imwrite}.get(suffix, lambda path, x: Image.fromarray(x).save(path))
    write(path, pixels)
    done = python("-c", f"HEAVY = {LEFT_OUT!r}\n{RUN_AND_LIST}", json.dumps(["inspect", str(path), "--json"]))
    assert json.loads(done.stdout)["files"][0]["entries"][0]["mean"] == pytest.approx(95.5, abs=2)
    assert json.loads(done.stderr.decode().rpartition("loaded: ")[2]) == []


def test_importing_the_package_does_not_load_torch():
    script = "import json, sys; from deconv_cli import ReconstructionSettings; "
    heavy = [*HEAVY, "importlib.metadata"]
    done = python("-c", script + f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))")
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("group", [ErrorBoundary, KernelGroup])
def test_the_list_of_commands_has_the_first_sentence_of_each_help(group):
    for name, (module, function, _) in group.places.items():
        command = getattr(importlib.import_module(f"deconv_cli.commands.{module}"), function)
        assert command.__doc__.partition("\n")[0] == first_sentence(module, function), name


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_tab_key_completes_commands_options_and_their_words():
    """In a real bash, by the lines that `--show-completion` prints; completion never loads torch."""
    script = """
        deconv() { "$PYTHON" -m deconv_cli "$@"; }; export -f deconv
        lines=$(deconv --show-completion) && eval "$lines"
        printf '#!/bin/sh\nexec "%s" -X importtime -m deconv_cli "$@"' "$PYTHON" > "$FOLDER/deconv"
        chmod +x "$FOLDER/deconv"; PATH="$FOLDER:$PATH"
        for line in "inv" "kernel es" "invert --bou" "invert --boundary re" "invert sample"; do
            COMP_WORDS=(deconv $line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            _deconv_completion deconv 2>>"$FOLDER/imports"; echo "${COMPREPLY[@]}"
        done
        complete -p deconv
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=300, check=True,
            env=environment(PYTHON=sys.executable, FOLDER=folder),
        )  # fmt: skip
        imported = (Path(folder) / "imports").read_text()
    assert done.stdout.splitlines() == [
        "invert", "estimate", "--boundary", "reflect replicate", "", "complete -o default -F _deconv_completion deconv"
    ]  # fmt: skip
    assert "typer" in imported
    assert "torch" not in imported


def test_a_quiet_run_looks_for_no_garbage_among_the_objects_of_torch_and_loads_no_rich(tmp_path):
    script = """
        import atexit, gc, sys
        from deconv_cli.commands.app import main
        atexit.register(lambda: print(len(gc.get_objects()) < 100))  # the last to run, since it comes first
        try:
            main()
        finally:
            print(gc.isenabled(), gc.get_freeze_count() > 100_000, "rich" in sys.modules)
    """
    path, output = tmp_path / "x.npy", tmp_path / "y.npy"
    numpy.save(path, numpy.ones((8, 8), dtype=numpy.float32))
    done = python("-c", textwrap.dedent(script), "forward", str(path), "-k", "box:3", "-o", str(output), "-q")
    assert done.stdout.decode().split() == [str(output), "True", "True", "False", "True"]


def test_garbage_collection_stays_off_if_the_caller_turned_it_off(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr("importlib.import_module", lambda name: name)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    gc.disable()
    try:
        load_torch()
        assert not gc.isenabled()
    finally:
        gc.enable()
    load_torch()
    assert gc.isenabled()


def test_version_is_that_of_the_package():
    text, loaded = loaded_by("--version")
    assert (text, loaded) == (f"deconv {deconv_cli.__version__}\n", [])


def on_a_terminal(*args, **changes):
    """Run the command with stderr on a pseudo-terminal and give what arrives there."""
    import pty

    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "deconv_cli", *args],
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env=environment(TERM="xterm", **changes),
        ) as process:
            process.wait(timeout=300)
        return os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_shows_errors_in_color_unless_no_color_is_set():
    words = ["forward", "missing.png", "--kernel", "missing.npy"]
    assert b"\x1b[" in on_a_terminal(*words)
    assert on_a_terminal(*words, NO_COLOR="1").startswith(b"error: ")
