"""PEAGLE answers everything SGLang asks its enum, and is registered once however often the plugin runs."""

from __future__ import annotations

import pytest

sglang = pytest.importorskip("sglang")

from sglang.srt.speculative.spec_info import SpeculativeAlgorithm  # noqa: E402

from sglang_backend import algorithm, row_budget  # noqa: E402
from sglang_backend.corrections import chain_attention  # noqa: E402


def test_every_public_method_of_the_enum_exists():
    algorithm.register()
    ours = SpeculativeAlgorithm.from_string("peagle")
    methods = {n for n, v in vars(SpeculativeAlgorithm).items() if callable(v) and not n.startswith("_")}
    assert not {n for n in methods if not hasattr(ours, n)} - {"from_string", "register"}


def test_registering_twice_is_harmless():
    algorithm.register()
    algorithm.register()
    assert SpeculativeAlgorithm.from_string("PEAGLE").is_eagle3()


def test_blackwell_gives_chains_its_fastest_attention():
    from sglang.srt.arg_groups.model_override_base import _forces_eagle_topk_one

    takes = [chain_attention.let_peagle_in(_forces_eagle_topk_one, name) for name in ("PEAGLE", "dflash", "EAGLE3")]
    assert takes == [True, True, False]


@pytest.mark.parametrize("k", range(1, 12))
def test_the_reservation_covers_the_mask_rows(k):
    # Lag of the scheduler's length (K+1) + rows of a pass (2K).
    reserved = 2 * max(row_budget.verified_rows(k), row_budget.reserved_kv_slots(k))
    assert reserved >= (k + 1) + 2 * k
