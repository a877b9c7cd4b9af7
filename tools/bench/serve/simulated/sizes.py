"""Models by their size alone: a target, a P-EAGLE head of 4 layers and an EAGLE-3 head of 1, as directories of configs.

SGLang fills them with `--load-format dummy`. Shapes of targets are their published configs'; those of heads are one
decoder layer of the target's width for EAGLE-3, four for P-EAGLE, both with one draft vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from peagle_core.config import PEagleConfig, default_aux_layer_ids
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from tools.bench.serve.contenders import EAGLE3, PEAGLE

LAYERS = {PEAGLE: 4, EAGLE3: 1}
LONGEST_K = 10
PLAIN: dict[str, Any] = {"attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False}


@dataclass(frozen=True)
class Size:
    """config: of the target; mlp: intermediate size of a head's layers; vocabulary: of the heads' drafts."""

    config: dict[str, Any]
    mlp: int
    vocabulary: int


SIZES = {
    "llama-3.1-8b": Size(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "bos_token_id": 128000, "eos_token_id": 128009, **PLAIN,
        },
        mlp=14336, vocabulary=32000,
    ),
    "gpt-oss-20b": Size(
        {
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880,
            "intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
            "head_dim": 64, "vocab_size": 201088, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_theta": 150000, "eos_token_id": 200002, "pad_token_id": 199999, "num_local_experts": 32,
            "num_experts_per_tok": 4, "experts_per_token": 4, "sliding_window": 128, "swiglu_limit": 7.0,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 4096, "truncate": False,
            },
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
                ],
            },
            **PLAIN, "attention_bias": True,
        },
        mlp=14336, vocabulary=201088,  # with which P-EAGLE has the 1.8B parameters that Amazon's head has
    ),
    "qwen3-coder-30b": Size(
        {
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
            "intermediate_size": 5472, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
            "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144, "rms_norm_eps": 1e-6,
            "rope_theta": 10000000, "bos_token_id": 151643, "eos_token_id": 151645, "num_experts": 128,
            "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1,
            "mlp_only_layers": [], **PLAIN,
        },
        mlp=6144, vocabulary=151936,  # nobody has said the sizes of its published head; three times the width
    ),
    "tiny": Size(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "vocab_size": 320, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "bos_token_id": 1, "eos_token_id": 2, **PLAIN,
        },
        mlp=128, vocabulary=320,
    ),
}  # fmt: skip


def read_size(name: str) -> Size:
    """Return a size by its name, or of a config.json's path: heads then have the target's MLP. Raises InputError."""
    if name in SIZES:
        return SIZES[name]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"--size {name}: neither a config.json nor one of {', '.join(SIZES)}")
    try:
        config = json.loads(path.read_text())
        return Size(config, config["intermediate_size"], config["vocab_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the config of a target: {error!r}") from None


def head_config(size: Size, algorithm: str) -> PEagleConfig:
    """Return the config of a head for a target of this size. algorithm: PEAGLE or EAGLE3."""
    target = size.config
    heads = target["num_attention_heads"]
    parallel = algorithm == PEAGLE
    return PEagleConfig(
        vocab_size=target["vocab_size"], draft_vocab_size=size.vocabulary, hidden_size=target["hidden_size"],
        target_hidden_size=target["hidden_size"], intermediate_size=size.mlp, num_hidden_layers=LAYERS[algorithm],
        num_attention_heads=heads, num_key_value_heads=target.get("num_key_value_heads", heads),
        head_dim=target.get("head_dim") or target["hidden_size"] // heads,
        max_position_embeddings=target["max_position_embeddings"], rms_norm_eps=target["rms_norm_eps"],
        aux_layer_ids=default_aux_layer_ids(target["num_hidden_layers"]), num_depths=LONGEST_K,
        mask_token_id=target["vocab_size"] - 1 if parallel else None,
    )  # fmt: skip


def write_models(size: Size, directory: Path) -> tuple[Path, dict[str, Path]]:
    """Write configs of the target and its two heads, and a tokenizer whose tokens are numbers.

    -> (the target, heads by algorithm)
    """
    target = directory / "target"
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **size.config}, indent=1))
    words = Tokenizer(models.WordLevel({str(i): i for i in range(size.config["vocab_size"])}, unk_token="0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(target)
    heads = {}
    for algorithm in (EAGLE3, PEAGLE):
        heads[algorithm] = directory / algorithm.lower()
        heads[algorithm].mkdir(exist_ok=True)
        head_config(size, algorithm).save_pretrained(heads[algorithm])
    return target, heads


def write_prompts(size: Size, path: Path, number: int, length: int) -> Path:
    """Write `number` prompts of `length` random tokens, no two with a prefix in common, as a data set."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, size.config["vocab_size"] - 1, (number, length), generator=generator).tolist()
    path.write_text("".join(json.dumps({"input_ids": prompt}) + "\n" for prompt in ids))
    return path


def pass_bytes(size: Size, algorithm: str, k: int) -> int:
    """Return the bytes of bfloat16 weights that drafting K tokens reads at least.

    P-EAGLE reads its layers, fc and output head once; EAGLE-3 its layer and output head K times, fc once. Of the
    embedding only some rows are read.
    """
    with torch.device("meta"):
        drafter = PEagleDrafter(head_config(size, algorithm))
    once = drafter.fc.weight.numel()
    each = sum(
        parameter.numel() for name, parameter in drafter.named_parameters()
        if name.startswith(("layers.", "lm_head."))
    )  # fmt: skip
    return 2 * (once + each * (1 if algorithm == PEAGLE else k))
