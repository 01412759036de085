"""Runs over many files with a manifest, and skipped outputs."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import PreparedOutput, fingerprint
from deconv_cli.io.records import samples_digest


@pytest.fixture
def frames(gray, tmp_path):
    """A folder with three small tensors; the second is damaged."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (1, 2, 10):
        np.save(folder / f"{number}.npy", np.random.default_rng(number).random((12, 10), dtype=np.float32))
    whole = (folder / "2.npy").read_bytes()
    (folder / "2.npy").write_bytes(whole[:-9])
    return folder


def mend(frames):
    shutil.copy(frames / "1.npy", frames / "2.npy")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_file_has_a_line_and_a_second_run_does_what_is_missing(deconv, refuses, frames, gentle, tmp_path):
    manifest, out = tmp_path / "run.jsonl", tmp_path / "out"
    words = ["invert", frames, "-k", gentle, "-o", out, "--lambda", "1e-3", "--manifest", manifest]
    done = deconv(*words, "--json", expect=ExitCode.UNTRUSTWORTHY)
    report, (failure,) = done.report, done.report["failed"]
    lines = {Path(line["input"]).name: line for line in lines_of(manifest)}
    assert {name: line["status"] for name, line in lines.items()} == {
        "1.npy": "done",
        "2.npy": "failed",
        "10.npy": "done",
    }
    assert failure == {"path": str(frames / "2.npy"), "error": lines["2.npy"]["error"]}
    assert done.errors == [f"error: {failure['error']}"]
    assert "2 of 3 inputs were done, 1 failed" in done.stderr
    for record in report["results"]:
        line = lines[Path(record["output"]["path"]).name]
        assert line["output"] == record["output"]["path"]
        assert line["input_sha256"] == fingerprint(frames / Path(line["output"]).name)
        assert line["samples_sha256"] == samples_digest(np.load(line["output"]))
        assert line["rerun"] == record["rerun"]
        assert line["seconds"] > 0

    refuses(*words, code=ExitCode.USAGE, says=["exists already", "--skip-existing adds", "--force replaces"])
    mend(frames)
    (out / "1.npy").write_text("anything")
    done = deconv(*words, "--skip-existing", "--json")
    assert [record["inputs"][0]["path"] for record in done.report["results"]] == [str(frames / "2.npy")]
    assert done.report["skipped"] == [str(frames / "1.npy"), str(frames / "10.npy")]
    assert "1 of 3 inputs was done, 2 skipped" in done.stderr
    assert (out / "1.npy").read_text() == "anything"
    assert [line["status"] for line in lines_of(manifest)[3:]] == ["done"]
    deconv(*words, "--force")
    assert [line["status"] for line in lines_of(manifest)] == ["done"] * 3


def test_a_manifest_without_a_line_or_with_a_torn_one_is_continued(deconv, frames, gentle, tmp_path):
    mend(frames)
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--manifest", tmp_path / "run.jsonl"]
    (tmp_path / "run.jsonl").touch()  # a run that failed at its start leaves it so
    deconv(*words)
    (tmp_path / "run.jsonl").write_text('{"input": "a')
    for name in ("2.npy", "2.npy.json"):
        (tmp_path / "out" / name).unlink()
    deconv(*words, "--skip-existing")
    torn, *whole = (tmp_path / "run.jsonl").read_text().splitlines()
    assert torn == '{"input": "a'
    first, last, made = map(json.loads, whole)
    assert [line["status"] for line in (first, last, made)] == ["exists", "exists", "done"]
    assert first["output_sha256"] == fingerprint(tmp_path / "out" / "1.npy")
    assert first["rerun"].startswith("deconv forward")
    deconv(*words, "--skip-existing")
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 4


def test_an_interrupted_run_keeps_what_is_finished(deconv, frames, gentle, tmp_path, monkeypatch):
    mend(frames)
    write, third = PreparedOutput.write, threading.Event()

    def interrupted(self, record):
        write(self, record)
        if self.path.name == "10.npy":
            third.set()
        elif self.path.name == "2.npy":
            assert third.wait(60)
            raise KeyboardInterrupt

    words = ["invert", frames, "-k", gentle, "-o", tmp_path / "out", "--lambda", "1e-3"]
    words += ["--manifest", tmp_path / "run.jsonl"]
    with monkeypatch.context() as patched:
        patched.setattr(PreparedOutput, "write", interrupted)
        told = deconv(*words, expect=ExitCode.INTERRUPTED)
    assert told.stdout.splitlines() == [str(tmp_path / "out" / name) for name in ("1.npy", "10.npy")]
    assert "2 of 3 inputs were done; run the same command with --skip-existing to continue" in told.stderr
    assert {Path(line["input"]).name for line in lines_of(tmp_path / "run.jsonl")} == {"1.npy", "10.npy"}


@pytest.mark.parametrize("more", [["--force"], ["--skip-existing"]])
def test_a_manifest_is_never_written_over_a_file_of_the_run(refuses, frames, gentle, tmp_path, more):
    (tmp_path / "out").mkdir()
    (tmp_path / "link.jsonl").symlink_to(frames / "1.npy")
    (tmp_path / "same.jsonl").hardlink_to(frames / "1.npy")
    made = tmp_path / "out" / "1.npy"
    own = [frames / "1.npy", frames / ".." / "frames" / "1.npy", tmp_path / "link.jsonl", tmp_path / "same.jsonl"]
    for path in (*own, gentle, made, made.with_name("1.npy.json")):
        words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--manifest", path, *more]
        refuses(*words, code=ExitCode.USAGE, says=[f"'{path}' would overwrite", "which this run"])


def test_a_single_file_has_a_line_too(deconv, frames, gentle, tmp_path):
    words = ["forward", frames / "1.npy", "-k", gentle, "-o", tmp_path / "x.npy"]
    manifest = ["--manifest", tmp_path / "one.jsonl"]
    deconv(*words, *manifest)
    (tmp_path / "one.jsonl").unlink()
    skipped = deconv(*words, *manifest, "--skip-existing")
    told = f"note: {frames / '1.npy'}: skipped, since its output '{tmp_path / 'x.npy'}' exists already.\n"
    assert (skipped.stdout, skipped.stderr) == ("", told)
    bad = ["forward", frames / "2.npy", "-k", gentle, "-o", tmp_path / "y.npy", *manifest, "--skip-existing"]
    failed = deconv(*bad, "--json", expect=ExitCode.INPUT_REFUSED)
    assert failed.report["failed"][0]["path"] == str(frames / "2.npy")
    assert f"error: {failed.report['failed'][0]['error']}\n" == failed.stderr
    assert (failed.report["results"], failed.report["skipped"], failed.report["left_out"]) == ([], [], [])
    assert [line["status"] for line in lines_of(tmp_path / "one.jsonl")] == ["exists", "failed"]


def test_an_output_over_an_input_is_refused_whatever_is_forced(refuses, frames, gentle, tmp_path):
    mend(frames)
    for output in (frames / "1.npy", frames / ".." / "frames" / "1.npy"):
        words = ["invert", frames / "1.npy", "-k", gentle, "-o", output, "--force"]
        refuses(*words, code=ExitCode.USAGE, says="which this run reads")
    refuses("forward", frames, "-k", gentle, "-o", frames, "--force", code=ExitCode.USAGE, says="which this run reads")


@pytest.mark.parametrize("option", ["-o", "--manifest", "--report", "--error-map", "--trust-mask"])
def test_a_pipe_is_never_replaced(refuses, frames, gentle, tmp_path, option):
    pipe = tmp_path / {"--report": "pipe.html", "--manifest": "pipe.jsonl"}.get(option, "pipe.npy")
    os.mkfifo(pipe)
    words = ["invert", frames / "1.npy", "-k", gentle, "-o", tmp_path / "x.npy", option, pipe, "--force"]
    refuses(*words, code=ExitCode.USAGE, says=f"'{pipe}' is a pipe or a device")
    assert pipe.is_fifo()


def test_options_that_contradict_one_another(refuses, frames, gentle, tmp_path):
    words = [frames, "-k", gentle, "-o", tmp_path / "out"]
    refuses("forward", *words, "--skip-existing", "--force", code=ExitCode.USAGE, says="--skip-existing")
    one = [frames / "1.npy", *words[1:3], "-o", tmp_path / "x.npy"]
    refuses("invert", *one, "--resume", "--force", code=ExitCode.USAGE, says="--resume keeps what an earlier run did")
    refuses("invert", *words, "--resume", code=ExitCode.USAGE, says=["--resume continues one input", "--skip-existing"])


def test_many_files_print_no_table_each_note_once_and_the_failures_again(deconv, frames, gentle, tmp_path):
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out.d"]
    done = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert done.stdout.splitlines() == [str(tmp_path / "out.d" / name) for name in ("1.npy", "10.npy")]
    assert "boundary" not in done.stderr
    assert f"failed: {frames / '2.npy'}" in done.stderr
    assert "boundary" in deconv(*words, "--force", "--verbose", expect=ExitCode.UNTRUSTWORTHY).stderr


def test_notes_that_differ_in_numbers_alone_are_printed_once(deconv, frames, gentle, tmp_path):
    mend(frames)
    for number in (1, 2, 10):
        np.save(frames / f"{number}.npy", (300 + 100 * number) * np.load(frames / f"{number}.npy"))
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--output-dtype", "uint8"]
    done = deconv(*words, "--manifest", tmp_path / "run.jsonl")
    assert f"note: {frames / '1.npy'}: rounded to uint8" in done.stderr
    assert f" (with other numbers also {frames / '2.npy'} and 1 more)\n" in done.stderr
    assert done.stderr.count("rounded to uint8") == 1
    lines = lines_of(tmp_path / "run.jsonl")
    assert len({note for line in lines for note in line["notes"]}) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("workers", [[], ["--jobs", "1"]])
def test_a_manifest_on_a_full_disk_ends_the_run_with_a_sentence(deconv, frames, gentle, tmp_path, monkeypatch, workers):
    opened = Path.open

    def is_full(path, mode="r", **options):
        return opened(Path("/dev/full") if (path.name, mode) == ("run.jsonl", "w") else path, mode, **options)

    monkeypatch.setattr(Path, "open", is_full)
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--manifest", tmp_path / "run.jsonl", *workers]
    done = deconv(*words, expect=ExitCode.FAILURE)
    assert f"error: the manifest '{tmp_path / 'run.jsonl'}' cannot be written: No space left on device." in done.stderr
