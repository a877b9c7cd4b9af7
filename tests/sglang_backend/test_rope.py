"""Every rope kind and key of transformers: the server turns heads as training did, or refuses them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from byte_models import drafter_config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

pytest.importorskip("sglang")

from sglang.srt.layers.rotary_embedding import base

from peagle_core.drafter import rotary_embedding
from peagle_core.errors import InputError
from sglang_backend.rope import HeadRope, check_rope

HEAD_DIM, CONTEXT = 16, 512
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.5] * 4, "long_factor": [2.0] * 8,
    "original_max_position_embeddings": CONTEXT,
}  # fmt: skip
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn attention_factor": {**YARN, "attention_factor": 1.0},
    "yarn mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn mscale alone": {**YARN, "mscale": 0.7},
    "yarn betas": {**YARN, "beta_fast": 16, "beta_slow": 2},
    "yarn betas of null": {**YARN, "beta_fast": None},
    "yarn truncate": {**YARN, "truncate": False},
    "proportional": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {**LONGROPE, "factor": 2.0},
    "longrope attention_factor": {**LONGROPE, "attention_factor": 1.25},
}


@pytest.fixture(autouse=True)
def cpu(monkeypatch) -> None:
    """SGLang's class wants to know which kernel applies its table."""
    monkeypatch.setattr(base, "current_platform", SimpleNamespace(is_out_of_tree=lambda: True))


def head(rope: dict, **changes):
    return drafter_config(rope_parameters={"rope_theta": 10000.0, **rope}, max_position_embeddings=CONTEXT, **changes)


def test_every_kind_of_transformers_is_here():
    assert {rope["rope_type"] for rope in ROPES.values()} == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("rope", ROPES)
def test_the_table_is_that_of_training(rope):
    """Also where SGLang asks for more rows than the head's context has, which is once, before the first request."""
    config = head(ROPES[rope])
    check_rope(config, CONTEXT)
    served = HeadRope(config)
    longest = CONTEXT if ROPES[rope]["rope_type"] in ("dynamic", "longrope") else 3 * CONTEXT
    served._ensure_cos_sin_cache_length(longest - 1)
    assert len(served.cos_sin_cache) == longest
    cos, sin = rotary_embedding(config)(torch.zeros(1), torch.arange(longest)[None])
    expected = torch.cat([cos[0, :, : HEAD_DIM // 2], sin[0, :, : HEAD_DIM // 2]], dim=-1)
    torch.testing.assert_close(served.cos_sin_cache, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_frequencies_that_change_with_the_text_are_refused_past_their_bound(rope):
    with pytest.raises(InputError, match=f"'{rope}' .* --context-length {CONTEXT}, not {CONTEXT + 1}"):
        check_rope(head(ROPES[rope]), CONTEXT + 1)


@pytest.mark.parametrize("rope", ["linear", "yarn", "llama3"])
def test_part_of_a_head_is_refused(rope):
    """The drafter turns whole attention heads; transformers' own Llama cannot run such a config either."""
    config = head({**ROPES[rope], "partial_rotary_factor": 0.5})
    if 2 * len(rotary_embedding(config).inv_freq) == HEAD_DIM:
        pytest.skip("transformers passes over partial_rotary_factor for this kind")
    with pytest.raises(InputError, match="partial_rotary_factor"):
        check_rope(config, CONTEXT)
