"""What `deconv invert` says about borders that lose part of the image, and about those that do not."""

import numpy as np
import pytest

from deconv_cli.commands.exit_codes import ExitCode

FINISHED = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
"""For data that no convolution made: whether they are doubted is not what a test is about."""


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
    assert (finding["border_modes"], finding["lost_modes"], finding["threshold"]) == (20, 20, 1e-3)
    assert finding["windings"] == [[1, 1], [0, 0]]
    assert finding["frequencies"] == 22
    assert 0.6 < finding["nearest_root"] <= 0.65
    assert finding["influence_depth"] == {"10%": None, "1%": None, "0.1%": None}
    assert finding["advised_pads"] == {"top": 2, "bottom": 0, "left": 1, "right": 1}
    lines = deconv(*words, "--force", expect=ExitCode.UNTRUSTWORTHY).stderr.splitlines()
    assert f"warning: {finding['reason']}" in lines
    for sentence in finding["advice"]:
        assert f"note: {sentence}" in lines
    assert len(finding["advice"]) == 3
    # What is advised helps: noise comes back as noise.
    assert np.abs(np.load(tmp_path / "x.npy")).max() > 1e4
    mended = deconv(
        *words[:5], repr(finding["advised_lambda"]), *words[6:], "--force", "--json", expect=FINISHED
    ).report
    assert np.abs(np.load(tmp_path / "x.npy")).max() < 50
    assert mended["well_posedness"]["is_well_posed"] is True


def test_with_a_penalty_it_is_a_note(deconv, data, late, tmp_path):
    done = deconv("invert", data, "-k", late, "--lambda", "1e-3", "-o", tmp_path / "x.npy", expect=FINISHED)
    assert "note: about 20 modes along the edges are too weak under this boundary for the data" in done.stderr
    assert "warning: about" not in done.stderr


@pytest.mark.parametrize(
    ("n_taps", "lam", "says"),
    [
        (2, "1e-9", "reaches deep into the image: more than 10 % of it"),
        (5, "0.1", "; more than 0.1 % of it reaches deeper"),
        (5, "1", "fades to 10 % after 5 pixels, to 1 % after 8 pixels, to 0.1 % after 11 pixels"),
    ],
)
def test_deep_influence_is_a_note(deconv, data, save, tmp_path, n_taps, lam, says):
    blur = save("blur", np.ones((1, n_taps)) / n_taps)
    done = deconv("invert", data, "-k", blur, "--boundary", "unknown", "--lambda", lam, "-v", "-o", tmp_path / "x.npy")
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: a mistake at the edge ")]
    assert note.endswith(says)


def test_harmless_borders_are_not_spoken_of(deconv, data, gentle, late, tmp_path):
    for kernel, boundary in ((gentle, "zero"), (late, "circular")):
        words = ["invert", data, "-k", kernel, "--boundary", boundary, "-o", tmp_path / "x.npy", "--force"]
        done = deconv(*words, "--lambda", "1e-3")
        assert "edges" not in done.stderr
        assert "mistake at the edge" not in done.stderr
        assert "warning:" not in done.stderr
        report = deconv(*words, "--json").report["well_posedness"]
        assert (report["is_well_posed"], report["lost_modes"], report["advice"]) == (True, 0, [])
        assert (report["influence_depth"] is None) == (boundary == "circular")
