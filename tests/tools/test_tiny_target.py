"""The tiny target's corpus, weights and head, smaller still: what is finished is kept, the rest made again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.errors import InputError
from tools.tiny_target import corpus
from tools.tiny_target.both_heads import build_both_heads
from tools.tiny_target.corpus import (
    PROMPT_TOKENS,
    build_corpus,
    heldout_prompts,
    load_tokenizer,
    prompts,
    shared_with_training,
)
from tools.tiny_target.head import HeadRecipe, build_generations, build_head
from tools.tiny_target.target import TargetRecipe, build_target

TARGET = TargetRecipe(hidden_size=32, intermediate_size=48, num_heads=2, num_kv_heads=1, window=64, steps=2)
HEAD = HeadRecipe(
    train_prompts=6,
    heldout_prompts=2,
    new_tokens=12,
    batch_size=4,
    settings=(
        "drafter.num_depths=3",
        "data.max_length=96",
        "data.row_length=200",
        "eval.num_draft_tokens=[2]",
        "head_dtype=float32",
        "optim.rows_per_step=1",
        "device=cpu",
    ),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpus, target and heads of a few tables; one file in three held out."""
    directory = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PATTERN", "encodings/cp12*.py")
        patch.setattr(corpus, "HELDOUT_SHARE", 0.34)
        build_corpus(directory)
        build_target(directory, TARGET)
        build_both_heads(directory, HEAD)
    return directory


def test_no_file_is_on_both_sides(directory):
    sides = {}
    for side in ("train", "heldout"):
        lines = (directory / "corpus" / f"{side}.jsonl").read_text().splitlines()
        sides[side] = {json.loads(line)["path"] for line in lines}
    assert sides["train"]
    assert sides["heldout"]
    assert not sides["train"] & sides["heldout"]


def test_prompts_are_excerpts_of_equal_length_from_many_files(directory):
    found = heldout_prompts(directory, 6)
    assert len(found) == 6
    assert {len(p) for p in found} == {PROMPT_TOKENS}
    tokenizer = load_tokenizer(directory)
    texts = corpus.read_documents(directory, "heldout")
    for prompt in found:
        assert prompt[0] == tokenizer.bos_token_id
        text = tokenizer.decode(prompt[1:])
        assert any(source.startswith(text) or "\n" + text in source for source in texts)
    assert found == heldout_prompts(directory, 6)
    assert 0 <= shared_with_training(directory, found) <= 6
    assert shared_with_training(directory, prompts(directory, "train", 5)) == 5


def test_the_mask_token_is_in_no_text(directory):
    tokenizer = load_tokenizer(directory)
    mask = tokenizer.convert_tokens_to_ids(corpus.MASK)
    for side in ("train", "heldout"):
        for text in corpus.read_documents(directory, side):
            assert mask not in tokenizer(text)["input_ids"]
    assert load_drafter(directory / "head").config.mask_token_id == mask


def test_the_heads_data_is_what_the_target_says_greedily(directory):
    target = LlamaForCausalLM.from_pretrained(directory / "target").eval()
    lines = (directory / "generations" / "train.jsonl").read_text().splitlines()
    assert len(lines) == HEAD.train_prompts
    for record in map(json.loads, lines):
        ids, mask = torch.tensor(record["input_ids"]), torch.tensor(record["loss_mask"], dtype=torch.bool)
        assert not mask[:PROMPT_TOKENS].any()
        assert mask[PROMPT_TOKENS:].all()
        with torch.no_grad():
            said = target(input_ids=ids[None]).logits[0].argmax(-1)
        assert torch.equal(said[PROMPT_TOKENS - 1 : -1], ids[PROMPT_TOKENS:])


def test_both_heads_learn_from_the_same_rows_in_as_many_steps(directory):
    runs = [yaml.safe_load((directory / name / "run.yaml").read_text()) for name in ("head-run", "eagle3-head-run")]
    assert [run["algorithm"] for run in runs] == ["peagle", "eagle3"]
    assert [run["drafter"]["num_hidden_layers"] for run in runs] == [2, 1]
    assert runs[0]["data"] == runs[1]["data"]
    assert runs[0]["drafter"]["num_depths"] == runs[1]["drafter"]["num_depths"]
    assert {**runs[0]["optim"], "lr": 0} == {**runs[1]["optim"], "lr": 0}
    data, steps = (
        [json.loads((directory / name / file).read_text()) for name in ("head-run", "eagle3-head-run")]
        for file in ("data.json", "metrics.json")
    )
    assert data[0]["train"] == data[1]["train"]
    assert steps[0]["step"] == steps[1]["step"]
    assert load_drafter(directory / "eagle3-head").config.autoregressive


def test_finished_work_is_kept_and_half_finished_work_is_not(directory, monkeypatch):
    def must_not_run(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr("tools.tiny_target.target.train_target", must_not_run)
    monkeypatch.setattr("tools.tiny_target.head.run_train", must_not_run)
    before = (directory / "head" / "model.safetensors").stat().st_mtime_ns
    assert build_head(directory, HEAD) == directory / "head"
    assert (directory / "head" / "model.safetensors").stat().st_mtime_ns == before
    assert build_head(directory, HEAD, "eagle3") == directory / "eagle3-head"
    build_both_heads(directory, HEAD)
    monkeypatch.undo()
    # An attempt that was killed leaves only a directory of another name.
    done = (directory / "generations" / "train.jsonl").read_text()
    (directory / "generations").rename(directory / "generations.partial")
    (directory / "generations.partial" / "train.jsonl").write_text("half")
    assert (build_generations(directory, HEAD) / "train.jsonl").read_text() == done
    assert not (directory / "generations.partial").exists()


@pytest.mark.slow
def test_a_head_that_fails_aside_is_told_with_its_log(directory, tmp_path):
    """The learning rate of one head alone is out of range: the other is made and kept."""
    for name in ("corpus", "target", "generations"):
        shutil.copytree(directory / name, tmp_path / name)
    with pytest.raises(InputError, match=r"the EAGLE-3 head was not trained, the end of .*eagle3-head.log says why"):
        build_both_heads(tmp_path, dataclasses.replace(HEAD, eagle3=("optim.lr=-1",)))
    assert "optim.lr" in (tmp_path / "logs" / "eagle3-head.log").read_text()
    assert (tmp_path / "head").is_dir()
    assert not (tmp_path / "eagle3-head").exists()
