"""What a run works on, loaded and checked: target, documents, mask token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.config import RunConfig
from trainer.data.documents import Document, read_documents
from trainer.data.prepared import PreparedDocuments, is_prepared, open_prepared
from trainer.errors import ConfigError
from trainer.target.load import TargetEnds, embedding, load_ends, load_target, load_tokenizer
from trainer.target.mask_token import resolve_mask_token_id

# Without held-out files every 50th document is set aside, 64 at most.
HELDOUT_EVERY, HELDOUT_MOST = 50, 64


@dataclass(frozen=True)
class RunInputs:
    """target: the model or its two ends; mask_token_id: resolved, None for EAGLE-3; eos_token_id: None when the target
    has none.
    """

    target: PreTrainedModel | TargetEnds
    train: Sequence[Document]
    heldout: Sequence[Document]
    mask_token_id: int | None
    eos_token_id: int | None

    @property
    def model(self) -> PreTrainedModel | None:
        """The whole target, where it was loaded."""
        return self.target if isinstance(self.target, PreTrainedModel) else None

    @property
    def num_target_layers(self) -> int:
        return self.target.config.get_text_config().num_hidden_layers


def load_inputs(config: RunConfig, whole: bool = True) -> RunInputs:
    """Load target and documents. whole: with the target's layers.

    Raises InputError, one sentence naming the place, for anything wrong with target or data.
    """
    tokenizer = load_tokenizer(config.target)
    target = load_target(config) if whole else load_ends(config)
    vocab = len(embedding(target))
    mask_token_id = None
    if config.algorithm == "peagle":
        mask_token_id = resolve_mask_token_id(config.drafter.mask_token_id, tokenizer, vocab)

    def read(sources: tuple[str, ...]) -> Sequence[Document]:
        documents = _documents(sources, tokenizer, vocab, config.data.max_length)
        if mask_token_id is not None and _occurs(mask_token_id, documents):
            raise ConfigError(f"drafter.mask_token_id {mask_token_id} occurs in {', '.join(sources)}")
        return documents

    documents = read(config.data.train)
    train: Sequence[Document]
    heldout: Sequence[Document]
    if config.data.heldout:
        train, heldout = documents, read(config.data.heldout)
    else:
        train, heldout = split_heldout(documents)
        print(f"no data.heldout: {len(heldout)} training documents are set aside")
    return RunInputs(target, train, heldout, mask_token_id, _eos_token_id(target))


def split_heldout(documents: Sequence[Document]) -> tuple[Sequence[Document], Sequence[Document]]:
    """Divide documents into (train, held out); a single document is not divided."""
    if len(documents) == 1:
        return documents, []
    aside = range(0, len(documents), HELDOUT_EVERY)[:HELDOUT_MOST]
    train = [i for i in range(len(documents)) if i not in aside]
    return _select(documents, train), _select(documents, aside)


def _documents(
    sources: tuple[str, ...], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, max_length: int
) -> Sequence[Document]:
    names = ", ".join(sources)
    if is_prepared(sources):
        prepared = open_prepared(Path(names), tokenizer, vocab_size, max_length)
        print(f"{names}: {len(prepared)} documents, {sum(prepared.lengths)} tokens, prepared")
        return prepared
    documents, report = read_documents(sources, tokenizer, vocab_size, max_length)
    print(
        f"{names}: {report.documents} documents, {sum(map(len, documents))} tokens "
        f"({report.cut} cut at {max_length} tokens, {report.useless} left out: nothing supervised)"
    )
    return documents


def _occurs(token_id: int, documents: Sequence[Document]) -> bool:
    if isinstance(documents, PreparedDocuments):
        return bool(documents.token_counts[token_id])
    return any((document.input_ids == token_id).any() for document in documents)


def _select(documents: Sequence[Document], places: Sequence[int]) -> Sequence[Document]:
    return documents.select(places) if isinstance(documents, PreparedDocuments) else [documents[i] for i in places]


def _eos_token_id(target: PreTrainedModel | TargetEnds) -> int | None:
    eos = getattr(getattr(target, "generation_config", None), "eos_token_id", None)
    return eos[0] if isinstance(eos, list) else eos
