"""What a run works on, loaded and checked: documents, mask token, and then the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peagle_core.end_ids import read_end_ids
from peagle_core.errors import InputError
from trainer.config import RunConfig
from trainer.config.sections import DataConfig
from trainer.data.documents import Document, ReadOptions, left_out, read_documents
from trainer.data.prepared import PreparedDocuments, is_prepared, open_prepared
from trainer.data.vocabulary import Essential, essential_ids
from trainer.errors import ConfigError
from trainer.target.context import within_context
from trainer.target.files import check_files
from trainer.target.load import TargetEnds, embedding, load_config, load_ends, load_target, load_tokenizer
from trainer.target.mask_token import check_mask_token_id, choose_mask_token
from trainer.target.reading import read_options, read_vocab_size

# Without held-out files every 50th document is set aside, 64 at most.
HELDOUT_EVERY, HELDOUT_MOST = 50, 64


@dataclass(frozen=True)
class RunInputs:
    """Hold what a run works on.

    target: the model or its two ends; heldout: documents with answers; heldout_prompts: those without, to be answered
    in an evaluation; mask_token_id: resolved, None for EAGLE-3; essential: the ids that every draft vocabulary has,
    those that end a turn among them.
    """

    target: PreTrainedModel | TargetEnds
    train: Sequence[Document]
    heldout: Sequence[Document]
    mask_token_id: int | None
    essential: Essential
    heldout_prompts: Sequence[Document] = ()

    @property
    def model(self) -> PreTrainedModel | None:
        """Return the whole target, where it was loaded."""
        return self.target if isinstance(self.target, PreTrainedModel) else None

    @property
    def end_ids(self) -> frozenset[int]:
        return self.essential.ends

    @property
    def num_target_layers(self) -> int:
        return self.target.config.get_text_config().num_hidden_layers

    @property
    def to_answer(self) -> Sequence[Document]:
        """The held-out documents whose prompts can be answered: all of them."""
        return [*self.heldout, *self.heldout_prompts] if self.heldout_prompts else self.heldout


def load_inputs(config: RunConfig, whole: bool = True) -> RunInputs:
    """Read the documents and, when they are right, load the target. whole: with its layers.

    Raises InputError, one sentence naming the place, for anything wrong with data or target.
    """
    check_files(config.target)
    config = within_context(config, load_config(config.target))
    tokenizer, vocab = load_tokenizer(config.target), read_vocab_size(config.target)
    ends = read_end_ids(config.target, tokenizer)
    wanted = config.drafter.mask_token_id
    if config.algorithm == "peagle":
        check_mask_token_id(wanted, tokenizer, vocab)
    options = read_options(config.target, config.data, tokenizer)
    read = {config.data.train: _documents(config.data.train, tokenizer, vocab, config.data, options)}
    if config.data.heldout and config.data.heldout not in read:
        keeping = read_options(config.target, config.data, tokenizer, keep_prompts=True)
        read[config.data.heldout] = _documents(config.data.heldout, tokenizer, vocab, config.data, keeping)
    mask_token_id = _mask_token_id(wanted, tokenizer, vocab, read) if config.algorithm == "peagle" else None
    prompts: Sequence[Document] = ()
    if config.data.heldout:
        train, heldout = read[config.data.train], read[config.data.heldout]
        if not isinstance(heldout, PreparedDocuments):
            prompts = [document for document in heldout if document.is_prompt]
            heldout = [document for document in heldout if not document.is_prompt]
    else:
        train, heldout = split_heldout(read[config.data.train])
        print(f"no data.heldout: {len(heldout)} training documents are set aside")
    target = load_target(config) if whole else load_ends(config)
    if len(embedding(target)) < vocab:
        raise InputError(
            f"target {config.target!r} has {len(embedding(target))} rows in its embedding, but its config.json says "
            f"vocab_size {vocab}"
        )
    return RunInputs(target, train, heldout, mask_token_id, essential_ids(ends, tokenizer), prompts)


def split_heldout(documents: Sequence[Document]) -> tuple[Sequence[Document], Sequence[Document]]:
    """Divide documents into (train, held out); a single document is not divided."""
    if len(documents) == 1:
        return documents, []
    aside = range(0, len(documents), HELDOUT_EVERY)[:HELDOUT_MOST]
    train = [i for i in range(len(documents)) if i not in aside]
    return _select(documents, train), _select(documents, aside)


def _documents(
    sources: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    data: DataConfig,
    options: ReadOptions,
) -> Sequence[Document]:
    names = ", ".join(sources)
    if is_prepared(sources):
        prepared = open_prepared(Path(names), tokenizer, vocab_size, data.max_length, data.chat_template_kwargs)
        print(f"{names}: {len(prepared)} documents, {sum(prepared.lengths)} tokens, prepared")
        return prepared
    documents, report = read_documents(sources, tokenizer, vocab_size, data.max_length, options)
    print(
        f"{names}: {report.documents} documents, {sum(map(len, documents))} tokens "
        f"({report.cut} cut at {data.max_length} tokens, {report.useless} left out: nothing supervised)"
    )
    for line in left_out(report):
        print(f"{names}: {line}")
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
