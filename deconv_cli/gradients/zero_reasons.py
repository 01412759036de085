"""Why an operation makes a gradient zero, and what to do, by the bare name of the operation."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.gradients.cure_trial import straight_through
from deconv_cli.gradients.tracing.operations import STEPS, words

SMOOTH_UNITS = "use smooth units, such as SiLU, tanh or softplus, where the loss holds a derivative"


@dataclass(frozen=True)
class _Reason:
    """Operations that make a gradient zero for one reason; both sentences have a place for the `bare` name."""

    names: frozenset[str]
    why: str
    suggestion: str


_REASONS = (
    _Reason(
        words("ThresholdBackward"),
        "the derivative of relu is a step, so the derivative of that is zero everywhere.",
        SMOOTH_UNITS,
    ),
    _Reason(
        words("relu relu6 relu_ leaky_relu threshold clamp_min"),
        "every input of {bare} that this parameter reaches is negative: the units are dead for this data.",
        "use F.leaky_relu, or start from smaller weights and a bias that is not negative",
    ),
    _Reason(
        words("clamp clip hardtanh clamp_max hardsigmoid"),
        "every input of {bare} lies outside of its limits, where it is constant.",
        "widen the limits, or scale the input",
    ),
    _Reason(
        words("softmax log_softmax cross_entropy sigmoid tanh erf"),
        "{bare} is saturated: its inputs are so large that it no longer changes in this precision.",
        "scale the inputs of {bare} down, as by 1 / sqrt(width), or normalize them",
    ),
    _Reason(
        words("layer_norm group_norm instance_norm batch_norm"),
        "{bare} takes the mean away, and of a single number, or of equal ones, nothing is left.",
        "normalize over more than one number: look at normalized_shape, the groups and the size of the image",
    ),
    _Reason(
        words("grid_sample grid_sampler"),
        "{bare} with mode='nearest' has steps, and outside of the image nothing changes.",
        "use mode='bilinear', and begin with places between -1 and 1",
    ),
    _Reason(
        words("atan2 arctan2 norm vector_norm linalg_norm linalg_vector_norm dist cdist hypot"),
        "{bare} is taken at the origin, where it has no slope, and torch gives zero.",
        "keep its input away from the origin",
    ),
    _Reason(
        words("half bfloat16 to type"),
        "the gradient is too small for the narrow type that {bare} converts to.",
        "scale the loss, as torch.amp.GradScaler does, or stay in float32 here",
    ),
    _Reason(
        words("bernoulli poisson"),
        "{bare} draws whole numbers, through which no gradient passes.",
        "for a straight-through gradient: p + (torch.{bare}(p) - p).detach()",
    ),
    _Reason(
        words("normal"),
        "{bare} draws numbers, and gives its mean and deviation no gradient.",
        "mean + deviation * torch.randn_like(mean), or torch.distributions.Normal(...).rsample()",
    ),
    _Reason(
        words("ctc_loss"),
        "the targets of every sample are longer than its input, and zero_infinity hides that its loss is infinite.",
        "give it inputs that are longer than the targets, with a blank between equal ones, or leave the samples out",
    ),
    _Reason(
        words("scaled_dot_product_attention multi_head_attention_forward"),
        "every query sees one key or none, or all scores are so large that attention no longer changes.",
        "look at the number of keys and at attn_mask: True hides a key in nn.MultiheadAttention, and shows it in "
        "scaled_dot_product_attention",
    ),
    _Reason(
        words("embedding embedding_bag"),
        "every index is padding_idx, whose row gets no gradient.",
        "look at padding_idx, and at the indices of this batch",
    ),
    _Reason(
        words(
            "triplet_margin_loss triplet_margin_with_distance_loss margin_ranking_loss hinge_embedding_loss "
            "multi_margin_loss cosine_embedding_loss multilabel_margin_loss"
        ),
        "every sample of this batch keeps the margin, beyond which {bare} is constant.",
        "take samples that are harder to tell apart, or a larger margin",
    ),
    _Reason(words("dropout"), "dropout leaves everything out.", "give dropout a share below 1"),
    _Reason(
        words("mul __mul__ rmul multiply linear matmul addmm bmm einsum conv1d conv2d conv3d"),
        "the other factor of {bare} is zero everywhere, so that the gradient is multiplied by zero.",
        "find what makes it zero; where both factors are weights, start one of the two from random values",
    ),
)
_UNKNOWN = _Reason(
    frozenset(),
    "a gradient enters {bare} and leaves it as zero.",
    "look at the values that enter this line: it is constant around them",
)


def reason_for_zero(bare: str) -> tuple[str, str]:
    """Give the reason why an operation makes a gradient zero, and what to do."""
    if bare in STEPS:
        return f"{bare} is constant between its steps, so its derivative is zero.", straight_through(bare).text
    if bare.endswith(".apply"):
        why = f"the backward of {bare.removesuffix('.apply')} gives zero for this input."
        return why, "return the gradient for this input from backward"
    found = next((reason for reason in _REASONS if bare in reason.names), _UNKNOWN)
    return found.why.format(bare=bare), found.suggestion.format(bare=bare)
