"""Online weight updates: they reach the model they are meant for, and fc(mask_hidden) follows the weights.

SGLang hands an update to the target and to the drafter alike: a directory to both (`/update_weights_from_disk` has no
selector), tensors to whom the caller selects. A loader that raises ends its scheduler, so what does not fit is
answered with a sentence before anything is written.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

from peagle_core.checkpoint import read_tensors
from peagle_core.config import PEagleConfig
from peagle_core.errors import InputError
from peagle_core.tensors import SHARED
from sglang_backend import NAME

logger = logging.getLogger(__name__)

DONE = "Succeeded to update model weights."  # SGLang's words
FREE = ("target", "num_depths")  # what may differ between two heads of one server: neither is read after start


def _ours() -> bool:
    from sglang.srt.runtime_context import get_spec

    return get_spec().speculative_algorithm == NAME


def _head(model_path: str) -> PEagleConfig | None:
    try:
        return PEagleConfig.from_pretrained(model_path)
    except InputError:
        return None


def _check(model_path: str, found: PEagleConfig, model) -> None:
    """Raise InputError unless the head at model_path can take the place of the one in `model`."""
    for name, value in asdict(model.head).items():
        new = getattr(found, name)
        if name not in FREE and asdict(found)[name] != value:
            raise InputError(
                f"{model_path}: {name} is {new!r}, the head being served has {value!r}; restart to change it"
            )
    brought = set(SHARED) & set(read_tensors(model_path, found))
    for name in sorted(brought ^ model.own):
        has = "has its own" if name in brought else "has no"
        raise InputError(f"{model_path} {has} {name!r}, unlike the head being served; restart to change it")


def refuse_from_disk(update, manager, recv_req):
    """Refuse a head that cannot take over, AROUND SchedulerWeightUpdaterManager.update_weights_from_disk.

    Nothing has changed then: it is asked before SGLang goes through the models. Once past the target SGLang takes that
    for updated, tries to flush the cache, and on a busy server answers with that failure instead of our sentence.
    """
    from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqOutput

    head = _head(recv_req.model_path) if _ours() else None
    if head is not None:
        try:
            for _, runner in manager.draft_worker.weight_update_runners():
                _check(recv_req.model_path, head, runner.weight_updater.get_model())
        except InputError as error:
            logger.error(error)
            return UpdateWeightFromDiskReqOutput(success=False, message=str(error))
    return update(manager, recv_req)


def update_from_disk(update, updater, model_path: str, *args, **kwargs) -> tuple[bool, str]:
    """Give a head to the drafter alone, anything else to the target, AROUND WeightUpdater.update_weights_from_disk."""
    from sglang_backend.drafter_model import PEagleForCausalLM

    if not _ours():
        return update(updater, model_path, *args, **kwargs)
    is_head, is_drafter = _head(model_path) is not None, isinstance(updater.get_model(), PEagleForCausalLM)
    if is_head != is_drafter:
        return True, DONE
    if is_drafter:
        # Our graphs read the weights where they are; SGLang would capture a decode pass that a drafter never makes.
        kwargs["recapture_cuda_graph"] = False
    return update(updater, model_path, *args, **kwargs)


def update_from_tensor(update, updater, *args, **kwargs) -> tuple[bool, str]:
    """Answer a tensor that does not fit with a sentence, AROUND WeightUpdater.update_weights_from_tensor."""
    try:
        return update(updater, *args, **kwargs)
    except InputError as error:
        return False, str(error)


def end_update(_result, updater, **_kwargs) -> None:
    """Project mask_hidden AFTER WeightUpdater.end_weight_update: load_format=direct writes past `load_weights`."""
    from sglang_backend.drafter_model import PEagleForCausalLM

    model = updater.get_model()
    if isinstance(model, PEagleForCausalLM):
        model.post_load_weights()
