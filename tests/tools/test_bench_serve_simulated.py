"""`tools.bench serve --size`: models without weights, prescribed acceptance, floors, ratios beside the paper's."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_bench_serve_report import answer, results, row
from transformers import AutoConfig, AutoTokenizer

from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from tools.bench.__main__ import main
from tools.bench.serve import contenders
from tools.bench.serve.contenders import EAGLE3, PEAGLE, Contender, Launch
from tools.bench.serve.datasets import read_dataset
from tools.bench.serve.drafter_time import drafting_seconds_in
from tools.bench.serve.lengths import read_lengths
from tools.bench.serve.load import Measured
from tools.bench.serve.metrics import drafting_ms
from tools.bench.serve.simulated.paper import RATIOS, beside_the_paper
from tools.bench.serve.simulated.sizes import SIZES, head_config, pass_bytes, read_size, write_models, write_prompts
from tools.bench.serve.table import text_table


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_a_target_and_two_heads_without_weights(tmp_path, name):
    target, heads = write_models(SIZES[name], tmp_path)
    config = AutoConfig.from_pretrained(target)
    assert config.num_hidden_layers == SIZES[name].config["num_hidden_layers"]
    assert not list(tmp_path.rglob("*.safetensors"))
    for algorithm, layers in ((PEAGLE, 4), (EAGLE3, 1)):
        head = PEagleConfig.from_pretrained(heads[algorithm])
        assert head.num_hidden_layers == layers and head.autoregressive == (algorithm == EAGLE3)
        assert (head.vocab_size, head.target_hidden_size) == (config.vocab_size, config.hidden_size)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer("7 300 12")["input_ids"] == [7, 300, 12] and tokenizer.decode([7, 300]) == "7 300"


def test_the_heads_have_the_sizes_that_were_published():
    """Llama-3.1-8B's layer has 218M parameters; Amazon says 1.8B of its GPT-OSS 20B head, 0.58B of it the embedding."""
    with torch.device("meta"):
        layer = PEagleDrafter(head_config(SIZES["llama-3.1-8b"], PEAGLE)).layers[1]
        amazon = PEagleDrafter(head_config(SIZES["gpt-oss-20b"], PEAGLE))
    assert sum(p.numel() for p in layer.parameters()) == pytest.approx(218e6, rel=0.01)
    assert sum(p.numel() for p in amazon.parameters()) == pytest.approx(1.8e9, rel=0.03)


def test_a_floor_counts_what_a_step_reads():
    size = SIZES["tiny"]
    h, mlp, vocab = 64, 128, 320
    layer = 2 * h * 4 * 16 + 2 * h * 2 * 16 + 3 * h * mlp + 2 * h  # q and o, k and v, MLP, norms
    first = layer + h * (4 + 2 + 2) * 16 + h  # reads embeddings beside states, and norms them
    assert pass_bytes(size, PEAGLE, 5) == pass_bytes(size, PEAGLE, 1) == 2 * (3 * h * h + first + 3 * layer + vocab * h)
    assert pass_bytes(size, EAGLE3, 5) == 2 * (3 * h * h + 5 * (first + vocab * h))


def test_prompts_share_no_prefix(tmp_path):
    questions = read_dataset(str(write_prompts(SIZES["tiny"], tmp_path / "random.jsonl", 8, 50)), None, 1)
    assert len(questions) == 8 and {len(q.input_ids) for q in questions} == {50}
    assert len({q.input_ids[:4] for q in questions}) == 8


def test_acceptance_is_prescribed_by_k_and_algorithm(monkeypatch, tmp_path):
    lengths = read_lengths("3=2.6,5=3.2", {EAGLE3: "3=2.4,5=3"})
    assert [lengths.of(PEAGLE, 5), lengths.of(EAGLE3, 5)] == [3.2, 3.0]
    assert str(lengths) == "2.6 at K=3, 3.2 at K=5, EAGLE3 2.4 at K=3, 3 at K=5"
    assert read_lengths("2", {}).of(EAGLE3, 7) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    launch = Launch(tmp_path, {PEAGLE: tmp_path}, (5,), simulated=lengths, floors={(PEAGLE, 5): 1.0})
    told = [contenders._environment(launch, member, None) for member in (("none", 0), (PEAGLE, 5), (EAGLE3, 3))]
    assert [of.get("SGLANG_SIMULATE_ACC_LEN") for of in told] == [None, "3.2", "2.4"]
    assert all(of["SGLANG_ENABLE_METRICS_DEVICE_TIMER"] == "1" for of in told)


@pytest.mark.parametrize(
    ("text", "k", "said"),
    [("x", 3, "is no acceptance length such as"), ("3=2.6", 5, "give 5=LENGTH"), ("4.5", 3, "accepts 1 to 4 tokens")],
)
def test_wrong_lengths_are_refused(text, k, said):
    with pytest.raises(InputError, match=said):
        read_lengths(text, {}).of(PEAGLE, k)


def test_drafting_is_read_from_the_servers_metrics():
    def line(category: str, seconds: float, rank: int = 0) -> str:
        labels = f'model_name="m",tp_rank="{rank}",category="{category}"'
        return f"sglang:forward_execution_seconds_total{{{labels}}} {seconds}\n"

    text = "# HELP x\n" + line("extend", 5.0) + line("target_verify", 4.0) + line("eagle_draft_extend", 1.25)
    assert drafting_seconds_in(text) == 1.25
    assert drafting_seconds_in(text + line("eagle_draft", 2.0)) == 3.25
    assert drafting_seconds_in(line("extend", 5.0)) is None


def test_the_time_of_a_step_is_known_where_requests_come_one_at_a_time():
    answers = [[answer([1, 2, 3, 4], [1, 3, 4], (1, 1))], [answer([1, 2], [1, 2], (2,))]]
    side = Measured(Contender(PEAGLE, 1, SimpleNamespace()), answers, 0.5, 1.0, 0.02)
    assert drafting_ms(side, 1) == pytest.approx(5.0)
    assert drafting_ms(side, 2) is None and drafting_ms(replace(side, drafting_seconds=None), 1) is None


def test_ratios_stand_beside_the_papers(tmp_path):
    """At EAGLE3's best K, and at the same K; those of Table 10 where it has them."""
    at_two = [replace(row(1, a, k, 1), concurrency=2) for a in (EAGLE3, PEAGLE) for k in (3, 7)]
    found = beside_the_paper([*at_two, row(1, PEAGLE, 3, 1)], "gpt-oss-20b")
    assert [(entry.concurrency, entry.k) for entry in found] == [(2, 3), (2, 7)]
    theirs = {r.k: r.tok_per_s for r in at_two if r.algorithm == EAGLE3}
    ours = {r.k: r.tok_per_s for r in at_two if r.algorithm == PEAGLE}
    assert found[1].best == ours[7] / max(theirs.values()) and found[1].same_k == ours[7] / theirs[7]
    assert found[1].paper == RATIOS["gpt-oss-20b"][2, 7] == (1.30, 1.27, 1.36)
    told = replace(results(), size="gpt-oss-20b", simulated="3")
    assert text_table(told).count("of EAGLE3 at its best K") == 4
    assert text_table(told).count("paper, Table 10 (real acceptance)") == 2, "with 4 at a time, not with 1"
    assert all(entry.paper is None for entry in beside_the_paper(at_two, "llama-3.1-8b"))


def test_drafting_stands_beside_its_floor():
    found = results()
    rows = [replace(r, drafter_ms=0.6 if r.k else None, drafter_floor_ms=0.5 if r.k else None) for r in found.rows]
    assert text_table(replace(found, rows=rows)).count("0.600 (1.20x floor)") == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "tiny"], "--size needs --simulate-accept-length"),
        (["--size", "tiny", "--target", "t"], "leave out --target"),
        (["--size", "huge", "--simulate-accept-length", "2"], "neither a config.json nor one of llama-3.1-8b"),
        (["--size", "tiny", "--simulate-accept-length", "7"], "EAGLE3 K=3 accepts 1 to 4 tokens a step, not 7"),
        ([], "say --data FILE"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(capsys, tmp_path, options, said):
    assert main(["serve", "--output", str(tmp_path), *options]) == 1
    assert said in capsys.readouterr().err


def test_a_size_may_be_a_targets_config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SIZES["tiny"].config))
    assert head_config(read_size(str(path)), PEAGLE) == head_config(SIZES["tiny"], PEAGLE)
    path.write_text("{}")
    with pytest.raises(InputError, match="is not the config of a target"):
        read_size(str(path))
