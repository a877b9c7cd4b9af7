"""The reference drafter loop: its output is the target's own, whatever the drafter says and however the loop ends."""

from __future__ import annotations

import itertools

import pytest
import torch
from chisquare import p_value
from tiny import HIDDEN, VOCAB, text_batch, tiny_config, tiny_drafter, tiny_target
from torch import Tensor, nn
from transformers import LlamaConfig, MistralConfig, MistralForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from peagle_core.cod import sample_elements
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.generate import Speculation, speculate
from peagle_core.target import target_head
from peagle_core.training import Batch, loss_and_backward


class ScriptedDrafter(PEagleDrafter):
    """Knows the text: the row at position p drafts text[p + 2], or another token from draft `right` + 1 on.
    It reads nothing but positions, so it also tells whether the loop puts every row where it belongs."""

    def __init__(self, config: PEagleConfig, text: list[int], num_drafts: int, right: int) -> None:
        super().__init__(config)
        self.double()
        self.text, self.num_drafts, self.right, self.passes = text, num_drafts, right, 0

    def forward(self, embed, fused, positions, attend):
        self.positions = positions[-self.num_drafts :].tolist()
        self.passes += 1
        return super().forward(embed, fused, positions, attend)

    def corrected_logits(self, normed: Tensor, told: Tensor | None) -> Tensor:
        logits = super().corrected_logits(normed, told) * 0
        for draft, position in enumerate(self.positions):
            token = self.text[position + 2]
            logits[draft, token if draft < self.right else (token + 1) % VOCAB] = 1.0
        return logits


class CountedTarget(nn.Module):
    """Counts the passes of a target."""

    def __init__(self, target: PreTrainedModel) -> None:
        super().__init__()
        self.target, self.config, self.passes = target, target.config, 0

    def forward(self, **inputs):
        self.passes += 1
        return self.target(**inputs)


def greedy(
    target: PreTrainedModel, prompt: Tensor, max_new_tokens: int, eos: int | list[int] | None = None
) -> list[int]:
    output = target.generate(
        prompt[None], do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=None
    )
    return output[0, len(prompt) :].tolist()


def prompt_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def check_steps(result: Speculation, num_drafts: int, max_new_tokens: int) -> None:
    """The three lists tell one story: bonus token, then per step the accepted drafts and the target's own token."""
    assert len(result.accept_lengths) == len(result.draft_tokens)
    assert all(1 <= length <= num_drafts + 1 for length in result.accept_lengths)
    assert all(len(drafts) == num_drafts for drafts in result.draft_tokens)
    at = 1
    for length, drafts in zip(result.accept_lengths, result.draft_tokens, strict=True):
        assert at < len(result.output_ids), "a step began after the output was complete"
        inside = min(length - 1, len(result.output_ids) - at)
        assert result.output_ids[at : at + inside] == drafts[:inside]
        if length <= num_drafts and at + length - 1 < len(result.output_ids):
            assert result.output_ids[at + length - 1] != drafts[length - 1], "the first refused draft was wrong"
        at += length
    assert len(result.output_ids) <= min(at, max_new_tokens)


@pytest.fixture(scope="module")
def text(tiny_target) -> tuple[Tensor, list[int]]:
    """A prompt, and prompt + greedy continuation, long enough for every test."""
    prompt = prompt_of(9)
    continuation = greedy(tiny_target, prompt, 60)
    assert len(set(continuation)) > 8, "a text that repeats itself would hide mistakes"
    return prompt, prompt.tolist() + continuation


@pytest.mark.parametrize("num_drafts", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["random", "always_wrong", "always_right", "half_right", "draft_vocab"])
def test_greedy_output_is_the_targets_own(tiny_target, text, kind, num_drafts):
    prompt, tokens = text
    limit = 26
    right = {"always_wrong": 0, "always_right": num_drafts, "half_right": (num_drafts + 1) // 2}
    if kind in right:
        drafter = ScriptedDrafter(tiny_config(), tokens, num_drafts, right[kind])
    else:
        drafter = tiny_drafter(tiny_config(draft_vocab_size=20 if kind == "draft_vocab" else None))
    target = CountedTarget(tiny_target)
    result = speculate(target, drafter, prompt, num_drafts, limit)
    assert result.output_ids == tokens[len(prompt) :][:limit]
    check_steps(result, num_drafts, limit)
    assert target.passes == 1 + len(result.accept_lengths), "one target pass per step, and the prompt's"
    if kind in right:
        assert set(result.accept_lengths) == {right[kind] + 1}
        assert drafter.passes == len(result.accept_lengths), "one drafter pass per step"
        assert len(result.accept_lengths) == -(-(limit - 1) // (right[kind] + 1))
        assert result.mean_accept_length == right[kind] + 1


def test_an_overfitted_head_is_as_good_as_the_script(tiny_target, text):
    # A real drafter, trained on this very text through the real loss, reaches acceptance near K + 1.
    prompt, tokens = text
    num_drafts = 3
    drafter = tiny_drafter(tiny_config(), dtype=torch.float32, scale=1.0)
    batch = text_batch(tiny_target, drafter.config, torch.tensor(tokens), len(prompt))
    batch = Batch(**{**vars(batch), "aux": batch.aux.float(), "final_hidden": batch.final_hidden.float()})
    head = target_head(tiny_target).float()
    elements = sample_elements(batch.loss_mask, batch.doc_ids, num_drafts, 1.0)
    optimizer = torch.optim.Adam(drafter.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss_and_backward(drafter, batch, elements, target_head=head, loss="ce")
        optimizer.step()
    result = speculate(tiny_target, drafter, prompt, num_drafts, 50)
    assert result.output_ids == tokens[len(prompt) :][:50]
    assert result.mean_accept_length > 0.95 * (num_drafts + 1)


@pytest.mark.parametrize("right", [0, 1, 5])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
def test_the_token_limit_is_exact(tiny_target, text, limit, right):
    prompt, tokens = text
    result = speculate(tiny_target, ScriptedDrafter(tiny_config(), tokens, 5, right), prompt, 5, limit)
    assert result.output_ids == tokens[len(prompt) :][:limit]
    check_steps(result, 5, limit)
    assert (result.accept_lengths == []) == (limit == 1)


@pytest.mark.parametrize("right", [0, 2, 5])
def test_the_end_token_ends_it_wherever_it_falls(tiny_target, text, right):
    # As first token, as bonus token, as accepted draft in the middle of a step: the loop must not go on.
    prompt, tokens = text
    continuation = tokens[len(prompt) :]
    for place in range(9):
        eos = continuation[place]
        if eos in continuation[:place]:
            continue
        result = speculate(
            tiny_target, ScriptedDrafter(tiny_config(), tokens, 5, right), prompt, 5, 40, eos_token_id=eos
        )
        assert result.output_ids == continuation[: place + 1]
        assert result.output_ids == greedy(tiny_target, prompt, 40, eos)
        check_steps(result, 5, 40)


@pytest.mark.parametrize("right", [0, 2, 5])
def test_any_of_several_end_tokens_ends_it(tiny_target, text, right):
    prompt, tokens = text
    continuation = tokens[len(prompt) :]
    new = [i for i, token in enumerate(continuation[:12]) if token not in continuation[:i]]
    for first, second in itertools.combinations(new, 2):
        ends = [continuation[second], continuation[first]]
        drafter = ScriptedDrafter(tiny_config(), tokens, 5, right)
        result = speculate(tiny_target, drafter, prompt, 5, 40, eos_token_id=ends)
        assert result.output_ids == continuation[: first + 1] == greedy(tiny_target, prompt, 40, ends)


@pytest.mark.parametrize("length", [1, 2])
def test_shortest_prompts(tiny_target, length):
    prompt = prompt_of(length, seed=4)
    expected = greedy(tiny_target, prompt, 20)
    for num_drafts in (1, 4):
        result = speculate(tiny_target, tiny_drafter(), prompt, num_drafts, 20)
        assert result.output_ids == expected
        check_steps(result, num_drafts, 20)
        scripted = ScriptedDrafter(tiny_config(), prompt.tolist() + greedy(tiny_target, prompt, 40), num_drafts, 9)
        result = speculate(tiny_target, scripted, prompt, num_drafts, 20)
        assert result.output_ids == expected
        assert set(result.accept_lengths) == {num_drafts + 1}


@pytest.mark.parametrize("prompt_length", [3, 15])
@pytest.mark.parametrize("right", [0, 2, 4])
def test_a_target_with_a_sliding_window_shorter_than_the_text(prompt_length, right):
    options = {
        name: value for name, value in tiny_target().config.to_dict().items()
        if name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                    "num_key_value_heads", "max_position_embeddings", "initializer_range")
    }  # fmt: skip
    torch.manual_seed(0)
    config = MistralConfig(**options, sliding_window=8, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    target = MistralForCausalLM(config).double().eval()
    prompt = prompt_of(prompt_length)
    continuation = greedy(target, prompt, 36)
    drafter = ScriptedDrafter(tiny_config(), prompt.tolist() + continuation, 4, right)
    result = speculate(target, drafter, prompt, 4, 28)
    assert result.output_ids == continuation[:28]
    assert set(result.accept_lengths) == {right + 1}


def test_a_shallow_target_and_impossible_requests_are_refused(tiny_target):
    config = tiny_config(aux_layer_ids=None)
    with pytest.raises(InputError, match="6 layers"):
        speculate(tiny_target_of(6), tiny_drafter(config), prompt_of(3), 2, 4)
    with pytest.raises(InputError, match=r"num_draft_tokens \(K\) must be at least 1, found 0"):
        speculate(tiny_target, tiny_drafter(), prompt_of(3), 0, 4)
    with pytest.raises(InputError, match="prompt is empty"):
        speculate(tiny_target, tiny_drafter(), prompt_of(0), 2, 4)


def tiny_target_of(num_layers: int) -> PreTrainedModel:
    return tiny_target(num_hidden_layers=num_layers)


class BigramTarget(nn.Module):
    """A target whose next-token law is a table of the last token alone: exact probabilities, and fast."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.config = LlamaConfig(num_hidden_layers=8, hidden_size=HIDDEN, num_attention_heads=3, num_key_value_heads=1)

    def forward(self, input_ids, past_key_values, logits_to_keep, output_hidden_states):
        for layer in range(8):  # a cache to crop, as every target has
            empty = torch.zeros(1, 1, input_ids.shape[1], 2)
            past_key_values.update(empty, empty, layer)
        states = torch.zeros(1, input_ids.shape[1], HIDDEN, dtype=torch.float64)
        logits = self.table[input_ids[:, -logits_to_keep:]]
        return CausalLMOutputWithPast(logits=logits, hidden_states=(states,) * 9, past_key_values=past_key_values)


def sequence_law(table: Tensor, first: int, length: int, temperature: float) -> Tensor:
    """[V ** length]: the probability of every continuation, in lexicographic order."""
    p = (table / temperature).softmax(-1)
    chances = []
    for tokens in itertools.product(range(len(table)), repeat=length):
        chance, last = 1.0, first
        for token in tokens:
            chance, last = chance * float(p[last, token]), token
        chances.append(chance)
    return torch.tensor(chances)


def count_sequences(target, drafter, prompt: Tensor, vocab: int, length: int, runs: int, temperature: float) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    counts = torch.zeros(vocab**length)
    for _ in range(runs):
        result = speculate(target, drafter, prompt, 2, length, temperature=temperature, generator=rng)
        index = 0
        for token in result.output_ids:
            index = index * vocab + token
        counts[index] += 1
    return counts


def test_sampled_text_follows_the_target(tiny_target):
    # Three tokens at K = 2 span the prompt's own token, accepted and refused drafts; all 27 sequences are counted.
    vocab, length, temperature = 3, 3, 0.8
    table = torch.randn(vocab, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    drafter = tiny_drafter(tiny_config(vocab_size=vocab, mask_token_id=2, num_hidden_layers=1))
    counts = count_sequences(BigramTarget(table), drafter, torch.tensor([1, 0]), vocab, length, 600, temperature)
    assert p_value(counts, sequence_law(table, 0, length, temperature)) > 1e-4


@pytest.mark.slow
def test_sampled_text_follows_a_real_target():
    # The same through a transformer, whose key/value cache must forget every refused draft.
    vocab, length, temperature = 3, 3, 1.0
    target = tiny_target(vocab_size=vocab, initializer_range=0.4)
    drafter = tiny_drafter(tiny_config(vocab_size=vocab, mask_token_id=2, num_hidden_layers=1))
    prompt = torch.tensor([1, 0, 2])
    law = []
    for tokens in itertools.product(range(vocab), repeat=length):
        with torch.no_grad():
            p = target(torch.cat([prompt, torch.tensor(tokens)])[None]).logits[0].softmax(-1)
        law.append(float(torch.stack([p[len(prompt) - 1 + i, t] for i, t in enumerate(tokens)]).prod()))
    counts = count_sequences(target, drafter, prompt, vocab, length, 300, temperature)
    assert p_value(counts, torch.tensor(law)) > 1e-4


def test_sampling_is_reproducible_from_its_generator(tiny_target):
    def sample(seed: int) -> list[int]:
        torch.rand(1)
        rng = torch.Generator().manual_seed(seed)
        return speculate(tiny_target, tiny_drafter(), prompt_of(4), 3, 12, temperature=1.0, generator=rng).output_ids

    assert sample(0) == sample(0)
    assert len({tuple(sample(seed)) for seed in range(6)}) > 1
