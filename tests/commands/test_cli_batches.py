"""Many files at once, odd names, where outputs go, and what is printed on the way."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.input_files import lay_out
from deconv_cli.io import read_image

COMMANDS = ["forward", "invert"]
NO_BLURRED_DATA = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
"""No kernel blurred the inputs of these tests, so they may be doubted."""


@pytest.fixture
def folder(gray, tmp_path):
    """A tree: two pictures and a tensor, a text, a hidden picture."""
    root = tmp_path / "in"
    for place in ("a.png", "deep/er/b.png", ".hidden.png", ".cache/c.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(gray, root / place)
    np.save(root / "deep" / "t.npy", np.random.default_rng(0).random((2, 12, 14), dtype=np.float32))
    (root / "notes.txt").write_text("not a picture")
    gray.unlink()
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_several_inputs_into_a_folder(deconv, photograph, microscope, gray, gentle, tmp_path, values, command):
    (tmp_path / "out").mkdir()
    inputs = [photograph, microscope, gray]
    done = deconv(command, *inputs, "-k", gentle, "-o", tmp_path / "out", "--json", expect=NO_BLURRED_DATA)
    assert done.report.keys() == {"schema", "command", "results", "failed", "skipped", "left_out"}
    assert (done.report["schema"], done.report["command"], done.report["failed"]) == (2, command, [])
    assert [record["inputs"][0]["path"] for record in done.report["results"]] == [str(path) for path in inputs]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in inputs)
    for path, record in zip(inputs, done.report["results"], strict=True):
        output = tmp_path / "out" / path.name
        assert record["output"]["path"] == str(output)
        found = read_image(output).record
        assert (found["command"], found["boundary"]) == (command, record["boundary"])
        assert str(tmp_path) not in json.dumps(found)
        alone = tmp_path / f"alone{path.suffix}"
        deconv(command, path, "-k", gentle, "-o", alone, "--force", expect=NO_BLURRED_DATA)
        assert torch.equal(values(output), values(alone))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_tree_in_is_the_same_tree_out(deconv, folder, gentle, tmp_path, command):
    done = deconv(command, folder, "-k", gentle, "-o", tmp_path / "out", "--json")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"a.png", "deep/er/b.png", "deep/t.npy", "deep/t.npy.json"}
    assert len(done.report["results"]) == 3
    assert {record["boundary"] for record in done.report["results"]} == (
        {"zero"} if command == "forward" else {"unknown", "zero"}
    )


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("x.png", "x_restored.png"),
        ("x.JPG", "x_restored.JPG"),
        ("x.gif", "x_restored.png"),
        ("x.v2.ome.tif", "x.v2_restored.ome.tif"),
        ("x.npy", "x_restored.npy"),
    ],
)
def test_the_default_output_stands_beside_the_input(tmp_path, name, beside):
    (tmp_path / name).touch()
    ((job,), _) = lay_out([tmp_path / name], None, ending="_restored")
    assert job.target == tmp_path / beside


def test_force_replaces_no_named_file_that_deconv_did_not_write(deconv, refuses, gray, gentle):
    own = gray.with_name(f"{gray.stem}_forward.png")
    shutil.copy(gray, own)
    words = ["forward", gray, own, "-k", gentle, "--force", "--quiet"]
    refuses(*words, code=ExitCode.USAGE, says=[f"'{own}' is named as an input", "-o"])
    deconv("forward", gray, "-k", gentle, "--force")
    deconv(*words)
    shutil.copy(gray, gray.with_name(f"{gray.stem}_restored.png"))
    deconv(*words, gray.with_name(f"{gray.stem}_restored.png"))  # which forward does not replace


def test_files_of_a_folder_that_are_no_pictures_are_counted_by_kind(gray, tmp_path, capsys):
    for name in ("notes.txt", "more.txt", "README", "gray.png.json"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("{}")
    gray.rename(tmp_path / "in" / "gray.png")
    assert len(lay_out([tmp_path / "in"], "y", ending="_x")[0]) == 1
    assert capsys.readouterr().err == "note: left out, as no pictures or tensors: 2 .txt, 1 README\n"
    lay_out([tmp_path / "in"], "y", ending="_x", is_quiet=True)
    lay_out([tmp_path / "in" / "gray.png"], "y", ending="_x")
    assert capsys.readouterr().err == ""


def test_a_doubt_is_printed_once_with_its_files(deconv, gray, tmp_path):
    for name in "abc":
        shutil.copy(gray, tmp_path / f"{name}.png")
    inputs = [tmp_path / f"{name}.png" for name in "abc"]
    words = ["invert", *inputs, "-k", "disk:9", "--lambda", "0", "-o", tmp_path / "bad", "--prior", "quadratic", "-q"]
    done = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    lines = done.stderr.splitlines()
    assert lines
    assert len(set(lines)) == len(lines)
    assert all(line.startswith(f"warning: {', '.join(map(str, inputs))}: ") for line in lines)
    inputs[0].write_bytes(b"no picture")
    manifest = tmp_path / "run.jsonl"
    done = deconv(*words[:-1], "--force", "--manifest", manifest, expect=ExitCode.UNTRUSTWORTHY)
    assert "2 of 3 inputs were done (2 of them doubted), 1 failed" in done.stderr
    statuses = [json.loads(line)["status"] for line in manifest.read_text().splitlines()]
    assert sorted(statuses) == ["doubted", "doubted", "failed"]


NAMES = ["ünï côdé 像", "[red]markup[red]", "semi;colon & 'quote' %20.b.c"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_taken_as_they_are(deconv, gray, gentle, tmp_path, name):
    source, kernel, output = tmp_path / f"{name}.png", tmp_path / f"k {name}.npy", tmp_path / f"out {name}.tif"
    gray.rename(source)
    gentle.rename(kernel)
    done = deconv("forward", source, "-k", kernel, "-o", output)
    assert done.stdout == f"{output}\n"
    folded = done.stderr.replace("\n", "").replace(" ", "")
    for path in (source, kernel, output):
        assert path.name.replace(" ", "") in folded
    report = deconv(
        "invert", output, "-k", kernel, "-o", tmp_path / f"back {name}.png", "--output-dtype", "uint8", "--json"
    )
    assert report.report["inputs"][0]["path"] == str(output)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_where(deconv, gray, samples_folder, tmp_path, command):
    words = [command, gray, "-k", samples_folder / "gaussian_psf.png", "-o", tmp_path / "x.tif", "--force"]
    words += ["--light", "stored"] if command == "forward" else ["--lambda", "1e-1"]
    usual = deconv(*words)
    assert [line for line in usual.stderr.splitlines() if line.startswith("note: ") and "reversed along" in line]
    assert usual.stdout == f"{tmp_path / 'x.tif'}\n"
    assert f"deconv {command}" in usual.stderr
    assert "32×36" in usual.stderr
    quiet = deconv(*words, "-q")
    assert (quiet.stdout, quiet.stderr) == (f"{tmp_path / 'x.tif'}\n", "")
    report = deconv(*words, "--json")
    assert report.report["command"] == command
    assert "deconv" in report.stderr
    silent = deconv(*words, "--json", "--quiet")
    assert silent.stderr == ""
    assert silent.report["inputs"] == report.report["inputs"]


def test_verbose_tells_every_iteration(deconv, gray, gentle, tmp_path):
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif", "--force", "--json", "--method", "strip"]
    words += ["--prior", "quadratic"]
    done = deconv(*words, "-v", "--tolerance", "1e-4")
    told = [line for line in done.stderr.splitlines() if line.startswith("iteration ")]
    assert len(told) == done.report["solver"]["iterations"] > 0
    assert "goal 1e-04" in told[0]
    assert "iteration " not in deconv(*words, "-q").stderr
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(gray.read_bytes())
    told = deconv("invert", tmp_path / "in", "-k", gentle, "-o", tmp_path / "out", "-v").stderr
    assert "file 1 of 2: building the inverse" in told
    assert "file 2 of 2: restoring" in told


def test_a_round_trip_in_processes_of_its_own(gray, gentle, tmp_path):
    def run(*words):
        command = [sys.executable, "-W", "error", "-m", "deconv_cli", *words]
        return subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=300, check=False)

    made = run("forward", gray.name, "--kernel", gentle.name, "-o", "y.tif")
    assert (made.returncode, made.stdout.decode().strip()) == (ExitCode.SUCCESS, "y.tif")
    done = run("invert", "y.tif", "--kernel", gentle.name, "-o", "x.tif", "--json")
    assert done.returncode == ExitCode.SUCCESS
    assert json.loads(done.stdout)["boundary"] == "zero"
    assert b"\x1b" not in made.stderr + done.stdout + done.stderr
    assert read_image(tmp_path / "x.tif").record == json.loads(done.stdout)  # all of its paths are relative


def test_each_of_several_files_has_noise_of_its_own_which_its_rerun_draws_again(deconv, gray, gentle, tmp_path, values):
    twins = tmp_path / "twins"
    for name in ("a.png", "deep/a.png"):
        (twins / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(gray, twins / name)
    words = ["forward", "-k", gentle, "--noise", "gaussian:3", "--seed", "5", "--json", "-o"]
    done = deconv(*words, tmp_path / "out/", twins)
    noisy = [values(Path(record["output"]["path"])) for record in done.report["results"]]
    assert (noisy[0] - noisy[1]).abs().max() > 3
    for record, samples in zip(done.report["results"], noisy, strict=True):
        deconv(*shlex.split(record["rerun"])[1:])
        assert torch.equal(values(Path(record["output"]["path"])), samples)
    assert deconv(*words, tmp_path / "alone.png", gray).report["seed"] == 5


def test_an_input_that_does_not_fit_the_memory_is_restored_in_blocks_among_others(deconv, save, tmp_path):
    rng = np.random.default_rng(0)
    small, large = (save(name, rng.random(size, dtype=np.float32)) for name, size in SIZES.items())
    words = ["-k", "box:3", "--lambda", "0.1", "--max-memory", "3MiB", "--defaults", "picture", "--json", "-o"]
    done = deconv("invert", small, large, *words, tmp_path / "out/", expect=NO_BLURRED_DATA)
    assert ["blocks" in record for record in done.report["results"]] == [False, True]
    deconv("invert", large, *words, tmp_path / "alone.npy", expect=NO_BLURRED_DATA)
    assert np.array_equal(np.load(tmp_path / "out" / large.name), np.load(tmp_path / "alone.npy"))


SIZES = {"small": (40, 36), "large": (200, 180)}


def test_forward_leaves_out_restored_files_and_restoring_one_again_is_noted(deconv, gray, gentle, tmp_path):
    (tmp_path / "in").mkdir()
    gray = gray.rename(tmp_path / "in" / "gray.png")
    words = ["-k", gentle, "--prior", "quadratic", "--lambda", "0.1"]
    assert "written by deconv invert" not in deconv("invert", gray, *words, expect=NO_BLURRED_DATA).stderr
    run = deconv("forward", tmp_path / "in", "-k", gentle, "-o", tmp_path / "out", "--json")
    assert run.report["inputs"][0]["path"] == str(gray)
    assert "1 file has the name of a result and was left out" in run.stderr
    assert len(run.report["left_out"]) == 1
    named = ["forward", gray, gray.with_name("gray_restored.png"), "-k", gentle, "-o", tmp_path / "named/"]
    assert len(deconv(*named, "--json").report["results"]) == 2
    again = deconv("invert", gray.with_name("gray_restored.png"), *words, expect=NO_BLURRED_DATA)
    assert "the input was written by deconv invert, so it is restored a second time" in again.stderr


def test_a_dry_run_reads_the_array_that_is_chosen(deconv, gentle, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        np.savez(tmp_path / "in" / f"{name}.npz", one=np.ones((64, 64)), two=np.ones(2))
    words = ["invert", tmp_path / "in", "-k", gentle, "-o", tmp_path / "out", "--dry-run", "--json"]
    plan = deconv(*words, expect=ExitCode.INPUT_REFUSED).report["planned"]
    chosen = deconv(*words, "--tensor", "one").report["planned"]
    assert plan[0]["fault"].endswith("choose with --tensor NAME.")
    assert [one["fault"] for one in chosen] == [None, None]


def test_a_dry_run_of_a_folder_lists_its_files(deconv, gray, gentle, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(gray, tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").touch()
    words = ["invert", tmp_path / "in", "-k", gentle, "-o", tmp_path / "out"]
    first, second = deconv(*words, "--dry-run").stdout.splitlines()
    estimated = [*words[:2], "-k", "estimate", *words[4:], "--dry-run"]
    assert deconv(*estimated).stdout.splitlines() == [first, second]
    assert first == f"{tmp_path / 'in/a.png'} → {tmp_path / 'out/a.png'}"
    assert second == f"{tmp_path / 'in/b.png'} → {tmp_path / 'out/b.png'} (exists already)"
    assert not (tmp_path / "out" / "a.png").exists()
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    plan = deconv(*words, "--dry-run", "--json", expect=ExitCode.UNTRUSTWORTHY).report
    assert [one["exists"] for one in plan["planned"]] == [False, True]
    assert [one["fault"] is None for one in plan["planned"]] == [True, False]
    assert (plan["dry_run"], plan["plan"], plan["expected_time_s"]) == (True, None, None)
    broken = deconv(*words, "--dry-run", expect=ExitCode.UNTRUSTWORTHY).stdout.splitlines()[1]
    assert broken.startswith("cannot be restored: ")
    assert "b.png' is not a supported file" in broken
    (tmp_path / "out" / "a.png").touch()
    failed = deconv(*words, expect=ExitCode.USAGE)
    assert "--skip-existing keeps the outputs that exist, and --force replaces them" in failed.stderr
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"no picture")
    assert "--skip-existing" not in deconv(*words, expect=ExitCode.INPUT_REFUSED).stderr
    deconv(*words, "--dry-run", expect=ExitCode.INPUT_REFUSED)
