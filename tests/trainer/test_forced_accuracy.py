"""The trainer's accuracies by depth are the reference loop's: the same counts on the same text, to the last element."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_run import run_options
from torch import Tensor

from peagle_core.checkpoint import load_drafter
from peagle_core.elements import Elements, supervised
from peagle_core.generate import DraftCache, draft_states
from trainer.config import load_config
from trainer.data.documents import Document
from trainer.data.packing import pack
from trainer.evaluation.along_answers import _answers, _steps_along
from trainer.evaluation.evaluate import held_out_text, measure_acceptance
from trainer.export.export import greedy
from trainer.hidden_states.base import StateSource
from trainer.hidden_states.from_transformers import TransformersStates
from trainer.inputs import load_inputs
from trainer.train.run import run_train

DEPTHS = 4
pytestmark = pytest.mark.slow  # trains for ten seconds


@pytest.fixture(scope="module")
def trained(target_dir, data_file, tmp_path_factory):
    """(configuration, states, {name: documents}, drafter). The drafter has learned the documents, with half of the
    vocabulary: answers that the target never gave, and its own greedy ones, of unequal lengths.
    """
    folder = tmp_path_factory.mktemp("forced")
    options = [
        *run_options(target_dir, folder / "foreign.jsonl", folder / "run"), "optim.max_steps=80", "log_every=80",
        f"drafter.num_depths={DEPTHS}", "drafter.num_hidden_layers=2", "drafter.draft_vocab_size=144",
        "drafter.retention=1.0", "eval.num_prompts=0",
    ]  # fmt: skip
    (folder / "foreign.jsonl").write_text("".join(data_file.read_text().splitlines(keepends=True)[:5]))
    inputs = load_inputs(load_config(None, [*options, f"data.heldout={data_file}"]))
    own = [answered(inputs.target, document, 16 + 6 * i) for i, document in enumerate(inputs.train)]
    records = [{"input_ids": d.input_ids.tolist(), "loss_mask": d.loss_mask.long().tolist()} for d in own]
    (folder / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    both = f"data.train=[{folder / 'foreign.jsonl'},{folder / 'own.jsonl'}]"
    config = load_config(None, [*options, both, f"data.heldout={data_file}"])
    run_train(config)
    drafter = load_drafter(config.output / "head").eval()
    states = TransformersStates(inputs.target, drafter.config.aux_layer_ids)
    return config, states, {"foreign": list(inputs.train), "own": own}, drafter


def answered(target, document: Document, length: int) -> Document:
    """The document's prompt and the target's greedy answer."""
    prompt = document.input_ids[: int(document.loss_mask.long().argmax())]
    ids = torch.cat([prompt, torch.tensor(greedy(target, prompt, length, None))])
    return Document(ids, torch.arange(len(ids)) >= len(prompt))


def counted(drafter, states, document: Document) -> tuple[Tensor, Tensor]:
    """(right, asked), int64[K] each, by the loop of `peagle_core.generate`, one token of the text at a time.

    A draft is asked where the trainer charges for one: the tokens from behind the anchor to the drafted one are of one
    answer, and the target's most likely token is in the draft vocabulary.
    """
    (row,) = pack([document], len(document))
    batch = states(row)
    wanted = (batch.final_hidden @ states.head.T).argmax(-1)  # [n]: of the token after each
    in_vocabulary = set(drafter.target_ids(torch.arange(drafter.config.draft_vocab_size)).tolist())
    right, asked = torch.zeros(2, DEPTHS, dtype=torch.int64)
    cache = DraftCache()
    for anchor in range(len(document) - 1):
        tokens, aux = batch.input_ids[anchor + 1 : anchor + 2], batch.aux[anchor : anchor + 1]
        states = draft_states(drafter, cache, tokens, aux, DEPTHS, anchor)
        drafts = drafter.target_ids(drafter.lm_head(states).argmax(-1))
        chain = Elements(torch.full((DEPTHS,), anchor), torch.arange(DEPTHS))
        for depth in supervised(chain, batch.loss_mask, batch.doc_ids).nonzero().squeeze(-1).tolist():
            label = int(wanted[anchor + depth + 1])
            if label in in_vocabulary:
                asked[depth] += 1
                right[depth] += int(drafts[depth]) == label
    return right, asked


@pytest.mark.parametrize("mode", ["flat", "stream"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", ["foreign", "own"])
def test_accuracies_are_the_loops_to_the_last_element(trained, mode, packed, text):
    config, states, documents, drafter = trained
    config, documents = config.model_copy(update={"mode": mode}), documents[text]
    rows = pack(documents, 1000) if packed else [pack([document], 1000)[0] for document in documents]
    assert len(rows) == (1 if packed else 5)
    found, _ = held_out_text(config, drafter, states, rows)
    right, asked = torch.stack([torch.stack(counted(drafter, states, document)) for document in documents]).sum(0)
    assert found.correct.tolist() == right.tolist()
    assert found.total.tolist() == asked.tolist()
    assert found.accuracy == (right / asked).tolist()
    assert asked[-1] / 4 < right[-1] < asked[-1] < asked[0]


@pytest.mark.parametrize("mode", ["flat", "stream"])
def test_along_the_targets_own_answers_the_loop_is_the_loop(trained, mode):
    """Step by step: as many steps and as many tokens in each answer as with a target that verifies."""
    config, states, documents, drafter = trained
    numbers = config.eval.model_copy(update={"num_draft_tokens": (1, 3)})
    config = config.model_copy(update={"mode": mode, "eval": numbers})
    own = documents["own"]
    for rows in (pack(own, 1000), [pack([document], 1000)[0] for document in own]):
        for found in held_out_text(config, drafter, states, rows)[1]:
            expected = []
            for document in own:
                prompt = document.input_ids[: int(document.loss_mask.long().argmax())]
                length = len(document) - len(prompt)
                loop = measure_acceptance(states.target, drafter, [prompt], found.num_draft_tokens, length)
                ((steps, tokens),) = loop.per_prompt
                expected.append((steps, min(tokens, length - 1)))  # the loop counts what it accepts behind the limit
            assert sorted(found.per_prompt) == sorted(expected)
            assert found.new_tokens == sum(int(document.loss_mask.sum()) for document in own)
            assert 1.2 < found.accept_length < found.num_draft_tokens + 1


def test_where_answers_begin_and_end():
    mask, documents = torch.tensor([0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1]).bool(), torch.tensor([0] * 8 + [1] * 4)
    # Slots 1 and 2 draft tokens 3 and 4, behind token 2; slot 5 drafts token 7. The beginning of document 1 has no
    # prompt, and behind its last token there is nothing to draft.
    assert _answers(mask, documents) == [(1, 3), (5, 6)]


def test_steps_along_an_answer():
    assert _steps_along([2, 0, 0, 0, 5, 0, 0], 3) == [3, 1, 3]  # what a step accepts behind the end does not count
    assert _steps_along([2, 0, 0, 0, 5, 0, 0], 1) == [2, 1, 1, 2, 1]
    assert _steps_along([], 3) == []


def test_the_targets_states_of_a_row_are_asked_for_once(trained):
    config, states, documents, drafter = trained
    rows, asked = pack(documents["own"], 60), []

    class Counting(StateSource):
        head = states.head

        def __call__(self, row):
            asked.append(row)
            return states(row)

    counted, along = held_out_text(config, drafter, Counting(), rows)
    assert counted is not None and along and len(asked) == len(rows) > 1
