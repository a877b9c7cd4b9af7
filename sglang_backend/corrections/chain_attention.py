"""Attention on Blackwell: SGLang takes its fastest there, trtllm_mha, for algorithms that it knows to draft chains."""

from __future__ import annotations

from collections.abc import Callable

from sglang_backend import NAME


def let_peagle_in(forces: Callable[[str], bool], speculative_algorithm: str) -> bool:
    """Count PEAGLE among the chains, AROUND _forces_eagle_topk_one, which is asked before `validate` sets topk."""
    return speculative_algorithm.upper() == NAME or forces(speculative_algorithm)
