"""An exported program as a module that knows where in the original source its operations stood."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.tracing.code_location import CodeLocation, location_in_stack


class ExportedModule(nn.Module):
    """Runs an exported program node by node.

    Its parameters and buffers are those of the program; `running_location` is where the running node stood in
    the source that was exported.
    """

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__()
        self.running_location: CodeLocation | None = None
        for name, parameter in module.named_parameters():
            self._register(name, parameter)
        for name, buffer in module.named_buffers():
            self._register(name, buffer)
        # Kept out of the reach of nn.Module, which would list every parameter twice.
        self.__dict__["graph_module"] = module

    def _register(self, name: str, tensor: torch.Tensor) -> None:
        *path, last = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        """Run the program on inputs like those that it was exported with."""
        module = self.__dict__["graph_module"]
        leaves, _ = torch.utils._pytree.tree_flatten((arguments, keywords))
        output = _Walker(module, self).run(*leaves, enable_io_processing=False)
        self.running_location = None
        spec = module.graph._codegen.pytree_info.out_spec
        return output if spec is None else torch.utils._pytree.tree_unflatten(output, spec)


class _Walker(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, owner: ExportedModule) -> None:
        super().__init__(module)
        self._owner = owner

    def run_node(self, n: torch.fx.Node) -> Any:  # noqa: ANN401
        """Run one node, and note where it stood."""
        if n.op == "call_module" and n.target == "_guards_fn":
            return None
        stack = n.meta.get("nn_module_stack") or {}
        module = list(stack.values())[-1][0] if stack else ""
        location = location_in_stack(n.meta.get("stack_trace"), module)
        self._owner.running_location = location or CodeLocation(module=module)
        return super().run_node(n)
