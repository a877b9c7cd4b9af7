"""What a target's directory may lack or hold: refused in one sentence, the same by every verb; and its context."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from refusal import refused
from safetensors.torch import load_file
from tiny_run import run_options
from transformers import AutoConfig

from trainer.config import load_config
from trainer.inputs import load_inputs
from trainer.prepare.prepare import run_prepare
from trainer.target.context import context_length, room_for_answer
from trainer.train.run import run_train


@pytest.fixture
def target(target_dir, tmp_path) -> Path:
    return shutil.copytree(target_dir, tmp_path / "target")


def to_pickle(target: Path, name: str = "pytorch_model.bin") -> None:
    torch.save(load_file(target / "model.safetensors"), target / name)
    (target / "model.safetensors").unlink()


def to_two_pickles(target: Path) -> None:
    names = list(load_file(target / "model.safetensors"))
    to_pickle(target, "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model-00001-of-00001.bin")}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def to_gguf(target: Path) -> None:
    (target / "model.safetensors").rename(target / "model-Q4_K_M.gguf")


def to_nothing(target: Path) -> None:
    (target / "model.safetensors").unlink()


def to_adapter(target: Path) -> None:
    (target / "config.json").rename(target / "adapter_config.json")
    (target / "model.safetensors").rename(target / "adapter_model.safetensors")


def set_config(target: Path, **changes) -> None:
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def to_gptq(target: Path) -> None:
    set_config(target, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


def to_remote_code(target: Path) -> None:
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    set_config(target, model_type="own", architectures=["OwnModel"], auto_map=auto_map)


def to_encoder(target: Path) -> None:
    set_config(target, model_type="t5", architectures=["T5ForConditionalGeneration"])


CASES = [
    (to_pickle, "files such as pytorch_model.bin are not read; save it once with transformers"),
    (to_two_pickles, "files such as pytorch_model-00001-of-00001.bin are not read"),
    (to_gguf, "it has no *.safetensors file, and GGUF files are not read; give the safetensors model"),
    (to_nothing, "cannot be loaded: it has no *.safetensors file"),
    (to_adapter, "is an adapter (LoRA); merge it into its base model first"),
    (to_gptq, "is quantised (gptq) and cannot be loaded here"),
    (to_remote_code, "needs Python code of its own repository, which is never run"),
    (to_encoder, "cannot be loaded"),
]


@pytest.mark.parametrize(("change", "says"), CASES)
def test_one_answer_whatever_is_asked(target, data_file, tmp_path, capsys, change, says):
    change(target)
    options = run_options(target, data_file, tmp_path / "run")
    for verb, more in (("train", []), ("extract", []), ("train", ["states.source=cache", "states.on_miss=generate"])):
        refused([verb, *options, *more], 1, says, capsys)
    assert not any((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    ("name", "says"), [("model-Q4_1.gguf", "tools.real_target"), ("model.safetensors", "is a file")]
)
def test_a_single_file_is_no_target(target, data_file, tmp_path, capsys, name, says):
    (target / "model.safetensors").rename(target / name)
    options = run_options(target / name, data_file, tmp_path / "run")
    for verb, more in (("train", []), ("extract", []), ("prepare", ["--to", str(tmp_path / "tokens")])):
        refused([verb, *options, *more], 1, says, capsys)


def test_safetensors_are_taken_where_pickles_lie_beside_them(target, data_file, tmp_path):
    (target / "pytorch_model.bin").write_bytes(b"anything")
    assert load_inputs(load_config(None, run_options(target, data_file, tmp_path / "run"))).model is not None


def test_documents_are_cut_at_a_shorter_context(target, data_file, tmp_path, capsys):
    set_config(target, max_position_embeddings=24)
    options = [*run_options(target, data_file, tmp_path / "run"), f"data.heldout={data_file}", "eval.max_new_tokens=40"]
    config = load_config(None, [*options, "eval.num_draft_tokens=[3,7]"])
    inputs = load_inputs(config)
    said = capsys.readouterr().out
    assert said.count("data.max_length 64 exceeds the target's context; documents are cut at 24 tokens") == 1
    assert max(map(len, inputs.train)) == 24
    run_prepare(config, tmp_path / "data")
    prepared = load_inputs(load_config(None, [*options, f"data.train={tmp_path / 'data'}"]))
    assert [d.input_ids.tolist() for d in prepared.train] == [d.input_ids.tolist() for d in inputs.train]
    run_train(config)
    for loop in json.loads((config.output / "metrics.json").read_text())["acceptance"]:
        prompts = [int(d.loss_mask.long().argmax()) for d in inputs.heldout[:2]]
        assert loop["prompts"] == 2
        assert loop["new_tokens"] <= sum(24 - n - loop["num_draft_tokens"] for n in prompts)


def test_the_context_is_what_a_server_would_say():
    def context(rope=None, **changes):
        options = {"max_position_embeddings": 100, **changes}
        return context_length(AutoConfig.for_model("llama", **options, **({"rope_parameters": rope} if rope else {})))

    assert context() == 100
    assert context({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}) == 400
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25, "rope_theta": 1e4}
    assert context(yarn) == 100
    assert context_length(AutoConfig.for_model("bloom")) in (None, 2048)
    assert room_for_answer(AutoConfig.for_model("llama", max_position_embeddings=100), 90, 3, 64) == 7
    assert room_for_answer(AutoConfig.for_model("llama", max_position_embeddings=100), 99, 3, 64) == 0
