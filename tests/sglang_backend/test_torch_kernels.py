"""The torch versions of SGLang's kernels, against peagle_core's plain verification and loops as they are described."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peagle_core.verify import verify_chain
from sglang_backend.cpu import torch_kernels


def buffers(bs: int, k: int) -> dict[str, torch.Tensor]:
    """What SGLang hands a verification kernel: outputs to fill, and the chain's tree."""
    nodes = torch.arange(bs * (k + 1)).view(bs, k + 1)
    return {
        "predicts": torch.zeros(bs * (k + 1), dtype=torch.int32),
        "accept_index": torch.full((bs, k + 1), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(bs, dtype=torch.int32),
        "retrieve_index": nodes,
    }


def outcome(out: dict[str, torch.Tensor], i: int) -> tuple[int, list[int]]:
    """(accepted drafts, the tokens of request i that SGLang will commit)."""
    index = out["accept_index"][i]
    return int(out["accept_token_num"][i]), out["predicts"][index[index >= 0].long()].tolist()


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_greedy_verification(k, bs, seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(bs, k + 1, 3, generator=rng)  # a tiny vocabulary, so that drafts are often right
    drafts = torch.randint(0, 3, (bs, k), generator=rng)
    out = buffers(bs, k)
    candidates = torch.cat([torch.zeros(bs, 1, dtype=torch.int64), drafts], 1)
    torch_kernels.verify_greedy(
        out["predicts"], out["accept_index"], out["accept_token_num"], candidates, out["retrieve_index"], None, None,
        logits.argmax(-1),
    )  # fmt: skip
    for i in range(bs):
        accepted, bonus = verify_chain(drafts[i], logits[i])
        assert outcome(out, i) == (accepted, [*drafts[i, :accepted].tolist(), bonus])


@pytest.mark.parametrize("drafts_are_sampled", [False, True])
def test_sampled_verification_follows_the_target(drafts_are_sampled):
    """First committed token over many requests, one draft each: its frequencies are the target's (chi-square)."""
    torch.manual_seed(5)
    bs, vocab = 40_000, 5
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    q = torch.tensor([0.1, 0.5, 0.2, 0.1, 0.1])
    if drafts_are_sampled:
        drafts = torch.multinomial(q, bs, replacement=True)
        draft_probs = q.expand(bs, 1, vocab)
    else:
        drafts = torch.ones(bs, dtype=torch.int64)
        draft_probs = torch.zeros(bs, 2, vocab)
    out = buffers(bs, 1)
    torch_kernels.verify_sampling(
        predicts=out["predicts"], accept_index=out["accept_index"], accept_token_num=out["accept_token_num"],
        candidates=torch.stack([torch.zeros(bs, dtype=torch.int64), drafts], 1),
        retrive_index=out["retrieve_index"], retrive_next_token=None, retrive_next_sibling=None,
        uniform_samples=torch.rand(bs, 2), uniform_samples_for_final_sampling=torch.rand(bs),
        target_probs=p.expand(bs, 2, vocab), draft_probs=draft_probs,
    )  # fmt: skip
    first = out["predicts"][out["retrieve_index"][:, 0]]
    counts = torch.bincount(first, minlength=vocab)
    chi_square = float(((counts - bs * p) ** 2 / (bs * p)).sum())
    assert chi_square < 18.5  # 4 degrees of freedom, p = 0.001
    accepted = out["accept_token_num"].float().mean()
    expected = torch.minimum(p, q).sum() if drafts_are_sampled else p[1]
    assert abs(accepted - expected) < 0.01


def test_chain_tree():
    positions, index = torch.zeros(6, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    following, sibling = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    torch_kernels.build_chain(None, None, torch.tensor([4, 9]), None, positions, index, following, sibling, 1, 2, 3, 0)
    assert positions.tolist() == [4, 5, 6, 9, 10, 11]
    assert index.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert following.tolist() == [[1, 2, -1]] * 2 and (sibling == -1).all()


def test_slots():
    table = torch.arange(40).view(4, 10)
    requests, start = torch.tensor([2, 0]), torch.tensor([3, 5])
    assert torch_kernels.extend_cache_locs(requests, table, start, start + 2).tolist() == [23, 24, 5, 6]
    out = torch.zeros(4, dtype=torch.int64)
    torch_kernels.assign_draft_cache_locs(requests, table, start, out, 1, 2)
    assert out.tolist() == [23, 24, 5, 6]
    torch_kernels.assign_req_to_token(requests, table, start, torch.tensor([5, 6]), torch.tensor([91, 92, 93]), 2)
    assert table[2, 3:5].tolist() == [91, 92] and table[0, 5] == 93 and table[0, 6] == 6


def test_bonus_tokens():
    bonus = torch.zeros(2, dtype=torch.int32)
    torch_kernels.fill_bonus_tokens(torch.tensor([7, 8, 9, 4, 5, 6]), torch.tensor([2, 3]), bonus, 3, 2)
    assert bonus.tolist() == [8, 6]


def test_renormalisation():
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.4, 0.1]])
    kept = torch_kernels.top_k_renorm(probs, torch.tensor([2, 1]))
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 1.0, 0]]))
    kept = torch_kernels.top_p_renorm(probs, torch.tensor([0.6, 0.3]))
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 1.0, 0]]))
