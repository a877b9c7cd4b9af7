"""SGLang's own EAGLE3 serves what `algorithm: eagle3` trains: the baseline of PEAGLE, on the CPU reference platform.

Its class does not say when it reads a head wrongly, it only drafts badly. So what counts is acceptance: that of the
reference loop, on texts that the head knows by heart.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from byte_models import AUX_IDS
from prompts import LENGTH, TRAINED, mixed_prompts
from servers import beyond, serve
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from tools.bench.serve.metrics import acceptance
from tools.server import ask_all
from trainer.config import load_config
from trainer.evaluation.evaluate import measure_acceptance
from trainer.train.run import run_train

pytestmark = pytest.mark.slow
K = 4
HEADS = {
    "a draft vocabulary": ["drafter.draft_vocab_size=130"],
    "two layers, fc_norm": ["drafter.num_hidden_layers=2", "drafter.fc_norm=true"],
}


def train_head(target: Path, texts: list[list[int]], directory: Path, *settings: str) -> Path:
    """By the trainer's command, until it knows the texts, prompts of TRAINED and their continuations."""
    data = directory / "texts.jsonl"
    directory.mkdir()
    documents = [
        {"input_ids": prompt + text, "loss_mask": [0] * len(prompt) + [1] * len(text)}
        for prompt, text in zip(TRAINED, texts, strict=True)
    ]
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    ids = ",".join(map(str, AUX_IDS))
    options = [
        f"target={target}", f"data.train={data}", f"data.heldout={data}", f"output_dir={directory / 'run'}",
        "algorithm=eagle3", "data.max_length=80", "data.row_length=320", f"drafter.num_depths={K}",
        f"drafter.aux_layer_ids=[{ids}]", "optim.max_steps=200", "optim.rows_per_step=1", "optim.lr=3e-3",
        "optim.warmup_ratio=0.1", "head_dtype=float32", "eval.num_prompts=0", "device=cpu", *settings,
    ]  # fmt: skip
    assert run_train(load_config(None, options)) is None
    return directory / "run" / "head"


@pytest.mark.parametrize("name", beyond(HEADS, "two layers, fc_norm"))
def test_it_accepts_what_the_reference_loop_accepts(models, expected, tmp_path, name):
    head = train_head(models / "target", [expected[tuple(p)] for p in TRAINED], tmp_path / "head", *HEADS[name])
    arguments = ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(head)]
    arguments += ["--speculative-num-steps", str(K), "--speculative-eagle-topk", "1"]
    arguments += ["--speculative-num-draft-tokens", str(K + 1)]
    with serve(models / "target", tmp_path / "log", *arguments) as server:
        for concurrency in (1, 4):
            answers = ask_all(server, mixed_prompts(), LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
    target, drafter = LlamaForCausalLM.from_pretrained(models / "target").eval(), load_drafter(head, torch.float32)
    ours = measure_acceptance(target, drafter, [torch.tensor(p) for p in mixed_prompts()], K, LENGTH)
    histograms = [answer["meta_info"]["spec_correct_drafts_histogram"] for answer in answers]
    assert acceptance(histograms, K)[0] == pytest.approx(ours.accept_length, rel=0.02)
    known = measure_acceptance(target, drafter, [torch.tensor(p) for p in TRAINED], K, LENGTH)
    assert known.accept_length > 1 + 0.6 * K, "else the comparison says little"
