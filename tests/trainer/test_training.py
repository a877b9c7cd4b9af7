"""The loop: it learns, its numbers are what they say, and what went wrong is neither saved nor overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same_weights, changed, stored

from peagle_core.checkpoint import load_drafter
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.generate import speculate
from peagle_core.training import loss_and_backward
from trainer.checkpoint.checkpoints import newest_checkpoint
from trainer.errors import ConfigError
from trainer.evaluation.acceptance import standard_error
from trainer.evaluation.evaluate import measure_acceptance, prompts_of
from trainer.export.export import run_export
from trainer.inputs import load_inputs
from trainer.new_drafter import new_drafter
from trainer.sampler import RowSampler, total_steps
from trainer.train import loop
from trainer.train.assemble import open_run
from trainer.train.loop import make_work, train_step
from trainer.train.run import run_eval, run_train


def test_accumulated_rows_share_one_denominator(run_config):
    """Two rows in one step have the gradient of the mean over both rows' elements, not the mean of two means."""
    config = changed(run_config, "optim", rows_per_step=2, max_grad_norm=1e9)
    run = open_run(config)
    drafter = run.drafter
    taken = RowSampler(len(run.rows), config.seed).take(2)
    work = [make_work(run, run.rows[i], position) for position, i in enumerate(taken)]
    counts = [int(row.charged.sum()) for row in work]
    assert counts[0] != counts[1]
    total = None
    for row, count in zip(work, counts, strict=True):
        loss_and_backward(drafter, row.batch, row.elements, target_head=run.hidden_states.head, charged=row.charged)
        grads = [p.grad * count / sum(counts) for p in drafter.parameters()]
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        drafter.zero_grad()
    expected = torch.stack([g.norm() for g in total]).norm()
    _, norm = train_step(open_run(config))
    assert norm == pytest.approx(float(expected), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(run_config):
    run = open_run(run_config)
    before = run.drafter.fc.weight.clone()
    with torch.no_grad():
        run.drafter.mask_hidden.fill_(torch.inf)
    with pytest.raises(InputError, match=r"step 1 .* the loss is nan"):
        train_step(run)
    assert torch.equal(run.drafter.fc.weight, before)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_warms_up_and_ends_at_zero(run_config, schedule):
    run = open_run(changed(run_config, "optim", schedule=schedule, warmup_ratio=0.5))
    rates = []
    for _ in range(6):
        rates.append(run.state.learning_rate)
        train_step(run)
    assert rates[0] == 0.0
    assert max(rates) == rates[3] == pytest.approx(1e-2)
    assert run.state.learning_rate == pytest.approx(0.0, abs=1e-9)


def test_frozen_parts_stay_and_resume_works_with_them(run_config):
    config = changed(run_config, "drafter", train_embedding=False, train_lm_head=False)
    before = open_run(config)
    run_train(config)
    head = load_drafter(config.output / "head")
    assert torch.equal(head.embed_tokens.weight, before.drafter.embed_tokens.weight)
    assert torch.equal(head.lm_head.weight, before.drafter.lm_head.weight)
    assert not torch.equal(head.fc.weight, before.drafter.fc.weight)
    longer = changed(config, "optim", max_steps=8)
    assert run_train(longer, resume=True) is None


def test_an_overfitted_drafter_foresees_its_target(run_config, tmp_path):
    """The whole path: greedy text of the target as data, training, and nearly every draft accepted."""
    config = changed(run_config, checkpoint_every=10**6, log_every=50)
    config = changed(changed(config, "optim", max_steps=150, lr=1e-2), "drafter", retention=1.0)
    inputs = load_inputs(config)
    prompt = torch.tensor([0, 70, 80, 90])
    ids = speculate(inputs.target, new_drafter(config, inputs.target, 4, []), prompt, 1, 40).output_ids
    record = {"input_ids": [*prompt.tolist(), *ids], "loss_mask": [0] * len(prompt) + [1] * len(ids)}
    data = tmp_path / "own.jsonl"
    data.write_text(json.dumps(record) + "\n")
    config = changed(changed(config, "data", train=(str(data),), heldout=(str(data),)), "optim", rows_per_step=1)
    assert run_train(config) is None
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics["accuracy_per_depth"][0] > 0.8
    assert metrics["acceptance"][0]["accept_length"] > 3.0  # of 4; a fresh drafter gets 1.0


def test_eval_agrees_with_training_and_export_with_head(run_config, tmp_path):
    run_train(run_config)
    metrics = json.loads((run_config.output / "metrics.json").read_text())
    result = run_eval(run_config).to_dict()
    assert {key: metrics[key] for key in result} == json.loads(json.dumps(result))
    exported = run_export(run_config, destination=tmp_path / "exported")
    assert_same_weights(load_drafter(exported), load_drafter(run_config.output / "head"))
    with pytest.raises(InputError, match="exists already"):
        run_export(run_config)


def test_a_finished_run_is_not_overwritten(run_config):
    run_train(run_config)
    with pytest.raises(ConfigError, match="--resume"):
        run_train(run_config)


def test_acceptance_counts_what_the_loop_accepted(run_config):
    run = open_run(run_config)
    target, drafter = run.inputs.model, run.drafter
    prompts = [torch.tensor([0, 70, 80]), torch.tensor([0, 90])]
    result = measure_acceptance(target, drafter, prompts, 3, 10)
    lengths = [n for p in prompts for n in speculate(target, drafter, p, 3, 10).accept_lengths]
    assert result.accept_length == sum(lengths) / len(lengths)
    assert 1 + sum(result.accept_per_position) == pytest.approx(result.accept_length)
    assert (result.prompts, result.new_tokens) == (2, 20)
    assert [tokens for _, tokens in result.per_prompt] == [
        sum(speculate(target, drafter, p, 3, 10).accept_lengths) for p in prompts
    ]


def test_the_error_of_an_acceptance_length_is_its_spread_over_prompts():
    """Against resampling: 4000 times as many prompts as there are, drawn with replacement."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(20, 60, (200,), generator=generator)
    tokens = (steps * (2 + torch.rand(200, generator=generator))).long()
    draws = torch.randint(0, 200, (4000, 200), generator=generator)
    resampled = tokens[draws].sum(1) / steps[draws].sum(1)
    found = standard_error(list(zip(steps.tolist(), tokens.tolist(), strict=True)))
    assert found == pytest.approx(float(resampled.std()), rel=0.05)
    assert standard_error([(3, 9)]) is None


def test_prompts_are_what_stands_before_the_answer(run_config):
    inputs = load_inputs(run_config)
    for document, prompt in zip(inputs.train[:5], prompts_of(inputs.train, 5, 4), strict=True):
        assert torch.equal(document.input_ids[: len(prompt)], prompt)
        assert not document.loss_mask[: len(prompt)].any()
        assert document.loss_mask[len(prompt)]


def test_the_sampler_visits_every_row_once_per_pass():
    sampler = RowSampler(7, seed=3)
    taken = sampler.take(5) + sampler.take(9)
    assert sorted(taken[:7]) == sorted(taken[7:14]) == list(range(7))
    assert taken[:7] != taken[7:14]
    assert RowSampler(7, seed=3, position=5).take(9) == taken[5:]
    assert (total_steps(10, 4, 2.0, None), total_steps(10, 4, 2.0, 3), total_steps(1, 8, 0.1, None)) == (5, 3, 1)


def test_tensorboard_has_the_numbers(run_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_train(run_config)
    events = EventAccumulator(str(Path(run_config.output) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    tags = set(events.Tags()["scalars"])
    assert {"train/accuracy_depth_2", "train/expected_accept_length", "train/lr", "memory/peak_gib"} <= tags
    speed, seconds = (events.Scalars(f"throughput/{name}") for name in ("tokens_per_second", "seconds_per_step"))
    assert 2 < speed[0].value * seconds[0].value <= 2 * run_config.data.row_length  # tokens of a step of two rows


@pytest.mark.parametrize(
    ("every", "says", "newest_step"), [(2, "step 4: the weight norm.weight", 2), (3, r"step 5 \(rows", 3)]
)
def test_weights_that_overflow_are_never_saved(run_config, monkeypatch, every, says, newest_step):
    """The step that spoils a weight has a finite gradient itself; the newest checkpoint must be one before it."""
    step = loop.train_step

    def spoil(run):
        result = step(run)
        if run.state.step == 4:
            with torch.no_grad():
                run.drafter.norm.weight[0] = torch.inf
        return result

    monkeypatch.setattr(loop, "train_step", spoil)
    config = changed(run_config, checkpoint_every=every)
    with pytest.raises(InputError, match=says):
        run_train(config)
    newest = newest_checkpoint(config.checkpoints)
    assert newest.name == f"step-{newest_step:08d}"
    assert all(torch.isfinite(t).all() for t in stored(newest).values())
    assert not (config.output / "head").exists()


def test_a_run_with_mode_auto_says_and_saves_what_it_took(run_config, capsys):
    run_train(changed(run_config, mode="auto"))
    assert "mode: flat" in capsys.readouterr().out
    assert "mode: flat" in (run_config.output / "run.yaml").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "partition", "num_segments": 2},
        {"mode": "partition"},
        {"mode": "stream"},
        {"mode": "stream", "chunk_rows": 7},
        {"mode": "flat", "activation_checkpointing": True},
    ],
)
def test_every_mode_takes_the_same_step(run_config, changes):
    steps = []
    for config in (run_config, changed(run_config, **changes)):
        metrics, norm = train_step(open_run(config))
        steps.append((metrics.loss, norm))
    assert steps[0] == pytest.approx(steps[1], rel=1e-4)


def test_a_memory_budget_is_settled_once_for_all_rows(run_config, monkeypatch):
    passes: list[int] = []
    forward = PEagleDrafter.forward
    monkeypatch.setattr(PEagleDrafter, "forward", lambda *inputs: passes.append(1) or forward(*inputs))
    run = open_run(changed(run_config, mode="stream", memory_budget_gib=0.05))
    assert passes, "the drafter was probed"
    assert run.config.memory_budget_gib is None
    assert run.config.chunk_rows > max(len(row.input_ids) for row in run.rows) * run_config.drafter.num_depths
    passes.clear()
    losses = [train_step(run)[0].loss for _ in range(3)]
    assert len(passes) == 3 * 2 * run_config.optim.rows_per_step, "depth 0 and one chunk of each row, no probe"
    run = open_run(run_config)
    assert losses == pytest.approx([train_step(run)[0].loss for _ in range(3)], rel=1e-4)
