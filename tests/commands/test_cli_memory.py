"""`--max-memory`: read, obeyed, refused where it is too little, and kept in the line that repeats the run."""

import shlex

import pytest
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode


def test_a_memory_limit_is_obeyed_and_recorded(deconv, gray, gentle, tmp_path):
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif", "--force"]
    report = deconv(*words, "--json", "--max-memory", "1.5GiB").report
    assert f"--max-memory={3 * 2**29}" in shlex.split(report["rerun"])
    assert not any(word.startswith("--max-memory") for word in shlex.split(deconv(*words, "--json").report["rerun"]))
    done = deconv(*words, "--max-memory", "20kB", expect=ExitCode.INPUT_REFUSED)
    assert "more than the 19.53 KiB that --max-memory allows" in " ".join(done.stderr.split())
    done = deconv(*words, "--max-memory", "plenty", expect=ExitCode.USAGE)
    assert "must be like 8GiB" in " ".join(done.stderr.split())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_the_system_does_not_give_is_said_in_a_sentence(
    refuses, gray, gentle, tmp_path, monkeypatch, error
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("deconv_cli.commands.input_files.expand", fails)
    monkeypatch.setattr("deconv_cli.workflows.pipeline.Pipeline.__init__", fails)
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif"]
    refuses(*words, code=ExitCode.INPUT_REFUSED, says="no memory left for this")


@pytest.mark.parametrize(
    ("suffix", "settings", "is_advised"),
    [("png", [], True), ("png", ["--boundary", "circular", "--rcond", "0.1"], False), ("tif", [], False)],
)
def test_a_picture_that_is_read_as_a_whole_is_told_of_formats_that_are_cut(
    refuses, gray, gentle, tmp_path, monkeypatch, suffix, settings, is_advised
):
    monkeypatch.setattr("deconv_cli.blocks.block_problem.whole_fits", lambda *_: True)  # a TIFF is tried as a whole too
    Image.open(gray).save(tmp_path / f"y.{suffix}")
    words = ["invert", tmp_path / f"y.{suffix}", "-k", gentle, "-o", tmp_path / "x.tif", *settings]
    told = refuses(*words, "--max-memory", "20kB", code=ExitCode.INPUT_REFUSED, says="--max-memory")
    advice = "or a smaller image, or a TIFF (.tif) or Zarr (.zarr) copy, which is restored block by block."
    assert told.endswith(advice) == is_advised
    assert ("block by block" in told) == is_advised
