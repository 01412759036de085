"""The dock widget of napari: restore an image layer by the library's `invert`, and show the result as new layers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from magicgui.widgets import CheckBox, ComboBox, Container, FloatSpinBox, Label, LineEdit, PushButton, create_widget
from napari.layers import Image
from napari.qt.threading import create_worker
from napari.viewer import Viewer
from qtpy.QtCore import QObject, Signal
from torch import Tensor

import deconv_cli
from deconv_cli import DeconvError, InputMetadata, Microscope, Reconstruction, ToneCurve, UsageError
from deconv_cli.measured_light import clean_psf, looks_like_photograph, refusal_of
from deconv_cli.tone_curve import WHITES

FOUND, LAYER, FORMULA, MICROSCOPE = "found in the image", "a layer", "a formula", "a microscope's optics"
PRIORS: dict[str, tuple[dict[str, Any], str, str]] = {
    "chosen for the image": ({}, "", ""),
    "photograph": ({"prior": "photo"}, "strength", "Strength (1 is usual)"),
    "small differences": ({"prior": "quadratic"}, "lam", "λ"),
    "small differences, nothing below zero": ({"nonnegative": True}, "lam", "λ"),
    "flat regions, sharp edges": ({"prior": "tv"}, "weight", "Weight"),
    "counts of light (Richardson–Lucy)": ({"method": "richardson-lucy"}, "iterations", "Iterations"),
}
"""What is known of the scene: the settings, the setting of its strength, and how that is labeled."""
PREDICTED: tuple[dict[str, Any], ...] = ({}, {"prior": "quadratic"}, {"prior": "photo"})
"""Settings under which the error is predicted."""
ERROR, TRUST, NEITHER = "the expected error", "where to trust it", "nothing"
WIDER = {"bool": "uint8", "uint16": "int32", "uint32": "int64", "float16": "float32"}
"""Types that torch computes little with, and the types that hold the same values."""
KEPT = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
"""The place of a layer in the world, which its restoration shares."""

MakeKernel = Callable[[Tensor, ToneCurve | None], tuple[Tensor, str]]
"""Makes the taps from an image `(C, *size)` and its tone curve, and says in a clause what they are."""


class Canceled(Exception):  # noqa: N818
    """The person pressed the button that cancels."""


class Listener(deconv_cli.ProgressListener):
    """Passes the steps of a run on to the widget, and ends the run if it was canceled."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._step, self.is_canceled = show, "", threading.Event()

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Show a step."""
        self._step = step
        self._report(step)

    def __call__(self, iteration: int, certificate: float) -> None:
        """Show an iteration."""
        self._report(f"{self._step}: iteration {iteration}")

    def _report(self, line: str) -> None:
        if self.is_canceled.is_set():
            raise Canceled
        self._show(line)


Restored = tuple[np.ndarray, np.ndarray | None, str, Reconstruction]
"""The samples and their error or mask, with the axes of the layer; sentences about them; the whole result."""


def restore(
    samples: np.ndarray,
    is_color: bool,
    curve: ToneCurve | None,
    spacing: tuple[float, ...],
    make_kernel: MakeKernel,
    settings: dict[str, Any],
    listener: Listener,
) -> Restored:
    """Make the kernel and restore the samples of a layer; axes before those of the kernel are a batch.

    Args:
        samples: of the layer; if it is in color, the last axis holds red, green and blue, and perhaps opacity.
        is_color: whether the layer is in color.
        curve: the tone curve of a photograph.
        spacing: distances of the samples along each axis.
        make_kernel: makes the kernel.
        settings: keyword arguments of `invert`.
        listener: hears of the progress.

    Raises:
        DeconvError: the layer cannot be restored so; the message says why.
        Canceled: the run was canceled.
    """
    name = samples.dtype.name
    colors = np.moveaxis(samples[..., :3], -1, 0) if is_color else samples[None]
    values = torch.from_numpy(np.array(colors, dtype=WIDER.get(name, name)))  # (C, *axes), a copy of its own
    listener.begin("making the kernel")
    taps, clause = make_kernel(values, curve)
    n_axes = taps.ndim
    if n_axes > values.ndim - 1:
        raise UsageError(f"the kernel has {n_axes} axes, but the layer has {values.ndim - 1}; choose a flat kernel.")
    axes, size = values.shape[1:-n_axes], values.shape[-n_axes:]
    result = deconv_cli.invert(
        values.flatten(1, -n_axes - 1).movedim(1, 0) if axes else values,
        taps,
        tone_curve=curve,
        metadata=InputMetadata(sample_type=name, spacing=spacing[-n_axes:]),
        progress=listener,
        defaults="picture",
        dimensions=n_axes,
        **settings,
    )

    def arranged(images: Tensor) -> Tensor:
        """Give `(B, C, *size)` the axes of the layer: `(C, *axes, *size)`."""
        return images.movedim(1, 0).reshape(-1, *axes, *size) if axes else images

    image = arranged(result.image.detach()).numpy()
    if is_color:
        top = WHITES.get(name, 1.0)
        shown = np.moveaxis(image, 0, -1).clip(0, top)
        shown = shown.astype(name) if top == 1 else shown.round().astype(name)
        image = np.concatenate([shown, samples[..., 3:]], axis=-1)
    else:
        image = image[0]
    predicted = result.predicted_error
    error = None if predicted is None else arranged(predicted.map).double().square().mean(0).sqrt().float().numpy()
    prior = [] if result.prior_sentence is None else [f"prior: {result.prior_sentence}"]
    return image, error, "\n".join((f"kernel: {clause}", *prior, *result.warnings, *result.notes)), result


def find_kernel(values: Tensor, curve: ToneCurve | None) -> tuple[Tensor, str]:
    """Find the kernel in an image, or in the middle one of several; a sharp one is a `UsageError`."""
    while values.ndim > 3:
        values = values[:, values.shape[1] // 2]
    found = deconv_cli.estimate_kernel(values, tone_curve=curve)
    if not found.found:
        raise UsageError("no blur was found in the image; choose another kernel if it is blurred nevertheless.")
    said = "; ".join(part for part in (found.note, found.doubt) if part is not None)
    return found.taps(), f"{found.text}: {said}" if said else found.text


def kernel_of_layer(psf: np.ndarray, values: Tensor, curve: ToneCurve | None) -> tuple[Tensor, str]:
    """Take the picture of a point, flipped, cleaned if need be, and divided by its sum; no point is a `UsageError`."""
    taps = torch.from_numpy(np.array(psf, dtype=np.float64)).flip(tuple(range(psf.ndim)))
    if looks_like_photograph(taps, taps.ndim):
        raise UsageError("the layer of the kernel must show a single point, but looks like a photograph.")
    clause = "the picture of a point"
    if refusal_of(taps, taps.ndim) is not None:
        taps, clause = clean_psf(taps, taps.ndim)
    if float(taps.sum()) <= 0:
        raise UsageError("the layer of the kernel must show a single point, but its sum is not positive.")
    return taps / taps.sum(), clause


def kernel_of_optics(
    microscope: Microscope, is_compact: bool, values: Tensor, curve: ToneCurve | None
) -> tuple[Tensor, str]:
    """Compute the kernel of a microscope, as large as the image needs."""
    n_axes = len(microscope.spacing)
    if values.ndim - 1 < n_axes:
        raise UsageError("the layer has one plane; set the distance of planes to 0.")
    size = microscope.psf_size(tuple(values.shape[-n_axes:]), is_compact=is_compact)
    psf = deconv_cli.microscope_psf(microscope, size)
    clause = f"{microscope.mode}, numerical aperture {microscope.numerical_aperture:g}, {microscope.emission:g} nm"
    return psf.flip(tuple(range(n_axes))), clause


class _Relay(QObject):  # type: ignore[misc]
    """Carries lines from the thread of the work to that of the widget."""

    line = Signal(str)


class RestoreWidget(Container):  # type: ignore[misc]
    """The widget; napari gives it `napari_viewer`, whose layers it restores."""

    def __init__(self, napari_viewer: Viewer) -> None:
        def number(label: str, value: float, step: float, tooltip: str) -> FloatSpinBox:
            return FloatSpinBox(value=value, max=10000, step=step, label=label, tooltip=tooltip)

        self._viewer = napari_viewer
        self.image = create_widget(annotation=Image, label="Image", options={"tooltip": "The blurred layer."})
        self.is_photograph = CheckBox(text="Photograph", tooltip="Brightness is stored as in sRGB, not as measured.")
        self.source = ComboBox(choices=[FOUND, LAYER, FORMULA, MICROSCOPE], label="Kernel", tooltip="What blurred it.")
        tooltip = "A picture of one blurred point of light, such as a bead or a star."
        self.kernel_layer = create_widget(annotation=Image, label="Layer of the kernel", options={"tooltip": tooltip})
        tooltip = f"One of {', '.join(deconv_cli.KERNEL_SOURCES)} with its numbers, as gaussian:1.5 or motion:9@30."
        self.formula = LineEdit(value="gaussian:1.5", label="Formula", tooltip=tooltip)
        modes = ["widefield", "confocal", "two-photon", "light-sheet"]
        self.mode = ComboBox(choices=modes, label="Microscope")
        self.aperture = number("Numerical aperture", 1.4, 0.01, "As engraved on the objective.")
        self.immersion = number("Immersion index", 1.515, 0.001, "Oil 1.515, water 1.333, air 1.")
        self.emission = number("Emission (nm)", 520, 1, "The wavelength that is seen.")
        self.excitation = number("Excitation (nm)", 488, 1, "The wavelength that excites.")
        self.sheet = number("Light sheet (µm)", 3, 0.1, "Its thickness.")
        self.pixel = number("Pixel (µm)", 0.1, 0.0001, "The distance between pixels in the sample.")
        self.plane = number("Plane (µm)", 0, 0.0001, "The distance between planes; 0 restores each plane separately.")
        self.prior = ComboBox(choices=list(PRIORS), label="Scene", tooltip="What to assume about the scene.")
        self.strength = LineEdit(label="Strength", tooltip="Leave it empty to choose it from the image.")
        self.error = ComboBox(choices=[ERROR, TRUST, NEITHER], label="Also show")
        self.start, self.cancel = PushButton(text="Restore"), PushButton(text="Cancel", enabled=False)
        self.status = Label(value="")
        self.status.native.setWordWrap(True)
        microscope = [self.mode, self.aperture, self.immersion, self.emission, self.excitation, self.sheet]
        self._optics = [*microscope, self.pixel, self.plane]
        fields = (self.image, self.is_photograph, self.source, self.kernel_layer, self.formula, *self._optics)
        super().__init__(widgets=[*fields, self.prior, self.strength, self.error, self.start, self.cancel, self.status])
        self._listener: Listener | None = None
        self._relay = _Relay()
        self._relay.line.connect(self._show_line)
        for widget, slot in (
            (self.image.changed, self._take_layer),
            (self.source.changed, self._show_fields),
            (self.mode.changed, self._show_fields),
            (self.prior.changed, self._show_fields),
            (self.start.changed, self._start),
            (self.cancel.changed, self._cancel),
        ):
            widget.connect(slot)
        self._show_fields()

    def _show_line(self, line: str) -> None:
        self.status.value = line

    def _take_layer(self) -> None:
        """Fill in what a new layer says: whether it is in color, and its distances in µm."""
        layer = self.image.value
        if layer is None:
            return
        self.is_photograph.value = bool(layer.rgb)
        self.error.value = ERROR if layer.ndim == 2 else NEITHER  # slow for a stack
        steps = _micrometers(layer)
        if steps is not None:
            self.pixel.value, self.plane.value = steps[-1], steps[-3] if len(steps) > 2 else 0

    def _show_fields(self) -> None:
        """Show the fields that the choices need."""
        self.kernel_layer.visible = self.source.value == LAYER
        self.formula.visible = self.source.value == FORMULA
        for widget in self._optics:
            widget.visible = self.source.value == MICROSCOPE
        self.excitation.visible &= self.mode.value in ("confocal", "two-photon")
        self.sheet.visible &= self.mode.value == "light-sheet"
        _, name, label = PRIORS[self.prior.value]
        self.strength.visible, self.strength.label = bool(name), label

    def _settings(self) -> dict[str, Any]:
        """Read the settings of `invert`; a field that holds no number is a `UsageError`."""
        settings, name, label = PRIORS[self.prior.value]
        settings, text = dict(settings), self.strength.value.strip()
        if name and text:
            try:
                settings[name] = int(text) if name == "iterations" else float(text)
            except ValueError:
                raise UsageError(f"{label} must be a number, but is '{text}'.") from None
        predicts = self.error.value != NEITHER and PRIORS[self.prior.value][0] in PREDICTED
        return settings | {"predict": predicts}

    def _kernel(self, *, is_compact: bool) -> MakeKernel:
        if self.source.value == FOUND:
            return find_kernel
        if self.source.value == FORMULA:
            text = self.formula.value
            return lambda values, curve: (deconv_cli.make_kernel(text), text)
        if self.source.value == LAYER:
            chosen = self.kernel_layer.value
            psf = _samples(chosen)
            return partial(kernel_of_layer, psf[..., :3].mean(axis=-1) if chosen.rgb else psf)
        mode, depth = self.mode.value, [self.plane.value] if self.plane.value else []
        microscope = Microscope(
            numerical_aperture=self.aperture.value,
            emission=self.emission.value,
            spacing=(*depth, self.pixel.value, self.pixel.value),
            mode=mode,
            immersion_index=self.immersion.value,
            excitation=self.excitation.value if mode in ("confocal", "two-photon") else None,
            sheet=self.sheet.value if mode == "light-sheet" else None,
        )
        return partial(kernel_of_optics, microscope, is_compact)

    def _start(self) -> None:
        """Start the work in a thread of its own."""
        layer, self._listener = self.image.value, Listener(self._relay.line.emit)
        try:
            if layer is None:
                raise UsageError("there is no image layer; open an image first.")
            settings = self._settings()
            kernel = self._kernel(is_compact=settings.get("method") != "richardson-lucy")
        except DeconvError as error:
            self.status.value = str(error)
            return
        samples, spacing = _samples(layer), tuple(float(abs(step)) for step in layer.scale)
        curve = ToneCurve.srgb(WHITES.get(samples.dtype.name, 1.0)) if self.is_photograph.value else None
        show = partial(self._show, layer, self.error.value)
        slots = {"returned": show, "errored": self._fail, "finished": self._finish}
        self.start.enabled, self.cancel.enabled = False, True
        work = (samples, bool(layer.rgb), curve, spacing, kernel, settings, self._listener)
        self.worker = create_worker(restore, *work, _connect=slots)

    def _cancel(self) -> None:
        if self._listener is not None:
            self._listener.is_canceled.set()
            self.status.value = "canceling after this step"

    def _finish(self) -> None:
        self.start.enabled, self.cancel.enabled = True, False

    def _fail(self, error: Exception) -> None:
        """Show why there is no result; a bug is left to napari, which shows its traceback."""
        if isinstance(error, Canceled):
            self.status.value = "canceled"
        elif isinstance(error, DeconvError | MemoryError):
            self.status.value = str(error) or "there is not enough memory."
        else:
            self.status.value = f"failed: {error}"
            raise error

    def _show(self, layer: Image, shown: str, restored: Restored) -> None:
        """Add the result, and its error, as layers at the place of the input."""
        samples, error, sentences, result = restored
        state = layer.as_layer_data_tuple()[1]
        place = {name: state[name] for name in KEPT if name in state}
        look = {} if layer.rgb else {name: state[name] for name in ("colormap", "contrast_limits", "gamma")}
        about = {"reconstruction": result}
        self._viewer.add_image(samples, name=f"{layer.name} restored", rgb=layer.rgb, metadata=about, **place, **look)
        if error is not None and result.predicted_error is not None and shown == TRUST:
            trusted = np.broadcast_to(result.predicted_error.trusted.numpy(), error.shape).astype(np.uint8)
            self._viewer.add_labels(trusted, name=f"{layer.name} trusted", opacity=0.3, **place)
        elif error is not None:
            name = f"{layer.name} expected error"
            self._viewer.add_image(error, name=name, colormap="viridis", visible=False, **place)
        self.status.value = sentences


def _samples(layer: Image) -> np.ndarray:
    """Read the samples of a layer, the finest where there are several resolutions."""
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def _micrometers(layer: Image) -> tuple[float, ...] | None:
    """Give the distances of samples in µm; `None` if the layer has them in pixels."""
    if not all(unit.is_compatible_with("um") for unit in layer.units):
        return None
    return tuple(float((abs(step) * unit).to("um").m) for step, unit in zip(layer.scale, layer.units, strict=True))
