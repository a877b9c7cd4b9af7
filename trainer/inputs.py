"""What a run works on, loaded and checked: target, documents, mask token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.config import RunConfig
from trainer.data.documents import Document, read_documents
from trainer.data.prepared import PreparedDocuments, is_prepared, open_prepared
from trainer.errors import ConfigError
from trainer.target.load import TargetEnds, embedding, load_ends, load_target, load_tokenizer
from trainer.target.mask_token import check_mask_token_id, choose_mask_token

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
    wanted = config.drafter.mask_token_id
    if config.algorithm == "peagle":
        check_mask_token_id(wanted, tokenizer, vocab)
    read = {
        sources: _documents(sources, tokenizer, vocab, config.data.max_length)
        for sources in (config.data.train, config.data.heldout)
        if sources
    }
    mask_token_id = _mask_token_id(wanted, tokenizer, vocab, read) if config.algorithm == "peagle" else None
    if config.data.heldout:
        train, heldout = read[config.data.train], read[config.data.heldout]
    else:
        train, heldout = split_heldout(read[config.data.train])
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


def _mask_token_id(
    wanted: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    read: Mapping[tuple[str, ...], Sequence[Document]],
) -> int:
    """Return the id of the mask token. read: the documents of each list of sources."""
    occurs = {sources: _occurring(documents, vocab_size) for sources, documents in read.items()}
    if wanted is None:
        assert tokenizer is not None
        chosen = choose_mask_token(tokenizer, torch.stack(list(occurs.values())).any(0))
        if chosen.remark:
            print(f"drafter.mask_token_id: {chosen.token_id}, {chosen.remark}")
        return chosen.token_id
    for sources, ids in occurs.items():
        if ids[wanted]:
            raise ConfigError(f"drafter.mask_token_id {wanted} occurs in {', '.join(sources)}")
    return wanted


def _occurring(documents: Sequence[Document], vocab_size: int) -> Tensor:
    """Return bool[V]: whether the documents contain each id."""
    if isinstance(documents, PreparedDocuments):
        return documents.token_counts > 0
    occurs = torch.zeros(vocab_size, dtype=torch.bool)
    for document in documents:
        occurs[document.input_ids] = True
    return occurs


def _select(documents: Sequence[Document], places: Sequence[int]) -> Sequence[Document]:
    return documents.select(places) if isinstance(documents, PreparedDocuments) else [documents[i] for i in places]


def _eos_token_id(target: PreTrainedModel | TargetEnds) -> int | None:
    eos = getattr(getattr(target, "generation_config", None), "eos_token_id", None)
    return eos[0] if isinstance(eos, list) else eos
