"""The correction: what it adds while training and while drafting, that it starts at nothing, and what is stored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from layouts import stream
from steps import SMALL, assert_same, gradients, step, steps_at_both_precisions
from test_parity import serving_states
from tiny import random_batch, tiny_config, tiny_drafter, tiny_target
from torch import Tensor

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.cod import sample_elements
from peagle_core.config import HIDDEN_STATE_DESIGNS, PEagleConfig
from peagle_core.config_formats import speculators_config_dict
from peagle_core.draft_vocabulary import draft_vocab_ids
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.generate import chain_logits, choose_drafts, speculate
from peagle_core.told import MATCHES, NONE, TOKENS, ToldInTraining, told_of_chain
from peagle_core.training import (
    Batch,
    StepOptions,
    activation_costs,
    charged_elements,
    forward_elements,
    standing_drafts,
)

RANK, K = 5, 5
PACKED = ("uAAAAAAAAA", "uuAAAAAAA")


def added(drafter: PEagleDrafter, normed: Tensor, text: list[int], drafts: list[int]) -> Tensor:
    """What the correction adds to the logits of one row [V_d], from its definition; text: verified tokens."""
    own = drafter.correction
    *tokens, match = told_of_chain(torch.tensor(text), torch.tensor([text[-1], *drafts]))[-1].tolist()
    nothing = torch.zeros_like(normed)
    told = [nothing if t == NONE else own.embed_norm(drafter.embed_tokens.weight[t]) for t in tokens]
    told[-1] = told[-1] + own.match_embed.weight[match]
    x = torch.cat([normed, *told])
    gate, up = own.gate_proj.weight @ x, own.up_proj.weight @ x
    features = gate * gate.sigmoid() * up
    is_found = (draft_vocab_ids(drafter.d2t) == tokens[-1]).to(x.dtype)
    return own.lm_head.weight @ features + is_found * (own.copy_weight @ features + own.copy_bias[match])


def reference_loss(
    drafter: PEagleDrafter, batch: Batch, elements: Elements, head: Tensor, loss: str
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of all charged elements, one at a time, from the definition of the correction."""
    drafter.zero_grad(set_to_none=True)
    charged = charged_elements(elements, batch, head, drafter.d2t)
    elements, charged = elements[(rows := elements.argsort("anchor"))], charged[rows]
    hidden = forward_elements(drafter, batch, elements, "dense")
    target_rows = head[draft_vocab_ids(drafter.d2t)]
    total = torch.zeros((), dtype=torch.float64)
    for row in charged.nonzero().squeeze(-1).tolist():
        anchor, depth = int(elements.anchor[row]), int(elements.depth[row])
        start = int(batch.doc_starts[anchor])
        text = batch.input_ids[start : anchor + 2].tolist()
        drafts = batch.input_ids[anchor + 2 : anchor + depth + 2].tolist()  # the row predicts the token after them
        normed = drafter.norm(hidden[row])
        log_q = (drafter.lm_head(normed) + added(drafter, normed, text, drafts)).log_softmax(-1)
        log_p = (target_rows @ batch.final_hidden[anchor + depth + 1]).log_softmax(-1)
        total = total + ((log_p.exp() * (log_p - log_q)).sum() if loss == "kl" else -log_q[log_p.argmax()])
    (total / charged.sum()).backward()
    return float(total.detach()), gradients(drafter)


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("changes", [{}, {"draft_vocab_size": 11}], ids=["whole", "draft vocabulary"])
@pytest.mark.parametrize("options", [
    {"mode": "flat"}, {"mode": "flat", "attention": "dense", "recompute": True}, {"mode": "partition"},
    {"mode": "stream", "chunk_rows": 9},
], ids=lambda options: "-".join(map(str, options.values())))  # fmt: skip
def test_training_is_the_definition_in_every_mode(options, changes, loss):
    config = tiny_config(**SMALL, **changes, correction_rank=RANK)
    drafter = tiny_drafter(config, scale=1.5)
    packed = stream(*PACKED)
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 0.8, generator=torch.Generator().manual_seed(0))
    expected = reference_loss(drafter, batch, elements, head, loss)
    for name, parameter in drafter.correction.named_parameters():
        assert parameter.grad.abs().max() > 1e-3, name
    assert_same(step(drafter, batch, elements, target_head=head, loss=loss, **options), expected)


@pytest.mark.parametrize("design", HIDDEN_STATE_DESIGNS[1:])
def test_it_goes_with_every_hidden_state_design(design):
    config = tiny_config(**SMALL, hidden_state_design=design, correction_rank=RANK)
    drafter = tiny_drafter(config, scale=1.5).eval()
    packed = stream(*PACKED)
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 1.0)
    expected = reference_loss(drafter, batch, elements, head, "kl")
    for mode in ({"mode": "flat"}, {"mode": "partition", "num_segments": 3}, {"mode": "stream", "chunk_rows": 8}):
        assert_same(step(drafter, batch, elements, target_head=head, **mode), expected)
    drafter = tiny_drafter(tiny_config(hidden_state_design=design, correction_rank=RANK)).eval()
    assert len(speculate(tiny_target(), drafter, torch.arange(9), 4, 12).output_ids) == 12


def test_the_loop_corrects_as_training_does():
    # The loop is fed the text: its row d at anchor a, corrected by the text's own tokens, is the element (a, d).
    config = tiny_config(correction_rank=RANK)
    drafter = tiny_drafter(config, scale=1.5)
    packed = stream("A" * 14)
    batch, _ = random_batch(config, *packed)
    batch = replace(batch, input_ids=batch.input_ids % 4)  # so that much comes again
    elements = sample_elements(*packed, 4, 1.0)
    elements = elements[elements.argsort("anchor")]
    told = ToldInTraining(batch.input_ids, batch.doc_starts, config.vocab_size)(elements.anchor, elements.depth)
    features, head, copied = drafter.loss_factors(forward_elements(drafter, batch, elements), told)
    assert int((copied.amount != 0).sum()) > 5
    logits = copied.add_to(features @ head.T)
    loop, compared = serving_states(drafter, batch, 0, 14, [1] * 13), 0
    text = torch.cat([batch.input_ids, torch.zeros(K, dtype=torch.int64)])
    for row, (anchor, depth) in enumerate(zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True)):
        corrected = chain_logits(drafter, loop[anchor], text[: anchor + 2], text[anchor + 2 : anchor + 2 + K])[depth]
        torch.testing.assert_close(logits[row], corrected, rtol=0, atol=1e-9)
        compared += depth > 0
    assert compared > 20


def test_every_draft_follows_those_before_it():
    config = tiny_config(draft_vocab_size=20, correction_rank=RANK)
    drafter = tiny_drafter(config)
    states, text = torch.randn(6, config.hidden_size, dtype=torch.float64), torch.tensor([5, 7, 9, 7])
    drafts = choose_drafts(drafter, states, text)
    ids, chain = draft_vocab_ids(drafter.d2t), []
    logits = []
    for row in states:
        logits.append(drafter.lm_head(row) + added(drafter, row, text.tolist(), chain))
        chain.append(int(ids[logits[-1].argmax()]))
    assert drafts.tolist() == chain
    torch.testing.assert_close(chain_logits(drafter, states, text, drafts), torch.stack(logits))
    assert drafts.tolist() != drafter.target_ids(drafter.lm_head(states).argmax(-1)).tolist()
    firsts = {int(choose_drafts(drafter, states, torch.tensor([5, x]))[0]) for x in range(config.vocab_size)}
    assert len(firsts) > 5


def test_a_token_without_a_logit_is_drafted_outright():
    """Where the text goes on with it behind the last two tokens; the drafts behind it follow it."""
    drafter = tiny_drafter(tiny_config(draft_vocab_size=20, correction_rank=RANK))
    outside, other = [t for t in range(50) if t not in draft_vocab_ids(drafter.d2t)][:2]
    states, text = torch.randn(3, drafter.config.hidden_size, dtype=torch.float64), [1, 3, 6, outside, other, 9, 3, 6]
    drafts = choose_drafts(drafter, states, torch.tensor(text)).tolist()
    assert drafts[:2] == [outside, other] and drafts[2] in draft_vocab_ids(drafter.d2t)
    for changed in ([1, 3, 7, *text[3:]], [*text[:3], 9, *text[4:]]):  # one token the same, and what has a logit
        assert choose_drafts(drafter, states, torch.tensor(changed))[0] in draft_vocab_ids(drafter.d2t)
    with_all = tiny_drafter(tiny_config(correction_rank=RANK))
    assert not with_all.outright(told_of_chain(torch.tensor(text), torch.tensor(text[-1:]))).any()


def test_drafts_that_stand_are_the_loops_those_without_a_logit_among_them():
    """On a text whose every token is the target's choice, and which repeats tokens outside of the draft vocabulary."""
    config = tiny_config(draft_vocab_size=20, correction_rank=RANK)
    drafter = tiny_drafter(config, scale=1.5)
    packed = stream("A" * 40)
    batch, head = random_batch(config, *packed)
    text = torch.tensor([4, 1, 3, 6, 10, 11, 13, 3, 6] * 5)[:40]
    head = torch.nn.functional.normalize(head, dim=-1)  # so that the likeliest token of a row of it is its own
    batch = replace(batch, input_ids=text, final_hidden=torch.cat([head[text[1:]], head[:1]]))
    standing = standing_drafts(drafter, batch, 4, head, StepOptions()).tolist()
    loop, without_logit = serving_states(drafter, batch, 0, 40, [1] * 39), 0
    inside = draft_vocab_ids(drafter.d2t)
    for anchor in range(34):
        drafts = choose_drafts(drafter, loop[anchor][:4], text[: anchor + 2])
        stands = (drafts == text[anchor + 2 : anchor + 6]).long().cumprod(0).bool()
        assert standing[anchor] == stands.sum(), anchor
        without_logit += int((~torch.isin(drafts[stands], inside)).sum())
    assert without_logit > 20


def test_any_correction_leaves_the_output_alone(tiny_target):
    prompt = torch.arange(9)
    plain = tiny_target.generate(prompt[None], do_sample=False, max_new_tokens=20)[0, 9:].tolist()
    drafter = tiny_drafter(tiny_config(correction_rank=RANK))
    with torch.no_grad():
        drafter.correction.lm_head.weight.mul_(100)
    result = speculate(tiny_target, drafter, prompt, 4, 20)
    assert result.output_ids == plain
    without = tiny_drafter()
    assert result.draft_tokens[0] != speculate(tiny_target, without, prompt, 4, 20).draft_tokens[0]


def test_it_starts_at_nothing_and_learns_at_once():
    torch.manual_seed(0)
    plain = PEagleDrafter(tiny_config(**SMALL)).double()
    torch.manual_seed(0)
    drafter = PEagleDrafter(tiny_config(**SMALL, correction_rank=RANK)).double()
    theirs = dict(plain.named_parameters())
    own = {name: p for name, p in drafter.named_parameters() if name not in theirs}
    assert {n: tuple(p.shape) for n, p in own.items()} == {
        "correction.embed_norm.weight": (8,), "correction.gate_proj.weight": (RANK, 8 * (1 + TOKENS)),
        "correction.up_proj.weight": (RANK, 8 * (1 + TOKENS)), "correction.lm_head.weight": (23, RANK),
        "correction.match_embed.weight": (1 + MATCHES, 8), "correction.copy_weight": (RANK,),
        "correction.copy_bias": (1 + MATCHES,)}  # fmt: skip
    assert all(torch.equal(p, dict(drafter.named_parameters())[n]) for n, p in theirs.items())
    packed = stream(*PACKED)
    batch, head = random_batch(drafter.config, *packed)
    elements = sample_elements(*packed, 4, 1.0)
    expected = step(plain, batch, elements, target_head=head)
    found = step(drafter, batch, elements, target_head=head)
    assert_same((found[0], {n: found[1][n] for n in theirs}), expected)
    for name in ("lm_head.weight", "copy_weight"):
        assert found[1][f"correction.{name}"].abs().min() > 0, name
    assert found[1]["correction.copy_bias"].abs().max() > 0


@pytest.mark.parametrize("mode", ["flat", "partition", "stream"])
def test_autocast_stays_near_full_precision(mode):
    packed = stream("u" + 200 * "A", 150 * "A")
    grads, low_grads = steps_at_both_precisions(tiny_config(**SMALL, correction_rank=RANK), packed, mode)
    for name in ("correction.gate_proj.weight", "correction.lm_head.weight", "lm_head.weight"):
        assert low_grads[name].dtype == torch.float32
        assert (low_grads[name] - grads[name]).norm() <= 0.06 * grads[name].norm(), name


def test_a_frozen_head_beside_it_stays_without_gradient():
    config = tiny_config(**SMALL, correction_rank=RANK)
    drafter = tiny_drafter(config)
    batch, head = random_batch(config, *stream(*PACKED))
    elements = sample_elements(*stream(*PACKED), 4, 1.0)
    expected = step(drafter, batch, elements, target_head=head)
    drafter.lm_head.requires_grad_(False)
    found = step(drafter, batch, elements, target_head=head, options=StepOptions(mode="stream", chunk_rows=7))
    assert drafter.lm_head.weight.grad is None
    expected[1]["lm_head.weight"] = torch.zeros_like(drafter.lm_head.weight)
    assert_same(found, expected)


def test_it_is_stored_and_read_again(tmp_path):
    drafter = tiny_drafter(tiny_config(correction_rank=RANK, draft_vocab_size=20), dtype=torch.float32)
    save_drafter(drafter, tmp_path / "with", torch.float32)
    assert json.loads((tmp_path / "with/config.json").read_text())["correction_rank"] == RANK
    again = load_drafter(tmp_path / "with")
    assert again.config == drafter.config
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    # A head without it says nothing of it.
    save_drafter(tiny_drafter(dtype=torch.float32), tmp_path / "without", torch.float32)
    assert "correction" not in (tmp_path / "without/config.json").read_text()
    assert not [name for name in load_drafter(tmp_path / "without").state_dict() if "correction" in name]


def test_what_a_correction_cannot_be(tmp_path):
    for wrong in (-1, 2.5, True, "64"):
        with pytest.raises(InputError, match="correction_rank must be an integer of at least 0"):
            tiny_config(correction_rank=wrong)
    with pytest.raises(InputError, match="EAGLE-3 reads the draft before it anyway"):
        tiny_config(mask_token_id=None, correction_rank=4)
    with pytest.raises(InputError, match="no place in speculators' format"):
        speculators_config_dict(tiny_config(correction_rank=4))
    drafter = tiny_drafter(tiny_config(), dtype=torch.float32)
    save_drafter(drafter, tmp_path / "head")
    path = tmp_path / "head/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"correction_rank": RANK}))
    assert PEagleConfig.from_pretrained(tmp_path / "head").correction_rank == RANK
    with pytest.raises(InputError, match=r"tensor 'correction\.copy_bias' is missing and 6 more"):
        load_drafter(tmp_path / "head")


def test_memory_counts_the_joined_heads_and_what_the_features_keep():
    plain, drafter = (
        activation_costs(tiny_drafter(tiny_config(**SMALL, correction_rank=r), dtype=torch.float32)) for r in (0, RANK)
    )
    assert drafter.loss - plain.loss == 2 * 23 * (8 + RANK) * 4
    assert drafter.kept == plain.kept
    # Embeddings, what the gated unit reads, its two sides and their product, and the joined rows; and their gradients.
    least = TOKENS * 8 + (1 + TOKENS) * 8 + 3 * RANK + (8 + RANK)
    assert 2 * 4 * least <= drafter.row - plain.row <= 2 * 2 * 4 * least
