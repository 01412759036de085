"""`--boundary auto`: what `deconv forward` recorded in the file, else what the kind of file suggests."""

import shutil

import numpy as np
import pytest
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode

BOUNDARIES = ["zero", "circular", "reflect", "symmetric", "replicate"]


@pytest.fixture
def forward_and_invert(deconv, gentle, tmp_path):
    def run(source, suffix, *options):
        blurred = tmp_path / f"blurred{suffix}"
        deconv("forward", source, "-k", gentle, "-o", blurred, *options)
        words = ["invert", blurred, "-k", gentle, "-o", tmp_path / "x.tif", "--boundary", "auto"]
        return deconv(*words, "--lambda", "1e-3", "--json").report

    return run


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_recorded_boundary_is_taken(forward_and_invert, gray, boundary):
    report = forward_and_invert(gray, ".tif", "--boundary", boundary)
    assert report["boundary"] == boundary
    assert report["boundary_reason"] == "recorded in the file by deconv forward"


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".webp"])
def test_pictures_show_part_of_a_larger_scene(deconv, gray, gentle, tmp_path, suffix):
    source = tmp_path / f"plain{suffix}"
    with Image.open(gray) as picture:
        picture.save(source)
    report = deconv("invert", source, "-k", gentle, "-o", tmp_path / "x.tif", "--json").report
    assert (report["boundary"], report["padding"]) == ("unknown", "same")
    assert "larger scene" in report["boundary_reason"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_tensors_are_padded_with_zeros(deconv, gentle, tmp_path, suffix):
    import torch
    from safetensors.torch import save_file

    values, source = torch.rand(2, 12, 14, generator=torch.Generator().manual_seed(0)), tmp_path / f"plain{suffix}"
    write = {
        ".npy": lambda: np.save(source, values.numpy()),
        ".npz": lambda: np.savez(source, x=values.numpy()),
        ".pt": lambda: torch.save(values, source),
        ".safetensors": lambda: save_file({"x": values}, source),
    }
    write[suffix]()
    report = deconv("invert", source, "-k", gentle, "-o", tmp_path / "out.npy", "--json").report
    assert (report["boundary"], report["padding"]) == ("zero", "same")
    assert "zeros" in report["boundary_reason"]


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
    table = deconv("invert", gray, "-k", gentle, "-o", tmp_path / "z.tif", "--verbose", "--prior", "quadratic").stderr
    for words in (
        "penalty gradient: chosen by generalized cross-validation",
        "unknown: a picture shows part of a larger scene",
        "condition",
    ):
        assert words in table
