"""Mode "partition": the paper's Algorithm 1. One forward and backward per segment of the sequence.

A segment holds the elements it charges and, as context, the depth-0 rows before its end: recomputed in every segment
with gradients, so the sum over segments is exact, but without loss and without head. Rows of documents that the
segment charges nothing of are left out.
"""

from __future__ import annotations

import torch

from peagle_core.partition import assign_segments
from peagle_core.training.flat import forward_elements
from peagle_core.training.step import Step


def partitioned(step: Step) -> None:
    """Run one pass per segment that charges anything."""
    elements, doc_ids, options = step.elements, step.batch.doc_ids, step.options
    segment = assign_segments(elements, len(doc_ids), options.num_segments, options.balanced)
    doc = doc_ids[elements.anchor]
    for s in range(options.num_segments):
        owned = segment == s
        charged = owned & step.charged
        context = (elements.depth == 0) & (segment <= s) & torch.isin(doc, doc[charged].unique())
        rows = ((owned & torch.isin(doc, doc[charged].unique())) | context).nonzero().squeeze(-1)
        if not len(rows):
            continue
        hidden = forward_elements(step.drafter, step.batch, elements[rows], options.attention, options.recompute)
        kept = charged[rows]
        step.charge(rows[kept], hidden[kept])
