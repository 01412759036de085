"""Building a model from the class that the user named."""

from __future__ import annotations

from typing import Any

from torch import nn

from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.io.allocation_limit import AllocationLimit
from deconv_cli.io.sources import reason_of
from deconv_cli.models.model_files import ModelFile
from deconv_cli.models.named_code import NamedCode
from deconv_cli.models.state_dicts import load_into


def build_model(named: NamedCode, init: Any, stored: ModelFile | None) -> nn.Module:  # noqa: ANN401 (JSON)
    """Call the class or function that the user named, or take the instance, and load the weights of a file.

    Keyword arguments are a mapping, positional ones a list. Without a file the weights stay as they are made.

    Raises:
        UsageError: the call fails, or gives no module.
        TooLargeError: its layers would take more than half of the memory.
        InputRefusedError: the weights do not fit the module.
    """
    model = named.value if isinstance(named.value, nn.Module) else _call(named, init)
    if model is named.value and init is not None:
        raise UsageError(f"'{named.text}' is a model already, which takes no arguments; leave out init=ARGUMENTS.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"'{named.text}' should give a torch.nn.Module, but gave a {type(model).__name__}.")
    if stored is not None and stored.state is not None:
        load_into(model, stored.path, stored.state)
    return model


def _call(named: NamedCode, init: Any) -> object:  # noqa: ANN401 (JSON)
    arguments, keywords = (init, {}) if isinstance(init, list) else ([], init or {})
    try:
        with AllocationLimit(named.text):
            return named.value(*arguments, **keywords)
    except DeconvError:
        raise
    except Exception as error:
        raise UsageError(
            f"'{named.text}' could not be built ({type(error).__name__}: {reason_of(error)}); give the arguments of "
            "its class with init=ARGUMENTS."
        ) from error
