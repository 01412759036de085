"""Files in and out. Codecs are imported when a file of their format is met, and not before."""

from deconv_cli.io.image import ImageFile, read_image
from deconv_cli.io.output import OutputPlan, plan_output
from deconv_cli.io.prepared import PreparedOutput
from deconv_cli.io.sources import fingerprint

__all__ = [
    "ImageFile",
    "OutputPlan",
    "PreparedOutput",
    "fingerprint",
    "plan_output",
    "read_image",
]
