"""The paper's four rejected alternatives for the state of mask rows (Table 3): experiments, never exported.

P-EAGLE gives every mask row one learned vector. Each design here adds something to it, in the drafter's width H after
fc: a depth embedding, the projected state of the row's anchor (the "NTP hidden": its fused aux states), or both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peagle_core.config import PEagleConfig
from peagle_core.errors import InputError

ALPHA, DROPOUT = 0.1, 0.1


class HiddenStateDesign(nn.Module):
    """Called with anchor_fused [M, H], the fused state of each mask row's anchor, and depth int64[M] -> [M, H]."""

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__()


class DepthEmbedding(HiddenStateDesign):
    """Add e(depth) to h_shared."""

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__(config)
        if config.num_depths is None:
            raise InputError(f"hidden_state_design {config.hidden_state_design!r} needs num_depths (K)")
        self.depth_embedding = nn.Embedding(config.num_depths, config.hidden_size)
        nn.init.normal_(self.depth_embedding.weight, std=0.02)

    def forward(self, anchor_fused: Tensor, depth: Tensor) -> Tensor:
        if len(depth) and int(depth.max()) >= self.depth_embedding.num_embeddings:
            raise InputError(
                f"depth {int(depth.max())} has no embedding: the drafter was built for "
                f"num_depths {self.depth_embedding.num_embeddings}"
            )
        return self.depth_embedding(depth)


class ProjectedNtp(HiddenStateDesign):
    """Add proj(h_ntp) to h_shared."""

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, anchor_fused: Tensor, depth: Tensor) -> Tensor:
        return self.projection(anchor_fused)


class ProjectedNtpAndDepth(DepthEmbedding):
    """Add proj(h_ntp) + e(depth) to h_shared."""

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, anchor_fused: Tensor, depth: Tensor) -> Tensor:
        return self.projection(anchor_fused) + super().forward(anchor_fused, depth)


class RegularisedNtp(ProjectedNtp):
    """Add alpha * dropout(proj(h_ntp)) to h_shared: alpha learned from 0.1, dropout 0.1."""

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__(config)
        self.alpha = nn.Parameter(torch.tensor([ALPHA]))  # no scalar: those cannot be sharded
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, anchor_fused: Tensor, depth: Tensor) -> Tensor:
        return self.alpha * self.dropout(super().forward(anchor_fused, depth))


DESIGNS: dict[str, type[HiddenStateDesign]] = {
    "depth_embedding": DepthEmbedding,
    "projected_ntp_depth_embedding": ProjectedNtpAndDepth,
    "projected_ntp": ProjectedNtp,
    "regularised_ntp": RegularisedNtp,
}


def make_design(config: PEagleConfig) -> HiddenStateDesign | None:
    """Return the module that config.hidden_state_design names; None for P-EAGLE's own, "shared"."""
    return None if config.hidden_state_design == "shared" else DESIGNS[config.hidden_state_design](config)
