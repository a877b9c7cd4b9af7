"""The whole configuration of a run: frozen models, validated here and nowhere else.

`load_config(path, overrides)` merges a YAML file (optional) with `key.subkey=value` overrides and refuses unknown keys.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from peagle_core.attention import BACKENDS
from peagle_core.cod import check_cod
from peagle_core.errors import InputError
from peagle_core.training import MODES
from trainer.data.sources import is_dataset


class ConfigError(InputError):
    """The configuration is wrong: commands end with exit code 2."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    """train, heldout: .jsonl or .txt files, Hugging Face datasets (trainer.data.sources), or one prepared directory.

    max_length: tokens of a document; row_length: tokens of a packed row. Of `prepare`: documents_per_shard, the records
    that one worker turns into one file; workers, None for one per core.
    """

    train: tuple[str, ...]
    heldout: tuple[str, ...] = ()
    max_length: int = Field(default=2048, ge=4)
    row_length: int = Field(default=2048, ge=4)
    documents_per_shard: int = Field(default=4096, ge=1)
    workers: int | None = Field(default=None, ge=1)

    @field_validator("train", "heldout", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        values = (value,) if isinstance(value, str | Path) else value
        return (
            tuple(str(v) if isinstance(v, Path) else v for v in values) if isinstance(values, list | tuple) else value
        )

    @field_validator("train", "heldout")
    @classmethod
    def _files_exist(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            if is_dataset(source):
                continue
            if not Path(source).is_file():
                raise ValueError(f"no such file: {source}")
            if Path(source).suffix not in (".jsonl", ".txt"):
                raise ValueError(f"{source} is neither .jsonl nor .txt nor a directory")
        return sources

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> DataConfig:
        if not self.train and not info.context:
            raise ValueError("data.train names no file")
        if self.max_length > self.row_length:
            raise ValueError(f"data.max_length {self.max_length} exceeds data.row_length {self.row_length}")
        return self


class DrafterConfig(Section):
    """Shape of the new drafter and how its depths are sampled; None means the target's own value.

    mask_token_id None: see `trainer.mask_token`. draft_vocab_size: the most frequent generated tokens of the data.
    aux_layer_ids: "state entering layer k" of the target; None is [2, n//2, n-3].
    """

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
    train_embedding: bool = True
    train_lm_head: bool = True

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
    """depth_weights: one weight per depth 0..K-1; None weighs every charged element alike."""

    kind: Literal["kl", "ce"] = "kl"
    depth_weights: tuple[float, ...] | None = None


class EvalConfig(Section):
    """The drafter loop on held-out prompts.

    prompt_tokens: how much of a running text is taken as its prompt; documents with an answer have their own.
    """

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


class RunConfig(Section):
    """One training run. output_dir None means runs/<name of the target>-peagle.

    mode auto: flat where it fits the memory, else stream (`trainer.plan`); attention auto: triton on CUDA, else sdpa.
    num_segments belongs to partition, chunk_rows (elements) and memory_budget_gib (of activations) to stream.
    """

    target: str
    data: DataConfig
    algorithm: Literal["peagle"] = "peagle"
    output_dir: Path | None = None
    seed: int = Field(default=0, ge=0)
    drafter: DrafterConfig = DrafterConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    eval: EvalConfig = EvalConfig()
    mode: str = "auto"
    attention: str = "auto"
    num_segments: int | None = Field(default=None, ge=1)
    chunk_rows: int | None = Field(default=None, ge=1)
    memory_budget_gib: float | None = Field(default=None, gt=0)
    activation_checkpointing: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    target_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    head_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, mode: str) -> str:
        return _choice(mode, ("auto", *MODES))

    @field_validator("attention")
    @classmethod
    def _known_attention(cls, attention: str) -> str:
        return _choice(attention, ("auto", *BACKENDS))

    @field_validator("device")
    @classmethod
    def _usable_device(cls, device: str) -> str:
        if device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            raise ValueError(f"{device!r} is no usable torch device here") from None
        return device

    @model_validator(mode="after")
    def _resolve(self) -> RunConfig:
        if self.output_dir is None:
            name = Path(self.target).name or "target"
            object.__setattr__(self, "output_dir", Path("runs") / f"{name}-{self.algorithm}")
        weights = self.loss.depth_weights
        if weights is not None and len(weights) != self.drafter.num_depths:
            raise ValueError(f"loss.depth_weights has {len(weights)} values for {self.drafter.num_depths} depths")
        if weights is not None and any(w < 0 for w in weights):
            raise ValueError(f"loss.depth_weights must not be negative, found {list(weights)}")
        return self

    @model_validator(mode="after")
    def _each_setting_has_its_mode(self) -> RunConfig:
        if self.num_segments is not None and self.mode != "partition":
            raise ValueError(f"num_segments is for mode: partition, found mode: {self.mode}")
        for key in ("chunk_rows", "memory_budget_gib"):
            if getattr(self, key) is not None and self.mode not in ("auto", "stream"):
                raise ValueError(f"{key} is for mode: stream, found mode: {self.mode}")
        if self.chunk_rows is not None and self.memory_budget_gib is not None:
            raise ValueError("give chunk_rows or memory_budget_gib, not both: each follows from the other")
        return self

    @property
    def attention_backend(self) -> str:
        if self.attention != "auto":
            return self.attention
        return "triton" if self.device.startswith("cuda") else "sdpa"

    @property
    def memory_budget(self) -> int | None:
        """Bytes."""
        return None if self.memory_budget_gib is None else int(self.memory_budget_gib * 2**30)

    def step_options(self) -> dict[str, Any]:
        """For `loss_and_backward`; mode must be settled (`trainer.plan.settle`)."""
        options = {
            "mode": self.mode,
            "attention": self.attention_backend,
            "recompute": self.activation_checkpointing,
            "num_segments": self.num_segments,
            "chunk_rows": self.chunk_rows,
            "memory_budget": self.memory_budget,
        }
        return {key: value for key, value in options.items() if value is not None}

    @property
    def output(self) -> Path:
        assert self.output_dir is not None
        return self.output_dir

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML that `load_config` takes again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def _choice(value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    return value


def load_config(path: str | Path | None, overrides: list[str], needs_data: bool = True) -> RunConfig:
    """YAML file (None for an empty one) plus overrides such as "optim.lr=1e-4". Raises ConfigError, one sentence.

    needs_data False: data.train may be absent (a dry run).
    """
    raw = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(raw, override)
    if not needs_data and isinstance(raw.setdefault("data", {}), dict):
        raw["data"].setdefault("train", [])
    try:
        return RunConfig.model_validate(raw, context={} if needs_data else {"needs_data": False})
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a mapping of keys to values was expected")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    try:
        raw[last] = _value(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None


def _value(text: str) -> Any:
    """As YAML reads it, except that 1e-4 is a number (YAML 1.1 wants 1.0e-4)."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _sentence(error: ValidationError) -> str:
    # A misspelt key often makes another one "missing": name the misspelling.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}{_suggestion(first['loc'])}"
    if first["type"] == "missing":
        return f"key {(place if place != 'data' else 'data.train')!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    where = f"{place}: " if place else ""
    found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
    return f"{where}{message[0].lower()}{message[1:]}{found}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys here: {', '.join(model.model_fields)}"
