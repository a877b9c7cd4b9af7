"""What `/server_info` shows under `peagle`, counted where the passes happen."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counters:
    decode_steps: int = 0
    decode_drafter_passes: int = 0
    prefill_drafter_passes: int = 0
    prefills_without_masks: int = 0


def add_counters(_result, controller, state: dict) -> None:
    """Add ours AFTER SGLang's own speculative figures."""
    counters = getattr(controller.scheduler.draft_worker, "counters", None)
    if isinstance(counters, Counters):
        state["peagle"] = asdict(counters)
