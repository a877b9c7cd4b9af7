"""The guard against a loss that climbs and stays up: it never stops a healthy run, and always a lost one."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peagle_core.errors import InputError
from trainer import loss_guard
from trainer.checkpoint.checkpoints import newest_checkpoint
from trainer.loss_guard import PATIENCE, LossGuard
from trainer.train.run import run_train


def stops_at(losses: list[float]) -> int | None:
    """The step at which the guard stops the run."""
    guard = LossGuard()
    for step, loss in enumerate(losses, start=1):
        guard.add(loss)
        if guard.diverged:
            return step
    return None


def falling(chance: random.Random, steps: int, first: float, last: float, noise: float) -> list[float]:
    """From first to last, as losses fall, every step up to 1 + noise times off in either direction."""
    off = math.log1p(noise)
    return [
        (last + (first - last) * math.exp(-4 * i / steps)) * math.exp(chance.uniform(-off, off)) for i in range(steps)
    ]


@given(
    seed=st.integers(0, 2**32),
    first=st.floats(1e-3, 1e3),
    share=st.floats(0, 0.9),
    noise=st.floats(0, 1),
    spikes=st.lists(st.tuples(st.integers(0, 1999), st.integers(1, 30), st.floats(2, 20)), max_size=5),
)
def test_noise_and_spikes_stop_nothing(seed, first, share, noise, spikes):
    losses = falling(random.Random(seed), 2000, first, share * first, noise)
    for start, length, height in spikes:
        for i in range(start, min(start + length, 2000)):
            losses[i] = height * first
    assert stops_at(losses) is None


@given(seed=st.integers(0, 2**32), first=st.floats(1e-3, 1e3))
def test_a_drafter_that_knows_everything_may_forget_a_little(seed, first):
    """Losses next to nothing differ by orders of magnitude from step to step, and by text."""
    chance = random.Random(seed)
    losses = falling(chance, 500, first, 1e-4 * first, 0.1)
    losses += [first * 10 ** chance.uniform(-5, -1) for _ in range(1000)]
    losses += [0.2 * first] * 1000
    assert stops_at(losses) is None


@given(
    seed=st.integers(0, 2**32),
    first=st.floats(1e-3, 1e3),
    healthy=st.integers(0, 1500),
    lost=st.sampled_from(["where it began", "far above", "climbing"]),
)
def test_a_loss_that_stays_up_stops_the_run(seed, first, healthy, lost):
    chance = random.Random(seed)
    losses = falling(chance, 3000, first, 0.1 * first, 0.2)[:healthy]
    if lost == "where it began" and healthy < 1500:
        losses = falling(chance, 1500, first, 0.1 * first, 0.2)
    level = {"where it began": 1.0, "far above": 30.0, "climbing": 2.0}[lost]
    losses = losses or [first]
    before = len(losses)
    for i in range(PATIENCE + 60):
        losses.append(first * level * chance.uniform(0.8, 1.2) * (1 + 0.02 * i if lost == "climbing" else 1))
    at = stops_at(losses)
    assert at is not None
    assert before + PATIENCE <= at


def test_a_guard_goes_on_where_a_checkpoint_left_it():
    chance = random.Random(1)
    losses = falling(chance, 300, 5.0, 1.0, 0.3) + [4.0] * 300
    straight = stops_at(losses)
    for stop in (3, 10, 299, 380):
        guard = LossGuard()
        for loss in losses[:stop]:
            guard.add(loss)
        guard = LossGuard(**json.loads(json.dumps(asdict(guard), allow_nan=False)))
        rest = losses[stop:]
        while not guard.diverged:
            guard.add(rest.pop(0))
        assert len(losses) - len(rest) == straight


def with_rate(config, lr, **changes):
    optim = config.optim.model_copy(update={"lr": lr, "max_steps": 60, "schedule": "linear"})
    return config.model_copy(update={"optim": optim, "checkpoint_every": 2, **changes})


def test_a_run_that_is_lost_ends_and_keeps_a_checkpoint_from_before(run_config, monkeypatch):
    monkeypatch.setattr(loss_guard, "PATIENCE", 12)
    config = with_rate(run_config, 3.0)  # lost from 2 to 5 whatever the seed; at 10 the gradient overflows instead
    with pytest.raises(InputError, match=r"step \d+: the loss has been far above its best for 12 steps .* optim\.lr"):
        run_train(config)
    kept = sorted(int(path.name[-8:]) for path in config.checkpoints.iterdir())
    newest = newest_checkpoint(config.checkpoints)
    guard = json.loads((newest / "state.json").read_text())["guard"]
    assert len(kept) == 3
    assert kept[0] <= kept[-1] - guard["climbing"]
    assert kept[1:] == [kept[-1] - 2, kept[-1]]
    oldest = json.loads((config.output / f"checkpoints/step-{kept[0]:08d}" / "state.json").read_text())
    assert oldest["guard"]["climbing"] == 0


def test_a_run_that_comes_back_is_not_stopped(run_config):
    """At this rate the loss climbs to many times its first level, and falls again with the rate."""
    assert run_train(with_rate(run_config, 1.0)) is None
    assert len(list(run_config.checkpoints.iterdir())) == 2
