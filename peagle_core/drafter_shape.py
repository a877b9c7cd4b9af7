"""What a P-EAGLE drafter is: the fields of its configuration, validated here and nowhere else.

`peagle_core.config_formats` translates them from and to the `config.json` of the formats people have; with reading and
writing they are `peagle_core.config.PEagleConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from peagle_core.errors import InputError

NUM_AUX_STATES = 3
MIN_TARGET_LAYERS = 8
# "shared" is P-EAGLE; the others are the paper's rejected designs (hidden_state_designs.py).
HIDDEN_STATE_DESIGNS = (
    "shared", "depth_embedding", "projected_ntp_depth_embedding", "projected_ntp", "regularised_ntp",
)  # fmt: skip


def default_aux_layer_ids(num_target_layers: int) -> tuple[int, int, int]:
    """Return the target states an EAGLE-3 head reads, [2, n//2, n-3].

    k is the state entering layer k, HF `hidden_states[k]`. Raises InputError below 8 layers, where the ids collide.
    """
    n = num_target_layers
    if n < MIN_TARGET_LAYERS:
        raise InputError(f"the target has {n} layers; the aux states [2, n//2, n-3] need at least {MIN_TARGET_LAYERS}")
    return (2, n // 2, n - 3)


@dataclass(frozen=True)
class DrafterShape:
    """Shape and conventions of one drafter.

    hidden_size is the drafter's width H, target_hidden_size the target's H_t (fc maps 3*H_t -> H).
    aux_layer_ids follow vLLM: id k is the state *entering* target layer k; None (a head that does not say) means the
    target's default, see `aux_layer_ids_for`. num_depths is K, the number of tokens the head was trained to draft.
    mask_token_id None: an EAGLE-3 head, which drafts one token after the other and has no mask rows.
    correction_rank: r of `peagle_core.correction`, 0 for none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mask_token_id: int | None
    aux_layer_ids: tuple[int, ...] | None = None
    num_depths: int | None = None
    # None only as an argument: vocab_size, hidden_size and hidden_size / num_attention_heads stand in.
    draft_vocab_size: int = None  # type: ignore[assignment]
    target_hidden_size: int = None  # type: ignore[assignment]
    head_dim: int = None  # type: ignore[assignment]
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    attention_bias: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    qk_norm: bool = False
    target: str | None = None
    hidden_state_design: str = "shared"
    correction_rank: int = 0

    def __post_init__(self) -> None:
        fill = object.__setattr__
        if self.draft_vocab_size is None:
            fill(self, "draft_vocab_size", self.vocab_size)
        if self.target_hidden_size is None:
            fill(self, "target_hidden_size", self.hidden_size)
        self._validate_sizes()
        # transformers' LlamaConfig, which every engine reads config.json with, demands it whatever head_dim is.
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.head_dim is None:
            fill(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if isinstance(self.aux_layer_ids, list):
            fill(self, "aux_layer_ids", tuple(self.aux_layer_ids))
        self._validate()
        self._validate_rope()

    def _validate_sizes(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "draft_vocab_size", "target_hidden_size", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "head_dim" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a positive integer, found {value!r}")
        if not _is_positive(self.rms_norm_eps):
            raise InputError(f"rms_norm_eps must be a positive number, found {self.rms_norm_eps!r}")

    def _validate(self) -> None:
        if self.num_depths is not None and (not isinstance(self.num_depths, int) or self.num_depths < 1):
            raise InputError(f"num_depths (K) must be at least 1, found {self.num_depths!r}")
        mask = self.mask_token_id
        if mask is not None and (not isinstance(mask, int) or not 0 <= mask < self.vocab_size):
            raise InputError(f"mask token id {mask!r} is outside the vocabulary (0..{self.vocab_size - 1})")
        if self.draft_vocab_size > self.vocab_size:
            raise InputError(f"draft_vocab_size {self.draft_vocab_size} exceeds vocab_size {self.vocab_size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim must be even for rotary embeddings, found {self.head_dim}")
        if self.hidden_act != "silu":
            raise InputError(f"hidden_act {self.hidden_act!r} is not supported, only 'silu'")
        if self.norm_before_fc and self.fc_norm:
            raise InputError("norm_before_fc and fc_norm exclude each other")
        if self.hidden_state_design not in HIDDEN_STATE_DESIGNS:
            names = ", ".join(HIDDEN_STATE_DESIGNS)
            raise InputError(f"unknown hidden_state_design {self.hidden_state_design!r}; choose from {names}")
        if self.autoregressive and self.hidden_state_design != "shared":
            raise InputError(f"hidden_state_design {self.hidden_state_design!r} is for mask rows; EAGLE-3 has none")
        rank = self.correction_rank
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            raise InputError(f"correction_rank must be an integer of at least 0, found {rank!r}")
        if self.autoregressive and rank:
            raise InputError("correction_rank is for drafts of one pass; EAGLE-3 reads the draft before it anyway")
        ids = self.aux_layer_ids
        if ids is None:
            return
        is_triple = isinstance(ids, tuple) and len(ids) == NUM_AUX_STATES
        if not is_triple or any(not isinstance(i, int) or i < 0 for i in ids):
            raise InputError(f"aux layer ids must be {NUM_AUX_STATES} layer indices, found {ids!r}")
        if list(ids) != sorted(set(ids)):
            raise InputError(f"aux layer ids must be distinct and ascending, found {list(ids)}")

    def _validate_rope(self) -> None:
        rope = self.rope_parameters
        if not isinstance(rope, dict):
            raise InputError(f"rope_parameters must be a dictionary, found {rope!r}")
        kind = rope.get("rope_type")
        if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
            raise InputError(f"rope type {kind!r} is not known; known are default, {', '.join(ROPE_INIT_FUNCTIONS)}")
        if not _is_positive(rope.get("rope_theta")):
            raise InputError(f"rope_theta must be a positive number, found {rope.get('rope_theta')!r}")
        try:
            # transformers knows what each type needs.
            LlamaConfig(rope_parameters=dict(rope), max_position_embeddings=self.max_position_embeddings)
        except KeyError as error:
            raise InputError(str(error.args[0])) from None

    def aux_layer_ids_for(self, num_target_layers: int) -> tuple[int, ...]:
        """Return the aux ids to read from a target of that depth. Raises InputError when they do not exist in it."""
        ids = self.aux_layer_ids or default_aux_layer_ids(num_target_layers)
        if num_target_layers < MIN_TARGET_LAYERS or ids[-1] >= num_target_layers:
            raise InputError(
                f"the target has {num_target_layers} layers; aux ids {list(ids)} need at least "
                f"{max(MIN_TARGET_LAYERS, ids[-1] + 1)}"
            )
        return ids

    @property
    def autoregressive(self) -> bool:
        """Return whether it drafts one token after the other, as EAGLE-3 does, instead of all in one pass."""
        return self.mask_token_id is None

    @property
    def fused_size(self) -> int:
        """Return width of the concatenated aux states and of `mask_hidden`: 3 * H_t."""
        return NUM_AUX_STATES * self.target_hidden_size

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values, validated again."""
        return replace(self, **changes)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
