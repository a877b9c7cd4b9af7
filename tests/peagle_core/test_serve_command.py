"""The commands that model cards, tools.inspect, the demo and refusals show."""

from __future__ import annotations

import json

import pytest

from peagle_core.serve_command import sglang_command, vllm_command


def flags(command: list[str]) -> dict[str, str]:
    given = command[command.index("--model-path") :]
    return dict(zip(given[::2], given[1::2], strict=True))


def test_sglang_is_told_to_draft_a_chain():
    eagle3 = flags(sglang_command("target", "head", 5, autoregressive=True))
    assert eagle3["--speculative-algorithm"] == "EAGLE3"
    assert eagle3["--speculative-eagle-topk"] == "1"
    assert eagle3["--speculative-num-draft-tokens"] == "6"
    peagle = flags(sglang_command("target", "head", 5, autoregressive=False))
    assert peagle["--speculative-algorithm"] == "PEAGLE"
    assert len(peagle) == 4
    for told in (eagle3, peagle):
        assert told["--model-path"] == "target"
        assert told["--speculative-draft-model-path"] == "head"
        assert told["--speculative-num-steps"] == "5"


@pytest.mark.parametrize("autoregressive", [True, False])
def test_vllm_is_told_whether_drafts_come_in_parallel(autoregressive):
    command = vllm_command("target", "head", 4, autoregressive)
    assert command[:4] == ["vllm", "serve", "target", "--speculative-config"]
    assert json.loads(command[4]) == {
        "method": "eagle3", "model": "head", "num_speculative_tokens": 4, "parallel_drafting": not autoregressive
    }  # fmt: skip
