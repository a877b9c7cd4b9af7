"""Heads, targets and flags as people have them, up to the launcher's check: served, or refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from byte_models import CONTEXT, VOCAB, save_random_head, save_target
from safetensors.torch import load_file, save_file
from servers import Checked, launcher_checks, peagle

from peagle_core.errors import InputError
from peagle_core.head_directory import head_directory
from tools.inspect.__main__ import main as inspect

pytestmark = pytest.mark.slow

PATH, FORMAT = "speculative_draft_model_path", "speculative_draft_load_format"
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 256}
LONGROPE = {**YARN, "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


def drop_tensors(head: Path, *names: str) -> None:
    path = head / "model.safetensors"
    save_file({name: t for name, t in load_file(path).items() if name not in names}, path)


def on_the_hub(cache: Path, name: str, revisions: dict[str, Path]) -> None:
    """Lay heads out as the hub's client caches them, for a client that is offline. revisions: branch -> head."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for i, (branch, head) in enumerate(revisions.items()):
        commit = f"{i:040x}"
        (repository / "refs" / branch).write_text(commit)
        shutil.copytree(head, repository / "snapshots" / commit)


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> dict[str, Checked]:
    """All command lines in one process: importing SGLang takes far longer than all of its checks."""
    root = tmp_path_factory.mktemp("heads")
    target, head = root / "target", root / "head"
    save_target(target)
    save_random_head(head)
    lines: dict[str, list[str]] = {}

    def line(case: str, arguments: list[str], target: Path = target, *variables: str) -> None:
        lines[case] = [*variables, "--model-path", str(target), "--dtype", "float32", *arguments]

    def made(case: str, **changes) -> Path:
        save_random_head(root / case, **changes)
        return root / case

    line("plain", peagle(head))
    line("shorter context", peagle(made("short", max_position_embeddings=128)))
    line("fewer ids", peagle(made("fewer", vocab_size=192, mask_token_id=191)))
    shares = made("shares", vocab_size=192, mask_token_id=191)
    drop_tensors(shares, "embed_tokens.weight")
    line("fewer ids, shared", peagle(shares))
    overrides = ["--json-model-override-args", json.dumps({"num_hidden_layers": 8, "max_position_embeddings": 256})]
    line("overrides", [*peagle(made("deep", num_hidden_layers=10)), *overrides])
    for algorithm in ("EAGLE3", "eagle", "NEXTN"):
        line(
            f"under {algorithm}",
            ["--speculative-algorithm", algorithm, *peagle(head, 3)[2:], "--speculative-eagle-topk", "1"],
        )
    hub_head = ["--speculative-draft-model-path", "me/head", "--speculative-num-steps", "3"]
    line("on the hub, under EAGLE3", ["--speculative-algorithm", "EAGLE3", *hub_head, "--speculative-eagle-topk", "1"])
    line("outlines", [*peagle(head), "--grammar-backend", "outlines"])
    line("llguidance", [*peagle(head), "--grammar-backend", "llguidance"])
    line("longrope", peagle(made("longrope", rope_parameters=LONGROPE)))
    line("longrope, short texts", [*peagle(root / "longrope"), "--context-length", "256"])
    line("dynamic", peagle(made("dynamic", rope_parameters=DYNAMIC, max_position_embeddings=256)))
    line("dynamic, long enough", peagle(made("dynamic-long", rope_parameters=DYNAMIC)))
    partial = {**YARN, "partial_rotary_factor": 0.5}
    line("partial", peagle(made("partial", rope_parameters=partial)))
    line("the target", peagle(target))
    (root / "link").symlink_to(target)
    line("the target, linked", peagle(root / "link"))
    save_target(root / "other")
    line("another model", peagle(root / "other"))
    line("a file", peagle(head / "model.safetensors"))
    line("on the hub", peagle(Path("me/head")))
    line("a revision", [*peagle(Path("me/head")), "--speculative-draft-model-revision", "trial"])
    line("no revision", [*peagle(Path("me/head")), "--speculative-draft-model-revision", "gone"])
    for load_format in ("sharded_state", "dummy", "safetensors"):
        line(f"target in {load_format}", [*peagle(head), "--load-format", load_format])
    line("named", [*peagle(head), "--load-format", "sharded_state", "--speculative-draft-load-format", "dummy"])
    line("scattered input", [*peagle(head), "--enable-attn-tp-input-scattered"])
    for switch in ("OVERLAP_PLAN_STREAM", "POST_CAPTURE_KV_SIZING"):
        line(switch, peagle(head), target, f"SGLANG_ENABLE_{switch}=1")
    line("after the switches", peagle(head))
    for suffix in (".gguf", ""):  # SGLang knows one by its name, or by its first bytes
        gguf = root / f"target-Q4_1{suffix}"
        gguf.write_bytes(b"GGUF" + bytes(60))
        line(f"GGUF target{suffix}", peagle(head), gguf)
        line(f"GGUF target{suffix}, no speculation", [], gguf)
    line("strict thinking", [*peagle(head), "--reasoning-parser", "qwen3", "--enable-strict-thinking"])
    line("strict thinking alone", ["--reasoning-parser", "qwen3", "--enable-strict-thinking"])
    on_the_hub(root / "hub", "me/head", {"main": head, "trial": root / "short"})
    found = launcher_checks(list(lines.values()), HF_HUB_CACHE=str(root / "hub"), HF_HUB_OFFLINE="1")
    return {**dict(zip(lines, found, strict=True)), "root": root}  # type: ignore[dict-item]


REFUSED = {
    "fewer ids, shared": ("vocabulary of 192", "cannot share the target's embed_tokens.weight"),
    "under EAGLE3": ("is a P-EAGLE head", "--speculative-algorithm PEAGLE"),
    "under eagle": ("is a P-EAGLE head", "--speculative-algorithm PEAGLE"),
    "under NEXTN": ("is a P-EAGLE head", "--speculative-algorithm PEAGLE"),
    "on the hub, under EAGLE3": ("me/head is a P-EAGLE head", "--speculative-algorithm PEAGLE"),
    "outlines": ("--grammar-backend xgrammar",),
    "longrope": ("'longrope'", "--context-length 256, not 512"),
    "dynamic": ("'dynamic'", "--context-length 256, not 512"),
    "partial": ("partial_rotary_factor 0.5",),
    "the target": ("is the target itself",),
    "the target, linked": ("is the target itself",),
    "another model": ("LlamaForCausalLM is no P-EAGLE head",),
    "a file": ("is a file; a head is a directory",),
    "no revision": ("revision gone",),
    "scattered input": ("enable_attn_tp_input_scattered=True",),
    "OVERLAP_PLAN_STREAM": ("SGLANG_ENABLE_OVERLAP_PLAN_STREAM", "set it to 0"),
    "POST_CAPTURE_KV_SIZING": ("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", "set it to 0"),
    "GGUF target.gguf": ("target-Q4_1.gguf is a GGUF file", "serve the safetensors model"),
    "GGUF target.gguf, no speculation": ("target-Q4_1.gguf is a GGUF file", "serve the safetensors model"),
    "GGUF target": ("target-Q4_1 is a GGUF file", "serve the safetensors model"),
    "GGUF target, no speculation": ("target-Q4_1 is a GGUF file", "serve the safetensors model"),
    "strict thinking": ("--enable-strict-thinking",),
    "strict thinking alone": ("--enable-strict-thinking",),
}
SERVED = (
    "plain", "overrides", "llguidance", "longrope, short texts", "dynamic, long enough", "on the hub",
    "target in sharded_state", "after the switches",
)  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_a_sentence(checked, case):
    said = checked[case].refusal
    assert said is not None and "\n" not in said
    assert all(part in said for part in REFUSED[case]), said


@pytest.mark.parametrize("case", SERVED)
def test_it_is_served_without_a_word(checked, case):
    assert (checked[case].refusal, checked[case].warnings) == (None, [])


def test_a_shorter_context_is_one_warning(checked):
    assert checked["shorter context"].refusal is None
    [warning] = checked["shorter context"].warnings
    assert f"up to {CONTEXT} tokens" in warning and "max_position_embeddings 128" in warning


def test_fewer_ids_are_one_warning(checked):
    assert checked["fewer ids"].refusal is None
    [warning] = checked["fewer ids"].warnings
    assert "a vocabulary of 192" in warning and f"one of {VOCAB}" in warning


def test_what_is_checked_is_what_is_served(checked):
    """A name on the hub becomes one snapshot, that of the revision asked for."""
    assert Path(checked["on the hub"].resolved[PATH]).name == f"{0:040x}"
    revision = checked["a revision"]
    assert Path(revision.resolved[PATH]).name == f"{1:040x}"
    assert "max_position_embeddings 128" in revision.warnings[0]  # the checks read that revision, too


def test_a_head_has_its_own_load_format(checked):
    formats = {
        case: checked[f"target in {case}"].resolved[FORMAT] for case in ("sharded_state", "safetensors", "dummy")
    }
    assert formats == {"sharded_state": "auto", "safetensors": "auto", "dummy": "dummy"}
    assert checked["named"].resolved[FORMAT] == "dummy"


def test_inspect_takes_what_the_server_takes(checked, monkeypatch, capsys):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(checked["root"] / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    head_directory.cache_clear()
    assert inspect(["me/head", "--revision", "trial"]) == 0
    assert f"{1:040x}" in capsys.readouterr().out
    with pytest.raises(InputError, match="of revision gone"):
        head_directory("me/head", "gone")
