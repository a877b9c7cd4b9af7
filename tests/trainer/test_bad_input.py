"""Whatever is wrong with settings, target, data, head or checkpoint: one sentence that names the place, no traceback,
exit code 2 (settings) or 1, and no half-made run left behind.
"""

from __future__ import annotations

import json
import shutil

import pytest
from refusal import refused
from tiny_run import run_options

from trainer.__main__ import main

GENERATED = '{"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 1, 1]}\n'
FILES = {
    "empty.jsonl": "",
    "broken.jsonl": GENERATED + '{"text": \n',
    "list.jsonl": "[1, 2]\n",
    "keys.jsonl": '{"question": "?"}\n',
    "number.jsonl": '{"text": 3}\n',
    "outside.jsonl": GENERATED + '{"input_ids": [5, 6, 99999], "loss_mask": [0, 1, 1]}\n',
    "negative.jsonl": '{"input_ids": [5, -6, 7], "loss_mask": [0, 1, 1]}\n',
    "float.jsonl": '{"input_ids": [5, 6.5, 7], "loss_mask": [0, 1, 1]}\n',
    "lengths.jsonl": '{"input_ids": [5, 6, 7], "loss_mask": [0, 1]}\n',
    "maskless.jsonl": '{"input_ids": [5, 6, 7]}\n',
    "silent.jsonl": '{"input_ids": [5, 6, 7], "loss_mask": [0, 0, 0]}\n',
    "roles.jsonl": '{"messages": ["hello"]}\n',
    "masked.jsonl": '{"input_ids": [5, 4, 7, 8], "loss_mask": [0, 1, 1, 1]}\n',
    "table.csv": "a,b\n",
    "table.xlsx": "PK",
}

SETTINGS = [
    ("optim.lr=0", "optim.lr"),
    ("optim.lr=.nan", "optim.lr"),
    ("optim.lr=.inf", "optim.lr"),
    ("optim.lr=fast", "optim.lr"),
    ("optim.betas=[0.9,1]", "betas must lie in [0, 1)"),
    ("optim.betas=[0.9]", "optim.betas"),
    ("optim.warmup_ratio=1", "optim.warmup_ratio"),
    ("optim.epochs=0", "optim.epochs"),
    ("optim.max_steps=0", "optim.max_steps"),
    ("optim.rows_per_step=0", "optim.rows_per_step"),
    ("optim.schedule=step", "optim.schedule"),
    ("optim.optimizer=sgd", "optim.optimizer"),
    ("optim.weight_decay=-1", "optim.weight_decay"),
    ("optim.max_grad_norm=0", "optim.max_grad_norm"),
    ("drafter.num_hidden_layers=0", "drafter.num_hidden_layers"),
    ("drafter.num_depths=0", "num_depths"),
    ("drafter.retention=0", "retention r must be in (0, 1]"),
    ("drafter.retention_min=0.9", "retention_min"),
    ("drafter.mask_token_id=-1", "drafter.mask_token_id"),
    ("drafter.aux_layer_ids=[1,2]", "drafter.aux_layer_ids"),
    ("data.max_length=3", "data.max_length"),
    ("data.row_length=8", "exceeds data.row_length 8"),
    ("data.train=[]", "data.train names no file"),
    ("data.train={files}/gone.jsonl", "gone.jsonl"),
    ("data.train={files}/table.xlsx", "table.xlsx is of no kind that is read: .jsonl, .json, .txt"),
    ("data.heldout={files}/gone.jsonl", "no such file"),
    ("data=3", "data"),
    ("device=abacus", "'abacus' is no usable torch device"),
    ("precision=fp8", "precision"),
    ("mode=quick", "'quick' is not one of"),
    ("attention=flash", "'flash' is not one of"),
    ("chunk_rows=9", "chunk_rows is for mode: stream"),
    ("loss.kind=mse", "loss.kind"),
    ("loss.depth_weights=[1]", "1 values for 3 depths"),
    ("loss.depth_weights=[1,1,-1]", "must not be negative"),
    ("eval.num_draft_tokens=[0]", "at least 1"),
    ("eval.max_new_tokens=1", "eval.max_new_tokens"),
    ("states.source=disk", "states.source"),
    ("states.on_miss=skip", "states.on_miss"),
    ("states.dtype=float16", "states.dtype"),
    ("states.engine=vllm", "states.engine"),
    ("states.url=http://localhost:1", "states.url is for states.engine: sglang"),
    ("states.tokens_per_shard=0", "states.tokens_per_shard"),
    ("regenerate.url=localhost:30000", "is not of the form http://HOST:PORT/v1"),
    ("regenerate.url=http://127.0.0.1:port/v1", "is no URL"),
    ("regenerate.concurrency=0", "regenerate.concurrency"),
    ("regenerate.max_tokens=0", "regenerate.max_tokens"),
    ("regenerate.temperature=-1", "regenerate.temperature"),
    ("regenerate.top_p=1.5", "regenerate.top_p"),
    ("regenerate.seed=-1", "regenerate.seed"),
    ("regenerate.timeout=0", "regenerate.timeout"),
    ("regenerate.retries=-1", "regenerate.retries"),
    ("regenerate.extra_body={n: 2}", "n cannot be set here"),
    ("regenerate.extra_body={reasoning_effort: high}", "give it as data.chat_template_kwargs"),
    ("regenerate.extra_body={chat_template_kwargs: {a: 1}}", "give it as data.chat_template_kwargs"),
    ("data.chat_template_kwargs={tools: []}", "tools cannot be set here"),
    ("regenerate.extra_body={a: 2026-01-01}", "is no JSON"),
    ("regenerate.modle=x", "did you mean 'model'?"),
    ("log_every=0", "log_every"),
    ("checkpoint_every=0", "checkpoint_every"),
    ("seed=-1", "seed"),
    ("colour=blue", "unknown key 'colour'"),
    ("optim.lr", "not of the form key=value"),
]

MASK_TOKENS = [
    ("drafter.mask_token_id=1", "drafter.mask_token_id 1 occurs in"),
    ("drafter.mask_token_id=99999", "outside the vocabulary"),
    ("data.train={files}/masked.jsonl", "no token id is free for the mask"),
]

MATERIAL = [
    ("target={files}/no-such-target", "no-such-target"),
    ("target={files}", "cannot be loaded"),
    ("target={files}/cut-config", "cut-config"),
    ("target={files}/cut-weights", "cut-weights"),
    ("drafter.aux_layer_ids=[1,2,9]", "aux ids [1, 2, 9]"),
    ("drafter.aux_layer_ids=[3,2,1]", "distinct and ascending"),
    ("drafter.num_attention_heads=5", "not a multiple of num_attention_heads 5"),
    ("drafter.num_key_value_heads=2", "not a multiple of num_key_value_heads 2"),
    ("drafter.draft_vocab_size=99999", "draft_vocab_size 99999"),
    ("drafter.norm_before_fc=true drafter.fc_norm=true", "exclude each other"),
    ("output_dir={files}/table.csv", "table.csv"),
    ("data.train={files}/empty.jsonl", "nothing is supervised"),
    ("data.train={files}/broken.jsonl", "broken.jsonl:2: not valid JSON"),
    ("data.train={files}/list.jsonl", "list.jsonl, record 0: a JSON object was expected"),
    ("data.train={files}/keys.jsonl", "keys.jsonl:1: has keys ['question']"),
    ("data.train={files}/number.jsonl", "number.jsonl:1: 'text' must be a string"),
    ("data.train={files}/outside.jsonl", "outside.jsonl:2: token id 99999"),
    ("data.train={files}/negative.jsonl", "negative.jsonl:1: token id -6"),
    ("data.train={files}/float.jsonl", "list of integers"),
    ("data.train={files}/lengths.jsonl", "'input_ids' has 3 entries and 'loss_mask' 2"),
    ("data.train={files}/maskless.jsonl", "'loss_mask' must be a list of 0 and 1"),
    ("data.train={files}/silent.jsonl", "silent.jsonl: nothing is supervised"),
    ("data.train={files}/roles.jsonl", "'messages' must be a list"),
    ("data.train={files}/latin.txt", "latin.txt: not valid UTF-8"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory, target_dir):
    directory = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (directory / name).write_text(content)
    (directory / "latin.txt").write_bytes(b"caf\xe9 " * 10)
    for name, file in (("cut-config", "config.json"), ("cut-weights", "model.safetensors")):
        shutil.copytree(target_dir, directory / name)
        (directory / name / file).write_bytes((target_dir / file).read_bytes()[:100])
    return directory


@pytest.fixture(scope="module")
def finished(target_dir, data_file, tmp_path_factory):
    """A run directory with head and checkpoints; tests copy it before they break something."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *run_options(target_dir, data_file, run), "eval.num_prompts=0", "optim.max_steps=2"]) == 0
    return run


@pytest.mark.parametrize("verb", ["train", "eval", "export", "regenerate"])
@pytest.mark.parametrize(("override", "says"), SETTINGS)
def test_settings(files, target_dir, data_file, tmp_path, capsys, verb, override, says):
    options = run_options(target_dir, data_file, tmp_path / "run")
    refused([verb, *options, override.replace("{files}", str(files))], 2, says, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("override", "says"), MASK_TOKENS)
def test_mask_tokens_that_are_in_use(files, target_dir, data_file, tmp_path, capsys, override, says):
    options = run_options(target_dir, data_file, tmp_path / "run")
    refused(["train", *options, override.format(files=files)], 2, says, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("override", "says"), MATERIAL)
def test_target_and_data(files, target_dir, data_file, tmp_path, capsys, override, says):
    options = run_options(target_dir, data_file, tmp_path / "run")
    refused(["train", *options, *override.format(files=files).split()], 1, says, capsys)
    assert not (tmp_path / "run").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def tensors_of(run):
    (path,) = (run / "checkpoints/step-00000002").glob("*.safetensors")
    return path


def spoil_header(path):
    """The same size, so that only reading it tells."""
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def without_tensor(head):
    from safetensors.torch import load_file, save_file

    tensors = load_file(head / "model.safetensors")
    del tensors["fc.weight"]
    save_file(tensors, head / "model.safetensors")


def wider(head):
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**config, "hidden_size": 48, "head_dim": 16}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "head"),
        (lambda head: (head / "config.json").unlink(), "config.json"),
        (lambda head: cut(head / "config.json"), "config.json"),
        (lambda head: (head / "model.safetensors").unlink(), "head"),
        (lambda head: cut(head / "model.safetensors"), "model.safetensors"),
        (without_tensor, "fc.weight"),
        (wider, "has shape"),
    ],
)
def test_eval_of_a_damaged_head(finished, target_dir, data_file, tmp_path, capsys, damage, says):
    run = shutil.copytree(finished, tmp_path / "run")
    damage(run / "head")
    refused(["eval", *run_options(target_dir, data_file, run)], 1, says, capsys)
    assert not (run / "eval.json").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint to export"),
        (lambda run: (run / "checkpoints/step-00000002/state.json").unlink(), "cannot be read"),
        (lambda run: cut(run / "checkpoints/step-00000002/state.json"), "step-00000002: the checkpoint cannot be read"),
        (lambda run: cut(tensors_of(run)), "safetensors: has 200 bytes"),
        (lambda run: tensors_of(run).unlink(), "safetensors: is missing"),
        (lambda run: spoil_header(tensors_of(run)), "step-00000002: cannot be read"),
        (lambda run: cut(run / "metrics.json"), "metrics.json: not valid JSON"),
        (lambda run: (run / "exported").mkdir(), "exported: exists already"),
    ],
)
def test_export_of_a_damaged_run(finished, target_dir, data_file, tmp_path, capsys, damage, says):
    run = shutil.copytree(finished, tmp_path / "run")
    damage(run)
    before = sorted(path.name for path in run.iterdir())
    refused(["export", *run_options(target_dir, data_file, run), "--to", str(run / "exported")], 1, says, capsys)
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_full_disk_is_one_sentence(finished, target_dir, data_file, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.export.export.save_drafter", full)
    options = run_options(target_dir, data_file, finished)
    refused(["export", *options, "--to", str(tmp_path / "new")], 1, "No space left on device", capsys)
    assert list(tmp_path.iterdir()) == []
