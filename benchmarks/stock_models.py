"""Are stock architectures of torchvision and transformers, which are healthy, accused of wrong gradients?"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import deconv_cli
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Target, column, count, number, seconds, table, word
from deconv_cli.gradients.findings import GradientReport

N_STEPS = 3
BUDGET_S = 120.0

Run = tuple[nn.Module, dict[str, torch.Tensor]]
"""A model whose forward takes the tensors by name, and gives its loss or an output with `.loss`."""


class WithLoss(nn.Module):
    """A network for images with the cross-entropy of all scores that it gives, also of auxiliary heads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Give the loss."""
        output = self.network(images)
        scores = list(output.values()) if isinstance(output, dict) else output
        scores = [scores] if isinstance(scores, torch.Tensor) else [s for s in scores if s is not None]
        return torch.stack([functional.cross_entropy(s, _fitting(labels, s)) for s in scores]).sum()


class Loss(nn.Module):
    """A model of transformers, which gives its own loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Give the loss."""
        return self.model(**inputs).loss  # type: ignore[no-any-return]


def _fitting(labels: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return labels if scores.ndim == 2 else labels[:, None, None].expand(-1, *scores.shape[2:])


def vision(name: str, size: int = 64, **options: Any) -> Callable[[], Run]:  # noqa: ANN401
    """Make a network of torchvision for three images with their classes."""

    def make() -> Run:
        from torchvision import models

        network = models.get_model(name, weights=None, num_classes=7, **options)
        return WithLoss(network), {"images": torch.randn(3, 3, size, size), "labels": torch.tensor([1, 4, 6])}

    return make


def detector(name: str) -> Callable[[], Run]:
    """Make a detector of torchvision; its losses are added up."""

    class Detector(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            targets = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
            return torch.stack(list(self.network(list(images), targets).values())).sum()

    def make() -> Run:
        from torchvision import models

        sizes = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
        network = models.get_model(name, weights=None, weights_backbone=None, num_classes=4, **sizes)
        boxes = torch.tensor([[[8.0, 8, 60, 70], [20, 10, 90, 50]], [[5, 30, 50, 90], [40, 40, 90, 95]]]).repeat(
            2, 1, 1
        )
        labels = torch.tensor([[1, 2], [3, 1], [2, 2], [1, 3]])
        inputs = {"images": torch.rand(4, 3, 96, 96), "boxes": boxes, "labels": labels}
        return Detector(network), inputs

    return make


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
"""What most configurations of transformers call their sizes."""


def text(kind: str, head: str, **options: Any) -> Callable[[], Run]:  # noqa: ANN401
    """Make a language model of transformers with its own loss; `labels` are given to forward."""

    def make() -> Run:
        import transformers

        settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **(options or SMALL)}
        config = getattr(transformers, f"{kind}Config")(**settings)
        model = getattr(transformers, f"{kind}For{head}" if head != "LMHeadModel" else f"{kind}{head}")(config)
        words = torch.randint(3, 99, (3, 12))
        labels = torch.tensor([0, 1, 1]) if head == "SequenceClassification" else words
        return Loss(model.train()), {"input_ids": words, "labels": labels}

    return make


def image(kind: str, size: int = 32, **options: Any) -> Callable[[], Run]:  # noqa: ANN401
    """Make a classifier of images of transformers."""

    def make() -> Run:
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_labels=7, **options)
        model = getattr(transformers, f"{kind}ForImageClassification")(config)
        return Loss(model.train()), {"pixel_values": torch.randn(3, 3, size, size), "labels": torch.tensor([1, 4, 6])}

    return make


LAYERS = {k: v for k, v in SMALL.items() if k != "vocab_size"}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
WIDE = {"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
WIDE |= {
    f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 4), ("ffn_dim", 37))
}

VISION: dict[str, Callable[[], Run]] = {
    "alexnet": vision("alexnet"),
    "convnext_tiny": vision("convnext_tiny"),
    "deeplabv3_mobilenet": vision("deeplabv3_mobilenet_v3_large", weights_backbone=None),
    "densenet121": vision("densenet121"),
    "efficientnet_b0": vision("efficientnet_b0"),
    "fcn_resnet50": vision("fcn_resnet50", weights_backbone=None),
    "googlenet": vision("googlenet", init_weights=True),
    "inception_v3": vision("inception_v3", 96, init_weights=True, aux_logits=False),
    "lraspp_mobilenet": vision("lraspp_mobilenet_v3_large", weights_backbone=None),
    "mnasnet0_5": vision("mnasnet0_5"),
    "mobilenet_v2": vision("mobilenet_v2"),
    "mobilenet_v3_small": vision("mobilenet_v3_small"),
    "regnet_y_400mf": vision("regnet_y_400mf"),
    "resnet18": vision("resnet18"),
    "resnet50_zero_init": vision("resnet50", zero_init_residual=True),
    "resnext50": vision("resnext50_32x4d"),
    "shufflenet": vision("shufflenet_v2_x0_5"),
    "squeezenet": vision("squeezenet1_1"),
    "swin_t": vision("swin_t"),
    "swin_v2_t": vision("swin_v2_t"),
    "vgg11_bn": vision("vgg11_bn", 32),
    "vit": vision("vit_b_16", 32, image_size=32),
    "fasterrcnn_mobilenet": detector("fasterrcnn_mobilenet_v3_large_320_fpn"),
    "ssdlite": detector("ssdlite320_mobilenet_v3_large"),
}
"""Networks of torchvision."""

TRANSFORMERS: dict[str, Callable[[], Run]] = {
    "albert": text("Albert", "MaskedLM", **SMALL, embedding_size=16),
    "bart": text("Bart", "ConditionalGeneration", **WIDE),
    "bert": text("Bert", "MaskedLM"),
    "bert_classifier": text("Bert", "SequenceClassification"),
    "bloom": text("Bloom", "CausalLM", vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    "deberta_v2": text("DebertaV2", "SequenceClassification", **SMALL, relative_attention=True, pos_att_type=["p2c"]),
    "distilbert": text("DistilBert", "MaskedLM", vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=37),
    "electra": text("Electra", "MaskedLM", **SMALL, embedding_size=16),
    "falcon": text("Falcon", "CausalLM", vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "gemma": text("Gemma", "CausalLM", **GROUPED),
    "gpt2": text("GPT2", "LMHeadModel", vocab_size=99, n_embd=32, n_layer=2, n_head=4),
    "gpt_neox": text("GPTNeoX", "CausalLM"),
    "llama": text("Llama", "CausalLM", **GROUPED),
    "mamba": text("Mamba", "CausalLM", vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4),
    "mistral": text("Mistral", "CausalLM", **GROUPED),
    "mixtral": text("Mixtral", "CausalLM", **(GROUPED | {"intermediate_size": 40}), num_local_experts=8),
    "opt": text(
        "OPT", "CausalLM", vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=37
    ),
    "phi": text("Phi", "CausalLM"),
    "qwen2": text("Qwen2", "CausalLM", **{k: v for k, v in GROUPED.items() if k != "head_dim"}),
    "roberta": text("Roberta", "MaskedLM"),
    "t5": text(
        "T5",
        "ConditionalGeneration",
        vocab_size=99,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    "xlnet": text("XLNet", "SequenceClassification", vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=37),
    "beit": image("Beit", image_size=32, patch_size=8, **LAYERS),
    "convnext_v2": image("ConvNextV2", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]),
    "deit": image("DeiT", image_size=32, patch_size=8, **LAYERS),
    "swin_hf": image("Swin", image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4),
    "vit_hf": image("ViT", image_size=32, patch_size=8, **LAYERS),
}
"""Models of transformers, some of them for images."""

MODELS = VISION | TRANSFORMERS
QUICK = ["squeezenet", "gpt2"]


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    budget: dict[str, object] = {"budget": scale.pick(BUDGET_S, 5.0)}
    return [Case(name, check, {"name": name} | budget, peer_of(name)) for name in scale.pick([*MODELS], QUICK)]


def peer_of(name: str) -> str:
    """Name the library of a model."""
    return "torchvision" if name in VISION else "transformers"


def check(name: str, budget: float) -> Figures:
    """Check a model from its own initialization, and after a few training steps."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    started = time.process_time()
    model, inputs = MODELS[name]()
    at_start = deconv_cli.check_gradients(model, budget=budget, **inputs)
    train(model, inputs)
    afterwards = deconv_cli.check_gradients(model, budget=budget, **inputs)
    accused = {"at_start": _accusations(at_start), "after": _accusations(afterwards)}
    return {
        **{when: "; ".join(found) or "-" for when, found in accused.items()},
        "n_accusations": sum(len(found) for found in accused.values()),
        "n_parameters": len(at_start.parameters),
        "n_open": sum(found.is_undecided for report in (at_start, afterwards) for found in report.parameters),
        "processor_s": time.process_time() - started,
    }


def _accusations(report: GradientReport) -> list[str]:
    """List what is called a fault."""
    faults = [f"{len(fault.parameters)} {fault.verdict} ({fault.parameters[0]})" for fault in report.faults()]
    return faults + [f"{found.verdict}: {found.causes[0].location}" for found in report.general if found.is_fault]


def train(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Take a few steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        model(**inputs).backward()
        optimizer.step()


def report(outcomes: dict[str, Figures]) -> Report:
    """Count."""
    checked = [figures for figures in outcomes.values() if "failed" not in figures]
    accused = sum(bool(number(figures, "n_accusations")) for figures in checked)
    targets = [
        Target("sound architectures accused", 100 / 60, 100 * accused / len(checked) if checked else None, unit=" %"),
        Target("architectures checked", 30, len(checked) or None, is_floor=True),
    ]
    columns = [
        word("at the start", "at_start"),
        word(f"after {N_STEPS} steps", "after"),
        column("parameters", "n_parameters", count),
        column("not checked, of both", "n_open", count),
        column("processor", "processor_s", seconds),
    ]
    title = (
        "Unchanged architectures of torchvision and transformers, all healthy, so that every fault found is a false "
        f"alarm; {BUDGET_S:g} s for finite differences."
    )
    return Report("Stock architectures", targets, [table(title, "model", outcomes, columns)])
