"""List the configurations, what each changes of base.yaml, which are compared, and what the paper found there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

# Configuration -> what it changes of base.yaml.
EAGLE3 = {"algorithm": "eagle3", "drafter.num_depths": 5, "drafter.retention": 1.0, "drafter.train_embedding": False}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "layers-1": {},
    "layers-2": {"drafter.num_hidden_layers": 2},
    "layers-4": {"drafter.num_hidden_layers": 4},
    "design-depth-embedding": {"drafter.num_hidden_layers": 4, "drafter.hidden_state_design": "depth_embedding"},
    "design-projected-ntp-depth-embedding": {
        "drafter.num_hidden_layers": 4, "drafter.hidden_state_design": "projected_ntp_depth_embedding",
    },
    "design-projected-ntp": {"drafter.num_hidden_layers": 4, "drafter.hidden_state_design": "projected_ntp"},
    "design-regularised-ntp": {"drafter.num_hidden_layers": 4, "drafter.hidden_state_design": "regularised_ntp"},
    "embedding-frozen": {"drafter.train_embedding": False},
    "k-train-5": {"drafter.num_depths": 5},
    "context-96": {"data.max_length": 96},
    "eagle3": EAGLE3,
    "eagle3-matched": {**EAGLE3, "optim.lr": 0.008},
    "layers-4-matched": {
        "drafter.num_hidden_layers": 4, "drafter.num_depths": 5, "optim.lr": 0.008,
        "loss.depth_weights": [1.0, 0.8, 0.64, 0.512, 0.4096],
    },
    "retention-0.5": {"drafter.retention": 0.5},
    "retention-1.0": {"drafter.retention": 1.0},
    "loss-ce": {"loss.kind": "ce"},
    "depth-weights": {"loss.depth_weights": [1.0, 0.8, 0.64, 0.512, 0.4096, 0.32768, 0.262144, 0.2097152]},
    "retention-0.5-min-0.2": {"drafter.retention": 0.5, "drafter.retention_min": 0.2},
    "unpacked": {"data.row_length": 192, "optim.rows_per_step": 4},
    "stream": {"mode": "stream"},
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Hold acceptance lengths of the paper at speculation length 5.

    benchmark: its name, or the target where the lengths are means over several benchmarks. printed: the paper's own
    percentage, where its lengths are rounded too far to give it.
    """

    benchmark: str
    accept_length: float
    reference: float
    printed: float | None = None

    @property
    def percent(self) -> float:
        return 100 * (self.accept_length / self.reference - 1) if self.printed is None else self.printed


@dataclass(frozen=True)
class Contrast:
    """Compare configuration `row` with `reference`, in one section of the page.

    text: what row has and reference has not. promise: a sentence of this project's aims that the contrast helps to
    decide. expects: the result that confirms it ("not more" and "not less" allow a tie). Both are empty where nothing
    was promised.
    """

    section: str
    row: str
    reference: str
    text: str
    published: tuple[Published, ...] = ()
    expects: Literal["", "more", "not more", "not less", "same"] = ""
    promise: str = ""


DESIGNS = "Hidden state of mask rows (paper: Table 3, GPT-OSS 20B, 4 layers)"
LAYERS = "Layers (paper: Table 4, LLaMA 3.1 8B)"
EMBEDDING = "Embedding (paper: Table 5, LLaMA 3.1 8B, 1 layer)"
DEPTHS = "Trained depths (paper: Table 6, LLaMA 3.1 8B, 1 layer)"
CONTEXT = "Context length (paper: Table 8, LLaMA 3.1 8B, 1 layer, 512 against 2048 tokens)"
BASELINE = (
    "Against EAGLE-3, which is autoregressive (paper: Table 9, means of three benchmarks; EAGLE-3 1 layer, P-EAGLE 4)"
)
MATCHED = (
    "Against EAGLE-3 again, both with five trained depths, the weights 0.8^d and the best of three learning rates "
    "(0.004, 0.008, 0.016; 0.008 for both)"
)
SAMPLING = "Conditional drop (1 layer)"
LOSS = "Loss (1 layer)"
SAME = "Two ways to the same head (1 layer)"

SHARED = "the shared hidden state beats or ties its four alternatives"
DEEPER = "4 layers beat 2 beat 1"
TRAINABLE = "a trainable embedding beats a frozen one"
EQUAL = "P-EAGLE (4 layers) accepts at least as much as EAGLE-3 (1 layer)"
EQUAL_MATCHED = "the same where both train five depths with the weights 0.8^d at the best of three learning rates"
UNCHANGED = "with r_min, packing and streaming on and off the head is the same within noise"

TABLE_9 = (
    Published("GPT-OSS 120B", 3.3, 3.1, 4.5),
    Published("GPT-OSS 20B", 3.7, 3.7, 2.5),
    Published("Qwen3-Coder 30B", 3.6, 3.5, 2.0),
)

CONTRASTS = (
    Contrast(
        DESIGNS, "design-depth-embedding", "layers-4", "plus a depth embedding",
        (Published("HumanEval", 2.85, 3.16),), expects="not more", promise=SHARED,
    ),
    Contrast(
        DESIGNS, "design-projected-ntp-depth-embedding", "layers-4", "plus projected NTP state and depth embedding",
        (Published("HumanEval", 2.68, 3.16),), expects="not more", promise=SHARED,
    ),
    Contrast(
        DESIGNS, "design-projected-ntp", "layers-4", "plus the projected NTP state",
        (Published("HumanEval", 2.81, 3.16),), expects="not more", promise=SHARED,
    ),
    Contrast(
        DESIGNS, "design-regularised-ntp", "layers-4", "plus the projected NTP state, scaled and with dropout",
        (Published("HumanEval", 2.94, 3.16),), expects="not more", promise=SHARED,
    ),
    Contrast(
        LAYERS, "layers-2", "layers-1", "2 layers instead of 1",
        (Published("HumanEval", 3.58, 2.69), Published("MT-Bench", 2.76, 2.41)), expects="more", promise=DEEPER,
    ),
    Contrast(
        LAYERS, "layers-4", "layers-2", "4 layers instead of 2",
        (Published("HumanEval", 3.92, 3.58), Published("MT-Bench", 3.04, 2.76)), expects="more", promise=DEEPER,
    ),
    Contrast(
        EMBEDDING, "layers-1", "embedding-frozen", "trainable instead of frozen",
        (Published("HumanEval", 2.69, 2.56), Published("MT-Bench", 2.41, 2.29)), expects="more", promise=TRAINABLE,
    ),
    Contrast(
        DEPTHS, "layers-1", "k-train-5", "K = 8 in training instead of 5",
        (Published("HumanEval", 2.51, 2.41), Published("MT-Bench", 2.26, 2.20)),
    ),
    Contrast(
        CONTEXT, "layers-1", "context-96", "documents of 192 tokens instead of 96",
        (Published("HumanEval", 2.56, 2.51), Published("MT-Bench", 2.29, 2.26)),
    ),
    Contrast(
        BASELINE, "layers-4", "eagle3", "P-EAGLE with 4 layers instead of EAGLE-3 with 1",
        TABLE_9, expects="not less", promise=EQUAL,
    ),
    Contrast(
        MATCHED, "layers-4-matched", "eagle3-matched", "P-EAGLE with 4 layers instead of EAGLE-3 with 1",
        TABLE_9, expects="not less", promise=EQUAL_MATCHED,
    ),
    Contrast(SAMPLING, "retention-0.5", "layers-1", "r = 0.5 instead of 0.8"),
    Contrast(SAMPLING, "retention-1.0", "layers-1", "r = 1 instead of 0.8"),
    Contrast(LOSS, "loss-ce", "layers-1", "cross entropy instead of KL"),
    Contrast(LOSS, "depth-weights", "layers-1", "depth d weighs 0.8^d instead of 1"),
    Contrast(  # at r = 0.8 the deepest of 8 depths keeps 0.21, and 0.2 would change nothing
        SAME, "retention-0.5-min-0.2", "retention-0.5", "r_min = 0.2 instead of 0, at r = 0.5",
        expects="same", promise=UNCHANGED,
    ),
    Contrast(SAME, "unpacked", "layers-1", "rows of one document instead of four", expects="same", promise=UNCHANGED),
    Contrast(SAME, "stream", "layers-1", "mode stream instead of flat", expects="same", promise=UNCHANGED),
)  # fmt: skip

ABOUT = (
    "Target and data are the tiny ones (`python -m tools.tiny_target`): a Llama of 8 layers and width 128, trained on "
    "the character tables of Python's standard library, and its own greedy text. The paper's are large models on "
    "HumanEval and MT-Bench: signs can be compared, sizes hardly. A run has as many steps and tokens as the tiny "
    "target's own heads get, and is short enough for all of it to take about an hour on two cores: one pass over the "
    "generations, or two where documents are cut at half their length. Nothing was tuned for a row but the learning "
    "rate of the two that say so."
)


def configurations(contrasts: tuple[Contrast, ...]) -> list[str]:
    """Return every name that a contrast needs, references first within each, in the order of the page."""
    return list(dict.fromkeys(name for c in contrasts for name in (c.reference, c.row)))
