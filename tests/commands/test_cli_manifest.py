"""Runs over many files with a manifest: records, resumed runs, and skipped outputs."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deconv_cli.commands import restoration
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import PreparedOutput, fingerprint, read_image
from deconv_cli.io.records import samples_digest, seal_record
from deconv_cli.workflows import measurement


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


@pytest.fixture
def run(deconv, frames, gentle, tmp_path):
    """Restore the frames into a folder with a manifest; gives the run and the lines."""

    def restore(*more, expect=ExitCode.UNTRUSTWORTHY, lam="1e-3", prints=True, notes=""):
        words = ["-k", gentle, "-o", tmp_path / "out", "--lambda", lam, "--manifest", tmp_path / "run.jsonl", "--json"]
        done = deconv("invert", frames, *words, *more, expect=expect)
        assert notes in done.stderr
        lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
        return done.report if prints else None, lines

    return restore


def mend(frames):
    shutil.copy(frames / "1.npy", frames / "2.npy")


def test_each_file_has_a_line(run, frames, gentle, tmp_path):
    report, lines = run()
    assert [line["input"] for line in lines] == [str(frames / f"{number}.npy") for number in (1, 2, 10)]
    assert [line["status"] for line in lines] == ["done", "failed", "done"]
    (failure,) = report["failed"]
    assert lines[1]["error"] == failure["error"]
    for line, record in zip([lines[0], lines[2]], report["results"], strict=True):
        output = tmp_path / "out" / record["output"]["path"].rpartition("/")[2]
        assert line["output"] == record["output"]["path"] == str(output)
        assert line["input_sha256"] == fingerprint(frames / output.name)
        assert line["output_sha256"] == fingerprint(output)
        assert line["samples_sha256"] == samples_digest(np.load(output))
        assert line["rerun"] == record["rerun"]
        assert line["seconds"] > 0
        assert line["settings"]["lam"] == "1e-3"
        assert line["settings"]["files"] == {str(gentle): fingerprint(gentle)}
    assert lines[1]["input_sha256"] == fingerprint(frames / "2.npy")


def test_a_run_that_is_resumed_does_what_failed_is_missing_or_has_changed(run, frames, tmp_path):
    _, first = run()
    assert (run("--resume")[1])[1]["status"] == "failed"
    mend(frames)
    report, lines = run("--resume", expect=ExitCode.SUCCESS)
    assert [record["inputs"][0]["path"] for record in report["results"]] == [str(frames / "2.npy")]
    assert report["skipped"] == [str(frames / "1.npy"), str(frames / "10.npy")]
    assert (lines[0], lines[2]) == (first[0], first[2])
    assert lines[1]["status"] == "done"

    (tmp_path / "out" / "1.npy").unlink()
    (tmp_path / "out" / "2.npy").write_bytes(b"something else")
    report, again = run("--resume", expect=ExitCode.SUCCESS)
    assert report["skipped"] == [str(frames / "10.npy")]
    same = ("output_sha256", "samples_sha256")
    assert [[line[name] for name in same] for line in again] == [[line[name] for name in same] for line in lines]

    shutil.copy(frames / "1.npy", frames / "10.npy")
    report, _ = run("--resume", expect=ExitCode.SUCCESS)
    assert report["skipped"] == [str(frames / "1.npy"), str(frames / "2.npy")]
    report, lines = run("--resume", expect=ExitCode.SUCCESS, lam="1e-2")
    assert len(report["results"]) == 3
    assert {line["settings"]["lam"] for line in lines} == {"1e-2"}


def test_another_kernel_of_the_same_name_is_another_setting(run, frames, gentle):
    mend(frames)
    run(expect=ExitCode.SUCCESS)
    assert run("--resume", expect=ExitCode.SUCCESS)[0]["results"] == []
    np.save(gentle, np.load(gentle)[::-1])
    report, _ = run("--resume", expect=ExitCode.SUCCESS, notes="3 files are done again, since the settings differ")
    assert len(report["results"]) == 3


def test_a_doubted_result_is_doubted_again_by_a_resumed_run(deconv, frames, gentle, tmp_path):
    mend(frames)
    words = ["-k", gentle, "--lambda", "1e-3", "--max-iterations", "1"]
    words += ["--resume", "--manifest", tmp_path / "run.jsonl"]
    many, one = [frames, "-o", tmp_path / "out"], [frames / "1.npy", "-o", tmp_path / "one.npy"]
    for inputs, n_inputs, sentence in (
        (many, 3, "3 left out (3 of them doubted before)"),
        (one, 1, "the run that wrote it did not trust the result"),
    ):
        first = deconv("invert", *inputs, *words, expect=ExitCode.UNTRUSTWORTHY)
        assert sentence not in first.stderr
        again = deconv("invert", *inputs, *words, expect=ExitCode.UNTRUSTWORTHY)
        assert sentence in again.stderr
        assert again.stdout == ""
        (doubt,) = [line for line in again.stderr.splitlines() if "the iterations ran out" in line]
        assert doubt.count(".npy") == n_inputs
        quiet = deconv("invert", *inputs, *words, "--quiet", expect=ExitCode.UNTRUSTWORTHY)
        assert sentence not in quiet.stderr
        document = json.loads(deconv("invert", *inputs, *words, "--json", expect=ExitCode.UNTRUSTWORTHY).stdout)
        assert len(document["doubted_before"]) == n_inputs
        assert all("iterations" in doubts[0] for doubts in document["doubted_before"].values())


def test_a_run_that_was_killed_is_resumed(run, frames, tmp_path):
    mend(frames)
    _, lines = run(expect=ExitCode.SUCCESS)
    # The second was written but not recorded; the third was recorded in part.
    begun = [{"input": line["input"], "output": line["output"], "status": "begun"} for line in lines]
    for line in lines:
        del line["digest"]
    kept = [seal_record(line) for line in (lines[0], begun[1], begun[2], lines[2])]
    kept[-1] = kept[-1][:50]
    (tmp_path / "run.jsonl").write_text("\n".join(kept))
    (tmp_path / "out" / "10.npy").unlink()
    report, again = run("--resume", expect=ExitCode.SUCCESS)
    assert report["skipped"] == [str(frames / "1.npy")]
    assert [line["output_sha256"] for line in again] == [line["output_sha256"] for line in lines]


def test_an_interrupted_run_keeps_what_is_finished_and_replaces_what_is_not(run, frames, monkeypatch):
    mend(frames)
    write, third = PreparedOutput.write, threading.Event()

    def interrupted(self, record):
        write(self, record)
        if self.path.name == "10.npy":
            third.set()
        elif self.path.name == "2.npy":
            assert third.wait(60)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PreparedOutput, "write", interrupted)
        _, lines = run(expect=ExitCode.INTERRUPTED, prints=False)
    assert [line["status"] for line in lines] == ["done", "begun", "done"]
    report, lines = run("--resume", expect=ExitCode.SUCCESS)
    assert report["skipped"] == [str(frames / "1.npy"), str(frames / "10.npy")]
    assert [line["status"] for line in lines] == ["done"] * 3


def test_an_output_of_somebody_else_is_not_replaced(run, frames, tmp_path):
    mend(frames)
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "out" / "2.npy", np.zeros(3))
    for _ in range(2):  # the failed job does not make the file one of deconv's
        report, lines = run("--resume")
        assert [failure["path"] for failure in report["failed"]] == [str(frames / "2.npy")]
        assert "exists already" in lines[1]["error"]
        assert np.load(tmp_path / "out" / "2.npy").tolist() == [0, 0, 0]
    assert run("--resume", "--force", expect=ExitCode.SUCCESS)[0]["failed"] == []


def test_a_manifest_that_is_there_is_kept(run, frames, refuses, gentle, tmp_path):
    run()
    words = ["invert", frames, "-k", gentle, "-o", tmp_path / "other", "--manifest", tmp_path / "run.jsonl"]
    refuses(*words, code=ExitCode.USAGE, says=["exists already", "--resume"])
    (tmp_path / "run.jsonl").write_text("no manifest\n")
    refuses(*words, "--resume", code=ExitCode.INPUT_REFUSED, says="line 1 of")


def test_a_manifest_that_is_damaged_or_is_none_is_refused_and_kept(run, frames, refuses, gentle, tmp_path):
    run()
    manifest = tmp_path / "run.jsonl"
    words = ["invert", frames, "-k", gentle, "-o", tmp_path / "out", "--manifest", manifest, "--resume"]
    whole = manifest.read_bytes()
    n_lines = whole.count(b"\n")
    damages = {
        b"[" * 100_000 + b"\n": 1,
        b"my only line": 1,
        b'{"input": "a", "output": "b", "status": "done"}\n': 1,
        whole.replace(b'"status": "done"', b'"status": "dona"', 1): 1,
        whole[:-1] + b"J": n_lines,
    }
    for content, number in damages.items():
        manifest.write_bytes(content)
        refuses(*words, code=ExitCode.INPUT_REFUSED, says=[f"line {number} of '{manifest}'", "damaged"])
    manifest.write_bytes(whole[:-1])
    assert run("--resume")[1][0] == json.loads(whole.splitlines()[0])


@pytest.mark.parametrize("more", [["--force"], ["--resume"]])
def test_a_manifest_is_never_written_over_a_file_of_the_run(refuses, frames, gentle, tmp_path, more):
    (tmp_path / "out").mkdir()
    (tmp_path / "link.jsonl").symlink_to(frames / "1.npy")
    (tmp_path / "same.jsonl").hardlink_to(frames / "1.npy")
    made = tmp_path / "out" / "1.npy"
    own = [frames / "1.npy", frames / ".." / "frames" / "1.npy", tmp_path / "link.jsonl", tmp_path / "same.jsonl"]
    for path in (*own, gentle, made, made.with_name("1.npy.json")):
        for command in ("forward", "invert"):
            words = [command, frames, "-k", gentle, "-o", tmp_path / "out", "--manifest", path, *more]
            refuses(*words, code=ExitCode.USAGE, says=[f"'{path}' would overwrite", "which this run"])


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
    if option == "--manifest":
        refuses(*words, "--resume", code=ExitCode.FAILURE, says="cannot be read")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--resume"], "--manifest"),
        (["--skip-existing", "--force"], "--skip-existing"),
        (["--skip-existing", "--resume", "--manifest", "m.jsonl"], "--skip-existing"),
    ],
)
def test_options_that_contradict_one_another(refuses, frames, gentle, tmp_path, more, says):
    refuses("forward", frames, "-k", gentle, "-o", tmp_path / "out", *more, code=ExitCode.USAGE, says=says)


def test_the_kernel_is_held_against_the_first_pictures_alone(deconv, gray, gentle, tmp_path, monkeypatch):
    looked_at = []
    monkeypatch.setattr(measurement, "describe_alignment", lambda *given, **options: looked_at.append(1) or ())
    (tmp_path / "many").mkdir()
    for number in range(5):
        shutil.copy(gray, tmp_path / "many" / f"{number}.png")
    expected = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
    deconv("invert", tmp_path / "many", "-k", gentle, "-o", tmp_path / "out", "--lambda", "1e-2", expect=expected)
    assert len(looked_at) == restoration.N_ALIGNED == 3


def test_a_single_file_has_a_line_too(deconv, frames, gentle, tmp_path):
    words = ["-k", gentle, "-o", tmp_path / "x.npy", "--manifest", tmp_path / "one.jsonl"]
    deconv("forward", frames / "1.npy", *words)
    bad = ["-k", gentle, "-o", tmp_path / "y.npy", "--manifest", tmp_path / "one.jsonl", "--resume"]
    deconv("forward", frames / "2.npy", *bad, expect=ExitCode.INPUT_REFUSED)
    lines = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done", "failed"]


def test_what_exists_is_skipped_whatever_it_holds(deconv, frames, gentle, tmp_path):
    mend(frames)
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--skip-existing", "--json"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.npy").write_text("anything")
    done = deconv(*words)
    assert done.report["skipped"] == [str(frames / "1.npy")]
    assert "2 of 3 inputs were done, 1 left out" in done.stderr
    assert (tmp_path / "out" / "1.npy").read_text() == "anything"
    assert deconv(*words).report["results"] == []


def test_one_input_that_is_left_out_is_told_in_one_line(deconv, gray, gentle, tmp_path):
    words = ["forward", gray, "-k", gentle, "-o", tmp_path / "a.png"]
    manifest = ["--manifest", tmp_path / "run.jsonl", "--resume"]
    deconv(*words, *manifest)
    for more, why in ((manifest, "has not changed since it was written"), (["--skip-existing"], "exists already")):
        told = f"note: {gray}: skipped, since its output '{tmp_path / 'a.png'}' {why}.\n"
        done = deconv(*words, *more)
        assert (done.stdout, done.stderr) == ("", told)
        assert deconv(*words, *more, "--quiet").stderr == ""


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
    assert f"note: {frames / '1.npy'} and 2 more files: rounded to uint8" in done.stderr
    assert done.stderr.count("rounded to uint8") == 1
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert len({note for line in lines for note in line["notes"]}) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("workers", [[], ["--jobs", "1"]])
def test_a_manifest_on_a_full_disk_ends_the_run_with_a_sentence(deconv, frames, gentle, tmp_path, monkeypatch, workers):
    opened = Path.open

    def is_full(path, mode="r", **options):
        return opened(Path("/dev/full") if (path.name, mode) == ("run.jsonl", "a") else path, mode, **options)

    monkeypatch.setattr(Path, "open", is_full)
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--manifest", tmp_path / "run.jsonl", *workers]
    done = deconv(*words, expect=ExitCode.FAILURE)
    assert f"error: the manifest '{tmp_path / 'run.jsonl'}' cannot be written: No space left on device." in done.stderr


def test_a_rule_that_found_no_lambda_is_doubted_and_a_caution_taken_down(deconv, gentle, tmp_path):
    folder = tmp_path / "noisy"
    folder.mkdir()
    np.save(folder / "checks.npy", (np.indices((24, 24)).sum(0) % 2).astype(np.float32))
    np.save(tmp_path / "sharp.npy", np.kron(np.eye(2), np.ones((12, 12))).astype(np.float32))
    words = ["-k", "gaussian:1.5", "--boundary", "circular"]
    deconv("forward", tmp_path / "sharp.npy", *words, "-o", folder / "step.npy")
    words += ["--lambda", "auto", "--penalty", "gradient"]
    alone = deconv("invert", folder / "checks.npy", *words, "-o", tmp_path / "a.npy", expect=ExitCode.UNTRUSTWORTHY)
    many = ["-o", tmp_path / "out", "--manifest", tmp_path / "run.jsonl"]
    done = deconv("invert", folder, *words, *many, expect=ExitCode.UNTRUSTWORTHY)
    checks, step = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    doubt = "the rule gcv has no minimum between 1e-09 and 1000, so it chose no λ; set --lambda to a number"
    assert alone.stderr.count(doubt) == 1
    assert f"warning: {folder / 'checks.npy'}: {doubt}" in done.stderr
    assert [doubt in told for told in checks["doubts"]] == [True]
    assert [line["status"] for line in (checks, step)] == ["doubted", "done"]
    assert checks["warnings"] == step["doubts"] == []
    assert "no minimum" in step["warnings"][0]  # the least λ is right for data without noise
    assert step["warnings"][0] in done.stderr


def test_an_error_that_nobody_foresaw_costs_one_file_and_keeps_its_traceback(
    deconv, frames, gentle, tmp_path, monkeypatch
):
    mend(frames)
    from deconv_cli.workflows.pipeline import Pipeline

    reconstruct = Pipeline.reconstruct

    def fails_once(self, y, *rest, **options):
        if bool((y == read_image(frames / "10.npy").values).all()):
            raise ZeroDivisionError("by what")
        return reconstruct(self, y, *rest, **options)

    monkeypatch.setattr(Pipeline, "reconstruct", fails_once)
    words = ["invert", frames, "-k", gentle, "-o", tmp_path / "out", "--json"]
    done = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert [failure["error"] for failure in done.report["failed"]] == ["unexpected ZeroDivisionError: by what"]
    assert "fails_once" in done.stderr


@pytest.mark.exhaustive  # a process of its own, which loads torch
@pytest.mark.parametrize("n_lines", [1, 41])
def test_a_run_that_is_killed_as_a_whole_redoes_what_was_under_way_alone(deconv, gentle, tmp_path, n_lines):
    (tmp_path / "many").mkdir()
    for number in range(40):
        np.save(tmp_path / "many" / f"{number}.npy", np.random.default_rng(number).random((40, 36), dtype=np.float32))
    words = ["invert", tmp_path / "many", "-k", gentle, "--lambda", "1e-3", "-o"]
    manifest = ["--manifest", tmp_path / "run.jsonl"]
    command = [sys.executable, "-m", "deconv_cli", *words, tmp_path / "out", *manifest]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None and len(_lines(tmp_path / "run.jsonl")) < n_lines:
            time.sleep(0.001)
        run.kill()
    ended = [line for line in _lines(tmp_path / "run.jsonl") if '"done"' in line]
    report = deconv(*words, tmp_path / "out", *manifest, "--resume", "--json").report
    assert len(report["skipped"]) >= len(ended)
    assert len(report["results"]) + len(report["skipped"]) == 40
    deconv(*words, tmp_path / "at_once")
    for path in (tmp_path / "at_once").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []
