"""Read from a target model's directory its sizes, tokenizer, embedding and head; its layers are never read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from peagle_core.config import PEagleConfig
from peagle_core.errors import InputError, first_line
from peagle_core.tensors import weight_files
from tools.heads.head import StoredTensor, list_tensors, read_tensor
from trainer.target.mask_token import ends_and_template_ids, mask_candidates


@dataclass(frozen=True)
class Target:
    """Hold what is known of a target model.

    config: transformers' config of the text model. tokenizer: None where the directory has none.
    """

    directory: Path
    config: Any
    architectures: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase | None
    tensors: list[StoredTensor]

    def tensor(self, name: str) -> Tensor | None:
        """Read `embed_tokens.weight` or `lm_head.weight`, [V, H_t]; None where the directory has no such weight."""
        if name == "lm_head.weight" and getattr(self.config, "tie_word_embeddings", False):
            name = "embed_tokens.weight"
        # A model with a vision part calls it, say, model.language_model.embed_tokens.weight.
        found = [tensor for tensor in self.tensors if tensor.name == name or tensor.name.endswith("." + name)]
        return read_tensor(found[0]) if len(found) == 1 else None


def open_target(directory: Path) -> Target:
    """Open a target. Raises InputError when it is no model that transformers knows."""
    try:
        if not directory.is_dir():
            raise OSError("no such directory")
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        tokenizer = None
        if any(directory.glob("*token*")):
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory}: not a target model ({first_line(error)})") from None
    # A directory without weights does for every check but that of shared weights.
    files = weight_files(directory) if any(directory.glob("*.safetensors")) else []
    tensors = [tensor for path in files for tensor in list_tensors(path)]
    text = config.get_text_config()
    architectures = tuple(config.architectures or ())
    return Target(directory, text, architectures, tokenizer, tensors)


def misfits(config: PEagleConfig, target: Target) -> Iterator[str]:
    """Yield why a head is not for this target: made for another one, or its mask id is a token that texts contain."""
    text = target.config
    for name, ours, theirs in (
        ("target_hidden_size", config.target_hidden_size, text.hidden_size),
        ("vocab_size", config.vocab_size, text.vocab_size),
    ):
        if ours != theirs:
            yield f"the head's {name} is {ours}, the target {target.directory} has {theirs}"
    try:
        config.aux_layer_ids_for(text.num_hidden_layers)
    except InputError as error:
        yield str(error)
    mask = config.mask_token_id
    if mask is not None and target.tokenizer is not None and mask in ends_and_template_ids(target.tokenizer):
        token = target.tokenizer.convert_ids_to_tokens(mask)
        yield f"mask token id {mask} is the token {token!r}, which ends texts or chats of {target.directory}"


def ordinary_mask_token(config: PEagleConfig, target: Target) -> str | None:
    """Return the mask's token where a text may contain it: where the tokenizer makes ordinary use of the id."""
    mask = config.mask_token_id
    if mask is None or target.tokenizer is None:
        return None
    if any(mask == candidate.token_id for candidate in mask_candidates(target.tokenizer, config.vocab_size)):
        return None
    return str(target.tokenizer.convert_ids_to_tokens(mask))
