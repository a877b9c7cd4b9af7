"""What makes `stream` worth having: nothing computed twice, memory that does not grow with K, a budget that is kept."""

from __future__ import annotations

import pytest
import torch
from layouts import stream
from steps import SMALL
from tiny import random_batch, tiny_config, tiny_drafter
from torch import Tensor

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.training import activation_costs, loss_and_backward, stream_bytes


def rows_through_the_mlp(drafter: PEagleDrafter, batch, elements, **options) -> list[int]:
    """How many rows each pass of the first layer saw."""
    seen: list[int] = []
    hook = drafter.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    loss_and_backward(drafter, batch, elements, **options)
    hook.remove()
    return seen


def test_every_row_is_computed_once_and_in_chunks():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("A" * 60, "A" * 40)
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 8, 1.0)
    num_slots = int((elements.depth == 0).sum())
    first, *chunks = rows_through_the_mlp(drafter, batch, elements, mode="stream", target_head=head, chunk_rows=50)
    assert first == num_slots
    # The last slot of a document is charged nothing and has no chain; no chunk without charged rows is run.
    assert sum(chunks) == len(elements) - num_slots
    assert max(chunks) <= 50
    partition = rows_through_the_mlp(drafter, batch, elements, mode="partition", target_head=head, num_segments=4)
    assert sum(partition) > len(elements), "Algorithm 1 recomputes its context"


def kept_bytes(drafter: PEagleDrafter, batch, elements, **options) -> int:
    """The most that autograd holds for the backward pass at one time."""
    parameters = {p.untyped_storage().data_ptr() for p in drafter.parameters()}
    alive: dict[int, tuple[int, int]] = {}  # storage -> times saved, bytes
    most = 0

    class Kept:
        """Counts a tensor from the moment it is saved until autograd drops it."""

        def __init__(self, x: Tensor) -> None:
            nonlocal most
            self.x = x
            storage = x.untyped_storage()
            self.storage = storage.data_ptr()
            times, _ = alive.get(self.storage, (0, 0))
            alive[self.storage] = times + 1, 0 if self.storage in parameters else storage.nbytes()
            most = max(most, sum(size for _, size in alive.values()))

        def __del__(self) -> None:
            times, size = alive[self.storage]
            alive[self.storage] = times - 1, size
            if times == 1:
                del alive[self.storage]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
        loss_and_backward(drafter, batch, elements, **options)
    return most


def test_memory_does_not_grow_with_the_number_of_depths():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("A" * 150)
    batch, head = random_batch(config, *packed)

    def most(num_depths: int, **options) -> int:
        return kept_bytes(drafter, batch, sample_elements(*packed, num_depths, 1.0), target_head=head, **options)

    streamed = [most(k, mode="stream", chunk_rows=40) for k in (2, 8)]
    assert streamed[1] < 1.1 * streamed[0]
    assert most(8) > 4 * streamed[1], "what flat holds"
    assert most(8, mode="stream", chunk_rows=40, recompute=True) < streamed[1] / 2


def test_a_flat_step_keeps_what_the_probe_says():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("A" * 150)
    batch, head = random_batch(config, *packed)
    few, many = (sample_elements(*packed, k, 1.0) for k in (2, 8))
    kept = [kept_bytes(drafter, batch, elements, target_head=head) for elements in (few, many)]
    measured = (kept[1] - kept[0]) / (len(many) - len(few))
    costs = activation_costs(drafter)
    assert measured == pytest.approx(costs.kept, rel=0.25)
    assert costs.flat(len(many)) > kept[1]


def test_a_budget_picks_the_chunk_and_a_chunk_tells_its_budget():
    drafter = tiny_drafter(tiny_config(**SMALL))
    small, large = (stream_bytes(drafter, 500, rows) for rows in (100, 1000))
    assert small < large
    assert activation_costs(drafter).chunk_rows_within(large, 500) == pytest.approx(1000, abs=1)
    assert stream_bytes(drafter, 500, 1000, recompute=True) < large
    assert stream_bytes(drafter, 1000, 1000) > large
    with pytest.raises(InputError, match=r"a budget of 1000 bytes is below the .* recompute=True needs less"):
        activation_costs(drafter).chunk_rows_within(1000, 500)
