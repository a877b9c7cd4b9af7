"""What cannot be served is refused at start: one sentence, exit code not 0, no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from byte_models import save_random_head, save_target
from safetensors.torch import load_file, save_file
from servers import peagle, processor_seconds, refusals, refuse, write_config

pytestmark = pytest.mark.slow


def change_tensor(head, name: str, change) -> None:
    path = head / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file({k: v for k, v in tensors.items() if v is not None}, path)


CASES = {
    "missing tensor": (lambda h: change_tensor(h, "norm.weight", lambda _: None), "'norm.weight' is missing"),
    "wrong shape": (lambda h: change_tensor(h, "fc.weight", lambda t: t[:, 1:].contiguous()), "'fc.weight' has shape"),
    "not finite": (lambda h: change_tensor(h, "fc.weight", lambda t: t.fill_(torch.nan)), "not finite"),
    "mask id": (lambda h: write_config(h, mask_token_id=9999, ptd_token_id=9999), "outside the vocabulary"),
    "quantised head": (lambda h: write_config(h, quantization_config={"quant_method": "fp8"}), "plain precision"),
    "no config": (lambda h: (h / "config.json").unlink(), "config.json"),
    "an EAGLE-3 head": (lambda h: write_config(h, parallel_drafting=False), "--speculative-algorithm EAGLE3"),
}


ADAPTERS = ["--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "all"]
ARGUMENTS = {
    "K = 0": (["--speculative-num-steps", "0"], "K >= 1"),
    "a tree": (["--speculative-eagle-topk", "2"], "chain"),
    "two K": (["--speculative-num-steps", "3", "--speculative-num-draft-tokens", "7"], "it is 4, not 7"),
    "adaptive without a table": (["--speculative-adaptive"], "--speculative-adaptive-config"),
    "DP attention": (["--enable-dp-attention", "--dp-size", "2", "--tp-size", "2"], "attn_dp_size=2"),
    "PP": (["--pp-size", "2"], "use --tp-size"),
    "decode CP": (["--dcp-size", "2", "--tp-size", "2"], "use --tp-size"),
    "CP": (["--attn-cp-size", "2", "--tp-size", "2"], "use --tp-size"),
    "heads on ranks": (["--tp-size", "3"], "do not divide among --tp-size 3"),
    "experts' transport": (["--moe-a2a-backend", "deepep"], "drop --moe-a2a-backend"),
    "PD": (["--disaggregation-mode", "prefill"], "one server"),
    "two-batch overlap": (["--enable-two-batch-overlap"], "drop --enable-two-batch-overlap"),
    "PD multiplexing": (["--enable-pdmux"], "drop --enable-pdmux"),
    "sparse host cache": (["--enable-hisparse"], "drop --enable-hisparse"),
    "unified memory": (["--enable-unified-memory"], "drop --enable-unified-memory"),
    "several draft layers": (["--enable-multi-layer-eagle"], "drop --enable-multi-layer-eagle"),
    "embeddings": (["--is-embedding"], "generates nothing"),
    "hidden states": (["--enable-return-hidden-states"], "without speculation"),
    "their last": (["--return-hidden-states-mode", "last"], "without speculation"),
    "logit processors": (["--enable-custom-logit-processor"], "without speculation"),
    "token map": (["--speculative-token-map", "map.pt"], "brings its own"),
    "window": (["--speculative-draft-window-size", "64"], "drop the window"),
    "rounded drafter": (["--speculative-draft-model-quantization", "fp8"], "precision of --dtype"),
    "seeds on the CPU": (["--enable-deterministic-inference"], "no deterministic kernels"),
    "inexact": (
        ["--speculative-use-rejection-sampling", "--speculative-accept-threshold-acc", "0.5"],
        "is exact: drop",
    ),
}


def test_the_launcher_ends_with_one_sentence(models, tmp_path):
    """The whole way, as a user sees it. In processor time, and beside that of importing SGLang, for machines differ."""
    head = tmp_path / "head"
    shutil.copytree(models / "random", head)
    change_tensor(head, "norm.weight", lambda _: None)
    before = processor_seconds()
    refusals([])
    importing = processor_seconds() - before
    code, said, seconds = refuse(models / "target", *peagle(head))
    lines = [line for line in said.splitlines() if line.startswith("peagle: ")]
    assert code != 0 and seconds < importing + 8
    assert len(lines) == 1 and "'norm.weight' is missing" in lines[0]
    assert "Traceback" not in said


def test_every_refusal_says_why(models, tmp_path, subtests):
    """All command lines in one process: importing SGLang takes far longer than all of its checks."""
    target = models / "target"
    lines, sentences = {}, {}

    def expect(case: str, sentence: str, target_dir: Path, *arguments: str) -> None:
        assert case not in lines
        lines[case] = ["--model-path", str(target_dir), "--dtype", "float32", *arguments]
        sentences[case] = sentence

    for case, (break_it, sentence) in CASES.items():
        head = tmp_path / case
        shutil.copytree(models / "random", head)
        break_it(head)
        expect(case, sentence, target, *peagle(head))
    for case, (arguments, sentence) in ARGUMENTS.items():
        expect(case, sentence, target, *peagle(models / "random"), *arguments)
    save_random_head(tmp_path / "wide", target_hidden_size=96)
    expect("a wider target's head", "hidden size 96", target, *peagle(tmp_path / "wide"))
    save_target(tmp_path / "shallow", num_layers=6)
    expect("a shallow target", "6 layers", tmp_path / "shallow", *peagle(models / "random"))
    table = tmp_path / "table.json"
    table.write_text('{"1": {"candidate_steps": [3]}}')
    adaptive = ["--speculative-adaptive", "--speculative-adaptive-config", str(table), *ADAPTERS]
    expect("adaptive with LoRA", "drop --speculative-adaptive", target, *peagle(models / "random", 3), *adaptive)
    expect("no head there", "no such", target, *peagle(tmp_path / "nowhere"))
    expect("no head named", "--speculative-draft-model-path", target, "--speculative-algorithm", "PEAGLE")
    eagle3 = ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(models / "random")]
    tree = ["--speculative-num-steps", "3", "--speculative-eagle-topk", "2", "--speculative-num-draft-tokens", "4"]
    expect("EAGLE3 with a tree", "chains, not trees", target, *eagle3, *tree)
    expect("EAGLE3 by default", "chains, not trees", target, *eagle3)
    for case, said in zip(lines, refusals(list(lines.values())), strict=True):
        with subtests.test(case):
            assert said is not None and sentences[case] in said
            assert "\n" not in said
