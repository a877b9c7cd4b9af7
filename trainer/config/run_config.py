"""The whole configuration of a run: one frozen model of its sections, validated here and in `sections`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, field_validator, model_validator

from peagle_core.atomic import replace_file
from peagle_core.attention import ALIASES, BACKENDS
from peagle_core.training import MODES, NUM_SEGMENTS, StepOptions
from trainer.config.eagle3 import fill_in, misfits
from trainer.config.sections import (
    DataConfig,
    DrafterConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    RegenerateConfig,
    Section,
    StatesConfig,
)


class RunConfig(Section):
    """One training run. output_dir None means runs/<name of the target>-<algorithm>.

    algorithm eagle3: the autoregressive baseline, with defaults of its own (`trainer.config.eagle3`).
    mode auto: flat where it fits the memory, else stream (`trainer.sizing`); attention auto: triton on CUDA, else
    torch (alias sdpa).
    num_segments belongs to partition, chunk_rows (elements) and memory_budget_gib (of activations) to stream.
    parallel: of several processes; auto: ddp where target and drafter fit one GPU, else fsdp (`trainer.sizing`).
    """

    target: str
    data: DataConfig
    algorithm: Literal["peagle", "eagle3"] = "peagle"
    output_dir: Path | None = None
    seed: int = Field(default=0, ge=0)
    drafter: DrafterConfig = DrafterConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    eval: EvalConfig = EvalConfig()
    regenerate: RegenerateConfig = RegenerateConfig()
    states: StatesConfig = StatesConfig()
    mode: str = "auto"
    attention: str = "auto"
    num_segments: int | None = Field(default=None, ge=1)
    chunk_rows: int | None = Field(default=None, ge=1)
    memory_budget_gib: float | None = Field(default=None, gt=0)
    activation_checkpointing: bool = False
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    target_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    head_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, raw: Any) -> Any:
        return fill_in(raw)

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, mode: str) -> str:
        return _choice(mode, ("auto", *MODES))

    @field_validator("attention")
    @classmethod
    def _known_attention(cls, attention: str) -> str:
        return _choice(ALIASES.get(attention, attention), ("auto", *BACKENDS))

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

    @field_validator("target")
    @classmethod
    def _target_at_home(cls, target: str) -> str:
        return str(Path(target).expanduser()) if target.startswith("~") else target

    @field_validator("output_dir")
    @classmethod
    def _output_at_home(cls, output_dir: Path | None) -> Path | None:
        return None if output_dir is None else output_dir.expanduser()

    @model_validator(mode="after")
    def _writes_beside_the_target(self) -> RunConfig:
        target = Path(self.target)
        if self.output_dir is not None and target.is_dir() and self.output_dir.resolve() == target.resolve():
            raise ValueError(f"output_dir {self.output_dir} is the target's own directory; choose another")
        return self

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
    def _eagle3_is_what_engines_serve(self) -> RunConfig:
        if self.algorithm == "eagle3" and (wrong := list(misfits(self.drafter, self.mode))):
            raise ValueError(f"algorithm eagle3 goes with {'; '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _every_draft_has_its_depth_embedding(self) -> RunConfig:
        design, depths = self.drafter.hidden_state_design, self.drafter.num_depths
        if "depth_embedding" in design and (most := max(self.eval.num_draft_tokens, default=0)) > depths:
            raise ValueError(
                f"eval.num_draft_tokens {most} exceeds drafter.num_depths {depths}, beyond which the "
                f"hidden_state_design {design!r} has no embedding"
            )
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
        return "triton" if self.device.startswith("cuda") else "torch"

    @property
    def memory_budget(self) -> int | None:
        """Return the bytes that activations may take, None without a limit."""
        return None if self.memory_budget_gib is None else int(self.memory_budget_gib * 2**30)

    def step_options(self) -> StepOptions:
        """Return how a training step runs; mode and chunk must be settled (`trainer.sizing.choose.settle`)."""
        assert self.memory_budget is None, "settle turns a budget into chunk_rows"
        return StepOptions(
            mode=self.mode,
            loss=self.loss.kind,
            tv=self.loss.tv,
            depth_weights=self.loss.depth_weights,
            attention=self.attention_backend,
            recompute=self.activation_checkpointing,
            num_segments=self.num_segments or NUM_SEGMENTS,
            chunk_rows=self.chunk_rows,
        )

    @property
    def output(self) -> Path:
        assert self.output_dir is not None
        return self.output_dir

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    @property
    def states_directory(self) -> Path:
        return self.states.directory or self.output / "states"

    def save(self, path: Path) -> None:
        """Write the resolved configuration, whole or not at all, as YAML that `load_config` takes again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False).encode())


def _choice(value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    return value
