"""Shared fixtures: one torch thread, a fixed seed for every test, tiny random models, hypothesis without deadlines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from tiny import tiny_drafter as make_drafter
from tiny import tiny_target as make_target
from transformers import LlamaForCausalLM

from peagle_core.drafter import PEagleDrafter

pytest.register_assert_rewrite("steps")  # its comparison tells the numbers when it fails, as a test's own does
# The machine is shared, so wall clock per example says nothing; derandomized runs fail the same way everywhere.
settings.register_profile("peagle", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("peagle")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_target() -> LlamaForCausalLM:
    """An 8-layer random Llama in float64 (see tests/tiny.py); read only."""
    return make_target()


@pytest.fixture
def tiny_drafter() -> PEagleDrafter:
    """A fresh 2-layer random drafter in float64 that fits `tiny_target`."""
    return make_drafter()
