"""An inverse as plain tensors and plain words, as it is saved."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.parts import BOUNDARIES, PENALTIES, method_names
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.choice import Choice
from deconv_cli.solvers.inverse import Factors
from deconv_cli.vocabulary import Size, check_name, check_spacing, format_padding, parse_padding

TAPS = "taps"
_FACTOR = "factor."


@dataclass(frozen=True, eq=False)
class InverseState:
    """An inverse as it is saved.

    Attributes:
        taps: of the canonical kernel, shape `(C_out, C_in, *k)`, in the dtype of the arithmetic.
        is_shared: whether they are applied to every channel alike.
        image_size: size of the images to estimate.
        settings: how the convolution is undone; `max_memory` bounds the building and is not saved.
        choice: the method, and why it was chosen.
        sigma_max: largest singular value of the symbol, if the problem needs it.
        factors: the costly tensors.
    """

    taps: Tensor
    is_shared: bool
    image_size: Size
    settings: ResolvedSettings
    choice: Choice
    sigma_max: float
    factors: Factors

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        factors = {_FACTOR + name: tensor for name, tensor in self.factors.tensors.items()}
        return {TAPS: self.taps.detach()} | factors

    def record(self) -> dict[str, Any]:
        """Write everything except the tensors as a JSON object."""
        settings = self.settings
        return {
            "image_size": list(self.image_size),
            "is_shared": self.is_shared,
            "dtype": _name(self.taps.dtype),
            "padding": format_padding(settings.padding),
            "layer": settings.layer.record(),
            "boundary": settings.boundary,
            "lambda": settings.lam,
            "penalty": settings.penalty,
            "spacing": settings.spacing and list(settings.spacing),
            "rcond": settings.rcond,
            "asked_method": settings.method,
            "tolerance": settings.tolerance,
            "max_iterations": settings.max_iterations,
            "method": self.choice.method,
            "method_reason": self.choice.reason,
            "sigma_max": self.sigma_max,
        }

    @classmethod
    def of_record(cls, record: dict[str, Any], tensors: dict[str, Tensor]) -> InverseState:
        """Read the results of `record` and `tensors`.

        Raises:
            MalformedInputError: a member is missing or invalid.
        """
        try:
            taps = tensors[TAPS]
            if taps.dtype not in (torch.float32, torch.float64) or record["dtype"] != _name(taps.dtype):
                raise MalformedInputError(f"its taps are {taps.dtype}, but its record names {record['dtype']!r}.")
            factors = {name.removeprefix(_FACTOR): t for name, t in tensors.items() if name.startswith(_FACTOR)}
            if len(factors) != len(tensors) - 1:
                raise MalformedInputError(f"it holds tensors that are not factors: {', '.join(sorted(tensors))}.")
            if record["method"] == "auto":
                raise MalformedInputError("its record does not name the chosen method.")
            if not isinstance(record["is_shared"], bool):
                raise TypeError(f"is_shared is {record['is_shared']!r}")
            image_size = tuple(_whole(n, "image_size") for n in record["image_size"])
            if len(image_size) != taps.ndim - 2 or not 1 <= len(image_size) <= 3:
                raise ValueError(f"image_size is {image_size}, and its taps have the shape {tuple(taps.shape)}")
            return cls(
                taps=taps,
                is_shared=record["is_shared"],
                image_size=image_size,
                settings=ResolvedSettings.of(
                    dimensions=len(image_size),
                    padding=parse_padding(record["padding"]),
                    **_layer(record.get("layer", {})),
                    boundary=BOUNDARIES.check(record["boundary"]),
                    lam=_number(record["lambda"], "lambda"),
                    penalty=PENALTIES.check(record["penalty"]),
                    spacing=check_spacing(record["spacing"]),
                    rcond=_optional(record["rcond"], "rcond"),
                    method=check_name(method_names(), record["asked_method"], "method"),
                    tolerance=_optional(record["tolerance"], "tolerance"),
                    max_iterations=_whole(record["max_iterations"], "max_iterations"),
                ),
                choice=Choice(check_name(method_names(), record["method"], "method"), str(record["method_reason"])),
                sigma_max=_number(record["sigma_max"], "sigma_max"),
                factors=Factors(factors),
            )
        except KeyError as error:
            raise MalformedInputError(f"it lacks its {error.args[0]!r}.") from error
        except MalformedInputError:
            raise
        except (TypeError, ValueError, AttributeError) as error:  # a UsageError of the settings is a ValueError
            raise MalformedInputError(f"its record was changed: {str(error).rstrip('.')}.") from error


def _layer(record: object) -> dict[str, Any]:
    """Read the options of a layer; older saved inverses have none."""
    names = {field.name for field in fields(LayerOptions)}
    if not isinstance(record, dict) or not record.keys() <= names:
        raise ValueError(f"layer is {record!r}")
    return record


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _whole(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}")
    return value


def _number(value: object, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def _optional(value: object, name: str) -> float | None:
    return None if value is None else _number(value, name)
