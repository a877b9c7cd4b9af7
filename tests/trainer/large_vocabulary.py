"""A tokenizer as large as today's targets have, all of whose ids are in use."""

from __future__ import annotations

from itertools import islice, product
from string import ascii_lowercase
from typing import Any

from tiny_run import CHAT_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<file_sep>", "<repo_name>"]


def large_tokenizer(size: int, special: list[str] = SPECIAL, **changes: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `size` ids: special tokens, bytes, pairs of letters, pairs of such pairs."""
    pairs = ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pairs]
    quads = list(islice(product(pairs, repeat=2), size - len(tokens)))
    merges = [(pair[0], pair[1]) for pair in pairs] + quads
    tokens += ["".join(quad) for quad in quads]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    options = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **(options | {"chat_template": CHAT_TEMPLATE} | changes))
