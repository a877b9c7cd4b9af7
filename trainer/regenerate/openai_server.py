"""Ask an OpenAI-compatible server: send requests, tell what may go wrong with them, and repeat those worth it."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from peagle_core.errors import InputError
from trainer.config.sections import RegenerateConfig
from trainer.errors import ConfigError
from trainer.regenerate.answer import (
    Answer,
    Refused,
    RetryableError,
    error_message,
    failure,
    read_answer,
    wanted_delay,
)

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0  # seconds before a request is repeated; doubled every time
CONNECT_TIMEOUT = 30.0  # seconds
CHAT, COMPLETE = "/chat/completions", "/completions"
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Served:
    """A model as /v1/models describes it. context: tokens; owner: of SGLang "sglang"."""

    model: str
    context: int | None
    owner: str | None


class AnswerServer:
    """Asks one model of a server.

    chat_template_kwargs: sent with every chat; completion_tokens: of all answers; trouble: why a request was repeated
    last, None when all is well again.
    """

    def __init__(self, config: RegenerateConfig, chat_template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.model = config.model or ""
        self.completion_tokens = 0
        self.trouble: str | None = None
        key = os.environ.get(KEY_VARIABLE)
        self.http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(config.timeout, connect=CONNECT_TIMEOUT, pool=None),
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )

    async def close(self) -> None:
        await self.http.aclose()

    async def connect(self) -> Served:
        """Find the model. Raises InputError when no such server answers, ConfigError for a model it does not serve."""
        url = f"{self.config.url}/models"
        try:
            response = await self.http.get(url)
        except httpx.RequestError as error:
            raise InputError(f"{url}: no server answers ({failure(error)}); start one, or set regenerate.url") from None
        if response.status_code != httpx.codes.OK:
            self._refuse(response)
        try:
            cards = {str(card["id"]): card for card in response.json()["data"]}
        except (ValueError, KeyError, TypeError):
            cards = {}
        if not cards:
            raise InputError(f"{url}: names no model, so this is no OpenAI-compatible server (regenerate.url)")
        # SGLang and vLLM list LoRA adapters beside their base model.
        own = [name for name, card in cards.items() if not card.get("parent")]
        if not self.config.model and len(own) != 1:
            raise ConfigError(f"{url}: serves {', '.join(cards)}; choose one with regenerate.model")
        self.model = self.config.model or own[0]
        if self.model not in cards:
            raise ConfigError(f"regenerate.model: {url} serves {', '.join(cards)}, not {self.model!r}")
        context, owner = (cards[self.model].get(key) for key in ("max_model_len", "owned_by"))
        if isinstance(context, int) and self.config.max_tokens >= context:
            raise ConfigError(
                f"regenerate.max_tokens {self.config.max_tokens} leaves no room for a question: "
                f"the server's context is {context} tokens"
            )
        return Served(self.model, context, owner)

    async def try_out(self, chat: bool) -> None:
        """Ask for one token, to check URL, key and settings before any work starts. Raises InputError."""
        path, body = self._chat([{"role": "user", "content": "Hello"}]) if chat else self._complete("Hello")
        url = self.config.url + path
        try:
            read_answer(await self._post(url, {**body, "max_tokens": 1}))
        except RetryableError as error:
            raise InputError(f"{url}: {error}") from None
        except Refused as error:
            raise InputError(f"{url}: refuses even a question of one word ({error})") from None

    async def chat(
        self, messages: list[dict[str, Any]], seed: int | None = None, tools: Sequence[dict[str, Any]] = ()
    ) -> Answer:
        """Return the target's next turn, which may call one of the tools.

        Raises Refused for this conversation, InputError when there is no point in others.
        """
        path, body = self._chat(messages, tools)
        return await self._ask(path, body, seed)

    async def complete(self, prompt: str, seed: int | None = None) -> Answer:
        """Return the target's continuation of a text; raises as `chat` does."""
        path, body = self._complete(prompt)
        return await self._ask(path, body, seed)

    def _chat(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> tuple[str, dict[str, Any]]:
        more: dict[str, Any] = {"tools": list(tools)} if tools else {}
        if self.chat_template_kwargs:
            more["chat_template_kwargs"] = self.chat_template_kwargs
        return CHAT, {"messages": messages, **more, **self._sampling()}

    def _complete(self, prompt: str) -> tuple[str, dict[str, Any]]:
        return COMPLETE, {"prompt": prompt, **self._sampling()}

    def _sampling(self) -> dict[str, Any]:
        own = {"temperature": self.config.temperature, "top_p": self.config.top_p}
        return {
            "model": self.model,
            "max_tokens": self.config.max_tokens,
            **{key: value for key, value in own.items() if value is not None},
            **self.config.extra_body,
        }

    async def _ask(self, path: str, body: dict[str, Any], seed: int | None) -> Answer:
        url, repeated = self.config.url + path, 0
        body |= {} if seed is None else {"seed": seed}
        while True:
            try:
                answer = read_answer(await self._post(url, body))
                break
            except RetryableError as error:
                self.trouble = str(error)
                if repeated == self.config.retries:
                    await self._give_up(path, error, repeated + 1)
                # Half of it by chance: requests that failed together are not repeated together.
                delay = min(LONGEST_DELAY, FIRST_DELAY * 2**repeated) * random.uniform(0.5, 1)
                await asyncio.sleep(max(delay, min(LONGEST_DELAY, error.delay)))
                repeated += 1
        self.trouble = None
        self.completion_tokens += answer.completion_tokens or 0
        return answer

    async def _give_up(self, path: str, error: RetryableError, attempts: int) -> NoReturn:
        """Raise Refused when only this request fails, because the server answers another; else InputError."""
        failed = f"{error}, the last of {attempts} attempts"
        if not error.overloaded:
            try:
                await self.try_out(path == CHAT)
                raise Refused(failed)
            except InputError:
                pass
        raise InputError(f"{self.config.url}{path}: {failed}; run it again to continue")

    async def _post(self, url: str, body: dict[str, Any]) -> Any:
        """Return the server's JSON. Raises RetryableError, after which it may be asked again, and Refused."""
        try:
            response = await self.http.post(url, json=body)
        except httpx.RequestError as error:
            raise RetryableError(failure(error)) from None
        status = response.status_code
        if status in (408, 409, 425, 429) or status >= 500:
            overloaded = status in (429, 503)
            raise RetryableError(f"HTTP {status}{error_message(response)}", overloaded, wanted_delay(response))
        if status in (400, 413, 422):
            raise Refused(f"HTTP {status}{error_message(response)}")
        if status != httpx.codes.OK:
            self._refuse(response)
        try:
            return response.json()
        except ValueError:
            raise RetryableError("the answer is no JSON") from None

    def _refuse(self, response: httpx.Response) -> NoReturn:
        advice = {
            401: f"; set the environment variable {KEY_VARIABLE} to the server's key",
            403: f"; set the environment variable {KEY_VARIABLE} to a key that may do this",
            404: "; regenerate.url usually ends in /v1",
        }.get(response.status_code, "")
        raise InputError(f"{response.url}: HTTP {response.status_code}{error_message(response)}{advice}")
