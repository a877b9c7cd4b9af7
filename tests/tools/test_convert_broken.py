"""Broken input ends in one sentence and exit code 1, and leaves nothing behind."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refused import refuse
from tiny import tiny_config, tiny_target
from tiny_heads import change_config, change_tensors, rename, write_flat, write_training_checkpoint
from tiny_run import make_tokenizer

from tools.convert.__main__ import main

AUX = "eagle_aux_hidden_state_layer_ids"
FC = "fc.weight"
Break = Callable[[Path], object]


def config(**changes) -> Break:
    return lambda head: change_config(head, **changes)


def tensors(change: Callable[[dict], object]) -> Break:
    return lambda head: change_tensors(head, change)


def truncate(keep: int) -> Break:
    def change(head: Path) -> None:
        path = head / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])

    return change


def set_value(name: str, value: float) -> Break:
    return tensors(lambda t: t[name].view(-1)[3:4].fill_(value))


def as_pickle(name: str) -> Break:
    """The weights only as a pickle, under a name of its own or under that of a safetensors file."""

    def change(head: Path) -> None:
        (head / "model.safetensors").unlink()
        (head / name).write_bytes(pickle.dumps({"fc.weight": [1.0]}))

    return change


def move_weights(head: Path) -> Path:
    outside = head.parent / "elsewhere.safetensors"
    (head / "model.safetensors").rename(outside)
    return outside


def shard_index(weight_map: object) -> Break:
    return lambda head: (head / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_config(text: str) -> Break:
    return lambda head: (head / "config.json").write_text(text)


def nested(**changes) -> Break:
    def change(head: Path) -> None:
        main([str(head), str(head / "../nested"), "--to", "speculators"])
        for name in ("config.json", "model.safetensors"):
            (head / "../nested" / name).replace(head / name)
        (head / "../nested").rmdir()
        change_config(head, **changes)

    return change


BROKEN: dict[str, tuple[Break, str]] = {
    "no directory": (lambda head: head.rename(head.parent / "elsewhere"), "no such directory"),
    "no config": (lambda head: (head / "config.json").unlink(), "config.json: not found"),
    "config is no JSON": (write_config("{"), "not valid JSON"),
    "config is a list": (write_config("[]"), "a JSON object was expected"),
    "config is binary": (lambda head: (head / "config.json").write_bytes(b"\xff\xfe"), "not valid JSON"),
    "no weights": (lambda head: (head / "model.safetensors").unlink(), "no *.safetensors file"),
    "truncated header": (truncate(5), "unreadable safetensors file"),
    "truncated data": (truncate(-20), "unreadable safetensors file"),
    "empty file": (truncate(0), "unreadable safetensors file"),
    "a pickle": (as_pickle("pytorch_model.bin"), "pickle files such as pytorch_model.bin are never read"),
    "a pickle in disguise": (as_pickle("model.safetensors"), "unreadable safetensors file"),
    "index is nonsense": (shard_index(["a"]), "no shard index"),
    "a shard is missing": (shard_index({FC: "model-00001-of-00002.safetensors"}), "unreadable safetensors file"),
    "a shard elsewhere": (
        lambda head: (move_weights(head), shard_index({FC: "../elsewhere.safetensors"})(head)),
        "leads out of",
    ),
    "a link leads out": (lambda head: (head / "model.safetensors").symlink_to(move_weights(head)), "leads out of"),
    "a config link leads out": (
        lambda head: (head / "config.json").symlink_to((head / "config.json").rename(head.parent / "c.json")),
        "leads out of",
    ),
    "key missing": (config(hidden_size=None), "key 'hidden_size' is missing"),
    "key of a wrong type": (config(num_attention_heads="3"), "num_attention_heads must be a positive integer"),
    "no mask id": (config(mask_token_id=None, ptd_token_id=None), "no mask token id"),
    "mask ids contradict": (config(pard_token=7), "contradict each other"),
    "mask id outside": (config(mask_token_id=61, ptd_token_id=61), "outside the vocabulary"),
    "aux ids collide": (config(eagle_config={AUX: [2, 2, 4]}), "distinct and ascending"),
    "four aux ids": (config(**{AUX: [1, 2, 3, 4]}), "must be 3 layer indices"),
    "two norms before fc": (config(norm_before_fc=True, fc_norm=True), "exclude each other"),
    "unknown rotary type": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "rope type 'spiral'"),
    "proposals of no kind": (nested(speculators_config={"proposal_methods": "greedy"}), "'proposal_methods' must be"),
    "windows for other layers": (config(layer_types=["sliding_attention"], sliding_window=8), "not for 2 layers"),
    "tensor missing": (tensors(lambda t: t.pop("norm.weight")), "tensor 'norm.weight' is missing"),
    "tensor renamed": (
        tensors(lambda t: rename(t, lambda n: n.replace("fc.", "fusion."))),
        "tensor 'fusion.weight' belongs to no P-EAGLE drafter",
    ),
    "tensor twice": (tensors(lambda t: t.update({"model.norm.weight": t["norm.weight"].clone()})), "is there twice"),
    "tensor misshapen": (tensors(lambda t: t.update({FC: t[FC][:, :24].contiguous()})), "has shape (24, 24), expected"),
    "tensor of integers": (tensors(lambda t: t.update({FC: t[FC].to(torch.int8)})), "expected floating point"),
    "NaN": (set_value("layers.1.mlp.up_proj.weight", float("nan")), "values that are not finite"),
    "infinity": (set_value("mask_hidden", float("inf")), "values that are not finite"),
    "d2t outside": (tensors(lambda t: t["d2t"].fill_(60)), "'d2t' is no one-to-one map"),
    "d2t missing": (tensors(lambda t: t.pop("d2t")), "tensor 'd2t' is missing"),
    "t2d contradicts d2t": (tensors(lambda t: t.update(t2d=torch.ones(61, dtype=torch.bool))), "name different tokens"),
    "no embedding for another width": (
        lambda head: (write_flat(head, tiny_config(target_hidden_size=20)),
                      change_tensors(head, lambda t: t.pop("embed_tokens.weight"))),
        "has no 'embed_tokens.weight' of its own",
    ),
    "draft vocabulary, no head": (tensors(lambda t: t.pop("lm_head.weight")), "has no 'lm_head.weight' of its own"),
    "state.json of something else": (
        lambda head: ((head / "config.json").unlink(), (head / "state.json").write_text("{}")),
        "no training checkpoint of ours",
    ),
    "training checkpoint without weights": (
        lambda head: (write_training_checkpoint(head.parent / "step-1"),
                      [p.unlink() for p in head.iterdir()], head.rmdir(), (head.parent / "step-1").rename(head),
                      next(head.glob("*.safetensors")).unlink()),
        "safetensors: is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_heads(tmp_path, capsys, kind):
    change, message = BROKEN[kind]
    change(write_flat(tmp_path / "head"))
    refuse(capsys, tmp_path / "head", tmp_path / "result", message)


def test_the_hugging_face_caches_links_are_followed(tmp_path):
    snapshot = tmp_path / "models--org--head" / "snapshots" / "abc"
    write_flat(snapshot)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / f"hash-{name}")
        (snapshot / name).symlink_to(f"../../blobs/hash-{name}")
    assert main([str(snapshot), str(tmp_path / "result"), "--to", "vllm"]) == 0


def test_a_value_too_large_for_the_wanted_dtype(tmp_path, capsys):
    head = change_tensors(write_flat(tmp_path / "head"), lambda t: t[FC].view(-1)[3:4].fill_(1e6))
    refuse(capsys, head, tmp_path / "result", "values too large for float16", "--dtype", "float16")


@pytest.fixture
def target(tmp_path) -> Path:
    directory = tmp_path / "target"
    tokenizer = make_tokenizer()
    tiny_target(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=1).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": 1}, "mask token id 1 is the token '<|end|>'"),
        ({"vocab_size": 289}, "the head's vocab_size is 289, the target"),
        ({"target_hidden_size": 20}, "the head's target_hidden_size is 20, the target"),
        ({"aux_layer_ids": (2, 4, 8)}, "the target has 8 layers; aux ids [2, 4, 8]"),
    ],
)
def test_heads_that_do_not_fit_the_target(tmp_path, capsys, target, changes, message):
    vocab = len(make_tokenizer())
    head = write_flat(tmp_path / "head", tiny_config(**({"vocab_size": vocab, "mask_token_id": 4} | changes)))
    refuse(capsys, head, tmp_path / "result", message, "--target", target)


def test_a_reserved_token_may_be_the_mask(tmp_path, target):
    head = write_flat(tmp_path / "head", tiny_config(vocab_size=len(make_tokenizer()), mask_token_id=4))
    assert main([str(head), str(tmp_path / "result"), "--to", "vllm", "--target", str(target)]) == 0


def test_an_ordinary_token_as_the_mask_is_told(tmp_path, capsys, target):
    head = write_flat(tmp_path / "head", tiny_config(vocab_size=len(make_tokenizer()), mask_token_id=100))
    assert main([str(head), str(tmp_path / "result"), "--to", "vllm", "--target", str(target)]) == 0
    assert "mask token id 100 is the token" in "".join(capsys.readouterr())


def test_a_target_that_is_none(tmp_path, capsys):
    head = write_flat(tmp_path / "head")
    refuse(capsys, head, tmp_path / "result", "absent: not a target model", "--target", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refuse(capsys, head, tmp_path / "result", "empty: not a target model", "--target", tmp_path / "empty")
