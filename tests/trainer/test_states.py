"""Hidden states of packed documents are those of each document alone."""

from __future__ import annotations

import pytest
import torch
from tiny import VOCAB, tiny_target

from peagle_core.errors import InputError
from peagle_core.target import pick_states
from trainer.data.documents import Document
from trainer.data.packing import join
from trainer.hidden_states.from_transformers import MAX_PADDED, TransformersStates, group_by_length

AUX = (2, 4, 5)


def documents(*lengths: int) -> list[Document]:
    return [Document(torch.randint(0, VOCAB, (n,)), torch.ones(n, dtype=torch.bool)) for n in lengths]


def test_packed_equals_one_document_at_a_time():
    target = tiny_target(dtype=torch.float32)
    docs = documents(9, 30, 1, 12, 30, 11)
    batch = TransformersStates(target, AUX)(join(docs))
    aux, final = [], []
    for document in docs:
        with torch.no_grad():
            states = target(input_ids=document.input_ids[None], output_hidden_states=True).hidden_states
        alone = pick_states(states, AUX)
        aux.append(alone[0][0])
        final.append(alone[1][0])
    torch.testing.assert_close(batch.aux, torch.cat(aux), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.final_hidden, torch.cat(final), rtol=1e-4, atol=1e-4)


def test_final_state_times_head_is_the_targets_distribution():
    target = tiny_target(dtype=torch.float32)
    (document,) = docs = documents(17)
    states = TransformersStates(target, AUX)
    with torch.no_grad():
        logits = target(input_ids=document.input_ids[None]).logits[0]
    torch.testing.assert_close(states(join(docs)).final_hidden @ states.head.T, logits, rtol=1e-4, atol=1e-4)


def test_groups_hold_everything_once_with_little_padding():
    lengths = [100, 3, 50, 98, 51, 2, 2, 49]
    groups = group_by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[i] for i in group]
        assert max(sizes) * len(sizes) <= MAX_PADDED * sum(sizes)
    assert len(groups) < len(lengths)


def test_states_that_are_not_finite_are_refused():
    target = tiny_target(dtype=torch.float32)
    with torch.no_grad():
        target.model.layers[3].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        TransformersStates(target, AUX)(join(documents(5)))
