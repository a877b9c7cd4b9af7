"""K by confidence: what is verified, of which drafts, and that nothing else changes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang")

from peagle_core.errors import InputError
from sglang_backend.confidence import ConfidentSteps, confidences
from sglang_backend.corrections.adaptive import check_table


def table(tmp_path, **keys) -> str:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"1": {"candidate_steps": [1, 3, 7]}, "8": {"candidate_steps": [1, 2]}, **keys}))
    return str(path)


def arguments(path: str, **changes) -> SimpleNamespace:
    given = {"speculative_adaptive": True, "speculative_num_steps": 3, "speculative_use_rejection_sampling": False}
    return SimpleNamespace(speculative_adaptive_config=path, **given | changes)


def test_confidence_is_that_a_draft_and_all_before_it_stand():
    probs = torch.tensor([[[0.6, 0.4], [0.1, 0.9]], [[0.5, 0.5], [1.0, 0.0]]])
    torch.testing.assert_close(confidences(probs.log() + 3), torch.tensor([[0.6, 0.54], [0.5, 0.5]]))
    outright = torch.tensor([[True, False], [False, True]])
    torch.testing.assert_close(confidences(probs.log() + 3, outright), torch.tensor([[1.0, 0.9], [0.5, 0.5]]))


@pytest.mark.parametrize("confidence, requests, steps", [
    ([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]], 1, 7), ([[0.9, 0.8, 0.7, 0.19, 0.1, 0.1, 0.1]], 1, 3),
    ([[0.9, 0.8, 0.1, 0.1, 0.0, 0.0, 0.0]], 1, 3), ([[0.1] * 7], 1, 1),
    # The mean of a batch counts, and its own candidates.
    ([[0.9, 0.5, 0.3, 0.3, 0.0, 0.0, 0.0], [0.9, 0.5, 0.3, 0.0, 0.0, 0.0, 0.0]], 2, 3),
    ([[0.9] * 7], 9, 2), ([[0.0] * 7], 9, 1),
])  # fmt: skip
def test_drafts_are_verified_up_to_the_last_that_is_worth_it(tmp_path, confidence, requests, steps):
    policy = ConfidentSteps(3, table(tmp_path), 0.2)
    assert policy.candidate_steps == [1, 2, 3, 7]
    policy.look_at(torch.tensor(confidence))
    assert policy.get_steps_for_batch(requests) == steps
    assert policy.on_verify_complete([0] * requests, requests) is None


@pytest.mark.parametrize("least", [0, 1, -0.5, 2, True, "0.2", [0.2]])
def test_what_a_confidence_cannot_be(tmp_path, least):
    with pytest.raises(InputError, match="confidence must lie between 0 and 1"):
        check_table(arguments(table(tmp_path, confidence=least)))


def test_it_is_of_greedy_drafts(tmp_path):
    path = table(tmp_path, confidence=0.2)
    check_table(arguments(path))
    with pytest.raises(InputError, match="drop it or --speculative-use-rejection-sampling"):
        check_table(arguments(path, speculative_use_rejection_sampling=True))
