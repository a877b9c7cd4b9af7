"""What a run works on, loaded and checked: target, documents, mask token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from trainer.config import ConfigError, RunConfig
from trainer.data.documents import Document, read_documents
from trainer.mask_token import resolve_mask_token_id
from trainer.target import embedding, load_target, load_tokenizer

# Without held-out files every 50th document is set aside, 64 at most.
HELDOUT_EVERY, HELDOUT_MOST = 50, 64


@dataclass(frozen=True)
class Material:
    """mask_token_id: resolved; eos_token_id: None when the target has no end token."""

    target: PreTrainedModel
    train: list[Document]
    heldout: list[Document]
    mask_token_id: int
    eos_token_id: int | None

    @property
    def num_target_layers(self) -> int:
        return self.target.config.get_text_config().num_hidden_layers


def load_material(config: RunConfig) -> Material:
    """Raises InputError, one sentence naming the place, for anything wrong with target or data."""
    tokenizer = load_tokenizer(config)
    target = load_target(config)
    vocab = len(embedding(target))
    mask_token_id = resolve_mask_token_id(config.drafter.mask_token_id, tokenizer, vocab)

    def read(paths: tuple[Path, ...]) -> list[Document]:
        names = ", ".join(map(str, paths))
        documents, report = read_documents(paths, tokenizer, vocab, config.data.max_length)
        if any((document.input_ids == mask_token_id).any() for document in documents):
            raise ConfigError(f"drafter.mask_token_id {mask_token_id} occurs in {names}")
        print(
            f"{names}: {report.documents} documents, {sum(map(len, documents))} tokens "
            f"({report.cut} cut at {config.data.max_length} tokens, {report.useless} left out: nothing supervised)"
        )
        return documents

    documents = read(config.data.train)
    if config.data.heldout:
        train, heldout = documents, read(config.data.heldout)
    else:
        train, heldout = split_heldout(documents)
        print(f"no data.heldout: {len(heldout)} training documents are set aside")
    return Material(target, train, heldout, mask_token_id, _eos_token_id(target))


def split_heldout(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(train, held out); a single document is not divided."""
    if len(documents) == 1:
        return documents, []
    aside = set(range(0, len(documents), HELDOUT_EVERY)[:HELDOUT_MOST])
    train = [d for i, d in enumerate(documents) if i not in aside]
    return train, [documents[i] for i in sorted(aside)]


def _eos_token_id(target: PreTrainedModel) -> int | None:
    eos = getattr(getattr(target, "generation_config", None), "eos_token_id", None)
    return eos[0] if isinstance(eos, list) else eos
