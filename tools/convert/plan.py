"""Decide what a conversion does to a head's config, before anything is written, and say it in plain words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import (
    AUX_IDS_KEY,
    DEFAULT_SPECULATIVE_TOKENS,
    MASK_ID_KEYS,
    flat_config_dict,
    speculators_config_dict,
)
from peagle_core.errors import InputError
from peagle_core.tensors import SHARED, expected_shapes
from tools.heads.head import TRAINING, Head
from tools.heads.target import Target, misfits, ordinary_mask_token

PEAGLE, VLLM, SPECULATORS = FORMATS = ("peagle", "vllm", "speculators")
# Keys that the reader understands: those called as in PEagleConfig, and those with a spelling of their own on disk.
READ = {
    *(field.name for field in dataclasses.fields(PEagleConfig)), *MASK_ID_KEYS, AUX_IDS_KEY, "target_name_or_path",
    "architectures", "model_type", "torch_dtype", "rope_theta", "rope_scaling", "dflash_config", "eagle_config",
    "speculators_model_type", "speculators_config", "transformer_layer_config", "num_aux_hidden_states", "layer_types",
    "sliding_window", "use_sliding_window", "max_window_layers", "norm_output",
} - {"aux_layer_ids", "target"}  # fmt: skip
# Keys that mean nothing for a drafter.
IDLE = {
    "transformers_version", "speculators_version", "_name_or_path", "auto_map", "dtype", "bos_token_id", "eos_token_id",
    "pad_token_id", "tie_word_embeddings", "mlp_bias", "initializer_range", "attention_dropout", "use_cache",
    "pretraining_tp", "parallel_drafting", "embed_requires_grad", "attn_implementation",
}  # fmt: skip
# Rotary types whose frequencies start from the length the model was pre-trained with, by default its maximum.
PRETRAINED_LENGTH_ROPES = ("llama3", "yarn", "longrope")


@dataclass
class Plan:
    """Hold what will be written and what is said of it.

    config: of the result. extras, layer_extras: keys carried over as they are, at the top and among the layer's.
    """

    to: str
    config: PEagleConfig
    extras: dict[str, Any] = field(default_factory=dict)
    layer_extras: dict[str, Any] = field(default_factory=dict)
    target_architectures: tuple[str, ...] = ()
    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def config_dict(self, dtype: str) -> dict[str, Any]:
        """Return the config.json to write."""
        if self.to != SPECULATORS:
            return flat_config_dict(self.config, dtype) | self.layer_extras | self.extras
        raw = speculators_config_dict(self.config, dtype, self.target_architectures)
        raw["transformer_layer_config"] |= self.layer_extras
        return raw | self.extras


def make_plan(source: Head, to: str, target: Target | None = None, aux_ids_name_outputs: bool = False) -> Plan:
    """Plan a conversion. Raises InputError where the head cannot be carried over, or does not fit the target."""
    if source.config.autoregressive:
        raise InputError(f"{source.directory}: is an EAGLE-3 head (parallel_drafting is false), not a P-EAGLE head")
    plan = Plan(to, source.config)
    _carry_extras(plan, source)
    _carry_target_architectures(plan, source, target)
    if aux_ids_name_outputs:
        _shift_aux_ids(plan)
    if target is not None:
        for misfit in misfits(plan.config, target):
            raise InputError(misfit)
        _fit_to_target(plan, target)
        if token := ordinary_mask_token(plan.config, target):
            plan.warnings.append(
                f"mask token id {plan.config.mask_token_id} is the token {token!r}, which a text may contain: drafts "
                "behind it are worse, if the head was not trained on texts with it"
            )
    _check_own_weights(plan.config, source)
    _leave_correction(plan)
    _say_what_was_implied(plan, source)
    if to == SPECULATORS:
        _warn_about_speculators(plan)
    return plan


def _shift_aux_ids(plan: Plan) -> None:
    """Count aux layers as vLLM does: from SGLang's way (the output of layer k) to (the state entering layer k + 1)."""
    ids = plan.config.aux_layer_ids
    if ids is None:
        raise InputError("the head names no aux layer ids, so there is nothing to shift (--aux-ids output)")
    plan.config = plan.config.replace(aux_layer_ids=tuple(i + 1 for i in ids))
    plan.changes.append(f"aux layer ids {list(ids)}, outputs of layers -> {list(plan.config.aux_layer_ids or ())}")


def _fit_to_target(plan: Plan, target: Target) -> None:
    if plan.config.aux_layer_ids is None:
        ids = plan.config.aux_layer_ids_for(target.config.num_hidden_layers)
        plan.config = plan.config.replace(aux_layer_ids=ids)
        plan.changes.append(f"aux layer ids: {list(ids)}, the target's default, now written")
    ours, theirs = plan.config.max_position_embeddings, target.config.max_position_embeddings
    if ours >= theirs:
        return
    rope = dict(plan.config.rope_parameters)
    if rope["rope_type"] == "dynamic":
        plan.warnings.append(
            f"max_position_embeddings {ours} is below the target's {theirs} and cannot be raised with dynamic rotary "
            f"scaling; vLLM stops drafting past {ours} without a word"
        )
        return
    if rope["rope_type"] in PRETRAINED_LENGTH_ROPES:
        # Both default to max_position_embeddings: pinned, so that raising it leaves the frequencies alone.
        original = rope.setdefault("original_max_position_embeddings", ours)
        if rope["rope_type"] != "llama3":
            rope.setdefault("factor", ours / original)
    plan.config = plan.config.replace(max_position_embeddings=theirs, rope_parameters=rope)
    plan.warnings.append(
        f"max_position_embeddings {ours} -> {theirs}, the target's: below the served length vLLM stops drafting "
        "without a word; past its training length the head may draft badly"
    )


def _check_own_weights(config: PEagleConfig, source: Head) -> None:
    """Refuse a head without an embedding or lm_head of its own where the target's does not fit."""
    for name in SHARED:
        rows, width = expected_shapes(config)[name]
        if not source.has(name) and (rows, width) != (config.vocab_size, config.target_hidden_size):
            raise InputError(
                f"{source.directory}: has no {name!r} of its own, and the target's, "
                f"[{config.vocab_size}, {config.target_hidden_size}], is not the [{rows}, {width}] it needs"
            )


def _carry_extras(plan: Plan, source: Head) -> None:
    raw = source.files.raw
    layer = raw.get("transformer_layer_config") or raw
    types = layer.get("layer_types") or []
    if "sliding_attention" in types:
        window, layers = layer.get("sliding_window"), plan.config.num_hidden_layers
        if len(types) != layers or not isinstance(window, int):
            raise InputError(
                f"{source.files.config_file}: layer_types names sliding windows, but not for {layers} layers "
                f"with a sliding_window (found {types!r} and {window!r})"
            )
        plan.layer_extras = {"layer_types": types, "sliding_window": window, "use_sliding_window": True}
        plan.warnings.append(
            f"attends to the last {window} tokens in {types.count('sliding_attention')} of {layers} layers: carried "
            "over for vLLM; SGLang's PEAGLE attends to everything"
        )
    if raw.get("norm_output"):
        plan.extras["norm_output"] = True
    for part in (raw, layer) if layer is not raw else (raw,):
        left = {k: v for k, v in part.items() if k not in READ | IDLE and v not in (None, False, [], {})}
        plan.changes += [f"{key} = {value!r}: not carried over" for key, value in left.items()]


def _carry_target_architectures(plan: Plan, source: Head, target: Target | None) -> None:
    """Take over the target's architectures, for which only speculators' format has a place."""
    theirs = ((source.files.raw.get("speculators_config") or {}).get("verifier") or {}).get("architectures") or ()
    plan.target_architectures = target.architectures if target else tuple(theirs)
    if theirs and plan.to != SPECULATORS:
        plan.changes.append(f"the verifier's architectures {theirs!r}: not carried over")


def _leave_correction(plan: Plan) -> None:
    """Leave out a correction, which only our own format has a place for."""
    rank = plan.config.correction_rank
    if rank and plan.to != PEAGLE:
        plan.config = plan.config.replace(correction_rank=0)
        plan.warnings.append(
            f"the correction of rank {rank} is left out, as vLLM does not read it: later drafts are accepted less often"
        )


def _say_what_was_implied(plan: Plan, source: Head) -> None:
    raw = source.files.raw
    if "norm_before_residual" not in raw:
        plan.changes.append("norm_before_residual: false, now written (its default differs between formats)")
    if (raw.get("transformer_layer_config") or raw).get("tie_word_embeddings") and not source.has("lm_head.weight"):
        plan.warnings.append("tie_word_embeddings is set and there is no lm_head: every engine takes the target's")
    if source.files.format == TRAINING:
        plan.changes.append("optimizer and training state: left behind")


def _warn_about_speculators(plan: Plan) -> None:
    config = plan.config
    if config.num_depths is None:
        plan.warnings.append(
            f"the head does not say its K: written as {DEFAULT_SPECULATIVE_TOKENS}, speculators' default"
        )
    if config.fc_norm:
        plan.warnings.append(
            "vLLM 0.32 does not read fc_norm from speculators' format, so it cannot serve this; --to vllm can"
        )
    if config.target_hidden_size != config.hidden_size:
        plan.warnings.append(
            f"the head is {config.hidden_size} wide and its target {config.target_hidden_size}: vLLM reads that, "
            "speculators' own model class (0.9.0) does not"
        )
