"""What `deconv invert` does to each of its inputs: by one of four ways, as the kernel was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.blind_restoration import BlindRestoration, is_estimate
from deconv_cli.commands.block_restoration import BlockRestoration
from deconv_cli.commands.chain_restoration import Chain, ChainRestoration
from deconv_cli.commands.context import Context, ExtraOutputs, pick
from deconv_cli.commands.job import Finish, Job, Process, Source, Work
from deconv_cli.commands.large_files import is_large
from deconv_cli.commands.large_options import LargeOptions
from deconv_cli.commands.loaded_kernel import ESTIMATE, LoadedKernel, load_factor, load_kernels
from deconv_cli.commands.microscope_kernel import MICROSCOPE, is_microscope, load_microscope
from deconv_cli.commands.option_groups import FileOptions, KernelOptions, PrintOptions
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.restoration import Restoration
from deconv_cli.commands.settings_options import SettingValues
from deconv_cli.vocabulary import DeviceChoice

if TYPE_CHECKING:
    import torch

WORDS = (str(ESTIMATE), MICROSCOPE)
"""What `--kernel` takes for a kernel that is not given."""


@dataclass(frozen=True)
class InvertWork(Work):
    """The options of `deconv invert`.

    Attributes:
        kernels: files, formulas, or what else `--kernel` takes; none with a factor.
        kernel_options: how to read them.
        factor: the file of an inverse.
        settings: those that were typed.
        files: how to read and write.
        extra: what is written besides the estimate.
        printed: what is printed.
        chain: layers of a model.
        device: where to compute.
        first: the first input, whose axes tell what some kernels are.
        large: how inputs are cut.
        can_be_cut: whether inputs that do not fit the memory are restored in blocks.
        resumes: whether a run over blocks that ended early is gone on with.
        n_sharing: processes that share the memory.
    """

    kernels: list[Path]
    kernel_options: KernelOptions
    factor: Path | None
    settings: SettingValues
    files: FileOptions
    extra: ExtraOutputs
    printed: PrintOptions
    chain: Chain | None
    device: DeviceChoice
    first: Path
    large: LargeOptions
    can_be_cut: bool
    resumes: bool
    n_sharing: int = 1

    @property
    def is_alone(self) -> bool:  # type: ignore[override]
        """Whether code from outside runs, which may print and warn."""
        return self.chain is not None or self._is_microscope

    @property
    def _is_microscope(self) -> bool:
        return is_microscope(self.kernels, self.kernel_options)

    def read(self, path: Path) -> Source:
        """Read an input; of one that is restored in blocks no more than a corner."""
        from deconv_cli.io.limits import allowing

        with allowing(self.settings.get("max_memory")):
            return self._read(path)

    def _read(self, path: Path) -> Source:
        if not self.can_be_cut:
            return Source(self.files.read(path))
        blocks = self._in_blocks()
        is_wanted = self.large.block_size is not None
        image = None if is_wanted or is_large(path) else self.files.read(path)
        if image is None or not blocks.fits_surely(image.shape):
            found = blocks.open(path, self.kernels, self.kernel_options, is_wanted=is_wanted)
            if found is not None:
                return Source(found.corner, found)
        return Source(self.files.read(path) if image is None else image)

    @property
    def device_type(self) -> str:
        """Where the arithmetic is."""
        return pick(self.device).type

    def memory(self) -> int:
        """Give the bytes that inputs which are worked on at once may take together, as was typed."""
        return self.settings.get("max_memory") or super().memory()

    def shared_by(self, n_workers: int) -> Work:
        """Give each worker its part of the memory."""
        memory = self.settings.get("max_memory")
        given = {} if memory is None else {"max_memory": memory // n_workers}
        return replace(self, settings=self.settings | given, n_sharing=n_workers)

    def refuse_existing(self, job: Job) -> None:
        """Refuse a job whose output is there, or blocks of it which a run left that is not gone on with."""
        from deconv_cli.blocks.block_ledger import BlockLedger
        from deconv_cli.blocks.earlier_run import refuse_to_forget

        super().refuse_existing(job)
        if self.can_be_cut and not self.resumes:
            refuse_to_forget([job.target], BlockLedger.of(job.target))

    def open(self) -> Process:
        """Choose the way, and read the kernel, the model or the factor."""
        whole = self._open_whole()
        return partial(self._by_size, whole) if self.can_be_cut else whole

    def _by_size(self, whole: Process, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Restore an input as a whole; or in blocks, all of it when it is its turn to be written."""
        if source.large is None:
            return whole(job, source, progress)
        return partial(self._in_blocks().restore, job, source.large, self.extra, progress)

    def _in_blocks(self) -> BlockRestoration:
        return BlockRestoration(
            self.files, pick(self.device), self.settings, self.large, resumes=self.resumes, n_sharing=self.n_sharing
        )

    def _open_whole(self) -> Process:
        where = pick(self.device)
        if self.chain is not None:
            chain = ChainRestoration(self.chain, self.files, where, self.settings, self.printed, self.extra.page)
            return chain.restore
        if is_estimate(self.kernels, self.kernel_options):
            return BlindRestoration(self.files, where, self.settings, self.extra, self.printed).restore
        if self._is_microscope:
            return self._restore_by_optics
        context = Context("invert", self._load(where), self.files, where)
        return Restoration(context, self.settings, self.extra, self.printed).restore

    def _load(self, where: torch.device) -> LoadedKernel:
        if self.factor is not None:
            return load_factor(self.factor, where, self.settings.get("max_memory"))
        dimensions = self.settings.get("dimensions")
        return load_kernels(self.kernels, self.kernel_options, dimensions, lambda: self.read(self.first).image, WORDS)

    def _restore_by_optics(self, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Restore an input with the kernels of the optics that it names."""
        dimensions, spacing = self.settings.get("dimensions"), self.settings.get("spacing")
        is_exact = self.settings.get("method") != "richardson-lucy"
        loaded = load_microscope(str(self.kernels[0]), source.image, dimensions, spacing=spacing, is_compact=is_exact)
        context = Context("invert", loaded, self.files, pick(self.device))
        own = self.settings | {"dimensions": loaded.kernel.n_axes}
        return Restoration(context, own, self.extra, self.printed).restore(job, source, progress)
