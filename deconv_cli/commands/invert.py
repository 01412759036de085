"""`deconv invert`: undo a kernel, a chain of layers, the optics of a microscope, or an unknown kernel.

The options and the reading of a file are here. What happens to one picture is in `restoration.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.batch import Batch, list_jobs
from deconv_cli.commands.block_restoration import THREADS, BlockWork
from deconv_cli.commands.chain_restoration import Chain, ChainRestoration, LayersOption, TimeLimitOption, read_chain
from deconv_cli.commands.console import print_note
from deconv_cli.commands.input_files import lay_out, refuse_clashes
from deconv_cli.commands.kernel_commands import estimate_kernel_of, light_of, notes_of, search_notes
from deconv_cli.commands.loaded_kernel import ESTIMATE, LoadedKernel, load_kernels
from deconv_cli.commands.microscope_kernel import MICROSCOPE, is_microscope
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.restoration import Restoration
from deconv_cli.commands.settings_options import SETTINGS_OPTIONS, SettingValues
from deconv_cli.commands.user_code import ModelOptions
from deconv_cli.commands.work import NO_EXTRAS, ExtraOutputs, Job, JobResult, LoadedFile, Process, is_large
from deconv_cli.errors import DeconvError, TooLargeError, UntrustworthyResultError, UsageError
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import Convention, DeviceChoice

if TYPE_CHECKING:
    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.blind.estimate import KernelEstimate


EXAMPLE = "Example: deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o restored.tif"


def invert(
    invocation: typer.Context,
    inputs: options.InputsArgument,
    settings: Annotated[SettingValues, tuple(SETTINGS_OPTIONS)],
    kernel_options: options.LayerKernelOptions,
    files: options.FileOptions,
    printed: options.PrintOptions,
    model_options: ModelOptions,
    many: options.BatchOptions,
    large: options.LargeOptions,
    workers: options.WorkOptions,
    kernel: Annotated[list[Path] | None, options.KERNEL_OR_ESTIMATE_OPTION] = None,
    output: options.OutputOption = None,
    extra: ExtraOutputs = NO_EXTRAS,
    layers: LayersOption = None,
    time_limit: TimeLimitOption = None,
    device: options.DeviceOption = DeviceChoice.AUTO,
) -> None:
    """Undo the blur of images, and report how far to trust the result."""
    if not kernel and layers is None:
        raise UsageError(
            "deconv invert needs the kernel that blurred the input: --kernel FILE, such as a picture of a point of "
            "light, a formula such as --kernel gaussian:1.5, or --kernel estimate, which finds it in a picture."
        )
    chain = read_chain(layers, model_options, kernel, extra, time_limit, kernel_options.as_options())
    predicts = chain is None and extra.need_prediction(ReconstructionSettings.trusted(**settings))
    wanted = settings | ({"predict": True} if predicts else {})
    # Checked once, before anything is read; the defaults of a picture or a tensor are known with each input.
    checked = ReconstructionSettings.of(**wanted)
    wanted = {name: getattr(checked, name) for name in wanted}
    is_single_kernel = chain is None and not is_estimate(kernel or [], kernel_options)
    jobs, left_out = lay_out(inputs, output, ending="_restored", is_quiet=printed.quiet, force=files.force)
    is_one = len(jobs) == 1
    large.check(is_possible=is_single_kernel, is_one=is_one)
    continues = is_one and (large.resume or large.block_range is not None)  # pages of that run may exist
    extra.check(jobs, force=files.force or continues)
    refuse_clashes(jobs, [*options.files_read(invocation), *(kernel or []), extra.truth], [*extra.paths, many.manifest])
    work = InvertWork(
        kernels=kernel or [],
        kernel_options=kernel_options,
        settings=wanted,
        files=files,
        extra=extra,
        printed=printed,
        device=device,
        large=large,
        resumes=large.resume or many.skip_existing,
        chain=chain,
        first=jobs[0].source,
        can_be_cut=is_single_kernel,
    )
    if is_single_kernel and is_one:
        from deconv_cli.blocks.checkpoint import has_earlier

        alone = replace(work, workers=workers)
        is_wanted = large.is_cut_anyway or (work.resumes and has_earlier(jobs[0].target))
        found = alone.open_large(jobs[0].source, is_wanted=is_wanted)
        if found is not None and large.dry_run:
            alone.print_plan(jobs[0], found)
            return
        if found is not None:
            work, workers = alone.holding(LoadedFile(found.corner, found)), THREADS
        elif large.resume:
            work = replace(work, resumes=False)
            extra.check(jobs, force=files.force)
            if not printed.quiet and (files.force or not jobs[0].target.exists()):
                print_note(f"there is no earlier run to resume for '{jobs[0].target}', so it is restored as a whole")
    if large.dry_run:
        list_jobs(jobs, as_json=printed.as_json)
        return
    if len(jobs) == 1 and workers.are_given and not printed.quiet:
        print_note("this process alone restores a single file as a whole; other workers only help with blocks")
    many.check(force=files.force)
    Batch("invert", files, printed, many, workers).run(jobs, work, left_out)


WORDS = (str(ESTIMATE), MICROSCOPE)
"""Words that `--kernel` takes instead of a kernel."""


@dataclass(frozen=True, kw_only=True)
class InvertWork(BlockWork):
    """The work of `deconv invert`. The axes of the first input decide how some kernels are read.

    `can_be_cut` says whether inputs that do not fit the memory are restored in blocks.
    """

    chain: Chain | None
    first: Path
    can_be_cut: bool

    @property
    def is_alone(self) -> bool:
        """Whether code of other people runs, which may print and warn."""
        return self.chain is not None or self._is_microscope

    @property
    def _is_microscope(self) -> bool:
        return is_microscope(self.kernels, self.kernel_options)

    def read(self, path: Path) -> LoadedFile:
        """Read an input; only a corner of one that is restored in blocks."""
        from deconv_cli.io.limits import allowing

        held = vars(self).pop("_held", None) if path == self.first else None
        if held is not None:
            return held
        with allowing(self.settings.get("max_memory")), self._explaining(path):
            if not self.can_be_cut:
                return LoadedFile(self.files.read(path))
            is_wanted = self.large.block_size is not None
            image = None if is_wanted or is_large(path) else self.files.read(path)
            if image is None or not self.fits_surely(image.shape):
                found = self.open_large(path, is_wanted=is_wanted)
                if found is not None:
                    return LoadedFile(found.corner, found)
            return LoadedFile(self.files.read(path) if image is None else image)

    def _read_first(self) -> ImageFile:
        """Read the first input, and hold it until it is its turn, so that it is decoded once."""
        source = self.read(self.first)
        self.holding(source)
        return source.image

    def holding(self, source: LoadedFile) -> InvertWork:
        """Hold the first input, as read, and return this work."""
        vars(self)["_held"] = source
        return self

    def memory(self) -> int:
        """Return the memory in bytes that all inputs in work may take together."""
        return self.settings.get("max_memory") or super().memory()

    def for_workers(self, n_sharing: int) -> InvertWork:
        """Return the same work for workers: each has its part of the memory, and replaces outputs, but no other run."""
        memory = self.settings.get("max_memory")
        given = {} if memory is None else {"max_memory": memory // n_sharing}
        work = replace(super().for_workers(n_sharing), n_sharing=n_sharing, settings=self.settings | given)
        return replace(work, forgets=self.files.force or not self.resumes)

    def refuse_existing(self, job: Job) -> None:
        """Refuse a job whose output exists, or blocks of it from a run that is not continued."""
        from deconv_cli.blocks.checkpoint import Checkpoint, refuse_to_forget

        super().refuse_existing(job)
        if self.can_be_cut and not (self.resumes or self.files.force):
            refuse_to_forget([job.target], Checkpoint.of(job.target))

    def open(self) -> Process:
        """Choose the way to restore, and read the kernel or the model."""
        whole = self._open_whole()

        def by_size(job: Job, source: LoadedFile, progress: WorkProgress) -> JobResult:
            if source.large is None:
                with self._explaining(job.source):
                    return whole(job, source, progress)
            return self.restore_large(job, source.large, progress)

        return by_size

    @contextlib.contextmanager
    def _explaining(self, path: Path) -> Iterator[None]:
        """Say why an input that does not fit the memory is not restored in blocks."""
        try:
            yield
        except TooLargeError as error:
            if not self.can_be_cut:
                raise
            try:
                self.open_large(path, is_wanted=True)
            except DeconvError as refusal:
                raise TooLargeError(f"{error} It cannot be cut into blocks: {refusal}") from error
            raise

    def _open_whole(self) -> Process:
        if self.chain is not None:
            return ChainRestoration(self.chain, self).restore
        if is_estimate(self.kernels, self.kernel_options):
            return self._restore_blindly
        if self._is_microscope:
            return self._restore_by_optics
        dimensions = self.settings.get("dimensions")
        loaded = load_kernels(self.kernels, self.kernel_options, dimensions, self._read_first, WORDS)
        return self._restoration(loaded).restore

    def _restoration(self, loaded: LoadedKernel, **settings: object) -> Restoration:
        return Restoration(self, loaded, self.settings | settings)

    def _restore_by_optics(self, job: Job, source: LoadedFile, progress: WorkProgress) -> JobResult:
        """Restore an input with a kernel computed from the optics in its file."""
        loaded = self.load_optics(source.image)
        return self._restoration(loaded, dimensions=loaded.kernel.n_axes).restore(job, source, progress)

    def _restore_blindly(self, job: Job, source: LoadedFile, progress: WorkProgress) -> JobResult:
        """Find the kernel of one picture, and restore it; a sharp picture is an `UntrustworthyResultError`."""
        from deconv_cli.report.run import describe_found

        self.plan(job, source.image, source.image.values.shape[1], same_size=True)  # before the search
        progress.begin("finding the kernel")
        light = light_of(source.image, self.settings.get("light") or "auto")
        found = estimate_kernel_of(source.image, light)
        if not found.found:
            advice = "give the kernel with --kernel, or find a free one with deconv kernel estimate --free"
            if light.curve is None:
                advice = f"for a developed photograph add --light linear; else {advice}"
            if found.slight is not None:
                advice = f"--kernel {found.slight.text} takes it nevertheless"
            notes = search_notes(source.image, light)
            raise UntrustworthyResultError(f"'{job.source}': {describe_found(found)}; {'; '.join([*notes, advice])}.")
        return self._restoration(
            _found_kernel(found, (*search_notes(source.image, light), *notes_of(found, job.source)))
        ).restore(job, source, progress)


def is_estimate(kernels: list[Path], options: options.KernelOptions) -> bool:
    """Return whether to find the kernel in the picture, unless a file is named `estimate`; refuse other kernels too."""
    if ESTIMATE not in kernels or ESTIMATE.exists():
        return False
    given = [name for name, value in options.as_options().items() if value is not None]
    if len(kernels) > 1 or given:
        other = given[0] if given else f"--kernel {next((k for k in kernels if k != ESTIMATE), ESTIMATE)}"
        raise UsageError(f"--kernel estimate finds the kernel in the picture, so {other} has no effect; leave it out.")
    return True


def _found_kernel(found: KernelEstimate, notes: tuple[str, ...]) -> LoadedKernel:
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.report.run import KernelInput

    taps = found.taps()
    source = KernelInput(
        Kernel.from_tensor(taps), found.text, Convention.CORRELATION, None, None, has_bias=False, estimate=found
    )
    return LoadedKernel(source, taps, None, notes, {"--kernel": found.text})
