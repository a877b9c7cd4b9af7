"""A target that is a GGUF file is refused where it cannot be served, before SGLang reads it (a minute)."""

from __future__ import annotations

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.platforms import current_platform
from sglang.srt.utils.hf_transformers_utils import check_gguf_file

from peagle_core.errors import InputError
from sglang_backend import NAME
from sglang_backend.cpu.platform import CpuReferencePlatform

INSTEAD = "serve the safetensors model that it was made from"


def refuse_gguf(_result: object, server_args) -> None:
    """Stand AFTER handle_model_source_paths, where a file named on the hub has just become one on this disk.

    Raises InputError under PEAGLE, whose drafter shares an embedding that such a target keeps quantised, and on the CPU
    platform, for which SGLang has no kernels of this format.
    """
    arguments = resolving_view(server_args)
    if not check_gguf_file(arguments.model_path):
        return
    if (arguments.speculative_algorithm or "").upper() == NAME:
        raise InputError(f"{arguments.model_path} is a GGUF file, whose embedding PEAGLE cannot share: {INSTEAD}")
    if isinstance(current_platform, CpuReferencePlatform):
        raise InputError(f"{arguments.model_path} is a GGUF file, and SGLang reads those on GPUs alone: {INSTEAD}")
