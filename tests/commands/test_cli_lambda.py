"""Noise and λ found in the data, and the predicted error, at the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image


@pytest.fixture
def blurred(deconv, samples_folder, tmp_path):
    """A sample photograph, blurred and noised as if it were part of a larger scene."""
    path = tmp_path / "blurred.tif"
    scene = read_image(samples_folder / "camera.png").values[..., 40:180, 60:200].float()
    np.save(tmp_path / "scene.npy", scene[0, 0].numpy())
    words = ["--padding", "valid", "--noise", "gaussian:2", "-o", path]
    deconv("forward", tmp_path / "scene.npy", "-k", samples_folder / "motion.npy", *words)
    pad = np.load(samples_folder / "motion.npy").shape[0] // 2
    np.save(tmp_path / "truth.npy", scene[0, 0, pad:-pad, pad:-pad].numpy())
    return path


@pytest.fixture
def words(blurred, samples_folder):
    return ["invert", blurred, "-k", samples_folder / "motion.npy", "--boundary", "unknown", "--padding", "same"]


def test_the_predicted_error_and_its_files(deconv, words, tmp_path):
    files = ["--error-map", tmp_path / "error.tif", "--trust-mask", tmp_path / "mask.png"]
    run = deconv(*words, "--truth", tmp_path / "truth.npy", *files, "-o", tmp_path / "a.tif")
    for told in ("expected error", "truly", "trust"):
        assert told in run.stderr
    report = deconv(*words, "--truth", tmp_path / "truth.npy", "-o", tmp_path / "b.tif", "--json").report
    predicted = report["predicted_error"]
    estimate = read_image(tmp_path / "b.tif").values[0, 0]
    error = float((estimate - torch.from_numpy(np.load(tmp_path / "truth.npy"))).square().mean().sqrt())
    assert predicted["actual_root_mean_square"] == pytest.approx(error, rel=1e-4)
    error_map, mask = read_image(tmp_path / "error.tif").values[0, 0], read_image(tmp_path / "mask.png").values[0, 0]
    assert float(error_map.square().mean().sqrt()) == pytest.approx(predicted["root_mean_square"], rel=1e-4)
    assert set(mask.unique().tolist()) <= {0, 255}
    assert float((mask == 255).double().mean()) == pytest.approx(predicted["trusted_share"])


class TestRefusals:
    def test_truth_of_another_size(self, refuses, words, tmp_path):
        np.save(tmp_path / "truth.npy", np.zeros((7, 9), np.float32))
        refuses(*words, "--truth", tmp_path / "truth.npy", code=ExitCode.INPUT_REFUSED, says=["7×9 pixels", "crop"])

    def test_a_map_that_cannot_hold_fractions(self, refuses, words, tmp_path):
        refuses(*words, "--error-map", tmp_path / "e.png", code=ExitCode.USAGE, says=["e.png", "fractions", ".tif"])

    def test_a_mask_that_would_be_blurred(self, refuses, words, tmp_path):
        refuses(*words, "--trust-mask", tmp_path / "m.jpg", code=ExitCode.USAGE, says=["m.jpg", ".png or .tif"])

    def test_nothing_is_written_over_another_file_of_the_run(self, refuses, words, tmp_path):
        """Not even under --force, and by whatever name."""
        source, truth = words[1], tmp_path / "truth.npy"
        (tmp_path / "sub").mkdir()
        same = tmp_path / "sub" / ".." / "b.tif"
        for more, says in (
            (["--trust-mask", source], "which this run reads"),
            (["-o", words[words.index("-k") + 1]], "which this run reads"),
            (["--truth", truth, "--error-map", truth], "which this run reads"),
            (["--truth", truth, "-o", truth], "which this run reads"),
            (["--error-map", tmp_path / "b.tif", "--trust-mask", same], "b.tif', which this run writes too"),
            (["-o", same, "--error-map", tmp_path / "b.tif"], "b.tif', which this run writes too"),
        ):
            refuses(*words, "--force", *more, code=ExitCode.USAGE, says=says)


@pytest.mark.parametrize(
    "values",
    [np.zeros((20, 20)), np.full((20, 20), 7.0), np.arange(12.0).reshape(3, 4), np.ones((1, 1)), np.eye(16)],
    ids=["zero", "constant", "small", "one pixel", "sharp"],
)
def test_pictures_that_tell_nothing_are_restored_all_the_same(deconv, gentle, save, tmp_path, values):
    path = save("y", values.astype(np.float32))
    options = ["--lambda", "auto", "--trust-mask", tmp_path / "mask.tif", "--json"]
    code = ExitCode.UNTRUSTWORTHY if values.size == 1 else ExitCode.SUCCESS  # of one pixel no λ is found
    report = deconv("invert", path, "-k", gentle, *options, "-o", tmp_path / "x.npy", expect=code).report
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()
    assert np.isfinite(report["predicted_error"]["root_mean_square"])


def test_a_flat_picture_gets_no_warning_of_rules_that_differ(deconv, tmp_path):
    Image.new("RGB", (64, 64), (70, 80, 90)).save(tmp_path / "flat.png")
    run = deconv("invert", tmp_path / "flat.png", "-k", "gaussian:2", "--prior", "quadratic", "-o", tmp_path / "x.png")
    assert "warning" not in run.stderr
