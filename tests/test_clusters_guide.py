"""The commands of docs/howto/clusters.md run and give what the page says; its scripts name options that there are."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deconv_cli.blocks.checkpoint import Checkpoint
from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "clusters.md").read_text(encoding="utf-8")


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


def chunks_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).glob("0/c/*/*")}


@pytest.mark.exhaustive  # processes load torch
@pytest.mark.skipif(sys.platform == "win32", reason="the script is one of a shell")
def test_the_script_of_an_array_ends_with_the_bytes_of_one_process_though_a_job_is_killed(lines):
    zarr = pytest.importorskip("zarr")
    picture = read_image(Path("sample_images/retina16.tif")).values[0, 0].numpy()
    zarr.create_array("in.zarr", shape=picture.shape, chunks=(64, 64), dtype="float32")[:] = picture
    shutil.copy("sample_images/gaussian_psf.png", "psf.tif")
    blurring = "deconv forward in.zarr --kernel psf.tif --boundary reflect --noise gaussian:30 -o slide.zarr"
    assert run(blurring).exit_code == ExitCode.SUCCESS
    slide = zarr.open_array("slide.zarr")[:]
    zarr.create_array("slide.ome.zarr", shape=slide.shape, chunks=(64, 64), dtype="float32")[:] = slide
    scripts = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (script,) = [script for script in scripts if "#SBATCH" in script]
    options = "--lambda 1e-2 --block-size 64"
    Path("job.sh").write_text(
        script.replace("deconv invert", f"{sys.executable} -m deconv_cli invert {options}"), encoding="utf-8"
    )

    def begun(job):
        names = {"SLURM_ARRAY_TASK_ID": str(job), "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_CPUS_PER_TASK": "1"}
        return subprocess.Popen(["bash", "job.sh"], env=os.environ | names, start_new_session=True)

    ledger = Checkpoint.of(Path("restored.ome.zarr"))
    assert [begun(job).wait() for job in (1, 3)] == [0, 0]
    with begun(2) as killed:
        while len(ledger.results()) < 9:
            time.sleep(1e-3)
        os.killpg(killed.pid, signal.SIGKILL)
    assert begun(4).wait() == 0
    assert not Path("restored.ome.zarr").exists()
    assert [begun(job).wait() for job in (2, 3)] == [0, 0]  # the latter finds that all is done
    alone = f"deconv invert slide.ome.zarr --kernel psf.tif -o alone.ome.zarr {options} --jobs 1"
    assert run(alone).exit_code == ExitCode.SUCCESS
    assert chunks_of("restored.ome.zarr") == chunks_of("alone.ome.zarr")
    assert len(chunks_of("alone.ome.zarr")) == 16


def test_every_option_of_the_scripts_is_one_of_the_command():
    scripts = " ".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    commands = [line for line in scripts.splitlines() if line.startswith("deconv invert")]
    assert len(commands) == 2
    help_text = CliRunner().invoke(app, ["invert", "--help"], env={"COLUMNS": "300"}).stdout
    for option in re.findall(r"(--[a-z-]+)", " ".join(commands)):
        assert option in help_text
