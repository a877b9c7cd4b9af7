"""The table that a run of the judges prints at its end: acceptance beside equality."""

from __future__ import annotations

from trials import Outcome, Trial

HEADER = ("head", "layers", "format", "K", "drafts equal", "output equal", "vLLM", "our loop", "SGLang", "known texts")
LEGEND = (
    "Accept lengths: tokens per verification, bonus included, over all prompts, as each engine counts them.",
    "Known texts: vLLM's on the prompts that an over-fitted head has seen.",
)
_outcomes: dict[Trial, Outcome] = {}
_sglang: dict[Trial, float] = {}
_notes: list[str] = []


def add(outcome: Outcome) -> None:
    _outcomes[outcome.trial] = outcome


def add_sglang(trial: Trial, accept_length: float) -> None:
    _sglang[trial] = accept_length


def note(line: str) -> None:
    _notes.append(line)


def lines() -> list[str]:
    """Markdown, empty when nothing was served."""
    if not _outcomes:
        return _notes
    rows = [HEADER, ("---",) * len(HEADER), *(_row(outcome) for outcome in _outcomes.values())]
    return [*LEGEND, *(f"| {' | '.join(row)} |" for row in rows), *_notes]


def _row(outcome: Outcome) -> tuple[str, ...]:
    trial, drafts = outcome.trial, outcome.drafts()
    equal = sum(theirs == ours for _, theirs, ours in drafts)
    lengths = (outcome.served.accept_length, outcome.our_accept_length, _sglang.get(trial), outcome.known_accept_length)
    return (
        trial.head, str(outcome.layers), trial.form, str(trial.k), f"{equal} of {len(drafts)}",
        f"{outcome.outputs_equal} of {len(outcome.plain)}", *("" if x is None else f"{x:.2f}" for x in lengths),
    )  # fmt: skip
