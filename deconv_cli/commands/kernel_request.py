"""The kernels of a run as typed, and the kernel of each input: the same for all, or computed from its optics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.loaded_kernel import ESTIMATE, MICROSCOPE, LoadedKernel, is_formula, load_kernels
from deconv_cli.commands.microscope_kernel import describe_optics, read_words
from deconv_cli.commands.option_groups import KernelOptions, given_options
from deconv_cli.errors import UsageError
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import Size, check_name, format_size, format_spacing, nearest_name

if TYPE_CHECKING:
    from deconv_cli.io import ImageFile


@dataclass(frozen=True)
class KernelRequest:
    """The kernels as typed. A copy made by `replace` has loaded nothing, and can be sent to another process.

    Attributes:
        paths: files and formulas, or one word for a kernel that each input has itself.
        options: how to read the files.
        dimensions: typed number of axes of space of the images.
        spacing: typed distances of the samples in µm, for a file of optics that does not say them.
        is_compact: of optics, leave out light more than four axial widths out of focus.
        can_be_estimated: whether the word `estimate` has a meaning.
    """

    paths: list[Path]
    options: KernelOptions
    dimensions: int | None = None
    spacing: tuple[float, ...] | None = None
    is_compact: bool = False
    can_be_estimated: bool = False

    def __post_init__(self) -> None:
        """Refuse, by `UsageError`, an unknown formula, or a word that is nearly one which kernels have here."""
        if self.word is not None:
            return
        names = [*([str(ESTIMATE)] if self.can_be_estimated else []), MICROSCOPE, *KERNEL_SOURCES]
        for path in self.paths:
            if is_formula(path):
                for factor in filter(None, str(path).split("*")):
                    kind = f"there is no file '{path}', and the name of a formula"
                    check_name(KERNEL_SOURCES, factor.strip().partition(":")[0][:40], kind)
                continue
            is_word = not path.suffix and path.name == str(path) not in [str(ESTIMATE), *names]
            meant = nearest_name(names, str(path)) if is_word and not path.exists() else None
            if meant is not None:
                raise UsageError(f"'{path}' does not exist; perhaps you mean --kernel {meant}.")

    @cached_property
    def word(self) -> str | None:
        """`estimate` or `microscope` if each input has its own kernel, unless a file has that name.

        Raises:
            UsageError: there is another kernel, or an option on files of kernels.
        """
        missing = [str(path) for path in self.paths if not path.exists()]
        # The word microscope may have capitals, and values behind a colon.
        words = [MICROSCOPE for text in missing if text.partition(":")[0].lower() == MICROSCOPE]
        words += [text for text in missing if text == str(ESTIMATE)]
        if not words or (words[0] == str(ESTIMATE) and not self.can_be_estimated):  # reading it says what to give
            return None
        given = list(given_options(self.options))
        if given or len(self.paths) > 1:
            others = [path for path in self.paths if str(path).partition(":")[0].lower() != words[0]]
            other = given[0] if given else f"--kernel {(others or self.paths)[0]}"
            raise UsageError(
                f"--kernel {words[0]} gives each input its own kernel, so {other} has no effect; leave it out."
            )
        return words[0]

    def load(self, named: int | None = None) -> LoadedKernel:
        """Read the kernels for images with `named` axes of space; kernels that were read before are kept."""
        if named not in self._loaded:
            self._loaded[named] = load_kernels(self.paths, self.options, self.dimensions, named)
        return self._loaded[named]

    @cached_property
    def _loaded(self) -> dict[int | None, LoadedKernel]:
        return {}

    def of(self, image: ImageFile, whole: Size | None = None) -> LoadedKernel:
        """Return the kernel of an input; `whole` is its size along Z, Y and X if `image` is only a corner of it.

        Raises:
            UsageError: no such file or formula, or the optics are not known.
        """
        if self.word == MICROSCOPE:
            return self._compute(image, whole)
        is_open = self.dimensions is None and (self.load().is_ambiguous or any(map(is_formula, self.paths)))
        named = image.named_dimensions
        return self.load(named if is_open and named in (1, 3) else None)

    def _compute(self, image: ImageFile, whole: Size | None) -> LoadedKernel:
        """Compute the kernel of each channel from the optics."""
        from deconv_cli.kernels.kernel import stack_kernels
        from deconv_cli.kernels.microscope import microscope_psf, sampling_notes

        text = str(self.paths[0])
        n_axes = self.dimensions or image.named_dimensions or image.dimensions
        spanned = image.spanned_by(n_axes)
        if spanned.spacing is None and self.spacing is not None and len(self.spacing) != n_axes:
            raise UsageError(
                f"spacing must hold a distance in µm for each of {n_axes} axes, but holds {len(self.spacing)}."
            )
        microscopes, assumed = describe_optics(spanned, read_words(text), spanned.spacing or self.spacing)
        size = tuple(spanned.values.shape[2:]) if whole is None else whole[-n_axes:]
        sizes = [microscope.psf_size(size, is_compact=self.is_compact) for microscope in microscopes]
        made = [microscope_psf(microscope, size) for microscope, size in zip(microscopes, sizes, strict=True)]
        taps = (made[0] if len(made) == 1 else stack_kernels(made)).flip(tuple(range(-n_axes, 0)))
        first = microscopes[0]
        seen = ", ".join(f"{microscope.emission:g}" for microscope in microscopes)
        notes = [
            f"kernels computed for numerical aperture {first.numerical_aperture:g}, immersion "
            f"{first.immersion_index:g}, emission {seen} nm, "
            f"{', '.join(dict.fromkeys(microscope.mode for microscope in microscopes))}, samples "
            f"{format_spacing(first.spacing)} apart",
            *assumed,
            *sampling_notes(microscopes, made),
        ]
        if sizes != [microscope.psf_size(size) for microscope in microscopes]:
            notes.append(
                f"the kernel was cut to {format_size(sizes[0])}, since an exact inverse with all its light takes very "
                'long; method="richardson-lucy" uses the whole kernel, and is more accurate for a stack of a wide field'
            )
        return LoadedKernel.computed(text, taps, notes, dimensions=n_axes, spacing=first.spacing)
