"""safetensors, read by parts: a tensor of a file is never in memory as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deconv_cli.io import records
from deconv_cli.io.codec import Array
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS, opened_safetensors
from deconv_cli.io.regions.region_source import Region, RegionSource, fingerprint_of_file
from deconv_cli.io.regions.region_target import RegionFormat
from deconv_cli.io.samples import dtype_name
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.tensors import choose_tensor


@dataclass(frozen=True, eq=False)
class SafetensorsSource(RegionSource):
    """One tensor of a file."""

    name: str = ""

    def read(self, region: Region) -> Array:
        """Read a part."""
        with refusing_damage(self.path, f"a {SAFETENSORS.name} file"), opened_safetensors(self.path) as opened:
            found: Array = opened.get_slice(self.name)[region].numpy()
            return found.copy()

    def fingerprint(self) -> str:
        """Hash what the header says, with size and time of the file."""
        return fingerprint_of_file(self.path, self.shape, self.dtype, self.axes, self.name)


class SafetensorsRegions(RegionFormat):
    """Tensors of any size; parts of one cannot be written."""

    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Open a tensor by its name, or the only one."""
        with refusing_damage(path, f"a {SAFETENSORS.name} file"):
            listed = SAFETENSORS.list_header(path)
            name = choose_tensor(listed, member)
            shape = listed.shapes[name]
            with opened_safetensors(path) as opened:
                dtype = dtype_name(opened.get_slice(name)[tuple(slice(0, 0) for _ in shape)])
        record = records.matching_record(listed.record, shape)
        return SafetensorsSource(
            path=path,
            format_name=SAFETENSORS.name,
            shape=shape,
            dtype=dtype,
            axes=records.recorded_axes(record),
            chunk=tuple(size if i == len(shape) - 1 else 1 for i, size in enumerate(shape)),
            is_picture=SAFETENSORS.is_picture,
            record=record,
            name=name,
        )


SAFETENSORS_REGIONS = SafetensorsRegions()
