"""`--boundary auto`: what `deconv forward` recorded in the file, else what the kind of file suggests."""

import shutil

import numpy as np
import pytest
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode


def test_what_is_asked_for_goes_before_the_record(deconv, gray, gentle, tmp_path):
    deconv("forward", gray, "-k", gentle, "-o", tmp_path / "y.tif", "--boundary", "reflect", "--padding", "3")
    words = ["invert", tmp_path / "y.tif", "-k", gentle, "-o", tmp_path / "x.tif", "--force", "--json"]
    report = deconv(*words, "--boundary", "replicate", expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)).report
    assert (report["boundary"], report["boundary_reason"], report["padding"]) == ("replicate", "given by the user", "3")
    report = deconv(*words, "--padding", "2").report
    assert (report["boundary"], report["padding"]) == ("reflect", "2")


def test_another_kernel_file_is_pointed_out(deconv, gray, gentle, save, tmp_path):
    deconv("forward", gray, "-k", gentle, "-o", tmp_path / "y.tif")
    words = ["invert", tmp_path / "y.tif", "-o", tmp_path / "x.tif", "--force", "--json"]
    other = save("other", np.load(gentle) * 2)
    assert [note for note in deconv(*words, "-k", other).report["notes"] if f"another kernel, '{gentle.name}'" in note]
    shutil.copy(gentle, tmp_path / "renamed.npy")
    assert not [note for note in deconv(*words, "-k", tmp_path / "renamed.npy").report["notes"] if "kernel" in note]


def test_the_defaults_of_pictures_and_tensors(deconv, gray, gentle, save, tmp_path):
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif", "--json", "--force"]
    assert deconv(*words).report["prior"] == "photo"
    picture = deconv(*words, "--prior", "quadratic").report
    assert (picture["lambda_choice"]["rule"], picture["penalty"]) == ("gcv", "gradient")
    assert picture["lambda"] == picture["lambda_choice"]["lambda"]
    tensor = deconv("invert", save("y", np.eye(12)), "-k", gentle, "-o", tmp_path / "x.npy", "--json").report
    assert (tensor["lambda"], tensor["penalty"], tensor["lambda_choice"]) == (1e-6, "identity", None)
    table = deconv("invert", gray, "-k", gentle, "-o", tmp_path / "z.tif", "--prior", "quadratic").stderr
    assert "penalty gradient: chosen by generalized cross-validation" in table
    assert "unknown: a picture shows part of a larger scene" in table


@pytest.fixture
def late(save):
    """A kernel whose weight stands one row below its center: zeros hide the first row of the image."""
    taps = np.zeros((3, 3))
    taps[2, 1], taps[1, 1], taps[1, 0] = 1.0, 0.6, 0.05
    return save("late", taps)


@pytest.fixture
def data(save):
    return save("data", np.random.default_rng(2).standard_normal((1, 24, 20)))


def test_a_lossy_border_is_a_warning_with_advice(deconv, data, late, tmp_path):
    words = ["invert", data, "-k", late, "--lambda", "0", "--dtype", "float64", "-o", tmp_path / "x.npy"]
    done = deconv(*words, "--json", expect=ExitCode.UNTRUSTWORTHY)
    finding = done.report["well_posedness"]
    assert finding["is_well_posed"] is False
    assert (finding["border_modes"], finding["lost_modes"]) == (20, 20)
    lines = deconv(*words, "--force", expect=ExitCode.UNTRUSTWORTHY).stderr.splitlines()
    assert f"warning: {finding['reason']}; use λ > 0" in lines
    for sentence in finding["advice"]:
        assert f"note: {sentence}" in lines
    assert len(finding["advice"]) == 2


def test_a_lossy_border_in_float32_names_float64_data(deconv, data, late, tmp_path):
    """A conversion of the arithmetic alone keeps the rounding of the data."""
    run = deconv(
        "invert",
        data,
        "-k",
        late,
        "--lambda",
        "0",
        "-o",
        tmp_path / "x.npy",
        "--dtype",
        "float32",
        expect=ExitCode.UNTRUSTWORTHY,
    )
    assert "use λ > 0, or data and kernel that were computed in float64" in run.stderr


def test_a_recorded_boundary_is_not_blamed_for_a_wrong_kernel(deconv, samples_folder, tmp_path):
    sharp, blurred = tmp_path / "sharp.png", tmp_path / "blurred.tif"
    Image.open(samples_folder / "camera.png").crop((60, 30, 156, 126)).save(sharp)
    deconv("forward", sharp, "-k", "gaussian:1.5", "-o", blurred, "--boundary", "zero")
    words = ["invert", blurred, "-k", "disk:4", "-o", tmp_path / "x.tif", "--prior", "quadratic"]
    run = deconv(*words, "--report", tmp_path / "x.html", expect=ExitCode.UNTRUSTWORTHY)
    assert "although deconv forward recorded this boundary: the kernel is probably wrong" in run.stderr
    assert "--boundary unknown" not in run.stderr
    assert "the blur in the input was probably another one" in (tmp_path / "x.html").read_text(encoding="utf-8")
