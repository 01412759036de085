"""Whether gradients vanish or explode on their way through the layers, and where."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from torch import nn

from deconv_cli.gradients.backward import Backward
from deconv_cli.gradients.tracing import Node, Trace
from deconv_cli.gradients.verdicts import Cause, ParameterFinding, Place, Verdict

_COLLAPSE = 1e-6
"""A ratio of gradient to weight so many times smaller than that of the layer next to the loss has vanished."""


def judge_magnitudes(
    findings: dict[str, ParameterFinding], parameters: dict[str, nn.Parameter], backward: Backward, trace: Trace
) -> None:
    """Turn the verdict OK of weights into VANISHING or EXPLODING where ‖gradient‖ / ‖weight‖ collapses or bursts.

    The ratio is compared with that of the layer nearest to the loss, never with a fixed number: a small loss has small
    gradients everywhere and is no fault.
    """
    depths = _depths(trace.loss.grad_fn)
    layers: list[tuple[int, str, float]] = []
    for name, parameter in parameters.items():
        finding, leaf = findings[name], backward.leaf_of.get(id(parameter))
        is_sound = finding.verdict in (Verdict.OK, Verdict.KINK, Verdict.NOT_CHECKED)
        if parameter.ndim >= 2 and leaf in depths and is_sound and finding.ratio:
            layers.append((depths[leaf], name, finding.ratio))
    if len(layers) < 2:
        return
    layers.sort()
    reference = layers[0][2]
    steps = [(later[2] / earlier[2], earlier[1], later[1]) for earlier, later in pairwise(layers)]
    for verdict, (factor, near, far) in ((Verdict.VANISHING, min(steps)), (Verdict.EXPLODING, max(steps))):
        place = trace.last_use.get(trace.bit(far)) or Place()
        cause = _cause(verdict, factor, near, far, place)
        for _, name, ratio in layers:
            relative = ratio / reference
            if relative < _COLLAPSE if verdict is Verdict.VANISHING else relative > 1 / _COLLAPSE:
                findings[name].verdict, findings[name].causes = verdict, (cause,)
                findings[name].detail = f"‖gradient‖ / ‖weight‖ is {ratio:.2g}, next to the loss it is {reference:.2g}"


def _cause(verdict: Verdict, factor: float, near: str, far: str, place: Place) -> Cause:
    if verdict is Verdict.VANISHING:
        why = f"the gradient fades on its way back; the largest fall, by {1 / factor:.2g}, is from '{near}' to '{far}'."
        remedy = "use ReLU-like units, residual connections or normalization between the layers"
    else:
        why = f"the gradient grows on its way back; the largest rise, by {factor:.2g}, is from '{near}' to '{far}'."
        remedy = "start from smaller (orthogonal) weights, or clip with torch.nn.utils.clip_grad_norm_"
    return Cause(f"the way back to '{far}'", place, why, remedy)


def _depths(start: Node) -> dict[Node, int]:
    depths, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for child, _ in node.next_functions:
            if child is not None and child not in depths:
                depths[child] = depths[node] + 1
                waiting.append(child)
    return depths
