"""Server arguments under PEAGLE: K comes from the head; what cannot work is refused in a sentence, before any load."""

from __future__ import annotations

import logging
from pathlib import Path

from sglang.srt.arg_groups.overrides import model_config_of
from sglang.srt.environ import envs
from sglang.srt.platforms import current_platform

from peagle_core.checkpoint import read_tensors
from peagle_core.config import PEagleConfig
from peagle_core.config_formats import load_config_dict
from peagle_core.errors import InputError
from peagle_core.tensors import SHARED
from sglang_backend import NAME, hooks
from sglang_backend.corrections import lora
from sglang_backend.rope import check_rope

logger = logging.getLogger(__name__)

DEFAULT_NUM_DRAFT_TOKENS = 5  # for a head that does not say; what AWS serves its heads with
MAX_RUNNING_REQUESTS = 48  # SGLang's own default for its EAGLE family

# server argument -> (value that is fine, what to do instead)
UNSUPPORTED = {
    "enable_multi_layer_eagle": (False, "drop --enable-multi-layer-eagle; a P-EAGLE head has its own layers"),
    "attn_dp_size": (1, "drop --attn-dp-size, or --enable-dp-attention, which sets it"),
    "pp_size": (1, "use --tp-size instead of --pp-size"),
    "dcp_size": (1, "use --tp-size instead of --dcp-size"),
    "attn_cp_size": (1, "use --tp-size instead of --attn-cp-size"),
    "moe_a2a_backend": ("none", "drop --moe-a2a-backend"),
    "disaggregation_mode": ("null", "serve prefill and decode in one server"),
    "enable_two_batch_overlap": (False, "drop --enable-two-batch-overlap"),
    "enable_pdmux": (False, "drop --enable-pdmux"),
    "enable_hisparse": (False, "drop --enable-hisparse"),
    "enable_unified_memory": (False, "drop --enable-unified-memory"),
    "enable_attn_tp_input_scattered": (False, "its states would be scattered among the ranks; drop the switch"),
    "is_embedding": (False, "an embedding server generates nothing to draft"),
    "enable_return_hidden_states": (False, "it would return the drafter's three states; serve without speculation"),
    "enable_custom_logit_processor": (False, "verification does not run them; serve without speculation"),
    "speculative_token_map": (None, "drop --speculative-token-map; a head with a draft vocabulary brings its own"),
    "speculative_draft_window_size": (None, "a P-EAGLE head attends to all of the text; drop the window"),
    "speculative_draft_model_quantization": (None, "a head is served in the precision of --dtype; drop it"),
}

# environment switch of SGLang -> what it breaks
UNSUPPORTED_SWITCHES = {
    "SGLANG_ENABLE_OVERLAP_PLAN_STREAM": "most attention backends cannot plan a verification beside the drafts",
    "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": "it leaves no memory to the drafter's prefill, which is not captured",
}


def validate(server_args) -> None:
    """Set K and refuse what cannot be served, in the launcher, before any model is loaded. Raises InputError."""
    if not server_args._speculative_draft_quantization_explicitly_set:
        server_args.speculative_draft_model_quantization = None  # SGLang has put the target's --quantization here
    for name, (fine, instead) in UNSUPPORTED.items():
        if getattr(server_args, name) not in (fine, None):
            raise InputError(f"PEAGLE does not support {name}={getattr(server_args, name)!r}: {instead}")
    for name, why in UNSUPPORTED_SWITCHES.items():
        if getattr(envs, name).get():
            raise InputError(f"PEAGLE does not support {name}: {why}; set it to 0")
    if server_args.speculative_draft_model_path is None:
        raise InputError("PEAGLE needs --speculative-draft-model-path HEAD")
    if server_args.grammar_backend == "outlines":
        raise InputError("outlines cannot take tokens back, as refused drafts need: use --grammar-backend xgrammar")
    head = Path(server_args.speculative_draft_model_path)  # `head_choice` has made a directory of it
    config = PEagleConfig.from_pretrained(head)
    if load_config_dict(head).get("quantization_config"):
        raise InputError(f"{head}/config.json has a quantization_config: PEAGLE serves heads in plain precision")
    _set_load_format(server_args)
    _check_target(head, config, server_args)
    _check_tensor_parallelism(head, config, server_args.tp_size)
    if server_args.speculative_draft_load_format != "dummy":
        tensors = read_tensors(head, config)  # every tensor there, of the right shape and finite
        _check_vocabulary(head, config, [name for name in SHARED if name not in tensors], server_args)
    _set_num_draft_tokens(server_args, config)
    _check_rejection_sampling(server_args)
    lora.check(server_args)
    hooks.complete()  # last, for it imports what only a server needs


def _set_load_format(server_args) -> None:
    """Load a head as the safetensors it is, whatever format the target comes in; dummy weights for both alike."""
    if server_args.speculative_draft_load_format is None:
        server_args.speculative_draft_load_format = "dummy" if server_args.load_format == "dummy" else "auto"


def _check_target(head: Path, config: PEagleConfig, server_args) -> None:
    context_length = model_config_of(server_args).context_len
    target = model_config_of(server_args).hf_text_config
    config.aux_layer_ids_for(target.num_hidden_layers)
    if config.target_hidden_size != target.hidden_size:
        raise InputError(
            f"{head} was trained for a target of hidden size {config.target_hidden_size}, "
            f"{server_args.model_path} has {target.hidden_size}"
        )
    if config.vocab_size > target.vocab_size:
        raise InputError(
            f"{head} has a vocabulary of {config.vocab_size}, {server_args.model_path} one of {target.vocab_size}"
        )
    try:
        check_rope(config, context_length)
    except InputError as error:
        raise InputError(f"{head}: {error}") from None
    if config.max_position_embeddings < context_length:
        logger.warning(
            "PEAGLE drafts up to %d tokens with a head whose config says max_position_embeddings %d; past that, drafts "
            "may be accepted less often",
            context_length,
            config.max_position_embeddings,
        )


def _check_vocabulary(head: Path, config: PEagleConfig, shared: list[str], server_args) -> None:
    """Refuse to share the target's tensors with a head of a smaller vocabulary; with its own it drafts from that.

    shared: names of the tensors that the head has not.
    """
    vocab_size = model_config_of(server_args).hf_text_config.vocab_size
    if config.vocab_size == vocab_size:
        return
    sizes = f"a vocabulary of {config.vocab_size}, {server_args.model_path} one of {vocab_size}"
    if shared:
        raise InputError(f"{head} has {sizes}, so the head cannot share the target's {' and '.join(shared)}")
    logger.warning("%s has %s: tokens past the head's are read as masks and never drafted", head, sizes)


def _check_tensor_parallelism(head: Path, config: PEagleConfig, ranks: int) -> None:
    """Refuse ranks among which the heads do not divide.

    SGLang splits the heads over the ranks, and repeats key-value heads where there are fewer of them.
    """
    kv_heads = config.num_key_value_heads
    if config.num_attention_heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise InputError(
            f"{head} has {config.num_attention_heads} attention heads and {kv_heads} key-value heads, "
            f"which do not divide among --tp-size {ranks}"
        )


def _set_num_draft_tokens(server_args, config: PEagleConfig) -> None:
    """Set K = --speculative-num-steps = --speculative-num-draft-tokens - 1, else the head's own."""
    steps, width = server_args.speculative_num_steps, server_args.speculative_num_draft_tokens
    if server_args.speculative_eagle_topk not in (None, 1):
        raise InputError("PEAGLE drafts a chain: drop --speculative-eagle-topk or set it to 1")
    if steps is not None and width is not None and width != steps + 1:
        raise InputError(
            f"--speculative-num-draft-tokens counts the verified rows, K + 1: "
            f"for --speculative-num-steps {steps} it is {steps + 1}, not {width}"
        )
    given = steps if steps is not None else None if width is None else width - 1
    num_draft_tokens = given if given is not None else config.num_depths or DEFAULT_NUM_DRAFT_TOKENS
    if num_draft_tokens < 1:
        raise InputError(f"PEAGLE needs K >= 1 (--speculative-num-steps), found {num_draft_tokens}")
    if config.num_depths is not None and num_draft_tokens > config.num_depths:
        logger.warning("PEAGLE drafts K=%d tokens with a head trained for %d", num_draft_tokens, config.num_depths)
    server_args.speculative_num_steps = num_draft_tokens
    server_args.speculative_num_draft_tokens = num_draft_tokens + 1
    server_args.speculative_eagle_topk = 1


def _check_rejection_sampling(server_args) -> None:
    """Refuse what rejection sampling cannot do here: SGLang checks its own EAGLE family only."""
    if not server_args.speculative_use_rejection_sampling:
        return
    single, acc = server_args.speculative_accept_threshold_single, server_args.speculative_accept_threshold_acc
    if (single, acc) != (1.0, 1.0):
        raise InputError(
            "--speculative-use-rejection-sampling is exact: drop --speculative-accept-threshold-single and -acc"
        )
    if server_args.enable_deterministic_inference and not str(server_args.device).startswith("cuda"):
        raise InputError("--enable-deterministic-inference with --speculative-use-rejection-sampling needs CUDA")


def apply_defaults(server_args) -> None:
    """Set the defaults that SGLang gives its own EAGLE family."""
    if current_platform.is_out_of_tree() and not current_platform.supports_speculative_algorithm(NAME):
        raise InputError(f"the platform {type(current_platform).__name__} does not support PEAGLE")
    if server_args.max_running_requests is None:
        server_args.max_running_requests = MAX_RUNNING_REQUESTS
    if server_args.enable_mixed_chunk:
        logger.warning("PEAGLE turns mixed chunked prefill off")
        server_args.enable_mixed_chunk = False
