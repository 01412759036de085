"""What the operations of torch do to a gradient: which lose it, which only look at a shape, what to call them."""

from __future__ import annotations

import torch
from torch.overrides import resolve_name


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
"""Methods that are written to detach and for nothing else."""

WRAPPING = frozenset({"Variable", "nn.Parameter", "torch.tensor", "torch.as_tensor"})
"""What makes a new leaf of the values of a tensor."""

MADE_OF_VALUES = words("torch.tensor torch.as_tensor from_numpy")
"""What makes a tensor of plain numbers or an array."""

PAST_AUTOGRAD = frozenset({"data", "detach"})
"""What gives the same memory without a history, so that writing to it is not seen by autograd."""

FILLING = words("masked_fill masked_fill_ where fill_ index_fill index_fill_ __setitem__ full_like new_full")
"""Operations that put constants in, infinity among them, as masks of attention do."""

ALONG_EDGES = words(
    "matmul rmatmul mm bmm addmm einsum spmm smm _sparse_mm sparse_mm getitem index_select gather index_add "
    "index_add_ scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ index_reduce index_reduce_"
)
"""By which a network of a graph hands something from node to node, with bare names."""

DETACHING_INSIDE = frozenset({"gumbel_softmax"})
"""Functions of torch that call `.detach()` themselves."""

ONE_FOR_EACH = frozenset({"broadcast_tensors", "meshgrid", "align_tensors"})
"""Functions that give a tensor for each of their inputs, made of that one alone."""

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
    """Return whether a function looks at the values of tensors, and not only at their shape or their settings."""
    if getattr(function, "__name__", "") in ("__get__", "__set__", "__delete__"):
        return name in _ATTRIBUTES_THAT_READ
    return name not in _SHAPE_ONLY


def label_of(name: str, output: object = None) -> str:
    """Write an operation as code does: `.detach()`, `the comparison >`."""
    labels = {
        "data": ".data",
        "nn.Parameter": "nn.Parameter(...)",
        "Variable": "Variable(...)",
        "__float__": "float(...)",
        "__int__": "int(...)",
        "__bool__": "a Python condition",
        "__index__": "int(...)",
        "__array__": "NumPy",
        "numpy": ".numpy()",
        "grad": "torch.autograd.grad(...)",
    }
    symbols = {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!="}
    bare = name.strip("_")
    if name in labels:
        return labels[name]
    if bare in symbols:
        return f"the comparison {symbols[bare]}"
    if name.startswith("torch."):
        return f"{name}(...)"
    if name in _CASTS and isinstance(output, torch.Tensor) and not output.is_floating_point():
        return f"the cast to {str(output.dtype).removeprefix('torch.')}"
    return f".{name}()" if name in ("detach", "detach_", "item", "tolist") else f"{name}(...)"
