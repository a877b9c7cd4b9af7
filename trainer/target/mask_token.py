"""Which token id stands for "not known yet": one that no text ever contains.

Order: the configured id; the tokenizer's mask token; an embedding row the tokenizer does not use; a special token
whose name says it is reserved or unused. Never a token the model meets, such as pad or end: training would teach the
drafter that text goes on behind it.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from trainer.errors import ConfigError

RESERVED = re.compile(r"reserved|unused|placeholder|<extra_id", re.IGNORECASE)


def resolve_mask_token_id(wanted: int | None, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> int:
    """Raises ConfigError where the wanted id is in use or outside the vocabulary, or nothing is free."""
    if wanted is not None:
        if wanted >= vocab_size:
            raise ConfigError(f"drafter.mask_token_id {wanted} is outside the vocabulary (0..{vocab_size - 1})")
        if tokenizer is not None and not is_free(wanted, tokenizer):
            token = tokenizer.convert_ids_to_tokens(wanted)
            raise ConfigError(f"drafter.mask_token_id {wanted} is the token {token!r}, which the tokenizer uses")
        return wanted
    if tokenizer is None:
        raise ConfigError("the target has no tokenizer, so drafter.mask_token_id must be given")
    if tokenizer.mask_token_id is not None and is_free(tokenizer.mask_token_id, tokenizer):
        return tokenizer.mask_token_id
    used = set(tokenizer.get_vocab().values())
    beyond = list(range(max(used) + 1, vocab_size))
    reserved = [i for i in sorted(used) if i < vocab_size and is_free(i, tokenizer)]
    if not beyond + reserved:
        raise ConfigError("no token id is free for the mask: the tokenizer uses them all; give drafter.mask_token_id")
    return (beyond + reserved)[0]


def is_free(token_id: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """True when the tokenizer makes no use of the id: it has no token there, or one kept in reserve."""
    token = tokenizer.added_tokens_decoder.get(token_id)
    if token is None:
        return token_id not in set(tokenizer.get_vocab().values())
    if not token.special or token_id in _in_use(tokenizer) or str(token) in str(tokenizer.chat_template or ""):
        return False
    return token_id == tokenizer.mask_token_id or bool(RESERVED.search(str(token)))


def _in_use(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    return {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
