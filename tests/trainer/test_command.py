"""The command line: what a user sees, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_run import run_options

from trainer.__main__ import main


@pytest.fixture
def options(target_dir, data_file, tmp_path):
    return run_options(target_dir, data_file, tmp_path / "run")


@pytest.mark.slow
def test_train_in_a_process_of_its_own_then_eval_and_export_from_its_run_yaml(options, tmp_path):
    command = [sys.executable, "-m", "trainer", "train", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "acceptance length" in done.stdout
    run = tmp_path / "run"
    assert (run / "head" / "config.json").is_file()
    assert json.loads((run / "metrics.json").read_text())["acceptance"][0]["num_draft_tokens"] == 3
    assert main(["eval", "--config", str(run / "run.yaml"), "eval.max_new_tokens=5"]) == 0
    assert json.loads((run / "eval.json").read_text())["acceptance"][0]["new_tokens"] == 5
    assert main(["export", "--config", str(run / "run.yaml"), "--to", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["optim.lr=0"], 2, "optim.lr"),
        (["colour=blue"], 2, "unknown key 'colour'"),
        (["--config", "/nowhere.yaml"], 2, "/nowhere.yaml"),
        (["drafter.mask_token_id=1"], 2, "drafter.mask_token_id 1 occurs in"),
        (["target=/nowhere"], 1, "/nowhere"),
        (["drafter.aux_layer_ids=[1,2,9]"], 1, "aux ids"),
    ],
)
def test_errors_are_one_sentence_with_an_exit_code(options, capsys, arguments, code, says):
    assert main(["train", *options, *arguments]) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error
    assert "Traceback" not in error


def test_overrides_may_stand_anywhere(options, capsys):
    assert main(["train", options[0], "--dry-run", *options[1:], "drafter.num_hidden_layers=3"]) == 0
    assert "drafter  3 layers" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_code:
        main(["train", *options, "--no-such-option"])
    assert exit_code.value.code == 2


def test_help_teaches_by_example(capsys):
    with pytest.raises(SystemExit) as exit_code:
        main(["--help"])
    assert exit_code.value.code == 0
    assert "python -m trainer train target=" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"], "peagle")
    text = capsys.readouterr().out
    assert "\n    peagle train target=" in text and "-m peagle train --config" in text and "-m trainer" not in text
