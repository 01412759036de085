"""The dock widget restores layers in a real napari, without a screen; `.ci/run napari` runs this."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blurred_pictures import blurred_picture, sharp_picture

import deconv_cli

pytest.importorskip("napari", reason="napari is not installed: pip install 'deconv-cli[napari]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # napari and Qt warn about themselves

PLACE = {"scale": (0.25, 0.25), "translate": (3.0, 5.0), "units": ("um", "um")}
CROP = np.s_[..., 200:296, 150:278]


@pytest.fixture
def viewer(monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    import napari
    import napari._vispy.utils.gl as drawing

    # Without a screen there is no OpenGL, which napari asks for the size of textures.
    def answer(name):
        return "texture_float" if name == "extensions" else 2048

    answers = SimpleNamespace(GL_EXTENSIONS="extensions", GL_MAX_TEXTURE_SIZE="size", glGetParameter=answer)
    monkeypatch.setattr(drawing, "gl", answers)
    opened = napari.Viewer(show=False)
    yield opened
    opened.close()


@pytest.fixture
def widget(viewer):
    _, found = viewer.window.add_plugin_dock_widget("deconv-cli", "Restore a blurred image")
    return found


def run(widget, *, cancel=False):
    from qtpy.QtWidgets import QApplication

    widget.start.native.click()
    if cancel:
        widget.cancel.native.click()
    end = time.monotonic() + 200
    while not widget.start.enabled and time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)
    assert widget.start.enabled


def distance(image, truth):
    return float(np.sqrt(np.square(np.asarray(image, float) - np.asarray(truth, float)).mean()))


def blurred_and_sharp(name, formula):
    """A sample under a blur, and the sharp one on the same frame; shape (C, H, W)."""
    taps = deconv_cli.make_kernel(formula)
    margin = taps.shape[-1] // 2
    sharp = sharp_picture(name)[:, margin:-margin, margin:-margin]
    return blurred_picture(name, taps).numpy()[CROP], sharp.numpy()[CROP]


def test_a_gray_layer_is_restored_where_it_lies_with_its_error_beside_it(viewer, widget):
    sharp = sharp_picture("camera")[0].double()
    taps = deconv_cli.make_kernel("gaussian:1.5")
    noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0), dtype=sharp.dtype)
    blurred = deconv_cli.forward(10 * sharp[None], taps, boundary="reflect")[0] + 5 * noise
    layer = viewer.add_image(blurred.round().clamp(0).numpy().astype(np.uint16)[CROP], name="cells", **PLACE)
    widget.source.value, widget.formula.value = "a formula", "gaussian:1.5"
    run(widget)
    restored, error = viewer.layers["cells restored"], viewer.layers["cells expected error"]
    truth = 10 * sharp.numpy()[CROP]
    assert distance(restored.data, truth) < 0.75 * distance(layer.data, truth)
    assert distance(error.data, 0) == pytest.approx(distance(restored.data, truth), rel=0.4)
    for shown in (restored, error):
        assert shown.data.shape == layer.data.shape
        assert (tuple(shown.scale), tuple(shown.translate)) == (PLACE["scale"], PLACE["translate"])
        assert shown.units == layer.units
    assert restored.contrast_limits == layer.contrast_limits
    assert widget.status.value.startswith("kernel: gaussian:1.5")
    assert restored.metadata["reconstruction"].settings.boundary == "unknown"


def test_a_photograph_stays_in_color_and_its_opacity_is_kept(viewer, widget):
    blurred, sharp = (np.moveaxis(picture, 0, -1) for picture in blurred_and_sharp("astronaut", "disk:2"))
    opacity = np.full((*blurred.shape[:2], 1), 200, np.uint8)
    viewer.add_image(np.concatenate([blurred, opacity], axis=-1), name="photo")
    assert widget.is_photograph.value
    widget.source.value, widget.formula.value, widget.error.value = "a formula", "disk:2", "where to trust it"
    run(widget)
    restored = viewer.layers["photo restored"]
    assert restored.rgb
    assert restored.data.dtype == np.uint8
    assert distance(restored.data[..., :3], sharp) < 0.75 * distance(blurred, sharp)
    assert (restored.data[..., 3] == 200).all()
    assert set(np.unique(viewer.layers["photo trusted"].data)) <= {0, 1}
    assert "plausible, not measured" in widget.status.value


def test_a_stack_is_restored_by_the_optics_and_by_a_layer_that_shows_a_point(viewer, widget):
    optics = deconv_cli.Microscope(
        numerical_aperture=1.2, emission=520, spacing=(0.3, 0.1032, 0.1032), mode="confocal", excitation=488
    )
    psf = deconv_cli.microscope_psf(optics, (9, 11, 11))
    truth = torch.zeros(9, 24, 24, dtype=torch.float64)
    truth[2, 6, 6:18], truth[6, 4:20, 14] = 4000, 3000
    blurred = deconv_cli.forward(truth[None], psf, dimensions=3, boundary="zero")[0] + 100
    stack = viewer.add_image(
        blurred.numpy().astype(np.uint16), name="stack", scale=(0.3, 0.1032, 0.1032), units=("um",) * 3
    )
    assert (widget.pixel.value, widget.plane.value) == (0.1032, 0.3)
    widget.source.value, widget.mode.value, widget.aperture.value = "a microscope's optics", "confocal", 1.2
    widget.prior.value, widget.strength.value, widget.error.value = "small differences", "1e-3", "nothing"
    run(widget)
    by_optics = viewer.layers["stack restored"]
    assert tuple(by_optics.scale) == (0.3, 0.1032, 0.1032)
    assert distance(by_optics.data, truth + 100) < 0.8 * distance(stack.data, truth + 100)

    viewer.add_image((1000 * psf / psf.max()).numpy().astype(np.float32), name="bead")
    widget.image.value, widget.source.value = stack, "a layer"
    widget.kernel_layer.value = viewer.layers["bead"]
    run(widget)
    by_bead = viewer.layers["stack restored [1]"]
    assert distance(by_bead.data, truth + 100) < 0.8 * distance(stack.data, truth + 100)

    widget.source.value, widget.formula.value = "a formula", "gaussian:1"  # plane by plane
    run(widget)
    assert viewer.layers["stack restored [2]"].data.shape == stack.data.shape


def test_the_kernel_is_found_in_the_layer_or_the_widget_says_that_there_is_none(viewer, widget):
    taps = deconv_cli.make_kernel("disk:4")
    viewer.add_image(blurred_picture("camera", taps)[0].numpy(), name="photo")
    widget.is_photograph.value, widget.error.value = True, "nothing"
    run(widget)
    assert widget.status.value.startswith("kernel: disk:")
    assert abs(float(widget.status.value.split()[1].removeprefix("disk:")) - 4) < 0.2
    viewer.add_image(sharp_picture("camera")[0].numpy(), name="sharp")
    n_layers = len(viewer.layers)
    widget.image.value = viewer.layers["sharp"]
    run(widget)
    assert widget.status.value.startswith("no blur was found")
    assert len(viewer.layers) == n_layers


def test_a_canceled_run_adds_nothing(viewer, widget):
    viewer.add_image(np.random.default_rng(0).random((64, 64)).astype(np.float32))
    widget.source.value = "a formula"
    run(widget, cancel=True)
    assert widget.status.value == "canceled"
    assert len(viewer.layers) == 1
    run(widget)
    assert len(viewer.layers) == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"formula": "gaussian:x"}, "this kernel must be written gaussian:SIGMA"),
        ({"formula": "gaussian3d:1@1"}, "the kernel has 3 axes, but the layer has 2"),
        ({"prior": "flat regions, sharp edges", "strength": "much"}, "Weight must be a number, but is 'much'"),
        ({"source": "a layer"}, "the layer of the kernel must show a single point, but looks like a photograph"),
        ({"source": "a microscope's optics", "plane": 0.3}, "the layer has one plane"),
        ({"source": "a microscope's optics", "aperture": 2.0}, "the numerical aperture must be below"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(viewer, widget, changes, sentence):
    run(widget)
    assert widget.status.value == "there is no image layer; open an image first."
    viewer.add_image(1 + np.random.default_rng(0).random((40, 40)))
    for name, value in {"source": "a formula", **changes}.items():
        getattr(widget, name).value = value
    run(widget)
    assert widget.status.value.startswith(sentence)
    assert len(viewer.layers) == 1
