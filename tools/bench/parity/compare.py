"""Recorded drafter passes beside the reference loop's: what of each pass is equal, and the first that is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from peagle_core.drafter import PEagleDrafter
from peagle_core.generate import DraftCache, chain_logits, draft_states, drafts_of
from peagle_core.target import run_target


@dataclass(frozen=True)
class Pass:
    """What a server recorded of one request in one drafter pass (sglang_backend.dump.drafter_passes).

    number: of the pass; batch: requests in it; known: tokens of the request, prompt and bonus token included, when it
    drafted; drafts: int64[K], target ids; logits: float32[K, V_d], corrected ones of a head with a correction.
    """

    number: int
    batch: int
    rid: str
    known: int
    drafts: Tensor
    logits: Tensor


def recorded_passes(records: Path, after: int = 0) -> Iterator[Pass]:
    """Read what was recorded below `records` since pass `after`, in order."""
    for path in sorted(records.glob("pass-*.safetensors"))[after:]:
        with safe_open(path, "pt") as file:
            rids = json.loads(file.metadata()["rids"])
            tensors = {name: file.get_tensor(name) for name in ("known", "drafts", "logits")}
        number = int(path.stem.removeprefix("pass-"))
        for i, rid in enumerate(rids):
            known = int(tensors["known"][i])
            yield Pass(number, len(rids), rid, known, tensors["drafts"][i], tensors["logits"][i])


@torch.no_grad()
def reference_logits(target: PreTrainedModel, drafter: PEagleDrafter, ids: Tensor, drafts: Tensor) -> Tensor:
    """Return [K, V_d]: what drafts int64[K] behind the known tokens `ids` are chosen from, without any cache."""
    return _drafted(drafter, ids, _states(target, drafter, ids[:-1]), drafts)


@dataclass(frozen=True)
class Difference:
    """A pass that is not the reference's. distances: of each slot's logits, relative; drafts: ours, expected: theirs.

    prompt: tokens of the prompt.
    """

    number: int
    batch: int
    rid: str
    prompt: int
    known: int
    distances: list[float]
    drafts: list[int]
    expected: list[int]

    def __str__(self) -> str:
        slots = ", ".join(f"{distance:.4f}" for distance in self.distances)
        return (
            f"pass {self.number} of {self.batch} requests, request {self.rid}: prompt of {self.prompt} tokens, "
            f"{self.known} known, K = {len(self.drafts)}: relative distances of the slots' logits {slots}; "
            f"drafted {self.drafts}, the reference {self.expected}"
        )


@dataclass(frozen=True)
class Compared:
    """All passes of a server beside the reference.

    passes: compared ones, after_prefill of them after a prompt; by_k, by_batch: how many had which K and batch size;
    median, largest: relative distance of a pass's worst slot; drafts_equal: share of drafts that are the reference's;
    taken_back: passes left out because their tokens were, see `_standing`;
    first: the first pass whose distance exceeds the limit or whose drafts do not follow from its own logits.
    """

    passes: int
    after_prefill: int
    by_k: dict[int, int]
    by_batch: dict[int, int]
    median: float
    largest: float
    drafts_equal: float
    taken_back: int
    first: Difference | None


@torch.no_grad()
def compare(
    passes: Iterator[Pass], texts: Mapping[str, tuple[int, Sequence[int]]], target: PreTrainedModel,
    drafter: PEagleDrafter, limit: float, first_slot_alone: bool = False,
) -> Compared:  # fmt: skip
    """Hold every pass against the reference loop.

    texts: by request (tokens of the prompt, all its tokens); target, drafter: in float32, on one device;
    first_slot_alone: after prefills compare draft 1 only, for some passes had no mask rows (their drafts 2..K repeat
    it). Left out are passes of chunks that do not end a prompt, which draft nothing, those past a request's limit, and
    those whose tokens were taken back.
    """
    known = [drawn for drawn in passes if drawn.rid in texts]
    known = [drawn for drawn in known if texts[drawn.rid][0] < drawn.known <= len(texts[drawn.rid][1])]
    standing = _standing(known)
    device = drafter.fc.weight.device
    by_k: Counter[int] = Counter()
    by_batch: Counter[int] = Counter()
    worst: list[float] = []
    equal: list[float] = []
    after_prefill, first = 0, None
    states: dict[str, Tensor] = {}  # of each whole text: states are causal, so a prefix of them is that of the tokens
    for drawn in standing:
        prompt, tokens = texts[drawn.rid]
        ids = torch.tensor(tokens, device=device)
        if drawn.rid not in states:
            states[drawn.rid] = _states(target, drafter, ids[:-1])
        is_prefill = drawn.known == prompt + 1
        slots = 1 if is_prefill and first_slot_alone else len(drawn.drafts)
        ids, aux = ids[: drawn.known], states[drawn.rid][: drawn.known - 1]
        drafted = drawn.drafts.to(device)
        theirs, ours = _drafted(drafter, ids, aux, drafted), drawn.logits.to(device)
        expected, own = drafts_of(drafter, torch.stack([theirs, ours]), ids, drafted)[:, :slots].tolist()
        theirs, ours, drafts = theirs[:slots], ours[:slots], drawn.drafts[:slots].tolist()
        distances = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).tolist()
        worst.append(max(distances))
        equal.append(sum(a == b for a, b in zip(drafts, expected, strict=True)) / slots)
        by_k[len(drawn.drafts)] += 1
        by_batch[drawn.batch] += 1
        after_prefill += is_prefill
        if first is None and (worst[-1] > limit or drafts != own):
            first = Difference(drawn.number, drawn.batch, drawn.rid, prompt, drawn.known, distances, drafts, expected)
    return Compared(
        passes=len(worst),
        after_prefill=after_prefill,
        by_k=dict(sorted(by_k.items())),
        by_batch=dict(sorted(by_batch.items())),
        median=median(worst or [0.0]),
        largest=max(worst, default=0.0),
        drafts_equal=sum(equal) / max(1, len(equal)),
        taken_back=len(known) - len(standing),
        first=first,
    )


def _standing(passes: Sequence[Pass]) -> list[Pass]:
    """Return the passes whose tokens are in the text: a retracted request loses the step that was under way.

    It goes on from fewer tokens, and where acceptance is simulated says others than before: what such a pass saw is
    nowhere written.
    """
    lowest: dict[str, int] = {}  # of the passes behind
    kept = []
    for drawn in reversed(passes):
        if drawn.rid not in lowest or drawn.known < lowest[drawn.rid]:
            lowest[drawn.rid] = drawn.known
            kept.append(drawn)
    return kept[::-1]


def _states(target: PreTrainedModel, drafter: PEagleDrafter, ids: Tensor) -> Tensor:
    """Return the target's aux states, [len(ids), 3H_t]."""
    aux_ids = drafter.config.aux_layer_ids_for(target.config.get_text_config().num_hidden_layers)
    return run_target(target, ids[None], aux_ids)[1][0]


def _drafted(drafter: PEagleDrafter, ids: Tensor, aux: Tensor, drafts: Tensor) -> Tensor:
    return chain_logits(drafter, draft_states(drafter, DraftCache(), ids[1:], aux, len(drafts), 0), ids, drafts)
