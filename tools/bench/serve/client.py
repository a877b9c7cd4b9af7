"""Ask a server one prompt, streamed, and note what came when."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from peagle_core.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """What had arrived at one moment. seconds: since the request left; tokens: of the answer, so far."""

    seconds: float
    tokens: int


@dataclass(frozen=True)
class Answer:
    """One request's answer. prompt: the tokens sent; correct_drafts[n]: steps in which n drafts stood.

    finish: why it ended ("length", "stop"); reported_accept_length: SGLang's own spec_accept_length, which counts the
    prefill's token, too: all tokens / steps.
    """

    prompt: tuple[int, ...]
    output_ids: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    correct_drafts: tuple[int, ...]
    finish: str
    reported_accept_length: float | None

    @property
    def steps(self) -> int:
        """Return the number of verifications, 0 without speculation; the prefill is none."""
        return sum(self.correct_drafts)

    @property
    def first_token_seconds(self) -> float:
        return self.chunks[0].seconds

    @property
    def seconds(self) -> float:
        return self.chunks[-1].seconds

    @property
    def seconds_per_token(self) -> float | None:
        """Return the mean time between tokens after the first; None for an answer of one chunk."""
        later = self.chunks[-1].tokens - self.chunks[0].tokens
        return (self.seconds - self.first_token_seconds) / later if later else None


async def ask(http: httpx.AsyncClient, prompt: list[int], sampling: dict[str, Any], rid: str | None = None) -> Answer:
    """Send one request to SGLang's native endpoint. http: with the server's URL as its base.

    Raises InputError with the server's own words when it refuses the request, and when it goes away.
    """
    body = {"input_ids": prompt, "sampling_params": sampling, "stream": True} | ({"rid": rid} if rid else {})
    chunks: list[Chunk] = []
    last: dict[str, Any] | None = None
    start = time.perf_counter()
    try:
        async with http.stream("POST", "/generate", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                raise InputError(f"{http.base_url} refused a prompt of {len(prompt)} tokens: {_message(text)}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                last = json.loads(line.removeprefix("data: "))
                if "error" in last:
                    raise InputError(f"{http.base_url} gave up on a request: {last['error'].get('message')}")
                meta = last["meta_info"]
                chunk = Chunk(time.perf_counter() - start, meta["completion_tokens"])
                if chunk.tokens and (not chunks or chunk.tokens > chunks[-1].tokens):
                    chunks.append(chunk)
    except httpx.TransportError as error:
        raise InputError(f"the server at {http.base_url} went away: {error!r}") from error
    if last is None or not chunks:
        raise InputError(f"{http.base_url} answered a prompt of {len(prompt)} tokens with nothing")
    meta, output = last["meta_info"], last["output_ids"]
    if len(output) != chunks[-1].tokens:
        raise InputError(f"{http.base_url} runs with --incremental-streaming-output; start it without")
    finish = (meta.get("finish_reason") or {}).get("type", "")
    histogram = tuple(meta.get("spec_correct_drafts_histogram") or ())
    return Answer(tuple(prompt), tuple(output), tuple(chunks), histogram, finish, meta.get("spec_accept_length"))


def _message(text: str) -> str:
    """Return the sentence in a server's error."""
    try:
        error = json.loads(text)
        error = error.get("error", error)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text[:300]
