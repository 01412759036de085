"""`deconv kernel estimate` and `deconv kernel align`: find the kernel that blurred a picture, or check one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deconv_cli.commands.console import print_warning
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.input_files import refuse_clashes
from deconv_cli.commands.kernel_output import KernelAnswer, LightOption, without_paths
from deconv_cli.commands.option_groups import KERNEL_OPTION, KernelOptions, optional
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import SCHEMA, Light, check_name

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.blind.estimate import KernelEstimate
    from deconv_cli.kernels.kernel_field import KernelField
    from deconv_cli.workflows.arithmetic import ChosenLight

ESTIMATE_EXAMPLE = "Example: deconv kernel estimate sample_images/astronaut_blurred.png -o found.safetensors"
ALIGN_EXAMPLE = "Example: deconv kernel align sample_images/camera_blurred.png --kernel sample_images/motion.npy"

_UNIFORM = {True: "yes", False: "no", None: "not known: found in fewer than two parts"}

PhotoArgument = Annotated[Path, typer.Argument(metavar="PHOTO", help="The blurred picture.")]


def estimate(
    photo: PhotoArgument,
    answer: KernelAnswer,
    family: list[str] | None = optional(
        "--family NAME",
        "Search only this family: disk, gaussian, motion, polygon, airy, moffat or disk-motion. Repeat it for several.",
    ),
    free: bool = optional(
        "--free",
        "Find a free kernel, tap by tap, such as the path of a shaken camera, starting from the best family. "
        "Needs --output.",
        default=False,
    ),
    size: int | None = optional(
        "--size N",
        "Side of a free kernel in taps, odd, a little more than the extent of the blur. The result is centered, "
        "and may be a little larger or smaller. Default: from the family.",
    ),
    map_file: Path | None = optional(
        "--map FILE.safetensors",
        "Find the kernel of each part of the picture, print whether they agree, and write them to a file for --kernel.",
    ),
    light: LightOption = "auto",
) -> None:
    """Find the kernel that blurred a picture, from the picture alone, with an error bar."""
    from deconv_cli.io import read_image
    from deconv_cli.io.atomic import check_output_path
    from deconv_cli.report.run import describe_estimate, describe_found, describe_free, describe_map

    if free and answer.output is None:
        raise UsageError("--free finds a kernel without a formula, so it needs a file; add --output.")
    if size is not None and not free:
        raise UsageError("--size is the size of a free kernel; add --free, or leave it out.")
    answer.check(photo)
    if map_file is not None:
        if map_file.suffix.lower() != ".safetensors":
            raise UsageError(f"--map writes .safetensors files only, but is '{map_file}'; change the suffix.")
        check_output_path(map_file, photo, force=answer.force)
        refuse_clashes([], [photo], [answer.output, map_file])
    image = read_image(photo)
    chosen = light_of(image, light)
    found = estimate_kernel_of(image, chosen, family or ())
    record = {
        "command": "kernel estimate",
        "input": str(photo),
        "light": chosen.reason,
        **describe_estimate(found),
    }
    rows, taps = _estimate_rows(found, chosen.reason), found.taps()
    field: KernelField | None = None
    if free:
        from deconv_cli.kernels.blind.blurred_picture import estimate_free_kernel

        form = estimate_free_kernel(_picture_of(image), start=found, size=size, tone_curve=chosen.curve)
        taps, record["free"] = form.taps, describe_free(form)
        rows[0] = ("as a formula", rows[0][1])
    if map_file is not None:
        from deconv_cli.kernels.blind.blur_map import map_blur

        mapped = map_blur(_picture_of(image), tone_curve=chosen.curve, jpeg_table=image.jpeg_table, whole=found)
        record["map"], field = describe_map(mapped), mapped.field() if mapped.found else None
        rows.append(("same everywhere", _UNIFORM[mapped.is_uniform]))
        rows += [("", "  ".join(f"{part.text:16}" for part in row).rstrip()) for row in mapped.parts]
    if not found.found:
        rows.insert(1, ("", describe_found(found).removeprefix("no blur was found: ")))
    if free:
        rows.insert(0, ("blur", f"of free form, {taps.shape[0]}×{taps.shape[1]} taps"))
    is_kernel = found.found or free
    notes = search_notes(image, chosen) + ([] if free else notes_of(found, photo))
    if found.rival is not None:
        notes.append(f"{found.rival.text} explains the picture about as well; compare both restorations")
    answer.give(str(photo), record, rows, notes, taps=taps if is_kernel else None, answer=found.text)
    if map_file is not None and field is not None:
        from deconv_cli.saved_files import save_kernel_field

        save_kernel_field(field, map_file, record={"schema": SCHEMA, **without_paths(record)}, force=answer.force)
    missing = answer.output if answer.output is not None and not is_kernel else map_file if field is None else None
    doubt = None if free else found.doubt
    if missing is not None and not answer.quiet:
        print_warning(f"{describe_found(found)}; '{missing}' was not written")
    if doubt is not None and not answer.quiet:
        print_warning(doubt)
    if missing is not None or doubt is not None:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY)


def align(
    photo: PhotoArgument,
    kernel: Annotated[list[Path], KERNEL_OPTION],
    reading: KernelOptions,
    answer: KernelAnswer,
    sharp: Path | None = optional(
        "--sharp FILE",
        "The same picture without the blur, of the same size. Without it, deconv cannot detect a shift or a turn "
        "by 180°, and centers the kernel.",
    ),
    light: LightOption = "auto",
) -> None:
    """Find out whether a kernel is transposed, mirrored, scaled or off center for a picture, and correct it."""
    from deconv_cli.commands.kernel_request import KernelRequest
    from deconv_cli.io import read_image
    from deconv_cli.kernels.blind.blurred_picture import align_kernel
    from deconv_cli.workflows.arithmetic import check_single_kernel

    answer.check(photo)
    image = read_image(photo)
    loaded = KernelRequest(kernel, reading, dimensions=2).of(image)
    chosen = light_of(image, light)
    truth = None if sharp is None else read_image(sharp)
    found = align_kernel(
        check_single_kernel(loaded.taps),
        _picture_of(image),
        sharp=None if truth is None else _picture_of(truth),
        sharp_curve=None if truth is None or chosen.curve is None else truth.tone_curve,
        tone_curve=chosen.curve,
        jpeg_table=image.jpeg_table,
    )
    record = {
        "command": "kernel align",
        "input": str(photo),
        "kernel_file": ", ".join(map(str, kernel)),
        "light": chosen.reason,
        "is_aligned": not found.changes,
        "orientation": found.orientation,
        "scale": found.scale,
        "shift": list(found.shift),
        "log_likelihood_ratio": found.evidence,
    }
    sentence = f"to be {', '.join(found.changes)}" if found.changes else "fits the picture"
    rows = [
        ("kernel", sentence),
        ("against as given", f"{found.evidence:+.1f} in log-likelihood"),
        ("light", chosen.reason),
    ]
    notes = [*loaded.notes, *search_notes(image, chosen)]
    taps = None if found.scale is None else found.taps
    answer.give(str(photo), record, rows, notes, taps=taps, answer=sentence)
    if found.scale is None:
        words = shlex.join(["deconv", "kernel", "estimate", str(photo)])
        print_warning(
            f"no factor corrects a kernel of quite another size or shape than the blur; find the blur with {words}"
            f"{'' if answer.output is None else f'; {answer.output} was not written'}"
        )
        raise typer.Exit(ExitCode.UNTRUSTWORTHY)


def light_of(image: ImageFile, light: str) -> ChosenLight:
    """Decide what the blur of a picture acts on: `linear`, `stored`, or `auto` by what the file says."""
    from deconv_cli.workflows.arithmetic import choose_light
    from deconv_cli.workflows.resolve_settings import RecordedConvolution

    if not image.is_picture:
        raise UsageError(
            f"deconv finds a blur only in a picture, but '{image.path}' is a file of tensors; write it as a picture, "
            "such as .tif, or give the kernel that blurred it."
        )
    recorded = RecordedConvolution.of_record(image.record)
    wanted = check_name(("auto", *Light), light, "light")
    return choose_light(wanted, image.tone_curve, None if recorded is None else recorded.light)


def search_notes(image: ImageFile, light: ChosenLight) -> list[str]:
    """Note what a search for the blur cannot know.

    Colors without a profile are taken as linear in light, since instruments rarely write three colors; the power
    spectrum of stars or beads is not that of a scene.
    """
    from deconv_cli.kernels.bead_psf import holds_points

    if holds_points(light.to_light(_picture_of(image)).float().mean(0)):
        channel = ["--channel", "1"] if image.values.shape[1] > 1 else []
        words = ["deconv", "kernel", "from-beads", str(image.path), *channel, "-o", "psf.tif"]
        return [
            f"if the points of this picture are stars or beads, measure the kernel on them with {shlex.join(words)}"
        ]
    if not light.is_assumed or image.values.shape[1] != 3 or image.metadata.flavor:
        return []
    return [
        "the colors have no ICC profile and are taken as linear in light; if a photo editor or a camera wrote this "
        "file, add --light linear, which undoes its tone curve"
    ]


def notes_of(found: KernelEstimate, photo: Path) -> list[str]:
    """Note where the search for a blur was hard."""
    from deconv_cli.kernels.blind.estimate import LEAST_EVIDENCE

    notes = [] if found.note is None else [found.note]
    if found.found and found.evidence < 2 * LEAST_EVIDENCE:
        words = ["deconv", "kernel", "estimate", str(photo), "--free", "--output", "kernel.tif"]
        notes.append(f"the picture shows little of its blur; if the camera shook, try {shlex.join(words)}")
    return notes


def estimate_kernel_of(image: ImageFile, light: ChosenLight, families: Sequence[str] = ()) -> KernelEstimate:
    """Find the blur of a picture as read."""
    from deconv_cli.kernels.blind.blurred_picture import estimate_kernel

    return estimate_kernel(
        _picture_of(image), tone_curve=light.curve, jpeg_table=image.jpeg_table, families=tuple(families) or None
    )


def _picture_of(image: ImageFile) -> Tensor:
    """Return the samples of a file's only picture, shape `(C, H, W)`; several are a `UsageError`."""
    if len(image.values) > 1:
        raise UsageError(
            f"deconv finds a blur in one picture, but '{image.path}' holds {len(image.values)} (axes {image.axes}); "
            "write one of them to a separate file."
        )
    return image.values[0]


def _estimate_rows(found: KernelEstimate, light: str) -> list[tuple[str, str]]:
    from deconv_cli.kernels.blind.estimate import LEAST_EVIDENCE, NO_BLUR

    best = found.candidates[0].misfit
    rows = [("blur", "none found" if not found.found else found.family)]
    rows += [(f"  {p.name.lower()}", p.text) for p in found.parameters]
    clearly = "clearly" if found.evidence >= LEAST_EVIDENCE else "not clearly"
    likelihood = f"{found.evidence:+.1f} in log-likelihood, where {LEAST_EVIDENCE:g} are needed"
    rows.append(("against no blur", f"{clearly} better: {likelihood}"))
    others = [c for c in found.candidates if c.family not in (found.family, NO_BLUR)][:3]
    first = "runner-up" if found.found else "nearest blur"
    rows += [
        (first if i == 0 else "", f"{c.text}  {best - c.misfit:+.1f} in log-likelihood") for i, c in enumerate(others)
    ]
    return [*rows, ("light", light)]
