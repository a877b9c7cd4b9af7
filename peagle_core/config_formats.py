"""config.json <-> a drafter's configuration: the flat format vLLM loads (ours, AWS's, NeMo's), speculators' nested one.

The keys and their defaults are those listed in docs/checkpoint.md. Every spelling is resolved here, once, so that
no engine falls back to a default of its own without a word. A flat config with `parallel_drafting` false is an EAGLE-3
head's: no mask token, and aux layer ids in two conventions, each where its engine looks first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peagle_core.drafter_shape import DrafterShape
from peagle_core.errors import InputError

MASK_ID_KEYS = ("mask_token_id", "pard_token", "ptd_token_id")
ARCHITECTURE = "LlamaForCausalLMEagle3"
# vLLM's class with norms on queries and keys.
QK_NORM_ARCHITECTURE = "Eagle3Qwen3ForCausalLM"
# NeMo keeps the target's model_type, but its one class has no q/k norms.
NEMO_ARCHITECTURE = "LlamaEagle3DraftModel"
AUX_IDS_KEY = "eagle_aux_hidden_state_layer_ids"
# speculators' own default, written where a head does not say K.
DEFAULT_SPECULATIVE_TOKENS = 5


def load_config_dict(directory: Path) -> dict[str, Any]:
    """Read the raw config.json. Raises InputError when it is absent or no JSON object."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    if not path.is_file():
        raise InputError(f"{path}: not found, so this is no drafter checkpoint")
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a JSON object was expected")
    return raw


def fields_from_dict(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `DrafterShape` that one raw config spells out, None where it leaves one to be filled in.

    Raises InputError when a key is missing or contradicts another.
    """
    nested = "transformer_layer_config" in raw
    layer = _object(raw, "transformer_layer_config") if nested else raw
    eagle = _object(raw, "eagle_config")
    heads = _required(layer, "num_attention_heads")
    return {
        "vocab_size": _required(layer, "vocab_size"),
        "hidden_size": _required(layer, "hidden_size"),
        "intermediate_size": _required(layer, "intermediate_size"),
        "num_hidden_layers": _required(layer, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": layer.get("num_key_value_heads") or heads,
        "mask_token_id": _mask_token_id(raw),
        "aux_layer_ids": _aux_layer_ids(raw, eagle),
        "num_depths": _num_depths(raw),
        "draft_vocab_size": _optional(raw, "draft_vocab_size"),
        "target_hidden_size": _optional(raw, "target_hidden_size"),
        "head_dim": _optional(layer, "head_dim"),
        "hidden_act": layer.get("hidden_act", "silu"),
        "rms_norm_eps": layer.get("rms_norm_eps", 1e-5),
        "max_position_embeddings": layer.get("max_position_embeddings", 4096),
        "rope_parameters": _rope_parameters(layer),
        "attention_bias": bool(layer.get("attention_bias", False)),
        "norm_before_residual": bool(raw.get("norm_before_residual", False)),
        "norm_before_fc": bool(raw.get("norm_before_fc", eagle.get("norm_before_fc", False))),
        "fc_norm": bool(raw.get("fc_norm", eagle.get("fc_norm", False))),
        "qk_norm": _qk_norm(raw, layer),
        "target": _target_name(raw),
        "hidden_state_design": raw.get("hidden_state_design", "shared"),
        "correction_rank": raw.get("correction_rank", 0),
    }


def _required(raw: dict[str, Any], key: str) -> Any:
    if raw.get(key) is None:
        raise InputError(f"key {key!r} is missing")
    return raw[key]


def _object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a nested object; absent or null is empty."""
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"key {key!r} must be an object, found {value!r}")
    return value


def _optional(raw: dict[str, Any], key: str) -> Any:
    """Return the value, or None: DrafterShape fills it in."""
    return raw.get(key)


def _mask_token_id(raw: dict[str, Any]) -> int | None:
    if raw.get("parallel_drafting") is False:
        return None
    candidates = [_object(raw, "dflash_config").get("mask_token_id"), *(raw.get(key) for key in MASK_ID_KEYS)]
    found = [value for value in candidates if value is not None]
    if not found:
        raise InputError(f"no mask token id: none of {', '.join(MASK_ID_KEYS)} is present")
    if any(value != found[0] for value in found):
        raise InputError(f"the mask token id is given as {found}; the keys contradict each other")
    return found[0]


def _aux_layer_ids(raw: dict[str, Any], eagle: dict[str, Any]) -> Any:
    return eagle.get(AUX_IDS_KEY) if raw.get(AUX_IDS_KEY) is None else raw[AUX_IDS_KEY]


def _qk_norm(raw: dict[str, Any], layer: dict[str, Any]) -> bool:
    is_qwen3 = layer.get("model_type") == "qwen3" and NEMO_ARCHITECTURE not in (raw.get("architectures") or [])
    return is_qwen3 or bool(raw.get("qk_norm", False))


def _num_depths(raw: dict[str, Any]) -> int | None:
    if raw.get("num_depths") is not None:
        return raw["num_depths"]
    proposals = _object(raw, "speculators_config").get("proposal_methods") or [{}]
    if not isinstance(proposals, list) or not isinstance(proposals[0], dict):
        raise InputError(f"key 'proposal_methods' must be a list of objects, found {proposals!r}")
    return proposals[0].get("speculative_tokens")


def _rope_parameters(layer: dict[str, Any]) -> dict[str, Any]:
    rope = dict(_object(layer, "rope_parameters") or _object(layer, "rope_scaling"))
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    rope.setdefault("rope_type", "default")
    rope.setdefault("rope_theta", layer.get("rope_theta") or 10000.0)
    return rope


def _target_name(raw: dict[str, Any]) -> str | None:
    verifier = _object(_object(raw, "speculators_config"), "verifier")
    return raw.get("target_name_or_path") or verifier.get("name_or_path")


def refuse_experiments(config: DrafterShape) -> None:
    """Raise InputError for a drafter that no serving engine could run."""
    if config.hidden_state_design != "shared":
        raise InputError(
            f"hidden_state_design {config.hidden_state_design!r} is an experiment that no serving engine runs, "
            f"so it is not exported"
        )


def sglang_aux_layer_ids(aux_layer_ids: tuple[int, ...]) -> list[int]:
    """Convert vLLM's "state entering layer k" to SGLang's "output of layer k - 1", captured as layer id + 1."""
    return [k - 1 for k in aux_layer_ids]


def flat_config_dict(config: DrafterShape, dtype: str = "bfloat16") -> dict[str, Any]:
    """Return the flat config.json that vLLM and SGLang load; `num_depths` is ours and both ignore it.

    So is `correction_rank`, written where there is a correction; vLLM cannot load such a head (`tools.convert`).
    """
    refuse_experiments(config)
    return config_record(config, dtype)


def config_record(config: DrafterShape, dtype: str) -> dict[str, Any]:
    """Return the flat keys of any drafter, experiments included: how training checkpoints say what they are."""
    return {
        "architectures": [QK_NORM_ARCHITECTURE if config.qk_norm else ARCHITECTURE],
        **_layer_dict(config),
        "torch_dtype": dtype,
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        "mlp_bias": False,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "qk_norm": config.qk_norm,
        "num_depths": config.num_depths,
        "target_name_or_path": config.target,
        **(_eagle3_keys(config) if config.autoregressive else _parallel_keys(config)),
        **({} if config.hidden_state_design == "shared" else {"hidden_state_design": config.hidden_state_design}),
        **({"correction_rank": config.correction_rank} if config.correction_rank else {}),
    }


def _parallel_keys(config: DrafterShape) -> dict[str, Any]:
    eagle: dict[str, Any] = {"use_aux_hidden_state": True}
    if config.aux_layer_ids is not None:
        eagle[AUX_IDS_KEY] = list(config.aux_layer_ids)
    return {"mask_token_id": config.mask_token_id, "ptd_token_id": config.mask_token_id, "eagle_config": eagle}


def _eagle3_keys(config: DrafterShape) -> dict[str, Any]:
    """Return the keys of an EAGLE-3 head, with aux ids in both places.

    vLLM takes the ids at the top before the nested ones; SGLang's EAGLE3 knows only the latter.
    """
    keys: dict[str, Any] = {"parallel_drafting": False, "eagle_config": {"use_aux_hidden_state": True}}
    if config.aux_layer_ids is not None:
        keys[AUX_IDS_KEY] = list(config.aux_layer_ids)
        keys["eagle_config"][AUX_IDS_KEY] = sglang_aux_layer_ids(config.aux_layer_ids)
    return keys


def speculators_config_dict(
    config: DrafterShape, dtype: str = "bfloat16", target_architectures: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return speculators' nested config.json. Without a K, its own default stands in, for vLLM demands one.

    Raises InputError for an EAGLE-3 head, for only P-EAGLE heads are written in this format, and for a correction.
    """
    refuse_experiments(config)
    if config.correction_rank:
        raise InputError("a correction has no place in speculators' format")
    if config.autoregressive:
        raise InputError("an EAGLE-3 head is written in the flat format only, not in speculators'")
    ids = config.aux_layer_ids
    tokens = config.num_depths or DEFAULT_SPECULATIVE_TOKENS
    return {
        "architectures": ["PEagleDraftModel"],
        "speculators_model_type": "peagle",
        "dtype": dtype,
        "mask_token_id": config.mask_token_id,
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        # Written always: absent, it is false for P-EAGLE and true for EAGLE-3.
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "eagle_aux_hidden_state_layer_ids": None if ids is None else list(ids),
        "tie_word_embeddings": False,
        "transformer_layer_config": _layer_dict(config) | ({} if config.qk_norm else {"mlp_bias": False}),
        "speculators_config": {
            "algorithm": "peagle",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": config.target, "architectures": list(target_architectures)},
        },
    }


def _layer_dict(config: DrafterShape) -> dict[str, Any]:
    """Return the keys of transformers' LlamaConfig, or of Qwen3Config for q/k norms."""
    return {
        "model_type": "qwen3" if config.qk_norm else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_parameters": dict(config.rope_parameters),
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": False,
    }


def write_flat_config(config: DrafterShape, directory: Path, dtype: str = "bfloat16") -> None:
    """Write `directory/config.json` in the flat format, making the directory."""
    text = json.dumps(flat_config_dict(config, dtype), indent=2)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(text + "\n")
