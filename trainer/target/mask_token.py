"""Which token id stands for "not known yet": one that the data never contains.

An id given by hand is taken when it does not occur in the data. By default, the first of these that does not: the
tokenizer's mask token; an embedding row the tokenizer does not use; a special token whose name says it is reserved or
unused; then, with a line that says so, another special token that no chat contains, and the `<unk>` of a tokenizer that
falls back to bytes. Never an end, pad or template token: training would teach the drafter that text goes on behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.errors import ConfigError

RESERVED = re.compile(r"reserved|unused|placeholder|<extra_id", re.IGNORECASE)


@dataclass(frozen=True)
class MaskCandidate:
    """A token id that no ordinary text becomes. remark: why it was taken although the tokenizer names it, or ''."""

    token_id: int
    remark: str = ""


def check_mask_token_id(wanted: int | None, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> None:
    """Check what needs no data. Raises ConfigError for an id outside the vocabulary, or none and no tokenizer."""
    if wanted is not None and wanted >= vocab_size:
        raise ConfigError(f"drafter.mask_token_id {wanted} is outside the vocabulary (0..{vocab_size - 1})")
    if wanted is None and tokenizer is None:
        raise ConfigError("the target has no tokenizer, so drafter.mask_token_id must be given")


def choose_mask_token(tokenizer: PreTrainedTokenizerBase, occurs: Tensor) -> MaskCandidate:
    """Return the best candidate. occurs: bool[V], whether the data contains each id. Raises ConfigError for none."""
    for candidate in mask_candidates(tokenizer, len(occurs)):
        if not occurs[candidate.token_id]:
            return candidate
    avoided = ends_and_template_ids(tokenizer)
    absent = [i for i in (~occurs).nonzero().flatten().tolist() if i not in avoided]
    hint = f", such as {absent[-1]} ({tokenizer.convert_ids_to_tokens(absent[-1])!r})" if absent else ""
    raise ConfigError(
        "no token id is free for the mask: the tokenizer, its chat template or the data use them all; "
        f"give drafter.mask_token_id an id that the data does not contain{hint}"
    )


def mask_candidates(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Iterator[MaskCandidate]:
    """Yield every id that can be the mask by default, best first, in time linear in the vocabulary."""
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special and i < vocab_size}
    avoided = ends_and_template_ids(tokenizer)
    spare = [i for i in sorted(special) if i not in avoided and i != tokenizer.unk_token_id]
    reserved = [i for i in spare if RESERVED.search(special[i])]
    if tokenizer.mask_token_id in spare:
        yield MaskCandidate(tokenizer.mask_token_id)
    used = set(tokenizer.get_vocab().values())
    yield from map(MaskCandidate, range(max(used) + 1, vocab_size))
    yield from map(MaskCandidate, reserved)
    yield from (MaskCandidate(i) for i in range(min(max(used) + 1, vocab_size)) if i not in used)
    for i in spare:
        yield MaskCandidate(i, f"the special token {special[i]!r}, which neither data nor chat template contains")
    unk = tokenizer.unk_token_id
    if unk is not None and unk < vocab_size and unk not in avoided and _falls_back_to_bytes(tokenizer):
        yield MaskCandidate(
            unk, f"{tokenizer.unk_token!r}, for texts never contain it: unknown characters become bytes"
        )


def ends_and_template_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that a served text may well contain: the tokenizer's ends and what its chat template writes."""
    chat = _chat_text(tokenizer)
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if tokenizer.pad_token_id != tokenizer.unk_token_id:
        ends.add(tokenizer.pad_token_id)
    ends.discard(None)
    return ends | {i for i, token in tokenizer.added_tokens_decoder.items() if str(token) in chat}


def _chat_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template, and chats that it renders: token names may be put together, as in <|{{ role }}|>."""
    template = tokenizer.chat_template
    if not template:
        return ""
    texts = [str(template)]
    for roles in (("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "tool", "assistant")):
        messages = [{"role": role, "content": role} for role in roles]
        try:
            texts.append(str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))
        except Exception:  # templates raise whatever they like on roles that they do not know
            continue
    return "\n".join(texts)


def _falls_back_to_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and bool(json.loads(backend.to_str())["model"].get("byte_fallback"))
