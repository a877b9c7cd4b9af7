"""The paper's rejected hidden-state designs: what they add, that they train in every mode, run in the reference loop,
and never reach a serving format."""

from __future__ import annotations

import pytest
import torch
from layouts import stream
from steps import SMALL, assert_same, step
from tiny import random_batch, tiny_config, tiny_drafter, tiny_target

from peagle_core.checkpoint import save_drafter
from peagle_core.cod import sample_elements
from peagle_core.config import HIDDEN_STATE_DESIGNS, PEagleConfig
from peagle_core.config_formats import config_record, flat_config_dict
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.generate import speculate
from peagle_core.hidden_state_designs import DESIGNS

REJECTED = HIDDEN_STATE_DESIGNS[1:]


def rows(drafter: PEagleDrafter) -> tuple[torch.Tensor, torch.Tensor]:
    """Fused states of two chains: anchors 0 and 1 with depths 0..2, and of their real rows alone."""
    aux = torch.randn(2, drafter.config.fused_size, dtype=torch.float64)
    depth, source = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 1])
    _, fused = drafter.input_rows(torch.tensor([3, 4]), aux, depth > 0, source, depth)
    return fused, drafter.fuse(aux)


def test_names():
    assert tuple(DESIGNS) == REJECTED
    assert HIDDEN_STATE_DESIGNS[0] == "shared"
    with pytest.raises(InputError, match="unknown hidden_state_design 'none'; choose from shared, "):
        tiny_config(hidden_state_design="none")
    with pytest.raises(InputError, match="'depth_embedding' needs num_depths"):
        PEagleDrafter(tiny_config(hidden_state_design="depth_embedding", num_depths=None))


@pytest.mark.parametrize("name", HIDDEN_STATE_DESIGNS)
def test_what_each_adds_to_the_shared_state(name):
    drafter = tiny_drafter(tiny_config(hidden_state_design=name)).eval()
    fused, real = rows(drafter)
    shared = drafter.fuse(drafter.mask_hidden.view(-1))
    design = drafter.hidden_design
    for row, (anchor, depth) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        expected = real[anchor] if depth == 0 else shared
        if depth and "depth_embedding" in name:
            expected = expected + design.depth_embedding.weight[depth]
        if depth and "ntp" in name:
            projected = design.projection(real[anchor])
            expected = expected + (design.alpha * projected if name == "regularised_ntp" else projected)
        torch.testing.assert_close(fused[row], expected, rtol=1e-12, atol=1e-12)


def test_regularisation_starts_at_a_tenth_and_drops_a_tenth():
    drafter = PEagleDrafter(tiny_config(hidden_state_design="regularised_ntp"))
    assert drafter.hidden_design.alpha.item() == pytest.approx(0.1)
    assert drafter.hidden_design.dropout.p == 0.1
    states = torch.ones(500, drafter.config.hidden_size)
    with torch.no_grad():
        drafter.hidden_design.projection.weight.copy_(torch.eye(drafter.config.hidden_size))
        added = drafter.hidden_design(states, torch.ones(500, dtype=torch.int64))
    assert float((added == 0).float().mean()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("name", REJECTED)
def test_every_mode_trains_it_alike(name):
    config = tiny_config(**SMALL, hidden_state_design=name)
    drafter = tiny_drafter(config).eval()  # dropout draws differ from mode to mode
    packed = stream("uAAAAAAAAA", "AAAAAAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 1.0)
    expected = step(drafter, batch, elements, target_head=head)
    for parameter in drafter.hidden_design.parameters():
        assert parameter.grad.abs().sum() > 0
    for mode in ({"mode": "partition", "num_segments": 3}, {"mode": "stream", "chunk_rows": 8}):
        assert_same(step(drafter, batch, elements, target_head=head, **mode), expected)


@pytest.mark.parametrize("name", REJECTED)
def test_it_drafts_in_the_reference_loop(name):
    target, drafter = tiny_target(), tiny_drafter(tiny_config(hidden_state_design=name)).eval()
    result = speculate(target, drafter, torch.arange(9), num_draft_tokens=4, max_new_tokens=12)
    assert len(result.output_ids) == 12
    assert all(len(drafts) == 4 for drafts in result.draft_tokens)


def test_more_drafts_than_depth_embeddings_are_refused():
    target, drafter = tiny_target(), tiny_drafter(tiny_config(hidden_state_design="depth_embedding"))
    with pytest.raises(InputError, match="depth 5 has no embedding: the drafter was built for num_depths 4"):
        speculate(target, drafter, torch.arange(9), num_draft_tokens=6, max_new_tokens=12)


@pytest.mark.parametrize("name", REJECTED)
def test_it_is_never_exported(name, tmp_path):
    drafter = tiny_drafter(tiny_config(hidden_state_design=name))
    with pytest.raises(InputError, match=f"hidden_state_design '{name}' .* no serving engine"):
        save_drafter(drafter, tmp_path / "head")
    with pytest.raises(InputError, match="no serving engine"):
        drafter.config.save_pretrained(tmp_path / "config")
    assert not list(tmp_path.rglob("*.*"))
    # What a training checkpoint records comes back; an engine that is given it still refuses.
    recorded = PEagleConfig.from_dict(config_record(drafter.config, "float32"))
    assert recorded == drafter.config
    with pytest.raises(InputError, match="no serving engine"):
        flat_config_dict(recorded)
