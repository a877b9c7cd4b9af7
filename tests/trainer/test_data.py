"""Files -> documents -> rows: what is supervised, what is refused, and that packing loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peagle_core.errors import InputError
from trainer.data.documents import Document, read_documents
from trainer.data.packing import pack

VOCAB = 300


def read(tmp_path: Path, tokenizer, *records, max_length=64, name="d.jsonl"):
    path = tmp_path / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return read_documents((str(path),), tokenizer, VOCAB, max_length)


def generated(document: Document, tokenizer) -> list[str]:
    """The texts of the supervised runs."""
    runs, before = [], False
    for token, on in zip(document.input_ids.tolist(), document.loss_mask.tolist(), strict=True):
        if on:
            runs = [*runs, []] if not before else runs
            runs[-1].append(token)
        before = on
    return [tokenizer.decode(run) for run in runs]


def test_text_is_supervised_behind_its_first_token(tmp_path, tokenizer):
    (document,), _ = read(tmp_path, tokenizer, {"text": "def f(x):\n    return x"})
    assert tokenizer.decode(document.input_ids) == "<|begin|>def f(x):\n    return x"
    assert generated(document, tokenizer) == ["def f(x):\n    return x"]


def test_a_response_ends_with_the_end_token(tmp_path, tokenizer):
    (document,), _ = read(tmp_path, tokenizer, {"prompt": "why?", "response": "so\n    it is"})
    assert tokenizer.decode(document.input_ids) == "<|begin|>why?so\n    it is<|end|>"
    assert generated(document, tokenizer) == ["so\n    it is<|end|>"]


def test_each_assistant_turn_is_supervised_up_to_its_end_token(tmp_path, tokenizer):
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "  first\n\n"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": "never answered"},
    ]
    (document,), _ = read(tmp_path, tokenizer, {"messages": messages})
    assert generated(document, tokenizer) == ["  first\n\n<|end|>", "second<|end|>"]
    assert "never answered" not in tokenizer.decode(document.input_ids)


def test_a_template_that_rewrites_history_gives_one_document_per_turn(tmp_path, tokenizer):
    forgetful = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    # Shows the last assistant message in full and earlier ones shortened, as reasoning templates do.
    forgetful.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content if m.role == 'user' or loop.last else m.content[-1:] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [{"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "xyz"), ("user", "b")]]
    documents, _ = read(tmp_path, forgetful, {"messages": [*messages, {"role": "assistant", "content": "uvw"}]})
    assert [generated(d, tokenizer) for d in documents] == [["xyz<|end|>"], ["uvw<|end|>"]]
    assert "<|assistant|>z<|end|>" in tokenizer.decode(documents[1].input_ids)


def test_tokenised_data_is_taken_as_it_is(tmp_path):
    (document,), _ = read(tmp_path, None, {"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 1, 1]})
    assert document.input_ids.tolist() == [5, 6, 7, 8]
    assert document.loss_mask.tolist() == [False, True, True, True]


def test_long_answers_are_cut_and_long_texts_divided(tmp_path, tokenizer):
    text = "hello there, what is the answer? " * 20
    (answer,), report = read(tmp_path, tokenizer, {"prompt": "q", "response": text}, max_length=16)
    assert len(answer) == 16
    assert report.cut == 1
    pieces, report = read(tmp_path, tokenizer, text, max_length=16, name="d.txt")
    assert report.cut == 0
    assert tokenizer.decode(torch.cat([p.input_ids for p in pieces])).startswith("<|begin|>" + text[:600])


def test_useless_documents_are_counted(tmp_path, tokenizer):
    useful, useless = {"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1]}, {"input_ids": [1, 2, 3], "loss_mask": [1, 0, 1]}
    documents, report = read(tmp_path, tokenizer, useful, useless)
    assert (len(documents), report.documents, report.useless) == (1, 2, 1)
    unasked = {"conversations": [{"from": "gpt", "value": "an answer to nobody"}]}
    documents, report = read(tmp_path, tokenizer, useful, unasked)
    assert (len(documents), report.records, report.useless) == (1, 2, 1)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "a JSON object"),
        ({"question": "x"}, "has keys"),
        ({"text": 3}, "'text' must be a string"),
        ({"prompt": "x", "response": None}, "'response' must be a string"),
        ({"messages": "hi"}, "'messages' must be a list"),
        ({"messages": [{"content": "hi"}]}, "'messages' must be a list"),
        ({"input_ids": [1, 2, 3]}, "'loss_mask'"),
        ({"input_ids": [1, 2, 3], "loss_mask": [1, 1]}, "3 entries"),
        ({"input_ids": [1, 2.5, 3], "loss_mask": [1, 1, 1]}, "list of integers"),
        ({"input_ids": [1, 2, 3], "loss_mask": [1, 2, 1]}, "0 and 1"),
        ({"input_ids": [1, VOCAB, 3], "loss_mask": [1, 1, 1]}, f"token id {VOCAB} is outside"),
        ({"input_ids": [1, -1, 3], "loss_mask": [1, 1, 1]}, "token id -1 is outside"),
    ],
)
def test_a_bad_line_is_named(tmp_path, tokenizer, record, says):
    with pytest.raises(InputError) as error:
        read(tmp_path, tokenizer, {"text": "a good first line"}, record)
    assert "d.jsonl:2: " in str(error.value)
    assert says in str(error.value)


def test_nothing_supervised_is_an_error(tmp_path, tokenizer):
    with pytest.raises(InputError, match="nothing is supervised"):
        read(tmp_path, tokenizer, {"input_ids": [1, 2, 3], "loss_mask": [0, 0, 0]})


def test_text_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no tokenizer"):
        read(tmp_path, None, {"text": "hello"})


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_packing_keeps_every_document_whole_and_rows_full(lengths):
    documents = [
        Document(torch.arange(n) + 100 * i, torch.arange(n) % 2 == 0) for i, n in enumerate(lengths)
    ]  # every token is unique
    rows = pack(documents, 20)
    found = []
    for row in rows:
        assert len(row) <= 20
        assert row.doc_ids.tolist() == sorted(row.doc_ids.tolist())
        for doc in row.doc_ids.unique():
            here = row.doc_ids == doc
            found.append((row.input_ids[here].tolist(), row.loss_mask[here].tolist()))
    assert sorted(found) == sorted((d.input_ids.tolist(), d.loss_mask.tolist()) for d in documents)
    # Best fit never leaves two rows that fit into one.
    sizes = sorted(len(row) for row in rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 20


def test_neighbours_of_equal_length_meet_in_a_row_by_chance():
    """Data of which four in a row are alike: a packed row of four shall hold four kinds."""
    documents = [Document(torch.full((5,), i // 4), torch.ones(5, dtype=torch.bool)) for i in range(400)]
    rows = pack(documents, 20)
    kinds = [len(row.input_ids.unique()) for row in rows]
    assert len(kinds) == 100
    assert sum(kinds) > 380
    again = pack(documents, 20)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(rows, again, strict=True))
