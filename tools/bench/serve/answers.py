"""The part of report.html that shows answers step by step: what was drafted, accepted, corrected."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tools.bench.serve.contenders import label
from tools.bench.serve.samples import Sample, ShownStep

DEEPEST = 7  # shades of green in page.html
LEGEND = (
    '<div class="legend"><span><span class="t first">first</span> the prefill\'s token</span>'
    '<span><span class="t a1">draft 1</span><span class="t a3">draft 3</span><span class="t a5">draft 5</span> '
    "accepted, deeper green further into the draft</span>"
    '<span><span class="t own">own</span> the target\'s own token, where a draft was refused</span>'
    '<span><span class="t bonus">bonus</span> the target\'s own token after a draft that stood whole</span>'
    "<span><s>refused</s> drafts that did not stand</span></div>"
)


def answers_section(samples: Sequence[Sample]) -> str:
    """Return HTML, empty without samples. Without scripts the answers of all servers stand below each other."""
    if not samples:
        return ""
    labels = list(dict.fromkeys(label(sample.algorithm, sample.k) for sample in sorted(samples, key=lambda s: s.k)))
    # PEAGLE last: it is what the page shows first.
    labels.sort(key=lambda name: name.startswith("PEAGLE"))
    buttons = "".join(f'<button data-label="{escape(name)}">{escape(name)}</button>' for name in labels)
    questions: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        questions.setdefault((sample.dataset, sample.question), []).append(sample)
    blocks = "".join(_block(list(of)) for of in questions.values())
    return (
        '<h2>Answers, step by step</h2><p class="soft">A thin line begins each step: one verification of '
        "a draft by the target. The bars above an answer are its steps, as high as the tokens that each one made. "
        "Point at a step to read its drafts. Refused drafts are shown for PEAGLE servers started here.</p>"
        f'<div class="controls">{buttons}<button id="rejected" class="on">refused drafts</button></div>'
        f"{LEGEND}{blocks}"
    )


def _block(samples: list[Sample]) -> str:
    first = samples[0]
    where = first.dataset if first.category == first.dataset else f"{first.dataset}, {first.category}"
    answers = "".join(_answer(sample) for sample in samples)
    return f'<div class="sample"><b>{escape(where)}</b><div class="ask">{escape(first.question)}</div>{answers}</div>'


def _answer(sample: Sample) -> str:
    name = escape(label(sample.algorithm, sample.k))
    decoding = sample.steps[1:]
    tokens = sum(len(step.tokens) for step in sample.steps)
    facts = f"{name}: {tokens} tokens in {len(decoding)} steps, {sample.accept_length:.2f} tokens a step"
    bars = "".join(f'<i style="height:{100 * len(step.tokens) / (sample.k + 1):.0f}%"></i>' for step in decoding)
    steps = "".join(_step(step, sample.k, number) for number, step in enumerate(sample.steps))
    return (
        f'<div data-answer="{name}"><div class="facts">{facts}</div><div class="spark">{bars}</div>'
        f'<div class="answer">{steps}</div></div>'
    )


def _step(step: ShownStep, k: int, number: int) -> str:
    """Draw one step as HTML.

    number: 0 for the prefill's token.
    """
    parts = []
    for i, text in enumerate(step.tokens):
        if not number:
            kind = "first"
        elif i < step.accepted:
            kind = f"a{min(i + 1, DEEPEST)}"
        else:
            kind = "bonus" if step.accepted == k else "own"
        parts.append(f'<span class="t {kind}">{escape(text)}</span>')
    refused = "".join(f"<s>{escape(_visible(text))}</s>" for text in step.rejected)
    return f'<span class="step" title="{escape(_title(step, number))}">{"".join(parts)}{refused}</span>'


def _title(step: ShownStep, number: int) -> str:
    if not number:
        return "the prefill's token"
    accepted = " ".join(map(_visible, step.tokens[: step.accepted])) or "nothing"
    own = " ".join(map(_visible, step.tokens[step.accepted :])) or "cut off"
    refused = f"\nrefused: {' '.join(map(_visible, step.rejected))}" if step.rejected else ""
    return f"step {number}\naccepted: {accepted}{refused}\nthe target's own: {own}"


def _visible(text: str) -> str:
    """Spell out line breaks: a refused one must not break the line."""
    return text.replace("\n", "⏎").replace("\t", "⇥")
