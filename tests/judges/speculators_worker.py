"""Logits of speculators' PEagleDraftModel on one given layout: runs in speculators' own environment, imports none of
ours.

    python speculators_worker.py head questions.safetensors answers.safetensors

Questions: hidden_states [1,S,3H], input_ids [1,S], document_ids [1,S], anchor [N], depth [N]; the answer: logits [N,V].
Its forward draws the layout itself and gives no logits back, so the sampler is replaced by the layout and the metrics
by a function that keeps the logits. Nothing else is touched: the head comes through its own from_pretrained.
"""

from __future__ import annotations

import sys
import warnings

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from speculators.models.peagle import core  # noqa: E402
from speculators.models.peagle.config import PEagleSpeculatorConfig  # noqa: E402


def main() -> None:
    head, questions, answers = sys.argv[1:]
    batch = load_file(questions)
    layout = batch.pop("anchor"), batch.pop("depth")
    kept = {}

    def keep_logits(logits, **_):
        kept["logits"] = logits[0].contiguous()
        return torch.zeros(()), {}

    core.generate_cod_sample_indices = lambda **_: layout
    core.compute_metrics = keep_logits
    config = PEagleSpeculatorConfig.from_pretrained(head)
    config.transformer_layer_config._attn_implementation = "sdpa"  # its default, flex, is made for GPUs
    model = core.PEagleDraftModel.from_pretrained(head, config=config).eval()
    with torch.no_grad():
        model(**batch, verifier_last_hidden_states=torch.zeros(1, batch["input_ids"].shape[1], model.hidden_size))
    save_file(kept, answers)


if __name__ == "__main__":
    main()
