"""What an operator sees of drafting: our counters in `/server_info`, and acceptance per position in Prometheus."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass

from sglang.srt.runtime_context import get_spec

from sglang_backend import NAME

ACCEPTED = "peagle:accepted_drafts"  # Prometheus adds `_total`


@dataclass
class Counters:
    decode_steps: int = 0
    decode_drafter_passes: int = 0
    verified_drafts: int = 0  # of all requests; SGLang's own figure reckons with the first K of an adaptive server
    prefill_drafter_passes: int = 0
    prefills_without_masks: int = 0


def add_counters(_result, controller, state: dict) -> None:
    """Add ours AFTER SGLang's own speculative figures."""
    counters = getattr(controller.scheduler.draft_worker, "counters", None)
    if isinstance(counters, Counters):
        state["peagle"] = asdict(counters)


def count_positions(_result, manager, state, recv_obj, i: int) -> None:
    """Count a finished request's accepted drafts by their position, AFTER TokenizerManager.collect_metrics.

    Divided by SGLang's `spec_verify_calls_total`, which counts at the same time, it is the share of steps in which the
    draft at a position stood.
    """
    spec = get_spec()
    histograms = getattr(recv_obj, "spec_correct_drafts_histogram", None)
    if spec.speculative_algorithm != NAME or not state.finished or not histograms or not histograms[i]:
        return
    labels = manager.metrics_collector.labels
    counter = _accepted_drafts(tuple(labels))
    for position in range(1, max(spec.speculative_num_steps + 1, len(histograms[i]))):
        counter.labels(**labels, position=position).inc(sum(histograms[i][position:]))  # of 0: the series is there


@functools.cache
def _accepted_drafts(names: tuple[str, ...]):
    """Return the counter. Made late: prometheus_client settles where it counts when it is imported."""
    from prometheus_client import Counter

    return Counter(ACCEPTED, "Drafts that verification accepted, by position in their step.", [*names, "position"])
