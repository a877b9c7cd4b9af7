"""The prompts that trainer.chat makes are those that SGLang makes of the same request, token for token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from chat_records import RECORDS, Record
from chat_templates import FAMILIES, OURS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.chat.records import chat_of, raw_messages
from trainer.chat.template import ChatOptions
from trainer.data.record_tokens import RecordTokens

pytestmark = pytest.mark.slow
# The endpoint wants "user" in small letters, and drops reasoning that is not under reasoning_content: ask in its form.
NOT_ITS_FORM = ("plain, roles in capitals", "reasoning, under thinking")
# Turns that are as long as the context of the byte-level target are not asked over HTTP.
LONGEST = 440


def turns_of(title: str, record: Record, reader: RecordTokens) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Yield for each answer of a record the request that asks for it, and the prompt that we make of it."""
    chat = chat_of(record)
    messages = list(chat.messages) if title in NOT_ITS_FORM else raw_messages(record)
    tools = chat.tools if isinstance(record.get("tools"), str) else record.get("tools")
    for (_, tokens), number in zip(reader.chat_turns(chat), chat.answers, strict=True):
        request = {"messages": messages[:number]} | ({"tools": tools} if tools else {})
        yield request, tokens.prompt


def compare(reader: RecordTokens, ask: Callable[[dict[str, Any]], list[int]], longest: int | None = None) -> int:
    """Compare every turn of the corpus that is not refused; return how many there were."""
    compared = 0
    for title, record in RECORDS.items():
        try:
            turns = list(turns_of(title, record, reader))
        except InputError:
            continue
        for request, prompt in turns:
            if longest is None or len(prompt) <= longest:
                assert ask(request) == prompt, title
                compared += 1
    return compared


def endpoint(tokenizer: PreTrainedTokenizerBase, **template_kwargs: object) -> Callable[[dict[str, Any]], list[int]]:
    """SGLang's own endpoint without an engine behind it: a request -> the ids that it would send to the engine."""
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
    from sglang.srt.parser.template_manager import TemplateManager

    model = SimpleNamespace(
        hf_config=SimpleNamespace(model_type="llama", architectures=["LlamaForCausalLM"]), is_multimodal=False,
        get_default_sampling_params=dict,
    )  # fmt: skip
    manager = SimpleNamespace(
        tokenizer=tokenizer, processor=None, model_config=model, model_path="target", served_model_name="target",
        server_args=None, config_value=lambda name: None,
    )  # fmt: skip
    templates = TemplateManager()
    templates.initialize_templates(manager, "target")
    serving = OpenAIServingChat(manager, templates)

    def ask(body: dict[str, Any]) -> list[int]:
        request = ChatCompletionRequest(**body, chat_template_kwargs=template_kwargs)
        assert serving._validate_request(request) is None
        return serving._process_messages(request, is_multimodal=False).prompt_ids

    return ask


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_prompts_are_those_of_sglangs_endpoint(name):
    """For every template at hand and every record: SGLang's own code of the endpoint, in this process."""
    from sglang.srt.runtime_context import get_context

    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    with get_context().override_server_args(device="cpu"):
        for kwargs in ({}, {"enable_thinking": False}) if "enable_thinking" in family.template else ({},):
            options = replace(family.options(tokenizer, **kwargs), date=None)  # the endpoint tells today's
            assert compare(RecordTokens(tokenizer, options), endpoint(family.tokenizer(), **kwargs)) > 25


@pytest.mark.parametrize("name", ["tags", "thinks", "two_ends"])
def test_prompts_are_those_that_a_server_reports(overfit_server, models, name):
    """Three templates through one server, which takes a template from the request."""
    tokenizer = AutoTokenizer.from_pretrained(models / "target")
    tokenizer.chat_template = OURS[name].template

    def ask(request: dict[str, Any]) -> list[int]:
        body = {**request, "model": "any", "max_tokens": 1, "return_prompt_token_ids": True}
        answer = overfit_server.post("/v1/chat/completions", body | {"chat_template_kwargs": template})
        return answer["choices"][0]["prompt_token_ids"]

    template = {"chat_template": OURS[name].template}
    assert compare(RecordTokens(tokenizer, ChatOptions()), ask, LONGEST) > 25
