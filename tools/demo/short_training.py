"""Train a small P-EAGLE head for three minutes, so that one sees it learn, and say what the shipped one got."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from peagle_core.cpu import fast_dtype
from peagle_core.errors import InputError
from tools.demo.serve import NAME
from trainer.config import load_config
from trainer.train.run import run_train

ANSWERS = Path(__file__).with_name("answers.jsonl")  # some of the answers that the shipped heads were trained on
SETTINGS = (
    "optim.max_steps=80",
    "optim.rows_per_step=1",
    "optim.lr=4e-3",
    "drafter.num_hidden_layers=1",
    "drafter.draft_vocab_size=4096",
    "eval.every=40",
    "eval.every_prompts=3",
    "eval.every_rows=2",
    "eval.num_prompts=6",
    "eval.max_new_tokens=32",
    "eval.num_draft_tokens=[5]",
    "log_every=4",
)


def short_training(target: Path, heads: Path, directory: Path) -> None:
    """Train in directory/training, from nothing each time. Raises InputError when it is stopped."""
    run = directory / "training"
    shutil.rmtree(run, ignore_errors=True)
    fast, _ = fast_dtype(torch.cpu.get_capabilities())
    precision = "bf16" if fast == "bfloat16" else "fp32"
    ours = [f"target={target}", f"data.train={ANSWERS}", f"output_dir={run}", f"precision={precision}"]
    config = load_config(heads / "p-eagle.yaml", [*ours, *SETTINGS])
    stopped = run_train(config)
    if stopped:
        raise InputError(f"the training was stopped by {stopped.name}; run the demo again for a new one")
    print(compared(run, heads / f"{NAME}-p-eagle"))


def compared(run: Path, head: Path) -> str:
    """Say what these minutes gave and what the shipped head has, each from the records of its own training."""
    mine, shipped = (json.loads((place / "metrics.json").read_text()) for place in (run, head))
    data = json.loads((head / "data.json").read_text())["train"]
    start = yaml.safe_load((head / "run.yaml").read_text())["drafter"]["init"]
    return (
        f"after these minutes: {_accepted(mine)}, on its held-out prompts.\n"
        f"the shipped head ({head}): {_accepted(shipped)}, after {shipped['step']} steps over"
        f" {data['tokens']:,} tokens of {data['documents']:,} answers"
        f"{f', on top of an earlier one ({start})' if start else ''} (its README.md says more)."
    )


def _accepted(metrics: dict[str, Any]) -> str:
    found = {a["num_draft_tokens"]: a["accept_length"] for a in metrics["acceptance"]}
    return f"{found[5]:.2f} tokens per target pass at K = 5, held-out loss {metrics['loss']:.2f}"
