"""Conversions of a head with a correction: our own format alone has a place for it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config
from tiny_heads import write_flat

from peagle_core.tensors import weight_files
from tools.convert.__main__ import main


@pytest.mark.parametrize("to", ["peagle", "vllm", "speculators"])
def test_only_our_own_format_has_a_place_for_a_correction(tmp_path, capsys, to):
    head = write_flat(tmp_path / "head", tiny_config(draft_vocab_size=20, correction_rank=3))
    result = tmp_path / "result"
    assert main([str(head), str(result), "--to", to, "--check"]) == 0
    said = capsys.readouterr()
    assert "largest difference of logits 0 " in said.out
    before, after = ({k: v for f in weight_files(d) for k, v in load_file(f).items()} for d in (head, result))
    if to == "peagle":
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert sum("correction" in name for name in after) == 2
    else:
        assert not [name for name in after if "correction" in name]
        assert "correction" not in (result / "config.json").read_text()
        assert said.err.count("correction of rank 3 is left out, as vLLM does not read it") == 1
