"""The sections of a run's configuration: frozen models, each validated here and nowhere else."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from peagle_core.cod import check_cod
from peagle_core.config import HIDDEN_STATE_DESIGNS
from trainer.data.source_names import check_kind, expand


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    """Name the data, and say how it is read.

    train, heldout: files, Hugging Face datasets (trainer.data.sources) or one prepared directory, named as
    trainer.data.source_names reads them.
    on_bad_record: refuse the data, or skip such records and count them. chat_template_kwargs: variables of the chat
    template, wherever it is rendered; date: the day that it is told, None for the day on which the run began.
    max_length: tokens of a document; row_length: tokens of a packed row. Of `prepare`: documents_per_shard, the records
    that one worker turns into one file; workers, None for one per core.
    """

    train: tuple[str, ...]
    heldout: tuple[str, ...] = ()
    on_bad_record: Literal["refuse", "skip"] = "refuse"
    chat_template_kwargs: dict[str, Any] = {}
    date: datetime.date | None = None
    max_length: int = Field(default=2048, ge=4)
    row_length: int = Field(default=2048, ge=4)
    documents_per_shard: int = Field(default=4096, ge=1)
    workers: int | None = Field(default=None, ge=1)

    @field_validator("train", "heldout", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        values = (value,) if isinstance(value, str | Path) else value
        if not isinstance(values, list | tuple):
            return value
        # A value that is no name is left for the check of types.
        return tuple(
            found for each in values for found in (expand(str(each)) if isinstance(each, str | Path) else (each,))
        )

    @field_validator("train", "heldout")
    @classmethod
    def _files_exist(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            check_kind(source)
        return sources

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leaves_messages_alone(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        own = {"messages", "conversation", "tools", "add_generation_prompt", "continue_final_message", "tokenize"}
        if taken := sorted(own & kwargs.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be set here")
        return _json_values(kwargs)

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> DataConfig:
        if not self.train and not info.context:
            raise ValueError("data.train names no file")
        if self.max_length > self.row_length:
            raise ValueError(f"data.max_length {self.max_length} exceeds data.row_length {self.row_length}")
        return self


class DrafterConfig(Section):
    """Shape of the new drafter and how its depths are sampled; None means the target's own value.

    mask_token_id None: see `trainer.target.mask_token`. draft_vocab_size: the most frequent generated tokens.
    aux_layer_ids: "state entering layer k" of the target; None is [2, n//2, n-3]. hidden_state_design: P-EAGLE's
    "shared" or one of the paper's rejected ones (`peagle_core.hidden_state_designs`), which are never exported.
    correction_rank: r of `peagle_core.correction`, by which each draft knows those before it; 0 is none.
    init: a head whose shape and weights the drafter starts from (`trainer.warm_start`). EAGLE-3 has other defaults and
    less choice, see `trainer.config.eagle3`.
    """

    init: Path | None = None
    num_hidden_layers: int = Field(default=4, ge=1)
    num_depths: int = 8
    retention: float = 0.8
    retention_min: float = 0.0
    mask_token_id: int | None = Field(default=None, ge=0)
    aux_layer_ids: tuple[int, int, int] | None = None
    intermediate_size: int | None = Field(default=None, ge=1)
    num_attention_heads: int | None = Field(default=None, ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    draft_vocab_size: int | None = Field(default=None, ge=1)
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    qk_norm: bool = False
    hidden_state_design: str = "shared"
    correction_rank: int = Field(default=0, ge=0)
    train_embedding: bool = True
    train_lm_head: bool = True

    @field_validator("init")
    @classmethod
    def _at_home(cls, init: Path | None) -> Path | None:
        return None if init is None else init.expanduser()

    @field_validator("hidden_state_design")
    @classmethod
    def _known_design(cls, design: str) -> str:
        if design not in HIDDEN_STATE_DESIGNS:
            raise ValueError(f"{design!r} is not one of {', '.join(HIDDEN_STATE_DESIGNS)}")
        return design

    @model_validator(mode="after")
    def _check(self) -> DrafterConfig:
        check_cod(self.num_depths, self.retention, self.retention_min)
        return self


class OptimConfig(Section):
    """One optimizer step takes rows_per_step packed rows. max_steps, where given, replaces epochs.

    optimizer muon: Muon for the matrices of the layers and fc, AdamW for the rest, at one learning rate.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_ratio: float = Field(default=0.02, ge=0, lt=1)
    schedule: Literal["linear", "cosine"] = "cosine"
    max_grad_norm: float = Field(default=1.0, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    rows_per_step: int = Field(default=4, ge=1)

    @field_validator("betas")
    @classmethod
    def _in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), found {list(betas)}")
        return betas


class LossConfig(Section):
    """What is minimised: KL or cross entropy, a share `tv` of total variation, and how much each element counts.

    depth_weights: one weight per depth 0..K-1; None weighs every charged element alike, for EAGLE-3 0.8^depth.
    """

    kind: Literal["kl", "ce"] = "kl"
    tv: float = Field(default=0.0, ge=0, le=1)
    depth_weights: tuple[float, ...] | None = None


class StatesConfig(Section):
    """Where the target's hidden states come from, and the directory they are kept in (docs/training.md).

    directory None: output_dir/states. on_miss: what training does with documents that are not there. keep false: the
    directory's states are removed when a run has finished. dtype: of the numbers in a new directory. engine: what
    computes states that are to be stored; url: of a SGLang server that captures them (docs/serving.md).
    tokens_per_shard: tokens of one file, and what a killed run repeats at most.
    """

    source: Literal["in_process", "cache"] = "in_process"
    directory: Path | None = None
    on_miss: Literal["fail", "generate"] = "fail"
    keep: bool = True
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    engine: Literal["transformers", "sglang"] = "transformers"
    url: str | None = None
    tokens_per_shard: int = Field(default=32768, ge=1)

    @field_validator("directory")
    @classmethod
    def _at_home(cls, directory: Path | None) -> Path | None:
        return None if directory is None else directory.expanduser()

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        return None if url is None else _http_url(url, "http://HOST:PORT")

    @model_validator(mode="after")
    def _check(self) -> StatesConfig:
        if self.url is not None and self.engine != "sglang":
            raise ValueError(f"states.url is for states.engine: sglang, found engine: {self.engine}")
        return self


class EvalConfig(Section):
    """The drafter loop on held-out prompts, and accuracies on held-out text: after training, and every `every` steps.

    prompt_tokens: how much of a running text is taken as its prompt; documents with an answer have their own.
    every_prompts, every_rows: what the evaluations before the last are content with, the first so many of each.
    """

    every: int | None = Field(default=None, ge=1)
    every_prompts: int = Field(default=8, ge=0)
    every_rows: int = Field(default=16, ge=0)
    num_prompts: int = Field(default=32, ge=0)
    prompt_tokens: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=128, ge=2)
    num_draft_tokens: tuple[int, ...] = (3, 5, 7)

    @field_validator("num_draft_tokens")
    @classmethod
    def _positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in values):
            raise ValueError(f"every number of draft tokens must be at least 1, found {list(values)}")
        return values


class RegenerateConfig(Section):
    """Answers by the target through an OpenAI-compatible server at `url`; model None: the one that it serves.

    temperature, top_p None: as the server does by default. Record i is asked with seed + i. extra_body: more of every
    request, as the server understands it. timeout: seconds for one answer; retries: of one request.
    """

    url: str = "http://127.0.0.1:30000/v1"
    model: str | None = None
    concurrency: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=2048, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    extra_body: dict[str, Any] = {}
    timeout: float = Field(default=1800.0, gt=0)
    retries: int = Field(default=8, ge=0)

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        return _http_url(url, "http://HOST:PORT/v1")

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours_alone(cls, body: dict[str, Any]) -> dict[str, Any]:
        own = {"model", "messages", "prompt", "tools", "stream", "n", "max_tokens", "temperature", "top_p", "seed"}
        if taken := sorted(own & body.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be set here")
        if taken := sorted({"chat_template_kwargs", "reasoning_effort", "reasoning"} & body.keys()):
            raise ValueError(
                f"{', '.join(taken)} cannot be set here: train must render chats alike, so give it as "
                "data.chat_template_kwargs, which regenerate sends with every request"
            )
        return _json_values(body)


def _json_values(values: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"is no JSON ({error})") from None
    return values


def _http_url(url: str, form: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no URL ({error})") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"{url!r} is not of the form {form}")
    return url.rstrip("/")
