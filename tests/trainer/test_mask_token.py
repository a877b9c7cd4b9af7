"""Which ids may stand for the mask, and which one is chosen."""

from __future__ import annotations

import json
import random
import time
from string import ascii_lowercase

import pytest
import torch
from large_vocabulary import large_tokenizer
from tiny import tiny_target
from tiny_run import make_tokenizer, run_options
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.inputs import load_inputs
from trainer.target.mask_token import check_mask_token_id, choose_mask_token
from trainer.train.assemble import open_run
from trainer.train.loop import train_step


def chosen(tokenizer, vocab_size=None, occurs=()):
    ids = torch.zeros(vocab_size or len(tokenizer), dtype=torch.bool)
    ids[list(occurs)] = True
    return choose_mask_token(tokenizer, ids)


def test_ids_that_the_tokenizer_never_gives_come_first(tokenizer):
    reserved = tokenizer.convert_tokens_to_ids("<|reserved_0|>")
    assert chosen(tokenizer).token_id == reserved
    assert chosen(tokenizer, len(tokenizer) + 2).token_id == len(tokenizer)
    assert chosen(tokenizer, len(tokenizer) + 2, [len(tokenizer)]).token_id == len(tokenizer) + 1
    own = make_tokenizer(mask_token="<|user|>", chat_template=None)
    assert chosen(own).token_id == own.mask_token_id
    assert not chosen(own).remark


def test_a_full_vocabulary_gives_a_special_token_that_no_chat_contains():
    full = large_tokenizer(1500)
    first, second = (full.convert_tokens_to_ids(token) for token in ("<file_sep>", "<repo_name>"))
    assert chosen(full).token_id == first
    assert "'<file_sep>'" in chosen(full).remark
    assert chosen(full, occurs=[first]).token_id == second
    # <|user|> is not written in the template, which puts it together: it is no mask, though this data lacks it.
    with pytest.raises(ConfigError, match=r"no token id is free.*such as 1499 \('"):
        chosen(full, occurs=[first, second])


def test_the_last_resort_is_unk_where_unknown_characters_become_bytes():
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}

    def tokenizer(byte_fallback):
        raw = Tokenizer(models.BPE(vocab, [], byte_fallback=byte_fallback, unk_token="<unk>"))
        ends = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
        return PreTrainedTokenizerFast(tokenizer_object=raw, **ends)

    assert chosen(tokenizer(True)).token_id == 0
    assert "'<unk>'" in chosen(tokenizer(True)).remark
    for byte_fallback, occurs in ((True, [0]), (False, [])):
        with pytest.raises(ConfigError, match="no token id is free"):
            chosen(tokenizer(byte_fallback), occurs=occurs)


def test_an_impossible_mask_is_refused_before_the_data_is_read(tokenizer):
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        check_mask_token_id(len(tokenizer), tokenizer, len(tokenizer))
    with pytest.raises(ConfigError, match="must be given"):
        check_mask_token_id(None, None, 10)


@pytest.mark.parametrize("prepared", [False, True])
def test_an_id_given_by_hand_is_taken_when_it_does_not_occur_in_the_data(tmp_path, capsys, prepared):
    tokenizer = large_tokenizer(1500)
    sizes = {"vocab_size": 1500, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    tiny_target(**sizes).float().save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    data = tmp_path / "train.jsonl"
    messages = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "it is zero"}]
    data.write_text(json.dumps({"messages": messages}) + "\n")
    options = run_options(tmp_path / "target", data, tmp_path / "run")
    if prepared:
        from trainer.prepare.prepare import run_prepare

        run_prepare(load_config(None, options), tmp_path / "tokens")
        options.append(f"data.train={tmp_path / 'tokens'}")
    free, used = 1499, tokenizer("zero")["input_ids"][0]
    assert load_inputs(load_config(None, [*options, f"drafter.mask_token_id={free}"])).mask_token_id == free
    with pytest.raises(ConfigError, match=f"drafter.mask_token_id {used} occurs in"):
        load_inputs(load_config(None, [*options, f"drafter.mask_token_id={used}"]))
    capsys.readouterr()
    default = tokenizer.convert_tokens_to_ids("<file_sep>")
    assert load_inputs(load_config(None, options)).mask_token_id == default
    assert f"drafter.mask_token_id: {default}, the special token '<file_sep>'" in capsys.readouterr().out


def test_a_vocabulary_of_150_thousand_takes_no_time():
    """Asking the tokenizer once per id took hours."""
    full = large_tokenizer(150_000)
    start = time.monotonic()
    assert chosen(full).token_id == full.convert_tokens_to_ids("<file_sep>")
    with pytest.raises(ConfigError, match="no token id is free"):
        chosen(full, occurs=range(150_000))
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_from_the_command_to_the_first_step_takes_a_minute_at_most(tmp_path):
    """7,500 chats and a vocabulary of 150 thousand, all of it in use."""
    tokenizer = large_tokenizer(150_000)
    sizes = {"vocab_size": 150_000, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    tiny_target(**sizes).float().save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    draw = random.Random(0)

    def text(words):
        return " ".join("".join(draw.choices(ascii_lowercase, k=5)) for _ in range(words))

    with (tmp_path / "train.jsonl").open("w") as file:
        for _ in range(7500):
            messages = [{"role": "user", "content": text(20)}, {"role": "assistant", "content": text(30)}]
            file.write(json.dumps({"messages": messages}) + "\n")
    options = run_options(tmp_path / "target", tmp_path / "train.jsonl", tmp_path / "run")
    config = load_config(
        None, [*options, "data.max_length=256", "data.row_length=256", "drafter.draft_vocab_size=4096"]
    )
    start = time.process_time()  # of all threads: other tests may be using the other core
    run = open_run(config)
    train_step(run)
    assert run.state.step == 1
    assert time.process_time() - start < 60
