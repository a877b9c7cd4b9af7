"""Train on from a head that exists, ours or published (`drafter.init`), for the same target or a fine-tuned one.

The head decides what shape the drafter has; settings of the run that say otherwise are refused. A resumed run takes all
of this from its own checkpoint, so it does not need the head any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from peagle_core.checkpoint import load_drafter
from peagle_core.config import PEagleConfig
from peagle_core.draft_vocabulary import draft_vocab_ids
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.target import Ends, target_head
from peagle_core.tensors import SHARED, bare_name, weight_files
from trainer.checkpoint.checkpoints import is_checkpoint, load_trained, read_contract
from trainer.config import RunConfig
from trainer.config.sections import DrafterConfig
from trainer.errors import ConfigError
from trainer.inputs import RunInputs
from trainer.new_drafter import freeze
from trainer.parallel.processes import is_main
from trainer.target.load import embedding, load_config

# Settings of `drafter` that a head's tensors fix.
FIXED = (
    "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "draft_vocab_size",
    "aux_layer_ids", "norm_before_residual", "norm_before_fc", "fc_norm", "qk_norm", "hidden_state_design",
)  # fmt: skip


def adopt_head(config: RunConfig, resumed: Path | None = None) -> RunConfig:
    """Return the configuration with the shape of drafter.init, where that is given; no weights are read.

    resumed: the checkpoint that a run goes on from, which then stands for the head. Raises ConfigError naming every
    setting that contradicts the head, and InputError for a head that cannot be read or was made for other sizes.
    """
    if config.drafter.init is None:
        return config
    source, wanted = resumed or config.drafter.init, config.drafter
    head = _head_config(source)
    if head.autoregressive != (config.algorithm == "eagle3"):
        kinds = ("P-EAGLE", "EAGLE-3") if head.autoregressive else ("EAGLE-3", "P-EAGLE")
        raise ConfigError(f"algorithm {config.algorithm} trains {kinds[0]} heads, and {source} is of {kinds[1]}")
    text = load_config(config.target).get_text_config()
    if text.hidden_size != head.target_hidden_size or text.vocab_size < head.vocab_size:
        raise InputError(
            f"{source}: was made for a target of hidden size {head.target_hidden_size} and {head.vocab_size} ids, "
            f"{config.target} has {text.hidden_size} and {text.vocab_size}"
        )
    whole = head.draft_vocab_size == head.vocab_size
    found = {key: getattr(head, key) for key in FIXED}
    found |= {"draft_vocab_size": None if whole else head.draft_vocab_size}
    # A head without a correction may be given one, which starts at zero.
    found |= {"correction_rank": head.correction_rank or wanted.correction_rank}
    found |= {"aux_layer_ids": head.aux_layer_ids_for(text.num_hidden_layers)}
    wrong = [f"drafter.{key} {getattr(wanted, key)} (there: {value})" for key, value in found.items()
             if _contradicts(wanted, key, value, head.vocab_size)]  # fmt: skip
    if wrong:
        raise ConfigError(f"{source} has another shape than {', '.join(wrong)}; leave that to the head")
    free = {"mask_token_id": head.mask_token_id, "num_depths": head.num_depths or wanted.num_depths}
    found |= {key: value for key, value in free.items() if key not in wanted.model_fields_set}
    if wanted.mask_token_id is None:
        found["mask_token_id"] = head.mask_token_id
    return config.model_copy(update={"drafter": wanted.model_copy(update=found)})


def warm_drafter(config: RunConfig, inputs: RunInputs, resumed: Path | None = None) -> PEagleDrafter:
    """Make a drafter of the head's weights, in float32 on the target's device, and print what was taken and what not.

    config: with the head's shape (`adopt_head`). Ids that the target has beyond the head's start from the target's own
    rows. Raises InputError for a head that is broken.
    """
    source = resumed or config.drafter.init
    assert source is not None
    if is_checkpoint(source):
        head = load_trained(source)
    else:
        ends = _Ends(inputs.target, _head_config(source).vocab_size)
        head = load_drafter(source, torch.float32, ends)
    table, output = embedding(inputs.target), target_head(inputs.target)
    vocab_size, before = len(table), head.config
    whole = before.draft_vocab_size == before.vocab_size
    shape = before.replace(
        vocab_size=vocab_size,
        draft_vocab_size=vocab_size if whole else before.draft_vocab_size,
        mask_token_id=inputs.mask_token_id,
        num_depths=config.drafter.num_depths,
        aux_layer_ids=config.drafter.aux_layer_ids,
        target=config.target,
        correction_rank=config.drafter.correction_rank,
    )
    with torch.random.fork_rng(devices=[]):  # a correction that the head lacks is drawn
        torch.manual_seed(config.seed)
        drafter = PEagleDrafter(shape)
    tensors = {**_new_correction(drafter), **head.state_dict()}
    tensors["embed_tokens.weight"] = _grown(tensors["embed_tokens.weight"], table)
    if whole:
        tensors["lm_head.weight"] = _grown(tensors["lm_head.weight"], output)
        tensors["d2t"] = drafter.d2t
    for name, fresh in _new_correction(drafter).items():
        tensors[name] = _grown(tensors[name], fresh)
    if shape.mask_token_id != before.mask_token_id:
        tensors["embed_tokens.weight"][shape.mask_token_id] = tensors["embed_tokens.weight"][before.mask_token_id]
    drafter.load_state_dict(tensors)
    if resumed is None and is_main():
        print("\n".join(_report(source, before, drafter, inputs)))
    freeze(drafter, config.drafter)
    return drafter.to(output.device)


class _Ends:
    """The target's embedding and output head, as many rows as a head has ids that comes without its own."""

    def __init__(self, target: Ends, vocab_size: int) -> None:
        self.config = target.config
        self._embedding, self._head = embedding(target)[:vocab_size], target_head(target)[:vocab_size]

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding.from_pretrained(self._embedding)

    def get_output_embeddings(self) -> nn.Module:
        return nn.Embedding.from_pretrained(self._head)


def _head_config(source: Path) -> PEagleConfig:
    if is_checkpoint(source):
        return PEagleConfig.from_dict(read_contract(source)["drafter"])
    return PEagleConfig.from_pretrained(source)


def _contradicts(wanted: DrafterConfig, key: str, found: object, vocab_size: int) -> bool:
    """Tell whether a setting was given, and is not the head's. A draft vocabulary of all ids is none."""
    value = getattr(wanted, key)
    if key == "draft_vocab_size" and value == vocab_size:
        return found is not None
    return key in wanted.model_fields_set and value is not None and value != found


def _new_correction(drafter: PEagleDrafter) -> dict[str, Tensor]:
    """Return the tensors of the correction of a drafter that was just made, none where it has no correction."""
    return {name: tensor for name, tensor in drafter.state_dict().items() if name.startswith("correction.")}


def _grown(own: Tensor, target: Tensor) -> Tensor:
    """Return the head's rows, float32[V, H], and the target's for ids that the head does not know."""
    more = target[len(own) :].to(own.device, own.dtype)
    if len(more) and more.shape[1] != own.shape[1]:
        raise InputError(f"the head's rows are {own.shape[1]} wide, the target's {more.shape[1]}: no rows for new ids")
    return torch.cat([own, more])


def _report(source: Path, before: PEagleConfig, drafter: PEagleDrafter, inputs: RunInputs) -> Iterator[str]:
    """Yield what people read of a warm start."""
    after, expected = drafter.config, set(drafter.state_dict())
    names = expected if is_checkpoint(source) else set(_stored_names(source))
    shared = [name for name in SHARED if name not in names]
    taken = f"{len(names & expected)} tensors"
    yield f"drafter.init {source}: {taken} taken{f', {_and(shared)} from the target' if shared else ''}"
    if left := sorted(names - expected):
        yield f"drafter.init: not taken: {_and(left)}"
    if after.vocab_size > before.vocab_size:
        yield f"drafter.init: ids {before.vocab_size} to {after.vocab_size - 1} start from the target's rows"
    if after.correction_rank and not before.correction_rank:
        yield f"drafter.init: a correction of rank {after.correction_rank}, which the head has not, starts at zero"
    if after.mask_token_id != before.mask_token_id:
        yield f"drafter.init: mask token {after.mask_token_id}, with the embedding of the head's {before.mask_token_id}"
    if before.num_depths not in (None, after.num_depths):
        yield f"drafter.init: K = {after.num_depths}, the head was trained for {before.num_depths}"
    if before.target not in (None, after.target):
        yield f"drafter.init: the head was made for {before.target}"
    drafted = set(draft_vocab_ids(drafter.d2t).tolist())
    if lacking := sorted(i for i in inputs.end_ids - drafted if i < after.vocab_size):
        yield f"drafter.init: the head's draft vocabulary lacks {_and(map(str, lacking))}, which end a turn"


def _stored_names(source: Path) -> Iterator[str]:
    for path in weight_files(source):
        with safe_open(path, framework="pt") as file:
            yield from map(bare_name, file.keys())


def _and(names: Iterable[str]) -> str:
    return ", ".join(names)
