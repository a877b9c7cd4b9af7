"""What surrounds the CUDA graphs, as far as it can be seen without a GPU; the rest is test_decode_step.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang")

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor import input_buffers
from sglang.srt.model_executor.runner import DecodeCudaGraphRunner
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sglang_backend import draft_inputs
from sglang_backend.counters import Counters
from sglang_backend.draft_inputs import MASK_ROW, PADDING_KV_SLOT, DecodeRows
from sglang_backend.drafter_pass import DrafterPass
from sglang_backend.graphs import WIDTHS, DraftGraphs, padding_rows

MAX_BS, MASK = 4, 99


def runner(width: int) -> DraftGraphs:
    """A runner as SGLang's constructor leaves it before it captures: its buffers shared with runners before it."""
    graphs = object.__new__(DraftGraphs)
    graphs.captured_req_width = width
    own = {name: torch.full((MAX_BS,), width, dtype=torch.int32) for name in WIDTHS}
    shared = {name: input_buffers.share_input_buffer(name, tensor) for name, tensor in own.items()}
    graphs.buffers = SimpleNamespace(**shared)
    return graphs


def test_each_k_captures_and_replays_with_its_own_widths(monkeypatch):
    """Adaptive K: fa3 captures metadata that reads `extend_seq_lens`; with another K's it would write out of bounds."""
    monkeypatch.setattr(input_buffers, "_forward_input_buffer_pool", {})
    seen = []
    monkeypatch.setattr(
        DecodeCudaGraphRunner, "capture", lambda self: seen.append(self.buffers.extend_seq_lens.tolist())
    )
    runners = [runner(width) for width in (10, 6, 2)]
    for graphs in runners:
        graphs.capture()
    assert seen == [[10] * MAX_BS, [6] * MAX_BS, [2] * MAX_BS]
    for graphs in runners:  # each keeps them, for nothing writes them again
        for name in WIDTHS:
            assert getattr(graphs.buffers, name).tolist() == [graphs.captured_req_width] * MAX_BS


class Launches(TorchDispatchMode):
    """Notes what would run on a GPU. Views and new buffers run nothing there."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty")):
            self.names.append(name)
        return func(*args, **kwargs or {})


K, BS = 3, 3


@pytest.fixture
def step(monkeypatch):
    """(a worker whose graphs are ready to replay, the arguments of its decode step, what happens in its course)."""
    happened = []
    graphs = runner(2 * K)
    graphs.num_drafts, graphs.capture_bs, graphs.disable_padding, graphs.max_bs = K, [2, 4], False, MAX_BS
    graphs.buffers.hidden_states = torch.zeros(MAX_BS * (K + 1), 5)
    graphs.static = DecodeRows.allocate(MAX_BS, K, "cpu")
    graphs.attn_backend = SimpleNamespace(init_forward_metadata_out_graph=happened.append)
    graphs.model_runner = SimpleNamespace(device_timer=None, shared_read_done_event=1)
    graphs.drafts = torch.arange(MAX_BS * K).view(MAX_BS, K)
    graphs.logits = torch.randn(MAX_BS * K, 7)
    monkeypatch.setattr(
        DraftGraphs,
        "_replay_graph",
        lambda *_: happened.append("graph") or LogitsProcessorOutput(graphs.logits),
    )
    monkeypatch.setattr(DraftGraphs, "_planned_batch", lambda *_: "a plan")
    fill = draft_inputs.fill_rows

    def kernel(*args):
        with _disable_current_modes():
            fill(*args)
        happened.append("rows")

    monkeypatch.setattr(draft_inputs, "fill_rows", kernel)
    worker = object.__new__(DrafterPass)
    worker.counters, worker.certain, worker.cuda_graph_runner_for_draft_extend = Counters(), torch.ones(1), graphs
    worker.speculative_num_steps = worker.relay_width = K
    worker.samples_drafts, worker.hot_token_id, worker.recorder, worker.mask_token_id = False, None, None, MASK
    worker.req_to_token_pool = SimpleNamespace(req_to_token=torch.arange(1, 101, dtype=torch.int32).view(5, 20))
    graphs.eagle_worker = worker
    batch = SimpleNamespace(
        seq_lens=torch.tensor([9, 8, 7]), req_pool_indices=torch.tensor([3, 2, 1]), seq_lens_cpu=None
    )
    result = SimpleNamespace(
        next_token_ids=torch.arange(BS * (K + 1), dtype=torch.int32), accept_lens=torch.tensor([1, 4, 2]),
        logits_output=SimpleNamespace(hidden_states=torch.randn(BS * (K + 1), 5)),
        new_seq_lens=torch.tensor([10, 12, 9]),
        next_draft_input=SimpleNamespace(),
    )  # fmt: skip
    return worker, (batch, result), happened


@pytest.mark.parametrize("in_graph", [True, False])
def test_metadata_is_planned_where_the_graph_does_not_compute_it(step, in_graph):
    """And a batch is padded with requests of no rows but padding ones."""
    worker, (batch, result), happened = step
    graphs = worker.cuda_graph_runner_for_draft_extend
    graphs.plans_in_graph = in_graph
    worker._draft_extend_for_decode(batch, result)
    assert happened == ["rows", "graph"] if in_graph else ["rows", "a plan", "graph"]
    assert graphs.static.ends.tolist() == [15, 14, 13, 6] and graphs.static.owners.tolist() == [3, 2, 1, 0]
    states = result.logits_output.hidden_states
    assert torch.equal(graphs.buffers.hidden_states[: len(states)], states)
    assert graphs.model_runner.shared_read_done_event is None
    graphs.drafts.zero_()  # as the next replay may
    drafts = result.next_draft_input
    assert torch.equal(drafts.topk_index, torch.arange(BS * K).view(BS, K)) and drafts.draft_probs is None
    assert torch.equal(drafts.topk_p, torch.ones(BS, K))


def test_a_step_launches_its_rows_one_copy_its_graph_and_one_copy(step):
    """Beside the 5 of SGLang's relay and chain, so that 9 launches surround a pass where fa3 has its metadata in it."""
    worker, arguments, happened = step
    worker.cuda_graph_runner_for_draft_extend.plans_in_graph = True
    with Launches() as launches:
        worker._draft_extend_for_decode(*arguments)
    assert happened == ["rows", "graph"] and launches.names == ["copy_", "clone"]


def test_a_plan_speaks_of_every_row_of_the_padded_batch(monkeypatch):
    """Lengths on the host are those on the device: the requests' and, of padded ones, those of their own rows."""
    graphs = runner(2 * K)
    static = SimpleNamespace(spec_info=SimpleNamespace(), extend_seq_lens="widths", extend_seq_lens_cpu=[2 * K] * 4)
    monkeypatch.setattr(DraftGraphs, "_static_batch", lambda *_: static)
    plan = graphs._planned_batch(4, torch.tensor([9, 8, 7]))
    assert plan.seq_lens_cpu.tolist() == [15, 14, 13, 6] and plan.seq_lens_sum == 48
    assert (plan.spec_info.extend_seq_lens_tensor, plan.spec_info.extend_seq_lens_cpu) == ("widths", [2 * K] * 4)
    plan = graphs._planned_batch(4, None)
    assert plan.seq_lens_cpu is None and plan.seq_lens_sum is None


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_capture_runs_on_padding(k):
    """Rows that read no state and write to the padding slot; made by the kernel of a step, hence compiled by now."""
    pool = SimpleNamespace(req_to_token=torch.arange(1, 61, dtype=torch.int32).view(3, 20))
    rows = padding_rows(MAX_BS, k, SimpleNamespace(req_to_token_pool=pool, mask_token_id=MASK))
    assert rows.source.eq(MASK_ROW).all() and rows.kv_slots.eq(PADDING_KV_SLOT).all()
    assert rows.ends.eq(2 * k).all() and rows.owners.eq(0).all()
    assert rows.positions.eq(0).all() and rows.input_ids.eq(MASK).all()
    assert rows.select_index.view(MAX_BS, k).sub(torch.arange(MAX_BS)[:, None] * 2 * k).eq(torch.arange(k)).all()
