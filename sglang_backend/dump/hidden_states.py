"""Write the target's states of prefilled prompts to files, for `python -m trainer extract` (docs/serving.md).

    PEAGLE_STATES_DIR=/dev/shm/states python -m sglang.launch_server --model-path TARGET --disable-radix-cache \
        --enable-return-aux-hidden-states --speculative-algorithm EAGLE3 --return-aux-hidden-state-layer-ids 1 15 28

SGLang captures aux and final states itself and keeps them beside the logits; what it has no way for is to hand them out
but as JSON. Here they go to a file per request, named by its request id, before the request is answered.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from peagle_core.atomic import new_file
from peagle_core.errors import InputError

logger = logging.getLogger(__name__)

# Requests with another id are served and leave no file.
REQUEST_ID = re.compile(r"states-[0-9a-f]+-[0-9a-f]+(_\d+)?")
# server argument -> (what it must be, what to do)
NEEDED = {
    "enable_return_aux_hidden_states": (True, "add --enable-return-aux-hidden-states"),
    "disable_radix_cache": (True, "add --disable-radix-cache, for a cached prefix has no states"),
    "attn_dp_size": (1, "drop --attn-dp-size, or --enable-dp-attention, which sets it"),
}


class Capture:
    """directory: where `<request id>.safetensors` goes: aux [n, 3H], final_hidden [n, H] in the target's dtype.

    Chunks of a prompt wait at the request itself, so what is aborted is forgotten with it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self, _result, server_args) -> None:
        """Check the server, AFTER SGLang looked at its own capture arguments, in the launcher. Raises InputError."""
        from sglang.srt.arg_groups.overrides import resolving_view

        arguments = resolving_view(server_args)
        for name, (needed, remedy) in NEEDED.items():
            if getattr(arguments, name) not in (needed, None):
                raise InputError(f"PEAGLE_STATES_DIR: {remedy}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"PEAGLE_STATES_DIR: {self.directory} cannot be made ({error.strerror})") from None

    def take(self, result, _worker, batch, *_args, **_kwargs) -> None:
        """Take the rows of every prompt that this pass prefilled: AFTER TpModelWorker.forward_batch_generation."""
        from sglang.srt.runtime_context import get_parallel

        if batch is None or not batch.forward_mode.is_extend() or get_parallel().tp_rank != 0:
            return
        output, end = result.logits_output, 0
        for request, known, length in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
            rows, end = slice(end, end + length), end + length
            if not REQUEST_ID.fullmatch(request.rid):
                continue
            if known == 0:  # also after a retraction, from the start
                request.peagle_states = []
            parts: list[tuple[Tensor, Tensor]] = request.peagle_states
            parts.append((output.hidden_states[rows].cpu(), output.last_hidden_states[rows].cpu()))
            if known + length == len(request.origin_input_ids):
                self._write(request.rid, parts)
                parts.clear()

    def _write(self, rid: str, parts: list[tuple[Tensor, Tensor]]) -> None:
        aux, final = (torch.cat(chunks).contiguous() for chunks in zip(*parts, strict=True))
        try:
            with new_file(self.directory / f"{rid}.safetensors") as partial:
                save_file({"aux": aux, "final_hidden": final}, partial)
        except (OSError, SafetensorError) as error:  # the client finds no file; the server goes on
            logger.error("hidden states of %s cannot be written to %s: %s", rid, self.directory, error)

    def tell(self, _result, _controller, state: dict) -> None:
        """Tell where the files are: AFTER a part of /server_info."""
        state["peagle_states"] = {"directory": str(self.directory)}
