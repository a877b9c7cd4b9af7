"""The ablations: equal steps, verdicts that follow the numbers, a page made of results, a runner that resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import VOCAB
from tiny import tiny_target as make_target

from peagle_core.errors import InputError
from tools.ablations.__main__ import main
from tools.ablations.contrasts import CONFIGURATIONS, CONTRASTS, Contrast, Published, configurations
from tools.ablations.cost import drafting_ms
from tools.ablations.document import page, write_document
from tools.ablations.inputs import Inputs
from tools.ablations.record import read_record, record_of
from tools.ablations.schedule import Suite, run_all
from tools.ablations.statistics import Difference, differences, promises, seed_noise, verdict
from tools.ablations.studies import STUDIES
from tools.ablations.trial import Result, read_result
from trainer.config import load_config


def suite_of(study: str, *paths: Path) -> Suite:
    *inputs, directory = paths
    stored = [directory / "states"] if study == "smollm2" else []
    return Suite(directory, Inputs(*inputs, *stored), STUDIES[study].base, STUDIES[study].configurations)


def settings(name: str, tmp_path: Path, study: str = "tiny") -> dict[str, Any]:
    """Every setting of a configuration by its full key."""
    for file in ("train.jsonl", "heldout.jsonl"):
        (tmp_path / file).write_text('{"text": "hello"}\n')
    suite = suite_of(study, Path("some/model"), tmp_path / "train.jsonl", tmp_path / "heldout.jsonl", tmp_path)
    raw = load_config(suite.base, suite.overrides(name, 0)).model_dump(mode="json")
    sections = {key: value for key, value in raw.items() if isinstance(value, dict)}
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {**flat, **{key: value for key, value in raw.items() if key not in sections}}


FROZEN = json.loads(Path(__file__).with_name("ablation_settings.json").read_text())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_what_was_measured(name, tmp_path):
    """ablation_settings.json: what the YAML files of the measured runs (commit 89687a7) resolved to."""
    wanted = FROZEN["layers-1"] | FROZEN["differences"].get(name, {})
    found = settings(name, tmp_path)
    assert {key: found[key] for key in wanted} == wanted


def test_every_configuration_is_in_a_contrast_and_every_contrast_has_its_configurations():
    assert set(configurations(CONTRASTS)) == set(CONFIGURATIONS) == {"layers-1", *FROZEN["differences"]}
    real = STUDIES["smollm2"]
    assert set(configurations(real.contrasts)) == set(real.configurations)


def test_the_settings_that_a_result_must_have_are_those_that_a_run_gets(tmp_path):
    suite = suite_of("tiny", tmp_path, tmp_path, tmp_path, tmp_path)
    wanted = suite.settings("layers-4-matched")
    assert wanted["drafter"]["num_hidden_layers"] == 4 and wanted["optim"]["lr"] == 0.008
    assert wanted["loss"] == {"kind": "kl", "depth_weights": [1.0, 0.8, 0.64, 0.512, 0.4096]}
    assert wanted["eval"]["num_prompts"] == 96 and suite.settings("layers-1")["optim"]["lr"] == 0.004


@pytest.mark.parametrize("contrast", STUDIES["smollm2"].contrasts, ids=lambda c: f"{c.row}-{c.reference}")
def test_a_contrast_on_the_real_target_changes_one_thing_too(contrast, tmp_path):
    row, reference = settings(contrast.row, tmp_path, "smollm2"), settings(contrast.reference, tmp_path, "smollm2")
    changed = {key for key in row if row[key] != reference[key]} - {"output_dir"}
    assert row["states.directory"] == str(tmp_path / "states")
    if contrast.reference == "eagle3":  # another head, with what belongs to it
        assert {key.split(".")[0] for key in changed} == {"algorithm", "drafter", "loss"}
    else:  # a depth brings its weight
        assert len(changed - {"loss.depth_weights"} or changed) == 1


@pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda c: f"{c.row}-{c.reference}")
def test_a_contrast_changes_one_thing_at_equal_steps_and_tokens(contrast, tmp_path):
    row, reference = settings(contrast.row, tmp_path), settings(contrast.reference, tmp_path)
    changed = {key for key in row if row[key] != reference[key]} - {"output_dir"}
    packing = {"data.row_length", "optim.rows_per_step"}
    if contrast.reference == "eagle3":  # another head, with what belongs to it
        assert {key.split(".")[0] for key in changed} == {"algorithm", "drafter", "loss"}
    elif contrast.reference == "eagle3-matched":
        assert {key.split(".")[0] for key in changed} == {"algorithm", "drafter"}
    else:
        assert len(changed) == 1 or changed == packing
    assert row["optim.max_steps"] == reference["optim.max_steps"]
    tokens = [s["data.row_length"] * s["optim.rows_per_step"] for s in (row, reference)]
    assert tokens[0] == tokens[1]


SETTINGS = {
    "eval": {"num_draft_tokens": [5]},
    "data": {"row_length": 768},
    "optim": {"rows_per_step": 1, "optimizer": "muon", "lr": 0.004},
}


def result(name: str, seed: int, accept_length: float) -> Result:
    values = {
        "name": name, "seed": seed, "accept_length": accept_length, "accept_per_position": [0.8, 0.6],
        # 96 prompts of 50 steps, half of them a tenth above the mean, half below
        "per_prompt": [[50, 50 * (accept_length + (-1) ** i / 10)] for i in range(96)], "new_tokens": 12288,
        "accuracy_per_depth": [0.8, 0.7], "expected_accept_length": 2.5, "steps": 384, "cpu_seconds": 60.0,
        "settings": SETTINGS, "inputs": "abc",
    }  # fmt: skip
    return Result(**values)


def results(**means: float) -> list[Result]:
    """Three seeds each, one below, one above the mean: standard deviation 0.02."""
    return [
        result(name.replace("_", "-"), seed, mean + shift)
        for name, mean in means.items()
        for seed, shift in enumerate((-0.02, 0.0, 0.02))
    ]


PAPER_SAYS_MORE = Contrast("S", "a", "b", "text", (Published("HumanEval", 3.0, 2.0),), "more", "a beats b")


@pytest.mark.parametrize(
    ("contrast", "change", "says", "confirmed"),
    [
        (PAPER_SAYS_MORE, 0.1, "as in the paper", True),
        (PAPER_SAYS_MORE, 0.05, "as in the paper", True),
        (PAPER_SAYS_MORE, -0.1, "NOT as in the paper", False),
        (PAPER_SAYS_MORE, 0.01, "within noise", False),
        (dataclasses.replace(PAPER_SAYS_MORE, expects="not less"), 0.01, "within noise", True),
        (dataclasses.replace(PAPER_SAYS_MORE, expects="not less"), -0.1, "NOT as in the paper", False),
        (dataclasses.replace(PAPER_SAYS_MORE, expects="not more"), 0.1, "as in the paper", False),
        (dataclasses.replace(PAPER_SAYS_MORE, expects="not more"), -0.1, "NOT as in the paper", True),
        (dataclasses.replace(PAPER_SAYS_MORE, published=(), expects="same"), 0.03, "same within noise", True),
        (dataclasses.replace(PAPER_SAYS_MORE, published=(), expects="same"), 0.1, "DIFFERS", False),
        (dataclasses.replace(PAPER_SAYS_MORE, published=()), 0.1, "more", True),
    ],
)
def test_verdicts_follow_the_numbers(contrast, change, says, confirmed):
    """Seeds deviate by 0.02, so a difference of two means of three has the error 0.02 * sqrt(2/3) = 0.016."""
    record = record_of(results(a=2.5 + change, b=2.5), (contrast,))
    (difference,) = differences(record, (contrast,))
    assert seed_noise(record) == pytest.approx(0.02)
    assert difference.error == pytest.approx(0.0163, abs=1e-4)
    assert difference.prompt_error == pytest.approx(0, abs=1e-9)  # both rows find the same prompts hard
    assert record.row("a").prompt_error == pytest.approx(0.1 / 96**0.5, rel=0.01)
    assert difference.change == pytest.approx(change)
    assert verdict(difference) == says
    assert promises([difference]) == {"a beats b": confirmed}


def measured(found: list[Result]) -> list[Difference]:
    return differences(record_of(found, (PAPER_SAYS_MORE,)), (PAPER_SAYS_MORE,))


def test_prompts_that_only_one_row_finds_hard_make_noise():
    even = [dataclasses.replace(r, per_prompt=[[50, 50 * r.accept_length]] * 96) for r in results(b=2.5)]
    (difference,) = measured([*results(a=2.53), *even])
    assert difference.prompt_error == pytest.approx(0.1 / 96**0.5, rel=0.01)
    assert difference.error == pytest.approx((0.0163**2 + difference.prompt_error**2) ** 0.5, abs=1e-4)


def test_one_seed_decides_nothing():
    (difference,) = measured([result("a", 0, 3.0), result("b", 0, 2.0)])
    assert verdict(difference) == "within noise"


def test_the_page_says_what_the_results_say(tmp_path):
    """Stored as JSON and read back, as the command does; then with the numbers the other way round."""
    stored = results(layers_1=2.5, layers_2=2.9, layers_4=3.3, stream=2.51)
    for number, item in enumerate(stored):
        (tmp_path / f"{number}.json").write_text(json.dumps(dataclasses.asdict(item)))
    read = [read_result(path) for path in sorted(tmp_path.glob("*.json"))]
    text = write_document(tmp_path / "docs", record_of(read, CONTRASTS), STUDIES["tiny"]).read_text()
    assert (tmp_path / "docs" / "ablations.png").stat().st_size > 1000
    line = next(line for line in text.splitlines() if line.startswith("| 4 layers instead of 2"))
    assert "2.900 -> 3.300" in line and "+0.400" in line and "(+13.8%)" in line
    assert "HumanEval 3.58 -> 3.92" in line and "+9.5%" in line and line.endswith("| as in the paper |")
    assert "| 4 layers beat 2 beat 1 | yes |" in text
    assert "| `layers-1` | 2.500 | 0.020 | 0.010 | 3 | 96 | 12288 | 60 |" in text
    assert "the head is the same within noise | yes |" in text
    assert "design-projected-ntp" not in text  # there is no result of it
    worse = page(record_of(results(layers_1=3.3, layers_2=2.9, layers_4=2.5, stream=2.9), CONTRASTS), STUDIES["tiny"])
    assert "| 4 layers beat 2 beat 1 | NO |" in worse
    assert "the head is the same within noise | NO |" in worse
    assert worse.count("NOT as in the paper") == 2


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_the_page_in_docs_is_what_the_record_beside_it_says(study):
    """After a change of the page's text: `python -m tools.ablations.document docs`."""
    docs = Path(__file__).parents[2] / "docs"
    assert (docs / f"{study.page}.md").read_text() == page(read_record(docs / f"{study.page}.json"), study)


def test_the_command_lists_its_runs_and_makes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = ["--tiny", str(tmp_path / "tiny"), "--dir", str(tmp_path / "ablations")]
    assert main([*places, "--dry-run", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(configurations(CONTRASTS)) and lines[0] == "layers-4, seed 0: to run"
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        main([*places, "--only", "layers-3"])
    assert "no ablation 'layers-3'; there are layers-4, " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*places, "--jobs", "0"])


@pytest.fixture
def suite(tmp_path) -> Suite:
    """Two configurations of four steps on a random target without a tokenizer."""
    make_target(dtype=torch.float32).save_pretrained(tmp_path / "target")
    for side, count in (("train", 12), ("heldout", 3)):
        documents = [
            {"input_ids": torch.randint(0, VOCAB - 1, (20,)).tolist(), "loss_mask": [0] * 6 + [1] * 14}
            for _ in range(count)
        ]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    config = {
        "data": {"max_length": 20, "row_length": 40},
        "drafter": {"num_depths": 3, "mask_token_id": VOCAB - 1},
        "optim": {"max_steps": 4, "rows_per_step": 1},
        "mode": "flat",
        "eval": {"num_prompts": 3, "max_new_tokens": 8, "num_draft_tokens": [2]},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    inputs = Inputs(tmp_path / "target", tmp_path / "train.jsonl", tmp_path / "heldout.jsonl")
    changes = {"small": {"drafter.num_hidden_layers": 1}, "large": {"drafter.num_hidden_layers": 2}}
    return Suite(tmp_path / "ablations", inputs, tmp_path / "base.yaml", changes)


@pytest.mark.slow
def test_the_runner_runs_what_is_not_finished_and_no_more(suite):
    names = ["small", "large"]
    found = run_all(suite, names, range(1), jobs=2)
    assert [(r.name, r.seed, r.steps, len(r.per_prompt), r.new_tokens) for r in found] == [
        ("small", 0, 4, 3, 24), ("large", 0, 4, 3, 24),
    ]  # fmt: skip
    assert all(1 <= r.accept_length <= 3 and r.cpu_seconds > 0 for r in found)
    written = [suite.result_file(name, 0).stat().st_mtime_ns for name in names]
    assert run_all(suite, names, range(1), jobs=2) == found
    assert [suite.result_file(name, 0).stat().st_mtime_ns for name in names] == written
    # A changed configuration is run again; one that fails is named, with its log, and the other's result stays.
    suite.changes["large"]["optim.lr"] = 1.0e30
    assert suite.finished(names, range(1)) == found[:1]
    with pytest.raises(InputError, match=r"1 of 2 runs failed: large \(seed 0, see .*large-seed0.log\)"):
        run_all(suite, names, range(1), jobs=2)
    assert (
        "is not finite" in suite.log_file("large", 0).read_text()
        or "the loss is" in suite.log_file("large", 0).read_text()
    )
    assert suite.finished(names, range(1)) == found[:1]
    # A setting that has come since then is no reason to run again, one that the base changes is.
    text = suite.base.read_text()
    suite.base.write_text(text + "seed: 1\n")
    assert suite.finished(names, range(1)) == []
    suite.base.write_text(text)
    path = suite.result_file("small", 0)
    stored = json.loads(path.read_text())
    del stored["settings"]["eval"]["every"]
    path.write_text(json.dumps(stored))
    assert len(suite.finished(names, range(1))) == 1
    # A result of another version, and other data: not finished.
    path = suite.result_file("small", 0)
    path.write_text(json.dumps({**json.loads(path.read_text()), "median": 2}))
    assert suite.finished(names, range(1)) == []
    path.write_text(json.dumps(dataclasses.asdict(found[0])))
    assert suite.finished(names, range(1)) == found[:1]
    suite.inputs.heldout.write_text(suite.inputs.train.read_text())
    assert suite.finished(names, range(1)) == []


def test_what_drafting_costs_stands_beside_each(suite):
    changes = {
        "plain": {}, "deep": {"drafter.num_hidden_layers": 8}, "corrected": {"drafter.correction_rank": 4},
        "eagle3": {"algorithm": "eagle3", "drafter.mask_token_id": None},
    }  # fmt: skip
    suite = dataclasses.replace(suite, changes=changes)
    cost = drafting_ms(suite, list(suite.changes))
    assert cost.keys() == suite.changes.keys() and min(cost["deep"], cost["corrected"]) > cost["plain"] > 0
    record = record_of(results(a=3.0, b=2.0), (PAPER_SAYS_MORE,), {"a": 5.26})
    text = page(record, STUDIES["tiny"])
    assert "| drafting, ms |" in text and "| 60 | 5.3 |" in text and "| 60 | - |" in text
    assert "drafting, ms" not in page(record_of(results(a=3.0, b=2.0), (PAPER_SAYS_MORE,)), STUDIES["tiny"])
