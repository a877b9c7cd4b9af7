"""An out-of-tree SGLang platform on plain torch: `SGLANG_PLATFORM=peagle_cpu python -m sglang.launch_server ...`.

SGLang's compiled kernels do not load without a GPU, so this platform chooses torch paths everywhere and puts torch
functions where SGLang has only Triton or CUDA (`cpu/hooks.py`). It is opt-in: without SGLANG_PLATFORM it never
activates.
SGLang imports this module in the middle of its own import, so everything but the base classes is imported late.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import KVPoolKind, PlatformCapabilities, SRTPlatform

from peagle_core.cpu import fast_dtype
from peagle_core.errors import InputError
from sglang_backend import NAME
from sglang_backend.cpu import ATTENTION_BACKEND, torch_kernels

logger = logging.getLogger(__name__)

SPECULATIVE_ALGORITHMS = (NAME, "EAGLE3")


class CpuReferencePlatform(CpuDeviceMixin, SRTPlatform):
    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities(supports_triton=False, graph_capture=False)

    def get_device(self, device_id: int = 0) -> str:
        return "cpu"

    def is_pin_memory_available(self, device: object = None) -> bool:
        return False

    def apply_server_args_defaults(self, server_args) -> None:
        from sglang_backend.cpu.hooks import CPU_HOOKS
        from sglang_backend.patching import require

        require(CPU_HOOKS)
        if server_args.enable_deterministic_inference:
            raise InputError("the CPU platform has no deterministic kernels: drop --enable-deterministic-inference")
        if server_args.speculative_algorithm == "EAGLE3" and server_args.speculative_eagle_topk != 1:
            raise InputError("the CPU platform verifies chains, not trees: give --speculative-eagle-topk 1 with EAGLE3")
        if server_args.enable_strict_thinking:
            raise InputError("the CPU platform has no mask for thinking: drop --enable-strict-thinking")
        server_args.device = "cpu"
        server_args.attention_backend = ATTENTION_BACKEND
        server_args.sampling_backend = "pytorch"
        server_args.moe_runner_backend = "triton"  # keeps plain weights; SGLang's torch code for experts runs on them
        server_args.disable_cuda_graph = True
        server_args.sleep_on_idle = True  # else the scheduler spins on a core that the next request could use
        if server_args.dtype == "auto":
            server_args.dtype, why = fast_dtype(torch.cpu.get_capabilities())
            logger.info("--dtype auto is %s on this machine: the CPU %s", server_args.dtype, why)

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        return ATTENTION_BACKEND

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        return backend == ATTENTION_BACKEND

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        return algorithm in SPECULATIVE_ALGORITHMS

    def get_kv_pool_cls(self, *, kind: KVPoolKind) -> type | None:
        from sglang_backend.cpu.kv_pool import CpuKVPool

        return CpuKVPool if kind == "mha" else None

    def get_speculative_cache_locs_fn(self) -> Callable[..., torch.Tensor]:
        return torch_kernels.extend_cache_locs

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU

    def get_dispatch_key_name(self) -> str:
        return "native"
