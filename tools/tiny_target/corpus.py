"""The tiny target's text: source code of Python's own standard library, on every machine, and a tokenizer made from it.

Only the character tables, `encodings/*.py` with a decoding table: some 70 files of one pattern, about 1.3 MB. A model
trained for minutes learns them well, and a head learns to draft them; on the library's general code both were tried and
the head accepted about 1.6 tokens a step (docs/decisions.md). Acceptance here is therefore far above what a real pair
of models shows on real text.

`build_corpus` writes corpus/{train,heldout}.jsonl, one {"path", "text"} a line, and corpus/tokenizer. A file goes to
one side or the other by a hash of its name, so the split does not move when a file comes or goes.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peagle_core.atomic import new_directory

VOCAB_SIZE = 1024
BOS, EOS, MASK = "<|begin|>", "<|end|>", "<|reserved_0|>"
HELDOUT_SHARE = 0.08
PATTERN = "encodings/*.py"
MARK = "decoding_table = ("
PROMPT_TOKENS = 64


def build_corpus(directory: str | Path) -> Path:
    """Write `directory`/corpus unless it is there already; returns it."""
    corpus = Path(directory) / "corpus"
    if corpus.is_dir():
        return corpus
    split: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for name, text in standard_library():
        split["heldout" if _is_heldout(name) else "train"].append({"path": name, "text": text})
    with new_directory(corpus, existing="replace") as partial:
        for side, documents in split.items():
            (partial / f"{side}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        train_tokenizer([d["text"] for d in split["train"]]).save_pretrained(partial / "tokenizer")
    return corpus


def standard_library() -> Iterator[tuple[str, str]]:
    """Return (relative path, source) of every character table, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.glob(PATTERN)):
        text = path.read_text(encoding="utf-8")
        if MARK in text:
            yield path.relative_to(root).as_posix(), text


def _is_heldout(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < HELDOUT_SHARE


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; every text it encodes starts with BOS.

    MASK is an id that no text of the corpus contains.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens=[MASK],
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(build_corpus(directory) / "tokenizer")


def read_documents(directory: str | Path, side: str) -> list[str]:
    """Read the texts of one side ("train" or "heldout")."""
    lines = (build_corpus(directory) / f"{side}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def prompts(directory: str | Path, side: str, count: int) -> list[list[int]]:
    """Return `count` excerpts of PROMPT_TOKENS token ids (BOS included), spread over the documents.

    Fewer when there are not that many.
    """
    tokenizer = load_tokenizer(directory)
    per_document = [_excerpts(tokenizer, text) for text in read_documents(directory, side)]
    # Round robin over the documents, so that few prompts come from many of them.
    longest = max(map(len, per_document))
    ordered = [excerpts[i] for i in range(longest) for excerpts in per_document if i < len(excerpts)]
    return ordered[:count]


def heldout_prompts(directory: str | Path, count: int) -> list[list[int]]:
    """Return prompts from files that neither the target nor the head has seen (see `shared_with_training`)."""
    return prompts(directory, "heldout", count)


def shared_with_training(directory: str | Path, found: list[list[int]]) -> int:
    """Count the prompts whose text also stands in a training file: the tables share many lines."""
    tokenizer = load_tokenizer(directory)
    seen = "\n".join(read_documents(directory, "train"))
    return sum(str(tokenizer.decode(prompt[1:])) in seen for prompt in found)


def _excerpts(tokenizer: PreTrainedTokenizerFast, text: str) -> list[list[int]]:
    """Return excerpts that begin with a line and do not overlap."""
    found = []
    position = end = 0
    for line in text.splitlines(keepends=True):
        if position >= end and line.strip():
            ids = tokenizer(text[position : position + 8 * PROMPT_TOKENS])["input_ids"][:PROMPT_TOKENS]
            if len(ids) == PROMPT_TOKENS:
                found.append(ids)
                end = position + len(tokenizer.decode(ids, skip_special_tokens=True))
        position += len(line)
    return found
