"""`python -m tools.bench masks`: the slow way builds the same mask, and the table has every way in it."""

from __future__ import annotations

import json

import torch

from peagle_core.cod import sample_elements
from peagle_core.mask import dense_mask
from tools.bench.__main__ import main
from tools.bench.masks import per_example_mask


def test_the_mask_from_scratch_is_the_mask():
    loss_mask, doc_ids = torch.ones(13, dtype=torch.bool), torch.zeros(13, dtype=torch.int64)
    elements = sample_elements(loss_mask, doc_ids, 4, 0.7)
    mask = per_example_mask(elements, 12, 4)
    assert mask.dtype == torch.float32
    assert torch.equal(mask == 0, dense_mask(elements, doc_ids))


def test_command(capsys, tmp_path):
    path = tmp_path / "masks.json"
    arguments = ["--lengths", "8,16", "--depths", "3", "--examples", "2", "--from-scratch", "2", "--json", str(path)]
    assert main(["masks", *arguments]) == 0
    rows = json.loads(path.read_text())
    assert [row["length"] for row in rows] == [8, 16]
    assert rows[1]["mask_mib"] == (16 * 3) ** 2 / 2**20
    for row in rows:
        assert min(row[way] for way in ("per_example", "amortised", "ranges", "slice")) > 0
    assert len(capsys.readouterr().out.splitlines()) == 4
