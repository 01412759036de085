"""Which files a command takes; names of files and streams as no one expects them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.input_files import expand, lay_out
from deconv_cli.errors import UsageError
from deconv_cli.io.files import read_head


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """A tree of empty files, and the working folder."""
    for name in ("scans/frame_10.tif", "scans/frame_9.tif", "scans/Frame_1.tif", "scans/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("day2/a/x.tif", "day10/a/x.tif", "day10/.cache/y.tif", "day10/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(argument):
    return [(file.path.as_posix(), file.place.as_posix()) for file in expand(Path(argument))]


def test_numbers_in_names_are_counted(scans):
    names = ["scans/Frame_1.tif", "scans/frame_9.tif", "scans/frame_10.tif"]
    assert [path for path, _ in listed("scans")] == names
    assert [path for path, _ in listed("scans/*.tif")] == names
    assert [path for path, _ in listed("scans/frame_?.tif")] == ["scans/frame_9.tif"]


def test_a_pattern_keeps_the_tree_from_its_first_part_that_is_none(scans):
    expected = [("day2/a/x.tif", "day2/a/x.tif"), ("day10/b.png", "day10/b.png"), ("day10/a/x.tif", "day10/a/x.tif")]
    assert sorted(listed("day*")) == sorted(listed("day*/**")) == sorted(expected)
    assert listed("day*/*/*.tif") == [expected[0], expected[2]]
    assert listed(scans / "day10" / "*" / "x.tif") == [((scans / "day10/a/x.tif").as_posix(), "a/x.tif")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(scans):
    Path("frame_[1].tif").touch()
    assert listed("frame_[1].tif") == [("frame_[1].tif", "frame_[1].tif")]


@pytest.mark.parametrize("argument", ["scans/*.txt", "nothing/*.tif", "scans/x.tif"])
def test_what_matches_nothing_is_refused(scans, argument):
    with pytest.raises(UsageError, match=r"no readable picture|does not exist"):
        expand(Path(argument))


def test_a_link_to_nothing_is_an_input_that_cannot_be_read(scans):
    Path("day10/gone.tif").symlink_to("nowhere.tif")
    link = ("day10/gone.tif", "gone.tif")
    assert link in listed("day10")
    assert link in listed("day10/*.tif")
    for reads in (expand, read_head):
        with pytest.raises(UsageError, match=r"gone\.tif' is a link to a file that does not exist"):
            reads(Path("day10/gone.tif"))


def jobs(inputs, output):
    laid, _ = lay_out([Path(name) for name in inputs], output, ending="_restored")
    return [(job.source.as_posix(), job.target.as_posix()) for job in laid]


def test_what_an_earlier_run_wrote_is_no_input(scans, capsys):
    first = jobs(["scans"], "scans/out")
    for _, target in first:
        Path(target).parent.mkdir(exist_ok=True)
        Path(target).touch()
    assert jobs(["scans"], "scans/out") == first
    assert "3 files have the name of a result and were left out" in capsys.readouterr().err
    beside = jobs(["day2"], None)
    for _, target in beside:
        Path(target).touch()
    assert jobs(["day2"], None) == beside == [("day2/a/x.tif", "day2/a/x_restored.tif")]
    named = jobs(["day2/a/x_restored.tif"], None)
    assert named == [("day2/a/x_restored.tif", "day2/a/x_restored_restored.tif")]


def test_a_named_file_is_an_input_unless_outputs_go_beside_it(scans):
    names = ["day2/a/x.tif", "day2/a/x_restored.tif"]
    Path(names[1]).touch()
    assert [source for source, _ in jobs(names, "out")] == names
    assert [source for source, _ in jobs(names, None)] == names[:1]  # as a shell writes a pattern


def test_a_file_that_is_found_twice_is_one_input(scans):
    assert jobs(["scans", "scans/frame_9.tif"], "out") == jobs(["scans"], "out")


def test_a_pattern_goes_into_a_folder_even_where_it_matches_one_file(scans):
    assert jobs(["scans/*_9.tif"], "out") == [("scans/frame_9.tif", "out/frame_9.tif")]
    with pytest.raises(UsageError, match="names a file"):
        jobs(["scans/*_9.tif"], "out.tif")
    with pytest.raises(UsageError, match="several inputs would be written to"):
        jobs(["day2/a/x.tif", "day10/a/x.tif"], "out")


@pytest.fixture
def run_strictly(tmp_path):
    """Run the command in a folder with a picture and a kernel, with a stdout that takes nothing but UTF-8."""
    Image.fromarray(np.arange(256, dtype="uint8").reshape(16, 16)).save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    np.save(tmp_path / "k.npy", np.array([[0.0, 0.1, 0], [0.1, 0.6, 0.1], [0, 0.1, 0]], "float32"))

    def run(*words, stdout=subprocess.PIPE, encoding="utf-8:strict"):
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        environment["PYTHONIOENCODING"] = encoding
        command = [sys.executable, "-m", "deconv_cli", *words]
        streams = {"stdout": stdout, "stderr": subprocess.PIPE}
        return subprocess.run(command, **streams, cwd=tmp_path, env=environment, timeout=300)

    return run


def test_a_name_that_is_no_text_comes_out_as_it_went_in(run_strictly, tmp_path):
    done = run_strictly("forward", b"caf\xe9.png", "-k", "k.npy", "-o", b"o\xe9.tif", "--boundary", "zero")
    assert (done.returncode, done.stdout) == (0, b"o\xe9.tif\n"), done.stderr
    assert (tmp_path / os.fsdecode(b"o\xe9.tif")).exists()


def test_a_name_that_is_no_text_is_escaped_in_json(run_strictly):
    done = run_strictly("inspect", b"caf\xe9.png", "--json")
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout.decode("utf-8"))["files"][0]["path"]) == b"caf\xe9.png"


def test_a_reader_of_stdout_that_leaves_does_not_fail_the_run(run_strictly, tmp_path):
    theirs, ours = os.pipe()
    os.close(theirs)
    done = run_strictly("forward", b"caf\xe9.png", "-k", "k.npy", "-o", "o.tif", "--boundary", "zero", stdout=ours)
    os.close(ours)
    assert done.returncode == ExitCode.SUCCESS, done.stderr
    assert (tmp_path / "o.tif").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", [["inspect", b"caf\xe9.png", "--json"], ["--version"]])
def test_a_full_stdout_is_said_in_a_sentence(run_strictly, words):
    with Path("/dev/full").open("wb") as full:
        done = run_strictly(*words, stdout=full)
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr == b"error: the answer cannot be written to stdout: No space left on device.\n"


def test_a_name_steers_no_terminal_breaks_no_table_in_a_pipe_and_fits_json_in_any_locale(run_strictly, tmp_path):
    folder = tmp_path / ("a long name " * 15)
    folder.mkdir()
    name = f"{folder.name}/\x1b]0;title\a\nerror: forged.png"
    Image.fromarray(np.zeros((8, 8), "uint8")).save(tmp_path / name)
    done = run_strictly("forward", name, "-k", "k.npy", "-o", "λ.tif", "--json", encoding="latin-1:strict")
    assert json.loads(done.stdout)["output"]["path"] == "λ.tif"
    lines = done.stderr.decode("latin-1").splitlines()
    assert b"\x1b" not in done.stderr
    assert not any(line.startswith("error:") for line in lines)
    assert any(f"{folder.name}/\\x1b]0;title\\x07\\nerror: forged.png" in line for line in lines)
