"""What cannot be done ends with one sentence and its exit code, and nothing is written; odd inputs are no crash."""

import numpy as np
import pytest
import torch
from hostile_pickles import MakesFolder
from PIL import Image
from typer.testing import CliRunner

from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.errors import (
    DeconvError,
    FileAccessError,
    InputRefusedError,
    MalformedInputError,
    ShapeError,
    TooLargeError,
    UnsafeInputError,
    UntrustworthyResultError,
    UsageError,
)
from deconv_cli.io import read_image

COMMANDS = ["forward", "invert"]


def deconv_quietly(*words):
    """Run the command where files cannot be compared afterwards, or where it may end by an exception."""
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="deconv")


def test_every_error_has_its_exit_code():
    expected = {
        UsageError: ExitCode.USAGE,
        FileAccessError: ExitCode.FAILURE,
        InputRefusedError: ExitCode.INPUT_REFUSED,
        MalformedInputError: ExitCode.INPUT_REFUSED,
        ShapeError: ExitCode.INPUT_REFUSED,
        TooLargeError: ExitCode.INPUT_REFUSED,
        UnsafeInputError: ExitCode.INPUT_REFUSED,
        UntrustworthyResultError: ExitCode.UNTRUSTWORTHY,
        DeconvError: ExitCode.FAILURE,
    }
    assert {kind: exit_code_for(kind("no")) for kind in expected} == expected


def test_the_exit_codes_are_those_of_the_design():
    assert {code.name: int(code) for code in ExitCode} == {
        "SUCCESS": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "UNTRUSTWORTHY": 3,
        "FAULT_FOUND": 4,
        "INPUT_REFUSED": 5,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize("command", COMMANDS)
class TestInputs:
    def test_missing_input(self, refuses, gentle, tmp_path, command):
        missing = tmp_path / "no such.png"
        refuses(command, missing, "-k", gentle, "-o", tmp_path / "x.tif", code=ExitCode.USAGE, says=str(missing))

    def test_missing_kernel(self, refuses, gray, tmp_path, command):
        missing = tmp_path / "no.npy"
        refuses(command, gray, "-k", missing, "-o", tmp_path / "x.tif", code=ExitCode.USAGE, says=str(missing))

    @pytest.mark.parametrize("as_kernel", [False, True])
    def test_evil_pickle(self, refuses, gray, gentle, tmp_path, command, as_kernel):
        mark, evil = tmp_path / "it ran", tmp_path / "evil.pt"
        torch.save({"weight": torch.ones(3, 3), "extra": MakesFolder(mark)}, evil)
        source, kernel = (gray, evil) if as_kernel else (evil, gentle)
        words = [command, source, "-k", kernel, "-o", tmp_path / "x.tif"]
        refuses(*words, code=ExitCode.INPUT_REFUSED, says=[str(evil), "run code"])
        assert not mark.exists()


@pytest.mark.parametrize("command", COMMANDS)
class TestKernels:
    def test_a_kernel_of_signals_is_none_for_a_picture(self, refuses, gray, save, tmp_path, command):
        words = [command, gray, "-k", save("kernel", np.ones(5)), "-o", tmp_path / "x.tif"]
        refuses(*words, code=ExitCode.INPUT_REFUSED, says=["has 1 axis", "is a picture", "(1, k)"])


@pytest.mark.parametrize("command", COMMANDS)
class TestOutputs:
    @pytest.mark.parametrize("suffix", [".tif", ".png", ".pt", ".npy"])
    def test_existing_output_needs_force(self, refuses, deconv, gray, gentle, tmp_path, command, suffix):
        output = tmp_path / f"x{suffix}"
        output.write_bytes(b"precious")
        words = [command, gray, "-k", gentle, "-o", output]
        refuses(*words, code=ExitCode.USAGE, says=[str(output), "--force"])
        deconv(*words, "--force")
        assert output.read_bytes() != b"precious"

    def test_a_format_that_cannot_hold_the_result(self, refuses, save, gentle, tmp_path, command):
        words = [command, save("y", np.ones((8, 8))), "-k", gentle, "-o", tmp_path / "y.png"]
        refuses(*words, code=ExitCode.USAGE, says=["float64", "--output-dtype"])


@pytest.mark.parametrize("command", COMMANDS)
class TestOptions:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
    def test_device_that_is_not_there(self, refuses, gray, gentle, tmp_path, command):
        words = [command, gray, "-k", gentle, "-o", tmp_path / "x.tif", "--device", "cuda"]
        refuses(*words, code=ExitCode.USAGE, says=["cuda", "--device cpu"])

    @pytest.mark.parametrize(
        "option",
        [
            *("--boundary sideways", "--dtype float16", "--output-dtype int7", "--device tpu", "--convention none"),
            *("--series -1", "--no-such-option"),
        ],
    )
    def test_unknown_words(self, refuses, gray, gentle, tmp_path, command, option):
        words = [command, gray, "-k", gentle, "-o", tmp_path / "x.tif", *option.split()]
        refuses(*words, code=ExitCode.USAGE, says=option.split()[0])

    def test_no_kernel_and_no_input(self, deconv, gray, command):
        assert "--kernel" in deconv(command, gray, expect=ExitCode.USAGE).stderr
        assert "INPUT" in deconv(command, "-k", gray, expect=ExitCode.USAGE).stderr
        (error,) = deconv(command, gray, "-k", gray, "--padd", "2", expect=ExitCode.USAGE).stderr.splitlines()
        assert error == f"error: no such option: --padd; perhaps you mean --padding; see deconv {command} --help."


@pytest.mark.parametrize(
    "words", [["forward", "x.png", "-k", "k.npy"], ["invert", "x.png", "-k", "k.npy"], ["check-grad", "model.py:make"]]
)
def test_a_run_is_quiet_or_verbose(refuses, words):
    said = "--quiet and --verbose do not go together; leave one of them out"
    refuses(*words, "--verbose", "-q", code=ExitCode.USAGE, says=said)


def test_what_did_not_converge_is_written_but_not_trusted(deconv, gray, save, tmp_path, values):
    x = np.arange(9) - 4
    kernel = save("broad", np.exp(-(x[:, None] ** 2 + x**2) / 8))
    words = ["invert", gray, "-k", kernel, "--max-iterations", "1", "--prior", "quadratic"]
    done = deconv(*words, "-o", tmp_path / "x.tif", "--json", expect=ExitCode.UNTRUSTWORTHY)
    assert values(tmp_path / "x.tif").shape == (1, 1, 32, 36)
    assert done.report["solver"]["status"] == "max_iterations"
    assert done.report["solver"]["iterations"] == 1
    assert done.report["solver"]["certificate"] > 1e-6
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: ") and "--max-iterations" in line]
    assert done.errors == []
    quiet = deconv(*words, "-o", tmp_path / "y.tif", "-q", expect=ExitCode.UNTRUSTWORTHY)
    assert [line.partition(":")[0] for line in quiet.stderr.splitlines()][:1] == ["warning"]
    assert quiet.stdout == f"{tmp_path / 'y.tif'}\n"


def test_a_bug_keeps_its_traceback(gray, gentle, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("deconv_cli.workflows.apply_kernel.forward", broken)
    words = ["forward", gray, "-k", gentle, "-o", tmp_path / "x.tif"]
    result = deconv_quietly(*words)
    assert isinstance(result.exception, ZeroDivisionError)
    assert "error:" not in result.stderr


@pytest.mark.parametrize("words", [["invert", "", "-k", "disk:2"], ["kernel", "make", "disk:2", "--output="]], ids=str)
def test_an_empty_word_is_not_the_current_folder(refuses, words):
    refuses(*words, code=ExitCode.USAGE, says="one argument of the command is empty")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--stride", "2,3,4"], "each of the 2 axes of space, but is 2,3,4."),
        (["--padding", "1:2:3"], "one for each axis, but is 1:2:3."),
        (["--input-size", "0,5"], "each axis of space, but is 0,5."),
        (["--axes", "Y"], "axes 'Y' name 1 axis, but"),
        (["--groups", "3"], "has 1 channel on its first axis"),
        (["-k", "disk:0"], "RADIUS of the kernel must be positive."),
        (["-k", "disk:5000"], "RADIUS of the kernel is too large, since it extends at most 1024"),
        (["--max-iterations", "0"], "invalid value for '--max-iterations': input should be greater"),
        (["--noise", "pink"], "--noise must be white, auto or, in Python, a NoiseModel, but is pink; --noise-sigma"),
        (["-o", "-"], "writes no picture to stdout; name a file"),
        (["--na", "1"], "no such option: --na; see deconv invert --help."),
    ],
)
def test_values_are_shown_as_they_are_typed(deconv, gray, monkeypatch, words, says):
    monkeypatch.chdir(gray.parent)
    kernel, output = [] if "RADIUS" in says else ["-k", "disk:2"], [] if "-o" in words else ["-o", "x.png"]
    done = deconv("invert", gray.name, *kernel, *words, *output, "--lambda", "1", expect=tuple(ExitCode))
    assert says in done.stderr
    assert len(done.errors) == 1


def test_a_foreign_or_damaged_record_is_no_crash(deconv, save, gentle, tmp_path):
    source = save("x", np.random.default_rng(0).random((12, 14)))
    for text in (
        '{"command": "forward", "output": {"shape": [12, 14]}}',
        '{"command": "forward", "output": {"shape": [12, 14]}, "padding": 3, "boundary": "zero"}',
        '{"command": "forward", "output": {"shape": [12, 14]}, "padding": "same", "boundary": "sideways"}',
        '{"command": "forward", "output": {"shape": [12, 14]}, "padding": "same", "boundary": "zero", "kernel": 1}',
        '{"command": ["forward"], "output": [12, 14]}',
    ):
        (tmp_path / "x.npy.json").write_text(text)
        report = deconv("invert", source, "-k", gentle, "-o", tmp_path / "y.tif", "--json", "--force").report
        assert report["boundary"] == "zero"


def test_a_trailing_slash_means_a_folder_even_for_one_input(deconv, save, gentle, tmp_path):
    source = save("x", np.ones((12, 14)))
    deconv("forward", source, "-k", gentle, "-o", f"{tmp_path / 'new'}/")
    assert (tmp_path / "new" / "x.npy").is_file()


def test_outputs_that_differ_in_their_suffix_have_records_of_their_own(deconv, save, gentle, tmp_path):
    first = save("x", np.random.default_rng(0).random((12, 14)))
    second = tmp_path / "x.npz"
    np.savez(second, image=np.ones((15, 16)))
    deconv("forward", first, second, "-k", gentle, "-o", tmp_path / "out")
    for path in (tmp_path / "out" / "x.npy", tmp_path / "out" / "x.npz"):
        assert read_image(path).record["output"]["path"] == str(path)
    beside = ["-o", tmp_path / "y.npy", "--error-map", tmp_path / "y.pt"]
    deconv("invert", first, "-k", gentle, "--lambda", "1e-2", *beside)
    assert [read_image(tmp_path / f"y{suffix}").record["command"] for suffix in (".npy", ".pt")] == ["invert"] * 2


def test_a_mixing_kernel_with_fewer_outputs_gets_a_penalty_that_determines_the_image(
    deconv, refuses, save, gray, tmp_path
):
    kernel = save("gray_of_rgb", np.random.default_rng(0).random((1, 3, 3, 3)))
    words = ["invert", gray, "-k", kernel, "-o", tmp_path / "x.tif"]
    assert deconv(*words, "--json").report["penalty"] == "identity"
    refuses(*words[:-1], tmp_path / "y.tif", "--penalty", "gradient", code=ExitCode.USAGE, says="undetermined")


def test_noise_that_cannot_be_estimated_is_not_taken_for_an_option(refuses, gentle, tmp_path):
    Image.fromarray(np.full((2, 9), 90, "uint8")).save(tmp_path / "thin.png")
    words = ["invert", tmp_path / "thin.png", "-k", gentle, "-o", tmp_path / "x.tif", "--prior", "tv"]
    refuses(*words, code=ExitCode.INPUT_REFUSED, says=["estimating the noise", "3×3"])


def test_samples_whose_squares_float32_does_not_hold_are_restored_and_those_beyond_float64_refused(
    deconv, refuses, save, gentle, tmp_path
):
    samples = np.random.default_rng(0).random((12, 14))
    for dtype, size in (("float32", 1e36), ("float64", 1e302)):
        source = save("huge", (samples * size).astype(dtype))
        assert "mean 5.3" in deconv("inspect", source).stdout
        words = ["invert", source, "-k", gentle, "-o", tmp_path / f"{dtype}.npy", "--lambda", "1e-9", "--json"]
        words += ["--error-map", tmp_path / "e.npy", "--force"]
        if dtype == "float32":
            assert deconv(*words).report["command"] == "invert"
        else:
            refuses(*words, code=ExitCode.INPUT_REFUSED, says="whose squares are infinite")


def test_arguments_that_nest_without_end_are_refused(refuses, save):
    words = ["kernel", "extract", save("k", np.ones((3, 3))), "--model", "net.py:Net", "--init", "[" * 100_000]
    refuses(*words, code=ExitCode.USAGE, says="--init must be JSON")
