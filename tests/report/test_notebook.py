"""Objects show themselves in a notebook: a line of text, and a table with a picture whose text is escaped."""

import base64
import html
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import deconv_cli
from deconv_cli import Kernel, KernelField, ReconstructionSettings, ResolvedSettings
from deconv_cli.kernels.blind.estimate import Candidate, KernelEstimate, Parameter

TAPS = torch.arange(1.0, 16.0).reshape(3, 5) / 120
Y = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))


def reconstruct(**options):
    return deconv_cli.invert(Y, TAPS, lam=1e-2, **options)


def estimate():
    best, other = Candidate("disk", (3.0,), 1.0), Candidate("gaussian", (1.5,), 9.0)
    return KernelEstimate(True, "disk", (Parameter("RADIUS", 3.0, 0.1),), (best, other), 40.0)


def fit():
    return deconv_cli.fit_kernel([(Y[:1], deconv_cli.forward(Y[:1], TAPS, boundary="zero"))], (3, 5))


THINGS = {
    "reconstruction": (
        reconstruct,
        ["prior", "quadratic", "λ", "0.01: given", "residual", "3×24×32"],
        (32, 24),
    ),
    "color": (lambda: reconstruct(defaults="picture", predict=True), ["expected error", "trusted"], (32, 24)),
    "stack": (lambda: deconv_cli.invert(Y[None], TAPS, lam=1e-2, dimensions=3), ["1×3×24×32"], (32, 24)),
    "solution": (lambda: reconstruct().solution, ["value", "converged"], None),
    "inverse": (lambda: deconv_cli.pseudo_inverse(TAPS, input_size=(8, 9)), ["8×9 → 8×9", "method"], (5, 3)),
    "kernel": (lambda: Kernel.from_tensor(TAPS), ["1×1×3×5", "1 over 15 taps", "all channels alike"], (5, 3)),
    "signal": (lambda: Kernel.from_tensor(TAPS[0], dimensions=1), ["5 taps"], (5, 1)),
    "field": (lambda: KernelField(TAPS.expand(2, 2, 3, 5), (0.2, 0.8), (0.2, 0.8)), ["2×2"], (10, 6)),
    "estimate": (estimate, ["disk:3", "radius", "3 ± 0.1", "gaussian:1.5"], (13, 13)),
    "fit": (fit, ["3×5", "residual"], (5, 3)),
    "settings": (lambda: ReconstructionSettings(lam=1e-3, boundary="zero"), ["lam", "0.001", "boundary", "zero"], None),
    "resolved": (lambda: ResolvedSettings.of(lam=1e-3), ["lam", "0.001"], None),
    "open": (ReconstructionSettings, ["no setting was given"], None),
}


@pytest.mark.parametrize("name", THINGS)
def test_a_thing_shows_itself_in_a_line_and_as_a_picture_with_a_table(name):
    make, words, size = THINGS[name]
    thing = make()
    line, shown = repr(thing), thing._repr_html_()
    assert line.startswith(f"{type(thing).__name__}(")
    assert "\n" not in line
    assert len(line) <= 120
    assert "tensor" not in line
    text = html.unescape(re.sub(r"<[^>]*>", " ", shown))
    assert type(thing).__name__ in text
    for word in words:
        assert word in text
    assert len(shown) < 20_000
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', shown)
    assert len(pictures) == (size is not None)
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).size == size


def test_colors_stay_colors_and_numbers_that_are_not_finite_do_no_harm():
    result = reconstruct(defaults="picture")
    shown = base64.b64decode(re.search(r'base64,([^"]*)"', result._repr_html_())[1])
    assert np.asarray(Image.open(io.BytesIO(shown))).shape == (24, 32, 3)
    result.image[0, 3, 4] = torch.nan
    assert "<img" in result._repr_html_()


def test_text_is_escaped_and_long_text_is_cut():
    class Strange:
        def __repr__(self):
            return "<script>" + 300 * "x"

    from deconv_cli.report.notebook import as_html

    shown = as_html(Strange())
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert 100 * "x" in shown
    assert 130 * "x" not in shown
