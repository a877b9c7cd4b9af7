"""The demo's text: source code of Python's own standard library, which every machine has, and a tokenizer made from it.

Only the code: comments and docstrings are prose, which a model trained for five minutes cannot learn. `build_corpus`
writes corpus/{train,heldout}.jsonl, one {"path", "text"} a line, and corpus/tokenizer. A file goes to one side or the
other by a hash of its name, so the split does not move when a file comes or goes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from trainer.atomic import new_directory

VOCAB_SIZE = 1024
BOS, EOS, MASK = "<|begin|>", "<|end|>", "<|reserved_0|>"
HELDOUT_SHARE = 0.08
MIN_CHARS, MAX_CHARS = 1_000, 150_000
# Packages in one style, small enough that a small model sees them a few times over.
PACKAGES = (
    "asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest", "urllib",
    "wsgiref", "xml", "xmlrpc",
)  # fmt: skip
PROMPT_TOKENS = 64


def build_corpus(directory: str | Path) -> Path:
    """Write `directory`/corpus unless it is there already; returns it."""
    corpus = Path(directory) / "corpus"
    if corpus.is_dir():
        return corpus
    split: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for name, text in standard_library():
        split["heldout" if _is_heldout(name) else "train"].append({"path": name, "text": text})
    with new_directory(corpus) as partial:
        for side, documents in split.items():
            (partial / f"{side}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        train_tokenizer([d["text"] for d in split["train"]]).save_pretrained(partial / "tokenizer")
    return corpus


def standard_library() -> Iterator[tuple[str, str]]:
    """(relative path, code) of every module of middling size, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name = path.relative_to(root)
        if {"test", "tests", "__pycache__"}.intersection(name.parts):
            continue
        try:
            text = bare_code(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError, SyntaxError):
            continue
        if MIN_CHARS <= len(text) <= MAX_CHARS:
            yield name.as_posix(), text


def bare_code(source: str) -> str:
    """The same program without comments and docstrings, in the layout `ast.unparse` gives all code."""
    with warnings.catch_warnings(action="ignore"):  # old modules have odd escapes
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree) + "\n"


def _is_heldout(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < HELDOUT_SHARE


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every text it encodes starts with BOS. MASK is an id that no text of the corpus contains."""
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
    """The texts of one side ("train" or "heldout")."""
    lines = (build_corpus(directory) / f"{side}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def prompts(directory: str | Path, side: str, count: int) -> list[list[int]]:
    """`count` excerpts of PROMPT_TOKENS token ids (BOS included), spread over the documents; fewer when there are not
    that many.
    """
    tokenizer = load_tokenizer(directory)
    per_document = [_excerpts(tokenizer, text) for text in read_documents(directory, side)]
    # Round robin over the documents, so that few prompts come from many of them.
    longest = max(map(len, per_document))
    ordered = [excerpts[i] for i in range(longest) for excerpts in per_document if i < len(excerpts)]
    return ordered[:count]


def heldout_prompts(directory: str | Path, count: int) -> list[list[int]]:
    """Prompts from files that neither the target nor the head has seen."""
    return prompts(directory, "heldout", count)


def _excerpts(tokenizer: PreTrainedTokenizerFast, text: str) -> list[list[int]]:
    """Excerpts that begin with a definition and do not overlap: behind a list of imports a small model only imports."""
    found = []
    position = end = 0
    for line in text.splitlines(keepends=True):
        if position >= end and line.lstrip().startswith(("def ", "class ", "async def ")):
            ids = tokenizer(text[position : position + 8 * PROMPT_TOKENS])["input_ids"][:PROMPT_TOKENS]
            if len(ids) == PROMPT_TOKENS:
                found.append(ids)
                end = position + len(tokenizer.decode(ids, skip_special_tokens=True))
        position += len(line)
    return found
