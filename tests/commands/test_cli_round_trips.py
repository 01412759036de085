"""`deconv forward`, then `deconv invert`: the input is restored as exactly as the conditioning allows."""

import numpy as np
import pytest
import torch

BOUNDARIES = ["zero", "circular", "reflect", "symmetric", "replicate"]

# With λ = 1e-12 and a certificate of 1e-10 the estimate x̂ of well-conditioned problems is off by
# ‖x̂ − x‖ ≤ (λσ²max‖x‖ + 1e-10 ‖Aᴴy‖) / σ²min ≤ 2e-10 κ² ‖x‖; κ of the gentle kernel is below 3.
EXACT = ["--lambda", "1e-12", "--penalty", "identity", "--dtype", "float64", "--output-dtype", "float64", "--json"]
ACCURACY = 2e-10 * 3**2
WIDE = ["--dtype", "float64", "--output-dtype", "float64"]
STORED = ["--light", "stored"]  # so that the samples are what is convolved


def round_trip(deconv, source, kernel, folder, boundary, suffix, *options):
    blurred, restored = folder / f"blurred{suffix}", folder / f"restored{suffix}"
    deconv("forward", source, "--kernel", kernel, "-o", blurred, "--boundary", boundary, *WIDE, *options)
    report = deconv("invert", blurred, "--kernel", kernel, "-o", restored, *EXACT, *options).report
    return blurred, restored, report


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_color_photograph_comes_back(deconv, photograph, gentle, tmp_path, values, distance, blur, boundary):
    blurred, restored, report = round_trip(deconv, photograph, gentle, tmp_path, boundary, ".tif", *STORED)
    x = values(photograph)
    assert x.shape == (1, 3, 40, 48)
    taps = torch.from_numpy(np.load(gentle))
    assert distance(values(blurred), blur(x, taps, boundary=boundary)) < 1e-12
    assert distance(values(blurred), x) > 0.01  # there was something to undo
    assert report["boundary"] == boundary
    assert report["boundary_reason"] == "recorded in the file by deconv forward"
    assert report["conditioning"]["condition"] < 3
    assert distance(values(restored), x) < ACCURACY


def test_real_blur_is_undone_to_what_rounding_leaves(deconv, samples_folder, tmp_path, values, distance):
    """The shipped pictures, with the defaults: ill-conditioned kernels, noise, 8 bits; better everywhere."""
    for name, kernel in (("camera", "motion.npy"), ("astronaut", "gaussian_psf.png")):
        blurred, sharp = samples_folder / f"{name}_blurred.png", samples_folder / f"{name}.png"
        restored = tmp_path / f"{name}.tif"
        report = deconv("invert", blurred, "--kernel", samples_folder / kernel, "-o", restored, "--json").report
        assert report["boundary"] == "unknown"
        assert report["solver"]["status"] == "fixed_steps"
        before, after, truth = values(blurred), values(restored), values(sharp)
        assert distance(after, truth) < 0.8 * distance(before, truth)
        edges = torch.ones(truth.shape[-2:], dtype=torch.bool)
        edges[8:-8, 8:-8] = False
        assert distance(after[..., edges], truth[..., edges]) < distance(before[..., edges], truth[..., edges])
