"""What `algorithm: eagle3` means for a configuration: its own defaults, and the settings it has no use for.

The baseline drafts one token after the other and is trained by training-time test (`peagle_core.training.eagle3`).
Its heads are for engines' own EAGLE3, so what SGLang's does not read is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Where the configuration says nothing. Each further depth weighs 0.8 of the one before, as in EAGLE-3's own training.
LAYERS, DEPTH_DECAY = 1, 0.8
# What must be so, and why. These are also its defaults.
FIXED: dict[str, tuple[Any, str]] = {
    "retention": (1.0, "every chain is trained whole"),
    "retention_min": (0.0, "every chain is trained whole"),
    "mask_token_id": (None, "it has no mask rows"),
    "hidden_state_design": ("shared", "it has no mask rows"),
    "correction_rank": (0, "it reads the draft before it anyway"),
    "train_embedding": (False, "SGLang's EAGLE3 takes the target's"),
    "norm_before_residual": (False, "SGLang's EAGLE3 does not read it"),
    "qk_norm": (False, "SGLang's EAGLE3 does not read it"),
}


def fill_in(raw: Any) -> Any:
    """Fill in EAGLE-3's defaults where a raw configuration asks for EAGLE-3; what is malformed stays as it is."""
    if not isinstance(raw, dict) or raw.get("algorithm") != "eagle3":
        return raw
    drafter, loss = (raw.get(section, {}) for section in ("drafter", "loss"))
    if not isinstance(drafter, dict) or not isinstance(loss, dict):
        return raw
    drafter = {"num_hidden_layers": LAYERS, **{key: value for key, (value, _) in FIXED.items()}, **drafter}
    depths = drafter.get("num_depths", 8)
    if loss.get("depth_weights") is None and isinstance(depths, int):
        loss = {**loss, "depth_weights": [round(DEPTH_DECAY**d, 6) for d in range(depths)]}
    return {**raw, "drafter": drafter, "loss": loss}


def misfits(drafter: Any, mode: str) -> Iterator[str]:
    """Yield what an EAGLE-3 configuration may not say. drafter: its section."""
    for key, (wanted, why) in FIXED.items():
        found = getattr(drafter, key)
        if found != wanted:
            yield f"drafter.{key} {wanted}, found {found} ({why})"
    if mode == "partition":
        yield "mode auto, flat or stream, found partition (which cuts P-EAGLE's one pass)"
