"""`reasoning_tokens` of an answer that is cut inside a step.

SGLang counts them over all tokens that a verification accepted, then cuts the answer at `max_tokens` or a stop.
"""

from __future__ import annotations


def cut(_result, req, *_: object, **__: object) -> None:
    """Count reasoning in what is answered alone, AFTER Req.update_finish_state.

    Reasoning opens an answer, so its count is that of a prefix. A start tag that the model writes itself and that the
    cut leaves unfinished makes no reasoning, as without speculation.
    """
    length = req.finished_len
    if length is not None and req.reasoning_tokens > length:
        req.reasoning_tokens = 0 if length < req._think_start_match_len else length
