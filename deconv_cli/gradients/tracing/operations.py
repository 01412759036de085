"""The effect of torch's operations on a gradient, and losses that get the wrong kind of input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch.overrides import resolve_name

from deconv_cli.gradients.tracing.code_location import CodeLocation


def words(text: str) -> frozenset[str]:
    """Split names at blanks."""
    return frozenset(text.split())


COMPARISONS = words(
    "gt lt ge le eq ne greater less greater_equal less_equal not_equal isclose isnan isinf isfinite logical_and "
    "logical_or logical_not logical_xor __gt__ __lt__ __ge__ __le__ __eq__ __ne__ __and__ __or__ __xor__ "
    "__invert__ bitwise_and bitwise_or bitwise_not bitwise_xor any all signbit equal"
)

INDEX_MAKERS = words(
    "argmax argmin argsort nonzero searchsorted bucketize one_hot histc bincount multinomial count_nonzero argwhere"
)

STEPS = words("round floor ceil trunc sign sgn fix heaviside floor_divide __floordiv__ frac_")
OUTSIDE_USES = words(
    "item tolist numpy __float__ __int__ __bool__ __index__ __array__ __complex__ is_nonzero __contains__"
)

RANDOM = words(
    "rand randn randint randperm rand_like randn_like randint_like bernoulli bernoulli_ normal normal_ uniform_ "
    "exponential_ multinomial poisson dropout dropout_ feature_dropout alpha_dropout dropout1d dropout2d "
    "dropout3d feature_alpha_dropout random_ rrelu gumbel_softmax"
)

DETACHING = frozenset({"detach", "detach_"})
"""Methods whose only purpose is to detach."""

WRAPPING = frozenset({"Variable", "nn.Parameter", "torch.tensor", "torch.as_tensor"})
"""Functions that make a new leaf of the values of a tensor."""

MADE_OF_VALUES = words("torch.tensor torch.as_tensor from_numpy")
"""Functions that make a tensor of plain numbers or an array."""

PAST_AUTOGRAD = frozenset({"data", "detach"})
"""Functions that return the same memory without a history, so that autograd misses writes to it."""

FILLING = words("masked_fill masked_fill_ where fill_ index_fill index_fill_ __setitem__ full_like new_full")
"""Operations that fill in constants, such as infinity in masks of attention."""

ALONG_EDGES = words(
    "matmul rmatmul mm bmm addmm einsum spmm smm _sparse_mm sparse_mm getitem index_select gather index_add "
    "index_add_ scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ index_reduce index_reduce_"
)
"""Operations by which a graph network passes values from node to node, by bare names."""

DETACHING_INSIDE = frozenset({"gumbel_softmax"})
"""Functions of torch that call `.detach()` themselves."""

ONE_FOR_EACH = frozenset({"broadcast_tensors", "meshgrid", "align_tensors"})
"""Functions that return one tensor for each input, made of that input alone."""

LIKE_ANOTHER = frozenset({"to", "type_as", "view_as", "expand_as", "reshape_as"})
_CASTS = words("int long short byte char bool to type type_as __long__")
_SHAPE_ONLY = words(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty "
    "new_full empty_strided new_empty_strided size dim numel stride storage_offset data_ptr is_contiguous "
    "is_floating_point is_complex is_same_size element_size nelement ndimension get_device is_pinned is_cuda "
    "__len__ __repr__ __format__ __hash__ __dir__ __setstate__ __reduce_ex__ __deepcopy__ untyped_storage "
    "storage register_hook requires_grad_ retain_grad backward share_memory_ _is_view is_inference is_set_to"
)

_ATTRIBUTES_THAT_READ = words("data T mT H mH real imag")


def plain_name(function: object) -> str:
    """Return the bare name of a function of torch: `add`, `data`, `cross_entropy`."""
    if isinstance(function, torch._ops.OpOverload):
        return function.__name__.partition(".")[0]
    name = getattr(function, "__name__", str(function))
    if name in ("__get__", "__set__"):
        return str(resolve_name(function) or "").removesuffix(f".{name}").rpartition(".")[2]
    if name in ("tensor", "as_tensor"):
        return f"torch.{name}"
    return str(name)


def reads_values(function: object, name: str) -> bool:
    """Return whether a function reads the values of tensors, and not only their shape or settings."""
    if getattr(function, "__name__", "") in ("__get__", "__set__", "__delete__"):
        return name in _ATTRIBUTES_THAT_READ
    return name not in _SHAPE_ONLY


_LABELS = {
    "data": ".data",
    "__float__": "float(...)",
    "__int__": "int(...)",
    "__bool__": "a Python condition",
    "__index__": "int(...)",
    "__array__": "NumPy",
    "numpy": ".numpy()",
    "grad": "torch.autograd.grad(...)",
}
_SYMBOLS = {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!="}


def label_of(name: str, output: object = None) -> str:
    """Write an operation as code does: `.detach()`, `the comparison >`."""
    bare = name.strip("_")
    if name in _LABELS:
        return _LABELS[name]
    if bare in _SYMBOLS:
        return f"the comparison {_SYMBOLS[bare]}"
    if name in _CASTS and isinstance(output, torch.Tensor) and not output.is_floating_point():
        return f"the cast to {str(output.dtype).removeprefix('torch.')}"
    return f".{name}()" if name in ("detach", "detach_", "item", "tolist") else f"{name}(...)"


class Misuse(Enum):
    """The wrong kind of input of a loss: why it is wrong and what to write, with places for its name and shapes."""

    ONE_CLASS = (
        "there is only one class, so its probability is always 1 and the loss is constant.",
        "for two classes with one output use F.binary_cross_entropy_with_logits and targets of 0.0 and 1.0",
    )
    BROADCAST = (
        "shapes {first} and {second} broadcast, so every prediction is compared with every target.",
        "give both one shape, for instance with prediction.squeeze(-1); the value of the loss changes",
    )
    NOT_SIGNS = (
        "{name} needs targets of -1 and 1, but gets 0 and 1: targets of 0 have no effect, or count as another class.",
        "give it 2 * target - 1; the value of the loss changes",
    )
    MIXED = (
        "a view reshapes memory to {first}, so scores of several places become the classes of one place.",
        "move the axis of classes: scores.transpose(1, 2), or scores.permute(0, 2, 3, 1).reshape(-1, C)",
    )
    OTHER_AXIS = (
        "{name} takes classes along axis 1 of {first}, but the softmax was taken along another axis: the class "
        "probabilities of a sample do not add up to 1.",
        "take log_softmax(..., dim=1), or give the scores themselves to F.cross_entropy",
    )
    NOT_LOG = (
        "{name} needs logarithms of probabilities, which are never above zero, but gets other numbers.",
        "give it F.log_softmax(scores, dim=1), or give the scores themselves to F.cross_entropy",
    )
    PROBABILITIES = (
        "{name} computes probabilities itself, but already gets probabilities: this makes gradients small, and the "
        "loss cannot approach zero.",
        "give it the scores before softmax or sigmoid; the value of the loss changes",
    )


@dataclass(frozen=True)
class LossCall:
    """A loss that gets the wrong kind of input: its function, its line, and the shapes of its two tensors."""

    name: str
    location: CodeLocation
    misuse: Misuse
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


_OF_LOGITS = ("cross_entropy", "binary_cross_entropy_with_logits")
_OF_CLASSES = ("cross_entropy", "nll_loss")
_OF_LOGARITHMS = ("nll_loss", "kl_div")
_OF_DIFFERENCES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_DIFFERENCES = ("sub", "rsub", "__sub__", "__rsub__", "subtract")
_OF_SIGNS = {"cosine_embedding_loss": 2, "margin_ranking_loss": 2, "hinge_embedding_loss": 1, "soft_margin_loss": 1}
"""Losses with targets of -1 and 1, and the index of the target among their arguments."""

WATCHED = frozenset({*_OF_LOGITS, *_OF_LOGARITHMS, *_OF_DIFFERENCES, *_DIFFERENCES, *_OF_SIGNS})
"""Functions whose arguments are checked."""

_VIEWS = ("View", "Unsafe", "Squeeze", "Unsqueeze", "Transpose", "Permute", "Select", "Reshape", "TBackward", "Slice")
_MAX_VIEWS = 6
_PROBABILITIES = ("SoftmaxBackward0", "SigmoidBackward0")
_ROUNDING = 1e-4
_HALF_ROUNDING = 2e-2
"""Rounding of sums of 16-bit numbers."""


def find_misuse(name: str, arguments: Any, keywords: dict[str, Any]) -> Misuse | None:  # noqa: ANN401
    """Return the misuse of a watched function, None for a sound call."""
    if name in _OF_SIGNS:
        target = keywords["target"] if "target" in keywords else arguments[_OF_SIGNS[name]]
        return Misuse.NOT_SIGNS if bool((target == 0).any()) and bool(((target == 0) | (target == 1)).all()) else None
    tensors = [argument for argument in arguments[:2] if isinstance(argument, torch.Tensor)]
    if len(tensors) < 2 or not tensors[0].numel() or not tensors[1].numel():
        return None
    given, target = tensors
    if name in _OF_DIFFERENCES or name in _DIFFERENCES:
        return Misuse.BROADCAST if _broadcasts_by_accident(given, target) else None
    if name == "cross_entropy" and given.ndim >= 2 and given.shape[1] == 1:
        return Misuse.ONE_CLASS
    if name in _OF_CLASSES and _mixes_classes(given):
        return Misuse.MIXED
    if name in _OF_LOGITS:
        is_given = _maker(given) in _PROBABILITIES or (name == "cross_entropy" and _sums_to_one(given))
        return Misuse.PROBABILITIES if is_given else None
    if _maker(given) in _PROBABILITIES or bool((given.detach() > _ROUNDING).any()):
        return Misuse.NOT_LOG
    is_normalized = name == "nll_loss" and _maker(given) in ("LogSoftmaxBackward0", "LogBackward0")
    return Misuse.OTHER_AXIS if is_normalized and not _sums_to_one(given.exp()) else None


def _mixes_classes(given: torch.Tensor) -> bool:
    """Return whether a view reads the scores of several places as the classes of one.

    Its classes lie along axis 1 then, and their stride fits no axis of the viewed tensor.
    """
    before = getattr(given.grad_fn, "_saved_self_sym_sizes", ())
    is_view = type(given.grad_fn).__name__.startswith(("View", "UnsafeView", "Reshape"))
    if not is_view or given.ndim < 2 or given.shape[1] < 2 or given.shape[1] not in before[1:]:
        return False
    stride, size = math.prod(given.shape[2:]), math.prod(given.shape[1:])
    strides = [math.prod(before[axis + 1 :]) for axis in range(len(before))]
    return not any(stride % own == 0 and own * n % size == 0 for own, n in zip(strides, before, strict=True))


def _broadcasts_by_accident(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether a prediction (N, 1) and a target (N,) broadcast to N × N numbers."""
    if one.ndim == other.ndim or one.requires_grad == other.requires_grad:
        return False
    longer, shorter = (one, other) if one.ndim > other.ndim else (other, one)
    is_column = longer.ndim == shorter.ndim + 1 and longer.shape[-1] == 1
    return is_column and shorter.ndim >= 1 and longer.shape[:-1] == shorter.shape and shorter.shape[-1] > 1


def _maker(tensor: torch.Tensor) -> str:
    """Name the node that made the values of a tensor, behind any views."""
    node = tensor.grad_fn
    for _ in range(_MAX_VIEWS):
        is_view = node is not None and type(node).__name__.startswith(_VIEWS) and node.next_functions
        if node is None or not is_view:
            break
        node = node.next_functions[0][0]
    return type(node).__name__


def _sums_to_one(scores: torch.Tensor) -> bool:
    """Return whether the classes of every sample look like probabilities."""
    values, axis = scores.detach().double(), min(1, scores.ndim - 1)
    if values.shape[axis] < 2 or bool((values < 0).any()):
        return False
    rounding = _ROUNDING if scores.element_size() > 2 else _HALF_ROUNDING
    return bool(((values.sum(axis) - 1).abs() < rounding).all())
