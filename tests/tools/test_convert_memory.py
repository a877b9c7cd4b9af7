"""A head of many shards is converted in much less memory than its size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_config

from peagle_core.tensors import expected_shapes

SHARD_BYTES = 8 << 20
# Matrices of 5 MB at most: what the process needs is a shard and a tensor, not the head.
WIDE = tiny_config(
    hidden_size=768, num_attention_heads=6, num_key_value_heads=6, head_dim=128, intermediate_size=1536,
    num_hidden_layers=12, vocab_size=1024, mask_token_id=1,
)  # fmt: skip

CHILD = """
import re, sys
from pathlib import Path
from tools.convert import run, write, __main__ as command
write.SHARD_BYTES = int(sys.argv[1])
def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = memory("VmRSS")
code = command.main([sys.argv[2], sys.argv[3], "--to", *sys.argv[4:]])
print(memory("VmHWM") - before)
sys.exit(code)
"""


def convert_in_child(source: Path, destination: Path, *options: str) -> int:
    """Bytes by which the conversion raised the process's peak memory."""
    arguments = [str(SHARD_BYTES), str(source), str(destination), *options]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_head_of_many_shards_needs_little_memory(tmp_path):
    """One large file to many shards and back, cast on the way; mapped pages of the source count too."""
    source = tmp_path / "head"
    WIDE.save_pretrained(source)
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(WIDE).items() if name != "d2t"}
    save_file(tensors, source / "model.safetensors")
    size = sum(tensor.nbytes for tensor in tensors.values())
    del tensors
    assert size > 250e6
    assert convert_in_child(source, tmp_path / "shards", "speculators") < size / 4
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 20
    assert convert_in_child(tmp_path / "shards", tmp_path / "cast", "peagle", "--dtype", "bfloat16") < size / 4
