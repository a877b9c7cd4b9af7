"""Load the target, or its two ends alone, and its tokenizer, with errors in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from peagle_core.errors import InputError, first_line
from peagle_core.target import Ends
from trainer.config import RunConfig
from trainer.parallel.drafter_weights import local
from trainer.parallel.processes import is_main, size
from trainer.target.files import cannot_be_loaded, check_files, check_is_no_file
from trainer.target.logits import measure_logit_factor
from trainer.target.sharded import gathered_bytes, load_sharded

LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, SafetensorError)


def load_target(config: RunConfig) -> PreTrainedModel:
    """Load the frozen target onto the run's device, sharded under `parallel: fsdp`.

    target_dtype "auto": float32 on a CPU, as stored elsewhere.
    """
    device = torch.device(config.device)
    if config.parallel == "fsdp" and size() > 1:
        target = load_sharded(lambda: _load(config, {}), device)
    else:
        target = _load(config, {}).requires_grad_(False).eval().to(device)
    factor = measure_logit_factor(target)
    target.logit_factor = factor  # type: ignore[assignment]
    _say(factor)
    return target


class TargetEnds:
    """A target without its layers: the embedding and output head that a drafter starts from and its loss needs.

    config is the whole target's. Where only these are read, it stands in for the transformers model. logit_factor: see
    `peagle_core.target.target_head`.
    """

    def __init__(self, config: PretrainedConfig, model: PreTrainedModel, device: torch.device) -> None:
        self.config = config
        self.logit_factor = 1.0
        self._embedding, self._head = model.get_input_embeddings().to(device), model.get_output_embeddings().to(device)

    def get_input_embeddings(self) -> nn.Module:
        return self._embedding

    def get_output_embeddings(self) -> nn.Module:
        return self._head

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield each parameter once, also where two are tied."""
        return nn.ModuleList([self._embedding, self._head]).parameters()


def load_ends(config: RunConfig) -> TargetEnds:
    """Load embedding and output head onto the run's device, in the dtype of `load_target`; no layer is read."""
    whole = load_config(config.target)
    bare = copy.deepcopy(whole)
    text = bare.get_text_config()
    text.num_hidden_layers = 0
    for key in ("layer_types", "mlp_layer_types"):
        if getattr(text, key, None):
            setattr(text, key, [])
    if hasattr(bare, "quantization_config"):  # quantisers leave the two ends alone, and want their kernels
        del bare.quantization_config
    with _quiet():  # transformers lists every tensor of the layers as left over
        model, report = _load(config, {"config": bare, "output_loading_info": True})
    ends = TargetEnds(whole, model.requires_grad_(False).eval(), torch.device(config.device))
    weights = {id(p) for p in ends.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in weights and name in report["missing_keys"]:  # transformers fills it with random numbers
            raise InputError(f"target {config.target!r}: its weights have no {name!r}")
    ends.logit_factor = measure_logit_factor(model)  # what follows the last layer needs none of them
    _say(ends.logit_factor)
    return ends


def load_config(target: str) -> PretrainedConfig:
    """Load the target's config. Raises InputError where there is none, or one that transformers does not know."""
    check_is_no_file(target)
    try:
        return AutoConfig.from_pretrained(target, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise cannot_be_loaded(target, error) from None


def load_tokenizer(target: str) -> PreTrainedTokenizerBase | None:
    """Load the target's tokenizer; None for a local target without one (tokenised data needs none)."""
    check_is_no_file(target)
    try:
        return AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if Path(target).is_dir() and not any(Path(target).glob("*token*")):
            return None
        raise InputError(f"the tokenizer of {target!r} cannot be loaded ({first_line(error)})") from None


def embedding(target: Ends) -> Tensor:
    """Return the target's input embedding, [V, H_t]; V may exceed what its tokenizer knows."""
    weight = target.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def weight_bytes(target: PreTrainedModel | TargetEnds) -> int:
    """Return the bytes that the target's weights take in this process while it runs."""
    sharded = gathered_bytes(target) if isinstance(target, nn.Module) else 0
    return sharded + sum(local(p).nbytes for p in target.parameters())


def _load(config: RunConfig, options: dict[str, Any]) -> Any:
    check_files(config.target)
    dtype = config.target_dtype
    if dtype == "auto" and config.device == "cpu":
        dtype = "float32"
    try:
        return AutoModelForCausalLM.from_pretrained(
            config.target, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    except LOAD_ERRORS as error:
        raise cannot_be_loaded(config.target, error) from None


def _say(logit_factor: float) -> None:
    if logit_factor != 1.0 and is_main():
        print(f"the target's logits are {logit_factor:g} times its output head's, and the loss takes that into account")


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
