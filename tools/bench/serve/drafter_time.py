"""How long a server's drafter takes for a step: SGLang's own timer on the device, read from its metrics."""

from __future__ import annotations

import re

import httpx

METRIC = "sglang:forward_execution_seconds_total"
DRAFTING = ("eagle_draft", "eagle_draft_extend", "draft_extend_v2")  # graphs of EAGLE3, of both, eager passes
ENVIRONMENT = {"SGLANG_ENABLE_METRICS_DEVICE_TIMER": "1"}
ARGUMENTS = ("--enable-metrics",)
LINE = re.compile(rf'^{METRIC}\{{.*category="([^"]+)".*\}} (\S+)$', re.MULTILINE)


def drafting_seconds(http: httpx.Client) -> float | None:
    """Return what a server's drafter has taken so far on the device; None where it does not tell."""
    answer = http.get("/metrics")
    return drafting_seconds_in(answer.text) if answer.status_code == 200 else None


def drafting_seconds_in(metrics: str) -> float | None:
    """Return the sum over categories of drafting in Prometheus' text, of all ranks; None without any."""
    found = [float(seconds) for category, seconds in LINE.findall(metrics) if category in DRAFTING]
    return sum(found) if found else None
