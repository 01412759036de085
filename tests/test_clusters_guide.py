"""The commands of docs/clusters.md run and give what the page says; its scripts name options that there are."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")


def run(line):
    return CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """The commands of the page, in a folder that holds the samples."""
    shutil.copytree(ROOT / "sample_images", tmp_path / "sample_images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_the_jobs_of_an_array_give_the_bytes_of_one_process(lines):
    blurring, in_processes, *in_jobs = lines
    assert run(blurring).exit_code == ExitCode.SUCCESS
    assert "4 of 128×128" in run(f"{in_processes} --lambda 1e-2 --dry-run").stderr
    for line in in_jobs:
        assert not Path("in_jobs.npy").exists()
        assert run(f"{line} --lambda 1e-2").exit_code == ExitCode.SUCCESS  # to choose it takes most of the time
    assert run(in_processes.replace("--jobs 2", "--jobs 1 --lambda 1e-2")).exit_code == ExitCode.SUCCESS
    assert Path("in_jobs.npy").read_bytes() == Path("restored.npy").read_bytes()


@pytest.mark.exhaustive  # processes and workers load torch
def test_so_do_processes_and_a_cluster_of_this_machine(lines):
    blurring, in_processes, *_ = lines
    assert run(blurring).exit_code == ExitCode.SUCCESS
    written = set()
    for workers in ("", "--jobs 1", "--jobs 2", "--cluster local:2"):
        assert run(in_processes.replace("--jobs 2", f"{workers} --lambda 1e-2 --force")).exit_code == ExitCode.SUCCESS
        written.add(Path("restored.npy").read_bytes())
    assert len(written) == 1


def test_every_option_of_the_scripts_is_one_of_the_command():
    scripts = " ".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    commands = [line for line in scripts.splitlines() if line.startswith("deconv invert")]
    assert len(commands) == 2
    help_text = CliRunner().invoke(app, ["invert", "--help"], env={"COLUMNS": "300"}).stdout
    for option in re.findall(r"(--[a-z-]+)", " ".join(commands)):
        assert option in help_text
