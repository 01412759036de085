"""An exported program as a module that knows where in the original source its operations stood."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.tracing.code_location import CodeLocation, location_in_stack


def with_locations(program: torch.fx.GraphModule) -> nn.Module:
    """Let a program run node by node; its `running_location` is where the running node stood in the source."""

    def forward(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401  whatever the program takes and gives
        leaves, _ = torch.utils._pytree.tree_flatten((arguments, keywords))
        output = _Walker(program).run(*leaves, enable_io_processing=False)
        vars(program)["running_location"] = None
        codegen: Any = program.graph._codegen
        spec = codegen.pytree_info.out_spec
        return output if spec is None else torch.utils._pytree.tree_unflatten(output, spec)

    vars(program).update(running_location=None, forward=forward)
    return program


class _Walker(torch.fx.Interpreter):
    def run_node(self, n: torch.fx.Node) -> Any:  # noqa: ANN401  whatever the node gives
        """Run one node, and note where it stood."""
        if n.op == "call_module" and n.target == "_guards_fn":
            return None  # it would refuse inputs of any other size
        stack = n.meta.get("nn_module_stack") or {}
        module = list(stack.values())[-1][0] if stack else ""
        found = location_in_stack(n.meta.get("stack_trace"), module)
        vars(self.module)["running_location"] = found or CodeLocation(module=module)
        return super().run_node(n)
