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
from deconv_cli.commands.block_restoration import covers_all, open_large, print_plan, restore_large
from deconv_cli.commands.chain_restoration import Chain, ChainOptions, ChainRestoration, read_chain
from deconv_cli.commands.console import print_note
from deconv_cli.commands.input_files import lay_out, refuse_clashes
from deconv_cli.commands.invert_options import NO_EXTRAS, ExtraOutputs, InvertOptions
from deconv_cli.commands.kernel_commands import estimate_kernel_of, light_of, notes_of, search_notes
from deconv_cli.commands.kernel_request import KernelRequest
from deconv_cli.commands.loaded_kernel import ESTIMATE, MICROSCOPE, LoadedKernel
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.restoration import restore_whole
from deconv_cli.commands.settings_options import SETTINGS_OPTIONS, SettingValues
from deconv_cli.commands.work import Job, JobResult, LargeInput, Process, Source, is_large
from deconv_cli.errors import DeconvError, TooLargeError, UntrustworthyResultError, UsageError
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import DeviceChoice

if TYPE_CHECKING:
    from deconv_cli.io import ImageFile

EXAMPLE = "Example: deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o restored.tif"
ONE_BLOCK = "one block, of whole tiles or chunks, covers the picture, so it is restored as a whole"


def invert(
    invocation: typer.Context,
    inputs: options.InputsArgument,
    settings: Annotated[SettingValues, tuple(SETTINGS_OPTIONS)],
    kernel_options: options.LayerKernelOptions,
    files: options.FileOptions,
    printed: options.PrintOptions,
    layers: ChainOptions,
    many: options.BatchOptions,
    large: options.LargeOptions,
    workers: options.WorkOptions,
    kernel: Annotated[list[Path] | None, options.KERNEL_OR_ESTIMATE_OPTION] = None,
    output: options.OutputOption = None,
    extra: ExtraOutputs = NO_EXTRAS,
    device: options.DeviceOption = DeviceChoice.AUTO,
) -> None:
    """Undo the blur of images, and report how far to trust the result."""
    if not kernel and layers.layers is None:
        raise UsageError(
            "deconv invert needs the kernel that blurred the input: --kernel FILE, such as a picture of a point of "
            "light, a formula such as --kernel gaussian:1.5, or --kernel estimate, which finds it in a picture."
        )
    chain = read_chain(layers, kernel, extra, options.given_options(kernel_options))
    predicts = chain is None and extra.need_prediction(ReconstructionSettings.trusted(**settings))
    wanted = settings | ({"predict": True} if predicts else {})
    # Checked once, before anything is read; the defaults of a picture or a tensor are known with each input.
    checked = ReconstructionSettings.of(**wanted)
    work = InvertWork(
        kernel=KernelRequest(
            kernel or [],
            kernel_options,
            checked.dimensions,
            checked.spacing,
            is_compact=checked.objective != "richardson-lucy",
            can_be_estimated=True,
        ),
        settings={name: getattr(checked, name) for name in wanted},
        files=files,
        extra=extra,
        printed=printed,
        device=device,
        large=large,
        workers=workers,
        resumes=large.resume or many.skip_existing,
        chain=chain,
    )
    jobs, left_out = lay_out(inputs, output, ending="_restored", is_quiet=printed.quiet, force=files.force)
    is_one = len(jobs) == 1
    large.check(is_possible=work.can_be_cut, is_one=is_one, force=files.force)
    continues = is_one and (large.resume or large.block_range is not None)  # pages of that run may exist
    extra.check(jobs, force=files.force or continues)
    refuse_clashes(
        jobs,
        [*options.files_read(invocation), *(kernel or []), extra.truth],
        [extra.error_map, extra.trust_mask, extra.report, many.manifest],
    )
    many.check(force=files.force)
    if not large.dry_run:
        Batch("invert", files, printed, many, workers).run(jobs, work, left_out)
    elif is_one and isinstance(found := work.read(jobs[0]), LargeInput):
        print_plan(work, jobs[0], found)
        if not printed.quiet and work.is_one_block(jobs[0], found):
            print_note(ONE_BLOCK)
    else:
        list_jobs(jobs, files, as_json=printed.as_json)


@dataclass(frozen=True, kw_only=True)
class InvertWork(InvertOptions):
    """The road of one input through `deconv invert`."""

    chain: Chain | None

    @property
    def is_alone(self) -> bool:
        """Whether code of other people runs, which may print and warn."""
        return self.chain is not None or self.kernel.word == MICROSCOPE

    @property
    def can_be_cut(self) -> bool:
        """Whether inputs that do not fit the memory are restored in blocks."""
        return self.chain is None and self.kernel.word != str(ESTIMATE)

    def for_workers(self, n_sharing: int) -> InvertWork:
        """Return the same work for workers: each has its part of the memory, and replaces outputs, but no other run."""
        memory = self.settings.get("max_memory")
        given = {} if memory is None else {"max_memory": memory // n_sharing}
        return replace(
            super().for_workers(n_sharing),
            n_sharing=n_sharing,
            settings=self.settings | given,
            workers=options.WorkOptions(),
            forgets=self.files.force or not self.resumes,
        )

    def refuse_existing(self, job: Job) -> None:
        """Refuse a job whose output exists, or blocks of it from a run that is not continued."""
        from deconv_cli.blocks.checkpoint import Checkpoint, refuse_to_forget

        super().refuse_existing(job)
        if self.can_be_cut and not (self.resumes or self.files.force):
            refuse_to_forget([job.target], Checkpoint.of(job.target))

    def read(self, job: Job) -> Source:
        """Read an input; only a corner of one that is restored in blocks."""
        from deconv_cli.blocks.block_problem import is_small
        from deconv_cli.blocks.checkpoint import has_earlier
        from deconv_cli.io.limits import allowing

        path, image = job.source, None
        continues = job.n_jobs == 1 and self.resumes and has_earlier(job.target)
        is_wanted = self.large.is_cut_anyway or continues
        with allowing(self.settings.get("max_memory")), self._explaining(path):
            if not (is_wanted or (self.can_be_cut and is_large(path))):
                image = self.files.read(path)
            if self.can_be_cut and (image is None or not is_small(image.shape, self.budget)):
                found = open_large(self, path, is_wanted=is_wanted)
                if found is not None and (self.large.dry_run or not self.is_one_block(job, found)):
                    return found
            return self.files.read(path) if image is None else image

    def is_one_block(self, job: Job, large: LargeInput) -> bool:
        """Return whether one block covers a picture that fits the memory, and no run over its blocks is unfinished."""
        from deconv_cli.blocks.checkpoint import has_earlier

        continues = self.large.resume or self.large.block_range is not None or has_earlier(job.target)
        return not continues and covers_all(self, job, large)

    def open(self) -> Process:
        """Read the kernel or the model, unless each input has its own; return the function that restores one input."""
        chain = None if self.chain is None else ChainRestoration(self.chain, self)
        if chain is None and self.kernel.word is None:
            self.kernel.load()

        def restore(job: Job, source: Source, progress: WorkProgress) -> JobResult:
            if isinstance(source, LargeInput):
                return restore_large(self, job, source, progress)
            self._note_whole(job)
            if chain is not None:
                return chain.restore(job, source, progress)
            with self._explaining(job.source):
                of_picture = self.kernel.word == str(ESTIMATE)
                kernel = self._estimate(job, source, progress) if of_picture else self.kernel.of(source)
                return restore_whole(self, kernel, job, source, progress)

        return restore

    @contextlib.contextmanager
    def _explaining(self, path: Path) -> Iterator[None]:
        """Say why an input that does not fit the memory is not restored in blocks."""
        try:
            yield
        except TooLargeError as error:
            if not self.can_be_cut:
                raise
            try:
                open_large(self, path, is_wanted=True)
            except DeconvError as refusal:
                raise TooLargeError(f"{error} It cannot be cut into blocks: {refusal}") from error
            raise

    def _note_whole(self, job: Job) -> None:
        """Note which options on blocks have no effect on an only input that is restored as a whole."""
        if self.large.resume:
            self.extra.check([job], force=self.files.force)
        if self.printed.quiet or job.n_jobs > 1:
            return
        if self.large.resume and not job.target.exists():
            print_note(f"there is no earlier run to resume for '{job.target}', so it is restored as a whole")
        if self.large.block_size is not None:
            print_note(ONE_BLOCK)
        if self.workers.are_given:
            print_note("this process alone restores a single file as a whole; other workers only help with blocks")

    def _estimate(self, job: Job, image: ImageFile, progress: WorkProgress) -> LoadedKernel:
        """Find the kernel in a picture; a sharp picture is an `UntrustworthyResultError`."""
        from deconv_cli.report.run import describe_found

        self.plan(job, image, image.values.shape[1])  # before the search
        progress.begin("finding the kernel")
        light = light_of(image, self.settings.get("light") or "auto")
        found, notes = estimate_kernel_of(image, light), search_notes(image, light)
        if not found.found:
            advice = "give the kernel with --kernel, or find a free one with deconv kernel estimate --free"
            if light.curve is None:
                advice = f"for a developed photograph add --light linear; else {advice}"
            if found.slight is not None:
                advice = f"--kernel {found.slight.text} takes it nevertheless"
            raise UntrustworthyResultError(f"'{job.source}': {describe_found(found)}; {'; '.join([*notes, advice])}.")
        return LoadedKernel.computed(found.text, found.taps(), (*notes, *notes_of(found, job.source)), estimate=found)
