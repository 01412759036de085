"""Files in and out. The library of a format is imported when a file of that format is met, and not before."""

from deconv_cli.io.codec import Codec, PictureCodec, StoredImage, WriteRequest
from deconv_cli.io.files import fingerprint
from deconv_cli.io.image import ImageFile, read_image
from deconv_cli.io.metadata import Metadata, PixelDensity
from deconv_cli.io.output import OutputPlan, PreparedOutput, plan_output
from deconv_cli.io.tensors import TensorCodec, TensorFile

__all__ = [
    "Codec",
    "ImageFile",
    "Metadata",
    "OutputPlan",
    "PictureCodec",
    "PixelDensity",
    "PreparedOutput",
    "StoredImage",
    "TensorCodec",
    "TensorFile",
    "WriteRequest",
    "fingerprint",
    "plan_output",
    "read_image",
]
