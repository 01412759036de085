"""Mishaps that were found once and mended."""

import numpy as np
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image


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
