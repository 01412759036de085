"""Chains of layers in a model: chosen by their names, in the order in which they act."""

from __future__ import annotations

from torch import nn

from deconv_cli.errors import UsageError

RANGE = ".."


def choose_layers(model: nn.Module, text: str) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """Find the layers of a model that a text names.

    Args:
        model: the model.
        text: names with commas between, such as `0,1,2`, or the first and the last one, such as `conv1..layer2`: those
            two and all between them, in the order in which their module lists them. A name may lead into a module, as
            `features.0` does.

    Returns:
        The module that the layers are children of, and the layers with their names there, one at least.

    Raises:
        UsageError: a name that the model has not, an empty range, or layers of several modules.
    """
    names = [name.strip() for name in (text.split(RANGE) if RANGE in text else text.split(","))]
    parents = {name.rpartition(".")[0] for name in names}
    if (RANGE in text and len(names) != 2) or not all(names) or len(parents) != 1:
        raise UsageError(
            f"layers must be names of one module such as 0,1,2 or a range such as conv1..layer2, but is '{text}'."
        )
    parent = _parent(model, parents.pop())
    children = [child for child, _ in parent.named_children()]
    places = [_place(children, name.rpartition(".")[2], text) for name in names]
    if RANGE in text:
        places = list(range(places[0], places[1] + 1))
    if places != sorted(set(places)) or not places:
        raise UsageError(f"layers are named in the order in which they act, each once, but '{text}' is not in order.")
    listed = list(parent.named_children())
    return parent, [listed[place] for place in places]


def _parent(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise UsageError(
            f"the model has no module '{name}'; it has {_listed([name for name, _ in model.named_children()])}."
        ) from error


def _place(children: list[str], name: str, text: str) -> int:
    if name not in children:
        raise UsageError(f"there is no layer '{name}' for layers=\"{text}\", only {_listed(children)}.")
    return children.index(name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "no layers"
