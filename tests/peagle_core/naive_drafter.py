"""The drafter once more, in numpy and by the row: no code shared with peagle_core, read from tensors and config.json.

Written from the tables of docs/checkpoint.md. A row is (token, state, position), state None meaning a mask row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Row = tuple[int, np.ndarray | None, int]
Weights = dict[str, np.ndarray]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / math.sqrt(float(np.mean(x * x)) + eps) * weight


def frequencies(config: dict[str, Any]) -> list[float]:
    """One per pair of dimensions: theta^(-2i/D), and Llama 3's piecewise scaling of them where asked for."""
    rope, dim = config["rope_parameters"], config["head_dim"]
    plain = [rope["rope_theta"] ** (-2 * i / dim) for i in range(dim // 2)]
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] == "linear":
        return [f / rope["factor"] for f in plain]
    assert rope["rope_type"] == "llama3"
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    scaled = []
    for f in plain:
        turns = old * f / (2 * math.pi)  # how often the pair turns within the original context
        if turns > high:
            scaled.append(f)
        elif turns < low:
            scaled.append(f / rope["factor"])
        else:
            smooth = (turns - low) / (high - low)
            scaled.append((1 - smooth) * f / rope["factor"] + smooth * f)
    return scaled


def rotate(vector: np.ndarray, position: int, config: dict[str, Any]) -> np.ndarray:
    """Dimension i turns together with dimension i + D/2, as one complex number."""
    half = len(vector) // 2
    turned = np.empty_like(vector)
    for i, f in enumerate(frequencies(config)):
        z = complex(vector[i], vector[i + half]) * complex(math.cos(position * f), math.sin(position * f))
        turned[i], turned[i + half] = z.real, z.imag
    return turned


def fuse(state: np.ndarray, w: Weights, config: dict[str, Any]) -> np.ndarray:
    eps = config["rms_norm_eps"]
    if config.get("norm_before_fc"):
        state = rms_norm(state, w["input_norm.weight"], eps)
    if config.get("fc_norm"):
        parts = np.split(state, 3)
        state = np.concatenate([rms_norm(p, w[f"fc_norm.{i}.weight"], eps) for i, p in enumerate(parts)])
    return w["fc.weight"] @ state


def attention(xs: list[np.ndarray], positions: list[int], sees: list[list[int]], w: Weights, name: str, config: dict):
    """Softmax attention of row i over rows sees[i]; query head h reads key head h * kv_heads // heads."""
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]

    def project(x: np.ndarray, which: str) -> np.ndarray:
        y = w[f"{name}.{which}_proj.weight"] @ x
        return y + w[f"{name}.{which}_proj.bias"] if config["attention_bias"] else y

    def head(y: np.ndarray, number: int, which: str, position: int) -> np.ndarray:
        y = y[number * dim : (number + 1) * dim]
        if config.get("qk_norm"):
            y = rms_norm(y, w[f"{name}.{which}_norm.weight"], config["rms_norm_eps"])
        return rotate(y, position, config)

    q, k, v = ([project(x, which) for x in xs] for which in "qkv")
    outputs = []
    for i, position in enumerate(positions):
        mixed = []
        for h in range(heads):
            kv = h * kv_heads // heads
            query = head(q[i], h, "q", position)
            scores = np.array([query @ head(k[j], kv, "k", positions[j]) / math.sqrt(dim) for j in sees[i]])
            weights = np.exp(scores - scores.max())
            values = np.stack([v[j][kv * dim : (kv + 1) * dim] for j in sees[i]])
            mixed.append((weights / weights.sum()) @ values)
        outputs.append(project(np.concatenate(mixed), "o"))
    return outputs


def mlp(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    gate = w[f"{name}.gate_proj.weight"] @ x
    return w[f"{name}.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (w[f"{name}.up_proj.weight"] @ x))


def naive_logits(w: Weights, config: dict[str, Any], rows: list[Row], sees: list[list[int]]) -> np.ndarray:
    """[rows, draft vocabulary]; row i attends to the rows sees[i]."""
    eps = config["rms_norm_eps"]
    mask_token, mask_state = config["mask_token_id"], w["mask_hidden"].reshape(-1)
    embeds = [w["embed_tokens.weight"][mask_token if state is None else token] for token, state, _ in rows]
    hidden = [fuse(mask_state if state is None else state, w, config) for _, state, _ in rows]
    positions = [position for _, _, position in rows]
    for layer in range(config["num_hidden_layers"]):
        name = f"layers.{layer}"
        norm = w[f"{name}.input_layernorm.weight"]
        if layer == 0:
            normed = [rms_norm(h, w["layers.0.hidden_norm.weight"], eps) for h in hidden]
            xs = [np.concatenate([rms_norm(e, norm, eps), n]) for e, n in zip(embeds, normed, strict=True)]
            residual = normed if config["norm_before_residual"] else hidden
        else:
            xs, residual = [rms_norm(h, norm, eps) for h in hidden], hidden
        attended = attention(xs, positions, sees, w, f"{name}.self_attn", config)
        middle = [r + a for r, a in zip(residual, attended, strict=True)]
        after = w[f"{name}.post_attention_layernorm.weight"]
        hidden = [h + mlp(rms_norm(h, after, eps), w, f"{name}.mlp") for h in middle]
    return np.stack([w["lm_head.weight"] @ rms_norm(h, w["norm.weight"], eps) for h in hidden])
