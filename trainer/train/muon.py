"""Muon that iterates in the dtype which is fast where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peagle_core.cpu import fast_dtype


class Muon(torch.optim.Muon):
    """Update matrices along their orthogonalised momentum (Jordan et al. 2024; rate as in arXiv 2502.16982).

    torch's own class iterates in bfloat16 on every device, and a CPU without bfloat16 units emulates that
    (docs/decisions.md). iterate_in: see `iteration_dtype`; the other options are torch's.
    """

    def __init__(self, parameters: list[nn.Parameter], iterate_in: torch.dtype, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.iterate_in = iterate_in

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient. closure: none is taken, for no loop of ours has one."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                ahead = torch.lerp(matrix.grad, average, group["momentum"]) if group["nesterov"] else average
                direction = orthogonalised(ahead.to(self.iterate_in), group["ns_coefficients"], group["ns_steps"])
                # Entries of an orthogonal matrix are about 1 / sqrt(longer side); those of AdamW's updates about 0.2.
                rate = group["lr"] * 0.2 * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction.to(matrix.dtype), alpha=rate)


def iteration_dtype(device: str, precision: str) -> torch.dtype:
    """Return what the iteration is computed in: bfloat16 on a GPU, and where precision is bf16 on a CPU with its units.

    device, precision: of `RunConfig`.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    fast, _ = fast_dtype(torch.cpu.get_capabilities())
    return torch.bfloat16 if precision == "bf16" and fast == "bfloat16" else torch.float32


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Return a matrix with the singular vectors of `matrix` and singular values near 1, by Newton-Schulz.

    X <- a X + (b X X^T + c (X X^T)^2) X, from X = matrix / its Frobenius norm, in the matrix's dtype.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix  # the Gram matrix of the shorter side is the smaller one
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
