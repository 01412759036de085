"""The document of an exported program, read member by member as torch's own schema names them, and written anew.

`torch.export.load` evaluates some of the strings of this document: shapes as expressions, guards as code, names as
attributes to look up or as arguments of functions that it compiles. Which string is which follows from its place in the
schema and from nothing that the file says, so every member is rebuilt from the schema's types. What is only told to
people is kept where it is harmless, and left out otherwise; whatever else the schema does not know is refused.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import json
import keyword
import re
import types
import typing
from pathlib import Path
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.union import _Union

from deconv_cli.errors import MalformedInputError, UnsafeInputError

_MAX_DEPTH = 60
_MAX_EXPRESSION = 2000
_MAX_EXPONENT = 64

_NAME = re.compile(r"[\w.@$\[\]':/() ,<>-]*")
_DOTTED = re.compile(r"[\w.]*")
_VERSION = re.compile(r"[\w.+<= -]*")
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_DEVICE = re.compile(r"[a-z]+")
_LABEL = re.compile(r"[\w .:/-]*")

_NUMBER_FUNCTIONS = re.compile(
    r"torch\.(sym_(float|int|max|min|not|ite|sum)|_sym_sqrt)|math\.(floor|ceil|trunc|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_HIGHER_ORDER = {
    f"torch.ops.higher_order.{name}"
    for name in ("cond", "while_loop", "map_impl", "scan", "wrap_with_set_grad_enabled", "wrap_with_autocast")
}
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)")
_REMOTE_OPERATORS = {"save", "from_file", "to_here", "owner", "owner_name", "local_value"}

_SHAPE_FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "FloorDiv", "CeilDiv"),
    *("CleanDiv", "PythonMod", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "CeilToInt", "FloorToInt"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "GreaterThan"),
    *("StrictGreaterThan", "true", "false", "Identity", "PowByNatural", "floor", "ceiling"),
}
_SHAPE_SYMBOL = re.compile(r"z?[sufz]+\d+")
_SYMBOL_PROPERTIES = {"positive", "integer", "real", "nonnegative", "nonzero"}
_TREE_TYPES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None}
_STACK_ENTRY = re.compile(r"[^,;]*,[^,;]*,[^,;]*")


def rebuilt_program(path: Path, document: Any) -> dict[str, Any]:  # noqa: ANN401
    """Write the document of a program anew.

    Args:
        path: the file, for messages.
        document: what its JSON says.

    Raises:
        UnsafeInputError: a string that loading would evaluate is not what torch writes there.
        MalformedInputError: a member that the schema of this torch does not know.
    """
    rebuilt: dict[str, Any] = _Rebuilder(path).value(schema.ExportedProgram, document, "the program", 0)
    return rebuilt


def rebuilt_payloads(path: Path, document: Any) -> dict[str, Any]:  # noqa: ANN401
    """Write the list of a program's tensors anew.

    Raises:
        UnsafeInputError: a tensor is stored as a pickle.
        MalformedInputError: a member that the schema of this torch does not know.
    """
    rebuilt: dict[str, Any] = _Rebuilder(path).value(schema.PayloadConfig, document, "the tensors", 0)
    for name, payload in rebuilt.get("config", {}).items():
        if payload.get("use_pickle") is not False:
            raise UnsafeInputError(
                f"'{path}' holds '{shown(name)}' as a pickled payload, which would run code when opened; export the "
                "program again with dense tensors only."
            )
    return rebuilt


def shown(text: str) -> str:
    """Cut a hostile string down to something that can be shown."""
    return "".join(character if character.isprintable() else "?" for character in text)[:60]


@dataclasses.dataclass(frozen=True)
class _Rebuilder:
    path: Path

    def value(self, kind: Any, found: Any, place: str, depth: int) -> Any:  # noqa: ANN401
        """Rebuild a value of one of the schema's types; `place` is `Class.member`."""
        if depth > _MAX_DEPTH:
            raise MalformedInputError(f"'{self.path}' is damaged: its program is nested too deeply.")
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType):
            if found is None:
                return None
            (kind,) = (member for member in typing.get_args(kind) if member is not type(None))
            return self.value(kind, found, place, depth)
        if origin is list:
            (member,) = typing.get_args(kind)
            return [self.value(member, one, place, depth + 1) for one in self._of(list, found, place)]
        if origin is dict:
            return self._mapping(typing.get_args(kind)[1], found, place, depth)
        if dataclasses.is_dataclass(kind):
            return self._record(kind, found, place, depth)
        if kind is str:
            return self._text(self._of(str, found, place), place)
        if kind is float:
            # Infinity and NaN are written as strings.
            return found if found in ("Infinity", "-Infinity", "NaN") else self._of((int, float), found, place)
        if isinstance(kind, type) and issubclass(kind, enum.IntEnum):
            kind = int
        number = self._of(kind, found, place)
        if kind is int and isinstance(number, bool):
            raise self._strange(found, place)
        return number

    def _of(self, kind: Any, found: Any, place: str) -> Any:  # noqa: ANN401
        if not isinstance(found, kind):
            raise self._strange(found, place)
        return found

    def _strange(self, found: object, place: str) -> MalformedInputError:
        return MalformedInputError(
            f"'{self.path}' is damaged, or written by another version of torch than {torch.__version__}: {place} is a "
            f"{type(found).__name__}."
        )

    def _mapping(self, kind: Any, found: Any, place: str, depth: int) -> dict[str, Any]:  # noqa: ANN401
        mapping = self._of(dict, found, place)
        if place == "Node.metadata":
            return _told_to_people(mapping)
        if place in ("GraphModule.metadata", "GraphModule.treespec_namedtuple_fields"):
            return {}
        if place == "Graph.custom_obj_values" and mapping:
            raise self._unsafe("the custom object", next(iter(mapping)))
        is_known = _is_shape_expression if place == "ExportedProgram.range_constraints" else _NAME.fullmatch
        for key in mapping:
            if not is_known(self._of(str, key, place)):
                raise self._unsafe("the name", key)
        return {key: self.value(kind, member, place, depth + 1) for key, member in mapping.items()}

    def _record(self, kind: Any, found: Any, place: str, depth: int) -> dict[str, Any]:  # noqa: ANN401
        members = self._of(dict, found, place)
        hints = typing.get_type_hints(kind)
        if kind is schema.Device:
            # Everything runs on the CPU here, wherever it was exported.
            self._text(self._of(str, members.get("type"), "Device.type"), "Device.type")
            return {"type": "cpu", "index": None}
        if issubclass(kind, _Union) and len(members) != 1:
            raise self._strange(found, place)
        for name in members:
            if name not in hints:
                raise MalformedInputError(
                    f"'{self.path}' is written by a newer torch than {torch.__version__}: it has '{shown(str(name))}' "
                    f"in {place}; export it with this torch."
                )
        if {"as_custom_obj", "custom_obj"} & members.keys():
            raise self._unsafe("the custom object", str(members))
        rebuilt = {
            name: self.value(hints[name], member, f"{kind.__name__}.{name}", depth + 1)
            for name, member in members.items()
            if (kind.__name__, name) != ("ExportedProgram", "guards_code")
        }
        if kind is schema.ExportedProgram:
            # Guards are code that checks the inputs' shapes; the forward pass itself finds those that do not fit.
            rebuilt["guards_code"] = []
        return rebuilt

    def _text(self, text: str, place: str) -> str:
        problem = _problem_with(text, place)
        if problem:
            raise self._unsafe(problem, text)
        return text

    def _unsafe(self, what: str, text: str) -> UnsafeInputError:
        return UnsafeInputError(
            f"'{self.path}' is refused: {what} '{shown(text)}' is not what torch.export writes, and would be evaluated "
            "when opened; export the model again with torch.export.save."
        )


def _told_to_people(metadata: dict[str, Any]) -> dict[str, str]:
    """Keep where a node came from, its source lines and its modules: nothing of it is looked up."""
    kept = {}
    trace, modules = metadata.get("stack_trace"), metadata.get("nn_module_stack")
    if isinstance(trace, str):
        kept["stack_trace"] = "".join(c if c.isprintable() or c == "\n" else "?" for c in trace)
    if isinstance(modules, str) and all(_STACK_ENTRY.fullmatch(entry) for entry in modules.split(";")):
        kept["nn_module_stack"] = modules
    return kept


def _problem_with(text: str, place: str) -> str | None:
    """Say what is wrong with a string at a place of the schema, or None."""
    if place in ("Node.target", "Argument.as_operator"):
        return None if _is_operator(text) else "the operator"
    if place == "SymExpr.expr_str":
        return None if _is_shape_expression(text) else "the expression"
    if place in ("ModuleCallSignature.in_spec", "ModuleCallSignature.out_spec"):
        return None if _is_plain_tree(text, are_names=place.endswith("in_spec")) else "the tree"
    if place in ("Argument.as_string", "Argument.as_strings", "ConstantValue.as_string"):
        return None  # handed to an operator as it is
    if place == "ModuleCallSignature.forward_arg_names" or place.endswith(("Argument.name", "Argument.as_name")):
        return (
            None
            if _is_identifier(text) or (not text and place != "ModuleCallSignature.forward_arg_names")
            else "the name"
        )
    if place.endswith(("parameter_name", "buffer_name", "constant_name", "input_name")):
        return None if _DOTTED.fullmatch(text) else "the name"
    rules = {"PayloadMeta.path_name": _PAYLOAD, "Device.type": _DEVICE, "ExportedProgram.torch_version": _VERSION}
    return None if rules.get(place, _NAME).fullmatch(text) else "the name"


def _is_identifier(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("__")


def _is_operator(text: str) -> bool:
    """Tell operators that compute tensors and numbers from anything else that a name could reach."""
    if _NUMBER_FUNCTIONS.fullmatch(text) or text in _HIGHER_ORDER:
        return True
    parts = _OPERATOR.fullmatch(text)
    if parts is None or parts[2] in _REMOTE_OPERATORS:
        return False
    packet = getattr(getattr(torch.ops, parts[1]), parts[2], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    overload = getattr(packet, parts[3], None)
    return isinstance(overload, torch._ops.OpOverload) and all(
        "file" not in argument.name for argument in overload._schema.arguments
    )


def _is_shape_expression(text: str) -> bool:
    """Tell a formula of sizes: sums, products, small powers and comparisons of symbols and numbers."""
    if len(text) > _MAX_EXPRESSION:
        return False
    try:
        return _is_formula(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_formula(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float() as value):
            return not isinstance(value, bool) and abs(value) < 2**63
        case ast.Name():
            return node.id in _SHAPE_FUNCTIONS or bool(_SHAPE_SYMBOL.fullmatch(node.id))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return _is_formula(node.operand)
        case ast.BinOp(op=ast.Pow()):
            return _is_formula(node.left) and _is_exponent(node.right)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod()):
            return _is_formula(node.left) and _is_formula(node.right)
        case ast.Compare():
            return all(_is_formula(operand) for operand in (node.left, *node.comparators))
        case ast.Call(func=ast.Name(id="Symbol")):
            return _is_symbol(node)
        case ast.Call(func=ast.Name(id="Integer" | "Float" | "Rational")):
            return not node.keywords and all(_is_number(argument) for argument in node.args)
        case ast.Call(func=ast.Name(id="Pow" | "PowByNatural"), args=[base, exponent], keywords=[]):
            return _is_formula(base) and _is_exponent(exponent)
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return name in _SHAPE_FUNCTIONS and all(_is_formula(argument) for argument in node.args)
    return False


def _is_exponent(node: ast.expr) -> bool:
    inner = node.args[0] if isinstance(node, ast.Call) and len(node.args) == 1 else node
    inner = inner.operand if isinstance(inner, ast.UnaryOp) else inner
    return (
        isinstance(inner, ast.Constant)
        and type(inner.value) is int
        and inner.value <= _MAX_EXPONENT
        and _is_formula(node)
    )


def _is_symbol(node: ast.Call) -> bool:
    names = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]
    return (
        len(names) == 1
        and isinstance(names[0], str)
        and _is_identifier(names[0])
        and all(
            option.arg in _SYMBOL_PROPERTIES
            and isinstance(option.value, ast.Constant)
            and isinstance(option.value.value, bool)
            for option in node.keywords
        )
    )


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if not isinstance(node, ast.Constant):
        return False
    value = node.value
    return type(value) in (int, float) or (
        isinstance(value, str) and bool(re.fullmatch(r"[+-]?\d{1,20}(\.\d{1,40})?", value))
    )


def _is_plain_tree(text: str, *, are_names: bool) -> bool:
    """Tell a tree of tuples, lists and dicts; the keys of arguments become names in code that is compiled."""
    if not text:
        return True
    try:
        protocol, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    if protocol != schema.TREESPEC_VERSION:
        return False
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
            return False
        if node["type"] not in _TREE_TYPES or not isinstance(node["children_spec"], list):
            return False
        if not _is_plain_context(node["context"], are_names=are_names):
            return False
        waiting += node["children_spec"]
    return True


def _is_plain_context(context: object, *, are_names: bool) -> bool:
    if isinstance(context, str):
        try:
            context = json.loads(context)
        except (ValueError, RecursionError):
            return False
    if context is None:
        return True
    if not isinstance(context, list):
        return False
    return all(
        isinstance(key, str) and (_is_identifier(key) if are_names else bool(_LABEL.fullmatch(key))) for key in context
    )
