"""List the configurations of the study on a real chat model, what each changes of smollm2.yaml, what is compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tools.ablations.contrasts import CONTRASTS as PAPER
from tools.ablations.contrasts import DEPTHS, DESIGNS, EMBEDDING, LAYERS, TABLE_9, Contrast

EAGLE3 = {
    "algorithm": "eagle3", "drafter.num_depths": 5, "drafter.retention": 1.0, "drafter.correction_rank": 0,
    "loss.depth_weights": [1.0, 0.8, 0.64, 0.512, 0.4096],
}  # fmt: skip
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "p-eagle": {},
    "eagle3": EAGLE3,
    "no-correction": {"drafter.correction_rank": 0},
    "no-correction-layers-4": {"drafter.correction_rank": 0, "drafter.num_hidden_layers": 4},
    "layers-2": {"drafter.num_hidden_layers": 2},
    "layers-4": {"drafter.num_hidden_layers": 4},
    "embedding-trained": {"drafter.train_embedding": True},
    "k-train-5": {"drafter.num_depths": 5, "loss.depth_weights": [1.0, 0.8, 0.64, 0.512, 0.41]},
    "tv-0.5": {"loss.tv": 0.5},
    "depths-alike": {"loss.depth_weights": None},
    "tv-0.5-depths-alike": {"loss.tv": 0.5, "loss.depth_weights": None},
    "design-depth-embedding": {"drafter.hidden_state_design": "depth_embedding"},
    "design-projected-ntp-depth-embedding": {"drafter.hidden_state_design": "projected_ntp_depth_embedding"},
    "design-projected-ntp": {"drafter.hidden_state_design": "projected_ntp"},
    "design-regularised-ntp": {"drafter.hidden_state_design": "regularised_ntp"},
}

BASELINE = "Against EAGLE-3, one layer each (paper: Table 9, means of three benchmarks; P-EAGLE 4 layers)"
OURS = "What this project adds to the paper"
MORE = "P-EAGLE with a correction accepts more than EAGLE-3"


def _of_paper(section: str) -> list[Contrast]:
    """Return a section's contrasts of the study on the tiny target, which hold what the paper found."""
    return [contrast for contrast in PAPER if contrast.section == section]


(EMBEDDED,) = _of_paper(EMBEDDING)
(DEEP,) = _of_paper(DEPTHS)
TWO_LAYERS, FOUR_LAYERS = _of_paper(LAYERS)

CONTRASTS = (
    Contrast(BASELINE, "p-eagle", "eagle3", "P-EAGLE with a correction", TABLE_9, expects="more", promise=MORE),
    Contrast(BASELINE, "no-correction", "eagle3", "P-EAGLE as in the paper, but 1 layer", TABLE_9),
    Contrast(BASELINE, "no-correction-layers-4", "eagle3", "P-EAGLE as in the paper, 4 layers", TABLE_9),
    Contrast(OURS, "p-eagle", "no-correction", "a correction of rank 256 instead of none"),
    Contrast(OURS, "tv-0.5", "p-eagle", "half of the loss total variation"),
    Contrast(OURS, "depths-alike", "p-eagle", "all depths weigh the same instead of 0.8^d"),
    Contrast(OURS, "tv-0.5-depths-alike", "p-eagle", "both of these together"),
    *(replace(contrast, reference="p-eagle") for contrast in _of_paper(DESIGNS)),
    replace(TWO_LAYERS, reference="p-eagle", expects="", promise=""),
    replace(FOUR_LAYERS, expects="", promise=""),
    replace(EMBEDDED, row="embedding-trained", reference="p-eagle", expects="", promise=""),
    replace(DEEP, row="p-eagle", text="K = 7 in training instead of 5"),
)

ABOUT = (
    "The target is SmolLM2-135M-Instruct, the answers its own: greedy answers to GSM8K's training questions, to "
    "docstrings of the standard library and to questions that it wrote itself (`heads/train.sh`). Held out are answers "
    "to HumanEval, MT-Bench and GSM8K's test set. Every configuration starts from nothing and sees the same rows, "
    "those of one seed in the same order. Nothing was tuned for a row. The paper's heads are of larger targets and saw "
    "thousands of times as many tokens: signs can be compared, sizes hardly."
)
