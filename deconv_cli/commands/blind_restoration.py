"""Pictures restored with kernels that are found in them: `deconv invert --kernel estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.context import Context, ExtraOutputs
from deconv_cli.commands.job import Finish, Job, Source
from deconv_cli.commands.kernel_commands import close_rival, estimate_kernel_of, light_of
from deconv_cli.commands.loaded_kernel import ESTIMATE, LoadedKernel
from deconv_cli.commands.option_groups import FileOptions, KernelOptions, PrintOptions
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.restoration import Restoration
from deconv_cli.commands.settings_options import SettingValues
from deconv_cli.errors import UntrustworthyResultError, UsageError
from deconv_cli.vocabulary import Convention

if TYPE_CHECKING:
    import torch

    from deconv_cli.kernels.blind.estimate import KernelEstimate


def is_estimate(kernels: list[Path], options: KernelOptions) -> bool:
    """Tell whether the kernel is to be found in the picture; a file of that name goes before.

    Raises:
        UsageError: there are other kernels too, or options that read one.
    """
    if ESTIMATE not in kernels or ESTIMATE.exists():
        return False
    given = [name for name, value in options.as_options().items() if value is not None]
    if len(kernels) > 1 or given:
        other = given[0] if given else f"--kernel {next((k for k in kernels if k != ESTIMATE), ESTIMATE)}"
        raise UsageError(
            f"--kernel estimate finds the kernel in the picture, so that {other} is of no use; leave it out."
        )
    return True


class BlindRestoration:
    """Restores one picture after another, each with the kernel that is found in it.

    Args:
        files: how to read and write.
        device: where to compute.
        settings: those that were typed.
        extra: what is written besides the estimate.
        printed: what is printed.
    """

    def __init__(
        self,
        files: FileOptions,
        device: torch.device,
        settings: SettingValues,
        extra: ExtraOutputs,
        printed: PrintOptions,
    ) -> None:
        self._files = files
        self._device = device
        self._settings = settings
        self._extra = extra
        self._printed = printed

    def restore(self, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Find the kernel of one picture, and restore it.

        Raises:
            UntrustworthyResultError: the picture is not blurred, as far as can be told.
        """
        from deconv_cli.report.run_record import describe_found

        progress.begin("finding the kernel")
        light = light_of(source.image, self._settings.get("light") or "auto")
        found = estimate_kernel_of(source.image, light)
        if not found.found:
            slight = found.slight
            advice = "find a kernel of free form with deconv kernel estimate --free, or give one with --kernel"
            if slight is not None:
                advice = f"give it with --kernel {slight.text}"
            raise UntrustworthyResultError(
                f"there is nothing to undo in '{job.source}': {describe_found(found)}; if it is blurred all the same, "
                f"{advice}."
            )
        context = Context("invert", _loaded(found), self._files, self._device)
        return Restoration(context, self._settings, self._extra, self._printed).restore(job, source, progress)


def _loaded(found: KernelEstimate) -> LoadedKernel:
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.report.run import KernelInput
    from deconv_cli.report.run_record import describe_found

    taps = found.taps()
    source = KernelInput(
        Kernel.from_tensor(taps), found.text, Convention.CORRELATION, None, None, has_bias=False, estimate=found
    )
    notes = [f"the kernel was found in the picture: {describe_found(found)}"]
    if found.doubt is not None:
        notes.append(found.doubt)
    rival = close_rival(found)
    if rival is not None:
        notes.append(f"{rival} explains the picture about as well; compare what --kernel {rival} gives")
    return LoadedKernel(source, taps, None, tuple(notes), {"--kernel": found.text})
