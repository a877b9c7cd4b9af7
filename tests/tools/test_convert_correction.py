"""Conversions of a head with a correction: our own format alone has a place for it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config, tiny_drafter, tiny_target
from tiny_heads import write_flat

from peagle_core.checkpoint import save_drafter
from peagle_core.correction import Told
from peagle_core.generate import speculate
from peagle_core.tensors import weight_files
from peagle_core.told import TOKENS
from tools.convert import correction_cost
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
        assert sum("correction" in name for name in after) == 7
    else:
        assert not [name for name in after if "correction" in name]
        assert "correction" not in (result / "config.json").read_text()
        assert said.err.count("correction of rank 3 is left out, as vLLM does not read it") == 1


@pytest.fixture
def target(tmp_path):
    model = tiny_target(dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "target")
    return model


def test_with_the_target_at_hand_its_cost_is_measured(tmp_path, target, capsys, monkeypatch):
    """A correction that knows by heart which token this target said last after each other one."""
    monkeypatch.setattr(correction_cost, "NEW_TOKENS", 16)
    vocab = tiny_config().vocab_size
    drafter = tiny_drafter(tiny_config(correction_rank=vocab, num_depths=3)).float()
    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, vocab, (16,), generator=rng) for _ in range(4)]

    def loop() -> list:
        return [speculate(target, drafter, prompt, 3, 16) for prompt in prompts]

    said_after = torch.zeros(vocab, vocab)  # [token, the next one]
    for answer in loop():
        for before, after in pairwise(answer.output_ids):
            said_after[before] = torch.eye(vocab)[after]
    own, width = drafter.correction, drafter.config.hidden_size
    with torch.no_grad():
        for projection in (own.gate_proj, own.up_proj):  # of the newest token alone
            projection.weight[:, :width] = projection.weight[:, 2 * width :] = 0
        for of_matches in (own.match_embed.weight, own.copy_weight, own.copy_bias):
            of_matches.zero_()
        nothing, none = torch.zeros(vocab, TOKENS - 1, width), torch.zeros(vocab, dtype=torch.int64)
        newest = Told(torch.cat([drafter.embed_tokens.weight[:, None], nothing], 1), none, none, none)
        features = own.features(torch.zeros(vocab, width), newest)
        own.lm_head.weight.copy_(torch.linalg.solve(features.double(), 1000 * said_after.double()).T)
    save_drafter(drafter, tmp_path / "head", torch.float32)
    places = [str(tmp_path / name) for name in ("head", "new", "target")]
    assert main([places[0], places[1], "--to", "vllm", "--target", places[2]]) == 0
    said = capsys.readouterr().out
    told = re.search(r"K = 3, 4 short texts x 16 tokens: acceptance length (\S+) with .*, (\S+) without", said)
    expected = []
    for correction in (drafter.correction, None):
        drafter.correction = correction
        steps = [length for answer in loop() for length in answer.accept_lengths]
        expected.append(f"{sum(steps) / len(steps):.2f}")
    assert list(told.groups()) == expected
    assert float(expected[0]) > 1.5 > float(expected[1])


@pytest.mark.parametrize(("memory", "why"), [(1, "in float32, this machine"), (10**12, "no weights")])
def test_what_cannot_be_measured_is_said(tmp_path, target, capsys, monkeypatch, memory, why):
    if memory > 1:
        (tmp_path / "target" / "model.safetensors").unlink()
    monkeypatch.setattr(correction_cost, "device_memory", lambda device: memory)
    head = write_flat(tmp_path / "head", tiny_config(draft_vocab_size=20, correction_rank=3))
    assert main([str(head), str(tmp_path / "new"), "--to", "vllm", "--target", str(tmp_path / "target")]) == 0
    assert f"what that costs was not measured: {tmp_path / 'target'} has " in (out := capsys.readouterr().out)
    assert why in out


def test_a_target_that_cannot_be_loaded_costs_no_conversion(tmp_path, target, capsys, monkeypatch):
    def refuse(*_arguments, **_options):
        raise ValueError("needs remote code\nsecond line")

    monkeypatch.setattr(correction_cost.AutoModelForCausalLM, "from_pretrained", refuse)
    head = write_flat(tmp_path / "head", tiny_config(draft_vocab_size=20, correction_rank=3))
    assert main([str(head), str(tmp_path / "new"), "--to", "vllm", "--target", str(tmp_path / "target")]) == 0
    assert "target cannot be loaded (needs remote code)" in capsys.readouterr().out
    assert (tmp_path / "new" / "model.safetensors").is_file()
