"""A thresholded loss written again with a slope."""

from __future__ import annotations

import ast
import contextlib


def write_piecewise_loss(source: str) -> str:
    """Write the penalty with a slope that a thresholded loss lacks, from the comparisons of its line.

    A single comparison may count what is wrong, or what is right; both penalties are written then.
    """
    with contextlib.suppress(SyntaxError, ValueError):
        bounds = _comparisons(_parse(source))
        if bounds:
            condition = " & ".join(f"({left} {sign} {right})" for left, sign, right in bounds)
            slopes = [
                f"{left} - {right}" if sign in (">", ">=") else f"{right} - {left}" for left, sign, right in bounds
            ]
            if len(bounds) == 1:
                left, sign, right = bounds[0]
                outside = f"{right} - {left}" if sign in (">", ">=") else f"{left} - {right}"
                return (
                    f"torch.where({condition}, {slopes[0]}, 0.0).mean() if it counts what is wrong; "
                    f"torch.where({condition}, 0.0, {outside}).mean() if it counts what is right"
                )
            return f"torch.where({condition}, torch.minimum({slopes[0]}, {slopes[1]}), 0.0).mean()"
    return "torch.where((x > low) & (x < high), torch.minimum(x - low, high - x), 0.0).mean()"


def _parse(source: str) -> ast.AST:
    """Parse a line that may be the head of a block."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(f"{source.rstrip(':')}: pass" if source.endswith(":") else source + " pass")


def _comparisons(tree: ast.AST) -> list[tuple[str, str, str]]:
    signs = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<="}
    found: list[tuple[str, str, str]] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        operands = [ast.unparse(operand) for operand in (node.left, *node.comparators)]
        chain = zip(operands, node.ops, operands[1:], strict=False)
        for left, operator, right in chain:
            sign = signs.get(type(operator))
            if sign is None:
                return []
            is_flipped = left.replace(".", "").lstrip("-").isdigit()
            # The limit stands on the right, so that the slope can be read off.
            flipped = {">": "<", "<": ">", ">=": "<=", "<=": ">="}[sign]
            found.append((right, flipped, left) if is_flipped else (left, sign, right))
    names = {left for left, _, _ in found}
    return found if len(names) == 1 and len(found) <= 2 else []
