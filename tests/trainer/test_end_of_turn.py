"""Every id that ends a turn ends it: in evaluation, in `export --verify`, and it can always be drafted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_run import run_options
from transformers import GenerationConfig

from peagle_core.errors import InputError
from peagle_core.generate import Speculation
from trainer.config import load_config
from trainer.data.vocabulary import Essential, draft_map, most_frequent
from trainer.evaluation.evaluate import lengths_within_turn, prompts_of
from trainer.export.export import greedy, run_export
from trainer.inputs import load_inputs
from trainer.new_drafter import new_drafter
from trainer.train.run import run_train


@pytest.fixture
def options(target_dir, data_file, tmp_path):
    """A run on a target that ends its turns with id 1 or with the 3rd token of its answer to the first prompt."""
    target = shutil.copytree(target_dir, tmp_path / "target")
    options = [*run_options(target, data_file, tmp_path / "run"), f"data.heldout={data_file}", "eval.num_prompts=1"]
    inputs = load_inputs(load_config(None, options))
    answer = greedy(inputs.target, prompts_of(inputs.heldout, 1, 64)[0], 8, None)
    assert len(answer) == 8 and answer[2] not in answer[:2] and 1 not in answer
    GenerationConfig(eos_token_id=[1, answer[2]]).save_pretrained(target)
    return options


def test_evaluations_and_verification_end_there(options, capfd):
    config = load_config(None, [*options, "eval.every=3"])
    run_train(config)
    metrics = json.loads((config.output / "metrics.json").read_text())
    (loop,) = metrics["acceptance"]
    assert loop["new_tokens"] == 3
    assert sum(tokens for _, tokens in loop["per_prompt"]) == 2  # the first is the target's own
    assert capfd.readouterr().out.count("over 1 prompts, 3 tokens") == 2  # at step 3 and at the end
    run_export(config, destination=config.output / "exported", verify=True)
    assert "prompt 1: 3 tokens" in capfd.readouterr().out


def test_what_is_accepted_behind_the_end_does_not_count():
    ended, cut = Speculation([5, 6, 7, 1], [2, 4]), Speculation([5, 6, 7, 8], [2, 4])
    assert lengths_within_turn(ended, frozenset([1, 9])) == [2, 1]
    assert lengths_within_turn(cut, frozenset([1, 9])) == [2, 4]  # by eval.max_new_tokens
    assert lengths_within_turn(Speculation([1]), frozenset([1])) == []


def test_the_ends_and_added_tokens_that_were_generated_are_in_every_draft_vocabulary():
    counts = torch.tensor([0, 9, 8, 0, 1, 7, 0, 1])
    essential = Essential(ends=frozenset([3, 99]), added=frozenset([4, 6]))
    assert most_frequent(counts, 4).tolist() == [1, 2, 4, 5]
    assert most_frequent(counts, 3, essential).tolist() == [1, 3, 4]
    assert most_frequent(counts, 1, essential).tolist() == [3]
    assert draft_map(counts, 3, essential)["t2d"].nonzero().flatten().tolist() == [1, 3, 4]
    with pytest.raises(InputError, match="draft_vocab_size 1 has no room for the 2 ids that end a turn"):
        most_frequent(counts, 1, replace(essential, ends=frozenset([3, 7])))


def test_answers_that_were_cut_leave_the_end_in_the_draft_vocabulary(target_dir, tmp_path):
    # All but one are cut, and have more than 12 ids that are more frequent than the one end.
    answers = ["The answer is 42. hello there, def f(x): return x + 1 " * 9] * 60 + ["Yes."]
    records = [json.dumps({"prompt": "Is it so?", "response": answer}) + "\n" for answer in answers]
    (tmp_path / "cut.jsonl").write_text("".join(records))
    options = [*run_options(target_dir, tmp_path / "cut.jsonl", tmp_path / "run"), "drafter.draft_vocab_size=12"]
    config = load_config(None, [*options, f"data.heldout={tmp_path / 'cut.jsonl'}"])
    inputs = load_inputs(config)
    drafter = new_drafter(config, inputs.target, inputs.mask_token_id, inputs.train, inputs.essential)
    ends = [document for document in inputs.train if 1 in document.input_ids.tolist()]
    assert len(ends) == 1 and 1 in drafter.target_ids(torch.arange(12)).tolist()
