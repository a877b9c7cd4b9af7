"""Hidden states through the real server are those of transformers: in chunks, on two ranks, and nobody else's."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from byte_models import AUX_IDS, VOCAB, save_target
from prompts import mixed_prompts
from servers import serve
from transformers import AutoTokenizer

from peagle_core.errors import InputError
from peagle_core.target import target_head
from sglang_backend.dump.hidden_states import Capture
from trainer.config import RunConfig, load_config
from trainer.data.documents import Document
from trainer.data.packing import join, pack
from trainer.errors import ConfigError
from trainer.hidden_states.choose import open_states
from trainer.hidden_states.extract import run_extract
from trainer.hidden_states.from_sglang import SGLangStates
from trainer.inputs import load_inputs

CAPTURE = ["--enable-return-aux-hidden-states", "--speculative-algorithm", "EAGLE3"]
LAYERS = ["--return-aux-hidden-state-layer-ids", *(str(k - 1) for k in AUX_IDS)]
# An element of either engine may lie this far from the other's, of its own size or of 1.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("captured") / "target"
    save_target(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.mask_token = "<|mask|>"
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_what_the_server_writes_is_what_transformers_computes(target_dir, tmp_path):
    """Prompts of 1 to 150 tokens, two of them begin alike, through chunks of 32 and two ranks."""
    data = tmp_path / "data.jsonl"
    prompts = [p for p in mixed_prompts() if len(p) > 2] * 3
    prompts = [[*p, i % 250] for i, p in enumerate(prompts)]
    with data.open("w") as file:
        for ids in prompts:
            file.write(json.dumps({"input_ids": ids, "loss_mask": [1] * len(ids)}) + "\n")

    def run(*more: str) -> RunConfig:
        return load_config(None, [
            f"target={target_dir}", f"data.train={data}", f"output_dir={tmp_path / 'run'}", "device=cpu",
            f"drafter.aux_layer_ids={list(AUX_IDS)}", "drafter.mask_token_id=258", "states.dtype=float32",
            "data.max_length=256", "data.row_length=256", *more,
        ])  # fmt: skip

    files = tmp_path / "files"
    arguments = ["--disable-radix-cache", *CAPTURE, *LAYERS, "--chunked-prefill-size", "32", "--tp-size", "2"]
    environment = {"PEAGLE_STATES_DIR": str(files), "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    direct = run_extract(run(), tmp_path / "direct")
    with serve(target_dir, tmp_path / "log", *arguments, **environment) as server:
        engine = ["states.engine=sglang", f"states.url={str(server.http.base_url).rstrip('/')}"]
        server.generate([1, 2, 3], 4)
        served = run_extract(run(*engine), tmp_path / "served")
        assert list(files.iterdir()) == []  # read and removed, and none for a request that is not ours
        assert_alike(run, direct, served)
        check_refusals(run(*engine), files)
    assert json.loads((served / "index.json").read_text())["settings"]["made by"] == "sglang, float32"


def assert_alike(run, direct, served) -> None:
    stores = [run("states.source=cache", f"states.directory={directory}") for directory in (direct, served)]
    inputs = load_inputs(stores[0], whole=False)
    one, other = (open_states(config, inputs, AUX_IDS, {"data.train": inputs.train}) for config in stores)
    tokens = 0
    for row in pack(inputs.train, 256):
        for name in ("aux", "final_hidden"):
            expected, found = getattr(one(row), name), getattr(other(row), name)
            assert expected.std() > 0.5
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
        tokens += len(row)
    assert tokens > 500


def check_refusals(config: RunConfig, files) -> None:
    """What is wrong is said before a store is made, or with the first row."""
    head = target_head(load_inputs(config, whole=False).target)
    of = config.target, config.states.url
    store = files.parent / "store"
    with pytest.raises(
        ConfigError, match=r"captures the states entering layers \[1, 3, 6\], this run wants \[2, 4, 5\]"
    ):
        SGLangStates(*of, head, (2, 4, 5), 8, store)
    row = join([Document(torch.tensor([5, 6, 7]), torch.ones(3, dtype=torch.bool))])
    with pytest.raises(InputError, match=r"aux has shape \(3, 192\), expected \(3, 96\)"):
        SGLangStates(*of, head[:, :32], AUX_IDS, 8, store)(row)
    states = SGLangStates(*of, head, AUX_IDS, 8, store)
    with pytest.raises(InputError, match="longer than the model's context length"):
        states(join([Document(torch.arange(600) % VOCAB, torch.ones(600, dtype=torch.bool))]))
    (files / f"{states.prefix}0.safetensors").write_bytes(b"left by a killed run")
    SGLangStates(*of, head, AUX_IDS, 8, store)
    assert list(files.iterdir()) == []
    shutil.rmtree(files)
    with pytest.raises(InputError, match="answered and did not write it"):
        states(row)
    with pytest.raises(InputError, match="is not there on this machine"):
        SGLangStates(*of, head, AUX_IDS, 8, store)
    files.mkdir()
    assert states(row).aux.shape == (3, 192)  # the server goes on


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"disable_radix_cache": False}, "add --disable-radix-cache"),
        ({"enable_return_aux_hidden_states": False}, "add --enable-return-aux-hidden-states"),
        ({"attn_dp_size": 2}, "drop --attn-dp-size"),
        ({}, "cannot be made"),
    ],
)
def test_a_server_that_cannot_capture_everything_is_refused(tmp_path, changes, remedy):
    """That SGLang asks at start is seen above: there it made the directory."""
    from sglang.srt.server_args import ServerArgs

    (tmp_path / "file").touch()
    good = {"disable_radix_cache": True, "enable_return_aux_hidden_states": True}
    with pytest.raises(InputError, match=remedy):
        Capture(tmp_path / "file" / "states").check(None, ServerArgs(model_path="any", **{**good, **changes}))
