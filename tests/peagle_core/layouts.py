"""Packed token streams for the tests: a hypothesis strategy, and a few by hand."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from peagle_core.elements import Elements, slots

Stream = tuple[Tensor, Tensor]  # loss_mask bool[n], doc_ids int64[n]


def stream(*documents: str) -> Stream:
    """One packed row: "A" a generated token, "u" any other token of a document, "." padding (a document of its own)."""
    mask, ids = [], []
    for number, text in enumerate(documents):
        mask += [letter == "A" for letter in text]
        ids += [-1 if letter == "." else number for letter in text]
    return torch.tensor(mask, dtype=torch.bool), torch.tensor(ids, dtype=torch.int64)


def documents(max_size: int = 14) -> st.SearchStrategy[str]:
    """Fully generated text, chats of several turns, arbitrary masks and runs of padding; one token and more."""
    turns = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=3)
    return st.one_of(
        st.integers(1, max_size).map(lambda n: "A" * n),
        turns.map(lambda t: "".join("u" * user + "A" * answer for user, answer in t)[:max_size]),
        st.text("uA", min_size=1, max_size=max_size),
        st.integers(1, 4).map(lambda n: "." * n),
    )


def streams(max_documents: int = 4, max_size: int = 14) -> st.SearchStrategy[Stream]:
    return st.lists(documents(max_size), min_size=1, max_size=max_documents).map(lambda texts: stream(*texts))


def all_elements(doc_ids: Tensor, num_depths: int) -> Elements:
    """Every slot at every depth whose position is still a slot of the same document, anchor-major."""
    exists = set(slots(doc_ids).tolist())
    pairs = [
        (a, d)
        for a in sorted(exists)
        for d in range(num_depths)
        if a + d in exists and int(doc_ids[a]) == int(doc_ids[a + d])
    ]
    table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Elements(table[:, 0], table[:, 1])


def chains(doc_ids: Tensor, lengths: list[int]) -> Elements:
    """Anchor-major elements in which the i-th slot has a chain of depths 0..lengths[i % len] - 1 (at least depth 0)."""
    anchors = slots(doc_ids).tolist()
    pairs = [(a, d) for i, a in enumerate(anchors) for d in range(max(1, lengths[i % len(lengths)]))]
    table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Elements(table[:, 0], table[:, 1])
