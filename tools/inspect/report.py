"""Report all that can be said of a head's directory, problems included, with one tensor in memory at a time."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import DEFAULT_SPECULATIVE_TOKENS, sglang_aux_layer_ids
from peagle_core.errors import InputError
from peagle_core.serve_command import sglang_command, vllm_command
from peagle_core.tensors import TensorCheck
from tools.heads.head import (
    SPECULATORS,
    TRAINING,
    HeadFiles,
    StoredTensor,
    find_files,
    in_bytes,
    list_tensors,
    read_tensor,
)
from tools.heads.target import Target, misfits, open_target, ordinary_mask_token

IDS = "eagle_aux_hidden_state_layer_ids"
AUX, MASK = "aux layer ids", "mask token id"  # facts
# What vLLM 0.32 serves as EAGLE-3 in a flat config; it puts Eagle3 before other names.
VLLM_LLAMA = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "LlamaForCausalLM")
VLLM_QWEN3 = ("Eagle3Qwen3ForCausalLM", "Qwen3ForCausalLM")
# Its class would load such a head without a word, and draft badly.
NOT_IN_SGLANG_EAGLE3 = ("norm_before_residual", "qk_norm", "attention_bias")


@dataclass
class Report:
    """Hold what is printed.

    facts: label -> value, in the order to print. serving: engine -> command line, or why there is none.
    """

    facts: dict[str, str] = field(default_factory=dict)
    serving: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def inspect_head(directory: Path, target_directory: Path | None = None) -> Report:
    """Report on a head. Raises InputError only where nothing can be said: no head at all, or no such target."""
    report = Report()
    files = find_files(directory)
    target = open_target(target_directory) if target_directory else None
    config, lacking = _config(files, report)
    tensors = _list(files, report)
    report.facts["format"] = files.format
    report.facts["architecture"] = ", ".join(map(str, files.raw.get("architectures") or ["not named"]))
    if config is None:
        return report
    _describe(report, config, tensors)
    report.facts |= dict.fromkeys(lacking, "wrong, see below")
    _describe_target(report, config, target)
    unused = _check_tensors(report, config, tensors, directory)
    if unused:
        report.facts["unused tensors"] = ", ".join(unused)
    name = str(target_directory or config.target or "TARGET")
    tokens = config.num_depths or DEFAULT_SPECULATIVE_TOKENS
    if config.autoregressive and files.format == TRAINING:
        report.serving["SGLang"] = report.serving["vLLM"] = "not as it is: peagle export makes a head of it"
        return report
    report.serving["SGLang"] = _sglang(files, config, name, tokens)
    report.serving["vLLM"] = _vllm(files, config, tensors, name, tokens)
    return report


def _config(files: HeadFiles, report: Report) -> tuple[PEagleConfig | None, set[str]]:
    """Return the config, or the best that can be made of it, and the facts that it then lacks.

    A wrong mask id or wrong aux ids should not hide what else is wrong.
    """
    guesses: list[tuple[set[str], dict[str, Any]]] = [
        (set(), {}),
        ({AUX}, {IDS: None, "eagle_config": None}),
        ({MASK}, {"mask_token_id": 0, "ptd_token_id": None, "pard_token": None, "dflash_config": None}),
    ]
    guesses.append(({AUX, MASK}, guesses[1][1] | guesses[2][1]))
    for lacking, changes in guesses:
        try:
            return PEagleConfig.from_dict(files.raw | changes), lacking
        except InputError as error:
            problem = f"{files.config_file}: {error}"
            if problem not in report.problems:
                report.problems.append(problem)
    return None, set()


def _list(files: HeadFiles, report: Report) -> list[StoredTensor]:
    tensors = []
    for path in files.weights:
        try:
            tensors += list_tensors(path)
        except InputError as error:
            report.problems.append(str(error))
    return tensors


def _describe(report: Report, config: PEagleConfig, tensors: list[StoredTensor]) -> None:
    facts = report.facts
    facts["drafter"] = (
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} query and "
        f"{config.num_key_value_heads} key/value heads of {config.head_dim}, MLP {config.intermediate_size}"
    )
    facts["target"] = f"{config.target or 'not named'}, width {config.target_hidden_size}"
    facts["vocabulary"] = f"{config.vocab_size}, drafts from {config.draft_vocab_size}"
    if config.correction_rank:
        facts["correction"] = f"rank {config.correction_rank}, by which each draft knows those before it"
    switches = ("norm_before_residual", "norm_before_fc", "fc_norm", "qk_norm", "attention_bias")
    facts["switched on"] = ", ".join(name for name in switches if getattr(config, name)) or "nothing"
    rope = config.rope_parameters
    facts["positions"] = (
        f"up to {config.max_position_embeddings}, rope {rope['rope_type']}, theta {rope['rope_theta']:g}"
    )
    facts["K"] = f"trained for {config.num_depths} drafts" if config.num_depths else "not written"
    ids = config.aux_layer_ids
    facts[AUX] = "not written: the target's default [2, n//2, n-3]"
    if ids is not None:
        outputs = sglang_aux_layer_ids(ids)
        facts[AUX] = f"{list(ids)} entering a layer (vLLM), {outputs} leaving a layer (SGLang)"
    facts[MASK] = (
        "none: an EAGLE-3 head, one draft after the other" if config.autoregressive else str(config.mask_token_id)
    )
    used = [t for t in tensors if t.bare not in ("d2t", "t2d") and not t.bare.startswith("verifier_")]
    dtypes = ", ".join(dtype for dtype, _ in Counter(t.dtype for t in used).most_common())
    size = sum(t.nbytes for t in used)
    facts["parameters"] = f"{sum(math.prod(t.shape) for t in used):,}, {in_bytes(size)} in {dtypes or 'no dtype'}"
    facts["read per drafter pass"] = _pass_bytes(config, used)


def _pass_bytes(config: PEagleConfig, used: list[StoredTensor]) -> str:
    """Say how many bytes of weights one pass reads from memory, in the stored dtype, whatever the batch."""
    sizes = {t.bare: t.nbytes for t in used}
    # mask_hidden is projected once, at load.
    per_draft = sum(sizes.pop(name) for name in list(sizes) if name.startswith("correction."))
    by_row = ("embed_tokens.weight", "mask_hidden")
    read = sum(size for name, size in sizes.items() if name not in by_row)
    itemsize = max((t.nbytes // max(1, math.prod(t.shape)) for t in used if t.bare == "fc.weight"), default=2)
    head = "lm_head"
    if "lm_head.weight" not in sizes:
        read += config.draft_vocab_size * config.hidden_size * itemsize
        head = "the target's lm_head"
    row = in_bytes(config.hidden_size * itemsize)
    correction = f"; {in_bytes(per_draft)} of the correction per draft" if per_draft else ""
    embedding = f"of the embedding only a row of {row} per token"
    return f"{in_bytes(read)}: all layers, fc, norms and {head}; {embedding}{correction}"


def _describe_target(report: Report, config: PEagleConfig, target: Target | None) -> None:
    if target is None:
        return
    found = list(misfits(config, target))
    report.problems += found
    if (
        target.tokenizer is not None
        and not config.autoregressive
        and not any(problem.startswith(MASK) for problem in found)
    ):
        token = ordinary_mask_token(config, target)
        report.facts[MASK] += f" ({token!r}), which a text may contain" if token else ", which no text contains"
    theirs = target.config.max_position_embeddings
    if config.max_position_embeddings < theirs:
        report.problems.append(
            f"max_position_embeddings {config.max_position_embeddings} is below the target's {theirs}: "
            "vLLM stops drafting past it without a word"
        )


def _check_tensors(report: Report, config: PEagleConfig, tensors: list[StoredTensor], directory: Path) -> list[str]:
    """Add what is wrong with the tensors to the report; return the leftovers that no drafter reads."""
    check, unused = TensorCheck(config, directory), []
    for tensor in tensors:
        try:
            if check.take(tensor.file, tensor.name, read_tensor(tensor)) is None:
                unused.append(tensor.bare)
        except InputError as error:
            report.problems.append(str(error))
    report.problems += [
        f"{directory}: tensor {name!r} is missing; expected shape {check.expected[name]}" for name in check.missing()
    ]
    problem = check.d2t_problem()
    report.problems += [problem] if problem else []
    return unused


def _sglang(files: HeadFiles, config: PEagleConfig, target: str, tokens: int) -> str:
    if files.format == TRAINING:
        return _convert_first(files, ["it is a training checkpoint"], "peagle")
    unread = [name for name in NOT_IN_SGLANG_EAGLE3 if config.autoregressive and getattr(config, name)]
    if unread:
        return f"no: its EAGLE3 does not read {', '.join(unread)}"
    return shlex.join(sglang_command(target, str(files.directory), tokens, config.autoregressive))


def _vllm(files: HeadFiles, config: PEagleConfig, tensors: list[StoredTensor], target: str, tokens: int) -> str:
    obstacles = list(_vllm_obstacles(files, config, tensors))
    if obstacles:
        return _convert_first(files, obstacles, "vllm")
    return shlex.join(vllm_command(target, str(files.directory), tokens, config.autoregressive))


def _convert_first(files: HeadFiles, obstacles: list[str], to: str) -> str:
    command = shlex.join(["peagle", "convert", str(files.directory), "NEW", "--to", to])
    return f"not as it is ({'; '.join(obstacles)}): {command}"


def _vllm_obstacles(files: HeadFiles, config: PEagleConfig, tensors: list[StoredTensor]) -> Iterator[str]:
    """Yield what vLLM 0.32 refuses, or reads wrongly, though the head is sound."""
    if files.format == TRAINING:
        yield "it is a training checkpoint"
        return
    names = files.raw.get("architectures") or []
    if config.correction_rank:
        yield "it does not read the correction, and drafts worse without"
    if any(tensor.name.startswith("model.") for tensor in tensors):
        yield "tensor names start with 'model.'"
    if any(tensor.bare.startswith("verifier_") for tensor in tensors):
        yield "it holds verifier tensors"
    if files.format == SPECULATORS:
        if config.fc_norm:
            yield "fc_norm is not read from speculators' format"
        return
    known = VLLM_QWEN3 if config.qk_norm else VLLM_LLAMA
    if not set(names) & set(known):
        yield f"architecture {', '.join(map(str, names)) or 'not named'} is not {known[0]}"
