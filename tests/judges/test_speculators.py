"""speculators 0.9.0 as a judge: its PEagleDraftModel loads our converted head and computes our logits on one layout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_batch, tiny_config, tiny_drafter, tiny_target
from trials import convert

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.cod import sample_elements
from peagle_core.elements import Elements
from peagle_core.training import Batch, forward_elements
from tools.judges import speculators

pytestmark = [
    pytest.mark.judge,
    pytest.mark.slow,
    pytest.mark.skipif(not speculators.is_installed(), reason="`make test-speculators` installs it"),
]
NUM_DEPTHS = 5
HEADS = {
    "two layers": {},
    "four layers": {"num_hidden_layers": 4},
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm": {"fc_norm": True},
    "draft vocabulary": {"draft_vocab_size": 20},
    "q/k norms": {"qk_norm": True},
}


@pytest.mark.parametrize("name", HEADS)
def test_logits(tmp_path, name):
    target, flat, nested = (tmp_path / kind for kind in ("target", "flat", "speculators"))
    tiny_target(dtype=torch.float32).save_pretrained(target)  # its loader wants one, whatever the head brings itself
    config = tiny_config(target=str(target), **HEADS[name])
    save_drafter(tiny_drafter(config, dtype=torch.float32, scale=1.5), flat, torch.float32)
    convert(flat, nested, "--target", str(target))
    doc_ids = torch.tensor([0] * 40 + [1] * 25)
    batch, _ = random_batch(config, torch.ones(65).bool(), doc_ids, dtype=torch.float32)
    elements = sample_elements(batch.loss_mask, doc_ids, NUM_DEPTHS, 0.8).order("anchor")
    assert elements.depth.max() == NUM_DEPTHS - 1
    drafter, depth_major = load_drafter(flat), elements.argsort("depth")
    with torch.no_grad():
        ours = drafter.logits(forward_elements(drafter, batch, elements))[depth_major]
    theirs = logits_of_speculators(nested, batch, elements[depth_major], tmp_path)
    assert ours.std() > 0.1, "logits that are all alike would agree by themselves"
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def logits_of_speculators(head: Path, batch: Batch, elements: Elements, scratch: Path) -> torch.Tensor:
    """[N, V_d]. Its arrays are shifted as our slots are: slot i holds token i+1 and the state of token i."""
    questions, answers = scratch / "questions.safetensors", scratch / "answers.safetensors"
    tensors = {
        "hidden_states": batch.aux[None, :-1],
        "input_ids": batch.input_ids[None, 1:],
        "document_ids": batch.doc_ids[None, :-1],
        "anchor": elements.anchor,
        "depth": elements.depth,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, questions)
    command = [str(speculators.python()), str(Path(__file__).with_name("speculators_worker.py"))]
    done = subprocess.run(
        [*command, str(head), str(questions), str(answers)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(answers)["logits"]
