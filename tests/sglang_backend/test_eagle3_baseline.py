"""SGLang's own EAGLE3 runs on the CPU reference platform too: it is the baseline PEAGLE is compared with."""

from __future__ import annotations

import pytest
from byte_models import save_random_head
from conftest import LENGTH, mixed_prompts
from servers import ask_all, serve

pytestmark = pytest.mark.slow


def test_eagle3_serves_losslessly(models, expected, tmp_path):
    save_random_head(tmp_path / "head", num_hidden_layers=1)  # an EAGLE-3 head that ignores its mask_hidden
    arguments = ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(tmp_path / "head")]
    arguments += [
        "--speculative-num-steps",
        "3",
        "--speculative-eagle-topk",
        "1",
        "--speculative-num-draft-tokens",
        "4",
    ]
    with serve(models / "target", tmp_path / "log", *arguments) as server:
        for concurrency in (1, 4):
            answers = ask_all(server, mixed_prompts(), LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
        assert answers[0]["meta_info"]["spec_verify_ct"] > 0
