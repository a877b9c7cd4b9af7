"""Targets of many families, as tiny random models of their own config classes: what training reads of them is theirs.

The table in docs/training.md names what is tried here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from peagle_core.errors import InputError
from peagle_core.target import target_head
from trainer.config import load_config
from trainer.target.load import load_ends, load_target
from trainer.train.assemble import open_run
from trainer.train.loop import train_step

VOCAB, HIDDEN = 64, 32
SIZES = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """model_type: of transformers; factor: of its logits over head times final state; changes: of its config."""

    model_type: str
    factor: float = 1.0
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.model_type


WORK = [
    *map(Family, ("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "olmo2")),
    *map(Family, ("smollm3", "glm4", "ernie4_5", "exaone4", "seed_oss", "starcoder2", "stablelm", "gpt_neox", "opt")),
    *map(Family, ("olmo3", "gpt2", "bloom", "mpt")),
    *(Family(name, changes=EXPERTS) for name in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe")),
    Family("granite", 1 / 16, {"logits_scaling": 16.0}),
    Family("granitemoe", 1 / 6, {"logits_scaling": 6.0, **EXPERTS}),
    Family("cohere", 0.0625),
    Family("cohere2", 0.25, {"logit_scale": 0.25}),
]


def save(family: Family, directory: Path) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.model_type, **(SIZES | family.changes))
    AutoModelForCausalLM.from_config(config).float().save_pretrained(directory)
    return directory


def config_of(target: Path, tmp_path: Path, *more: str):
    records = [
        {"input_ids": [(7 * i + j * j) % 60 for j in range(n)], "loss_mask": [0] * 3 + [1] * (n - 3)}
        for i, n in enumerate((20, 9, 31))
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = [
        f"target={target}", f"data.train={tmp_path / 'data.jsonl'}", f"data.heldout={tmp_path / 'data.jsonl'}",
        "data.max_length=64", "data.row_length=64", "drafter.mask_token_id=63", "drafter.num_hidden_layers=1",
        "drafter.num_depths=3", "optim.rows_per_step=1", "optim.max_steps=1", "optim.warmup_ratio=0", "mode=flat",
        "device=cpu", f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    return load_config(None, [*options, *more])


@pytest.mark.parametrize("family", WORK, ids=str)
def test_a_step_on_the_targets_own_states_and_logits(family, tmp_path):
    run = open_run(config_of(save(family, tmp_path / "target"), tmp_path))
    row = run.rows[0]
    batch, aux_ids = run.hidden_states(row), run.drafter.config.aux_layer_ids
    own = AutoModelForCausalLM.from_pretrained(run.config.target).eval()
    documents = zip(*(x.split(row.lengths) for x in (row.input_ids, batch.aux, batch.final_hidden)), strict=True)
    assert len(row.lengths) > 1
    for ids, aux, final in documents:
        with torch.no_grad():
            said = own(input_ids=ids[None], output_hidden_states=True)
        expected = torch.cat([said.hidden_states[i][0] for i in aux_ids], -1)
        torch.testing.assert_close(aux, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(final @ run.hidden_states.head.T, said.logits[0], rtol=1e-4, atol=1e-4)
    assert run.inputs.model.logit_factor == family.factor
    torch.testing.assert_close(run.drafter.lm_head.weight, own.get_output_embeddings().weight * family.factor)
    before = run.drafter.fc.weight.clone()
    train_step(run)
    assert run.state.step == 1 and not torch.equal(run.drafter.fc.weight, before)
    ends = load_ends(run.config)
    assert torch.equal(target_head(ends), target_head(run.inputs.target))


REFUSED = [
    (Family("gemma2"), r"caps its logits \(final_logit_softcapping\)"),
    (Family("nanochat"), "caps its logits"),
    (Family("phi"), "output head has a bias"),
    (Family("bert"), "output head has a bias"),
]


@pytest.mark.parametrize(("family", "says"), REFUSED, ids=str)
@pytest.mark.parametrize("load", [load_target, load_ends])
def test_what_cannot_be_learned_is_refused(family, says, load, tmp_path):
    config = config_of(save(family, tmp_path / "target"), tmp_path)
    with pytest.raises(InputError, match=says):
        load(config)


def test_a_target_that_reads_ahead_is_refused(tmp_path):
    family = Family("gemma3_text", changes={"use_bidirectional_attention": True})
    with pytest.raises(InputError, match="reads what follows a token: it is no causal model"):
        load_target(config_of(save(family, tmp_path / "target"), tmp_path))


@pytest.mark.parametrize("change", [lambda z: z + z.mean(-1, keepdim=True), lambda z: -z, lambda z: z.tanh()])
def test_logits_that_are_no_multiple_are_refused(tmp_path, monkeypatch, change):
    """What a family unknown to us might do behind its head."""
    forward = LlamaForCausalLM.forward

    def changed(self, **inputs):
        output = forward(self, **inputs)
        output.logits = change(output.logits)
        return output

    config = config_of(save(Family("llama"), tmp_path / "target"), tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "forward", changed)
    for load in (load_target, load_ends):
        with pytest.raises(InputError, match="not its output head times its final hidden state, nor a multiple"):
            load(config)


def test_a_factor_of_an_unknown_key_is_measured_and_said(tmp_path, monkeypatch, capsys):
    forward = LlamaForCausalLM.forward

    def scaled(self, **inputs):
        output = forward(self, **inputs)
        output.logits = output.logits * 0.3
        return output

    config = config_of(save(Family("llama"), tmp_path / "target"), tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    for load in (load_target, load_ends):
        assert load(config).logit_factor == 0.3
    assert capsys.readouterr().out.count("logits are 0.3 times its output head's") == 2
