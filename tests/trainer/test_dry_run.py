"""Recipes load and dry-run from a config alone; the estimates follow from shapes and mode auto from the estimates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode

from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.training import activation_costs
from trainer.__main__ import main
from trainer.config import load_config
from trainer.sizing.choose import make_plan, settle
from trainer.sizing.sizes import drafter_costs, num_elements

RECIPES = sorted(Path("trainer/configs/recipes").glob("*.yaml"))
TARGETS = Path(__file__).parent / "target_configs"
# Billions of parameters, all of them: the targets' published sizes.
SIZES = {
    "llama-3.1-8b": 8.03, "qwen3-8b": 8.19, "gpt-oss-20b": 20.91, "gpt-oss-120b": 116.83, "qwen3-coder-30b": 30.53,
    "gemma-3-12b": 12.19,
}  # fmt: skip


def test_there_is_a_recipe_for_every_target():
    assert {path.stem for path in RECIPES} == set(SIZES) == {path.name for path in TARGETS.iterdir()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_dry_runs_without_weights_tokenizer_and_data(recipe, capsys):
    assert main(["train", "--config", str(recipe), "--dry-run", f"target={TARGETS / recipe.stem}", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert float(re.search(r"([\d.]+)B parameters", said)[1]) == pytest.approx(SIZES[recipe.stem], rel=0.01)
    assert "an estimate, nothing is measured" in said
    assert len(re.findall(r"^(RTX|A100|H100|H200|B200)", said, re.M)) == 5
    if recipe.stem == "gpt-oss-120b":
        assert said.count("does not fit") == 5
    if recipe.stem == "llama-3.1-8b":
        assert re.search(r"^H200 .* (flat|stream)", said, re.M)
        assert "15.0 GiB in bfloat16" in said


def test_eight_gpus_hold_what_one_does_not(capsys):
    """GPT-OSS-120B fits no single GPU, but eight."""
    recipe = ["--config", "trainer/configs/recipes/gpt-oss-120b.yaml", f"target={TARGETS / 'gpt-oss-120b'}"]
    needs = {}
    for gpus in (1, 8):
        assert main(["train", *recipe, "--dry-run", "device=cpu", "--gpus", str(gpus)]) == 0
        needs[gpus] = [int(need) for need in re.findall(r"^H200 +141 +(\d+)", capsys.readouterr().out, re.M)]
    (one,), (ddp, fsdp) = needs[1], needs[8]
    assert one > ddp > 3 * fsdp
    assert fsdp < 80


def test_no_gpus_are_no_number(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--dry-run", "--gpus", "0"])
    assert "--gpus must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("drafter.mask_token_id=128256", "mask token id 128256 is outside the vocabulary"),
        ("drafter.aux_layer_ids=[1,2,32]", "aux ids [1, 2, 32]"),
        ("drafter.num_key_value_heads=3", "not a multiple"),
        ("drafter.draft_vocab_size=200000", "draft_vocab_size 200000 exceeds"),
        ("target=/nowhere", "'/nowhere' cannot be loaded"),
    ],
)
def test_a_size_that_does_not_fit_is_one_sentence(capsys, override, says):
    recipe = ["--config", "trainer/configs/recipes/llama-3.1-8b.yaml", f"target={TARGETS / 'llama-3.1-8b'}"]
    assert main(["train", *recipe, "--dry-run", override]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error


def test_without_dry_run_data_is_needed(capsys):
    assert main(["train", "--config", str(RECIPES[0])]) == 2
    assert "'data.train' is missing" in capsys.readouterr().err


@pytest.mark.parametrize("recompute", [False, True])
def test_a_fake_drafter_costs_what_a_real_one_does(recompute):
    config = tiny_config(num_hidden_layers=3)
    with FakeTensorMode():
        fake = activation_costs(PEagleDrafter(config), "torch", recompute)
    real = activation_costs(PEagleDrafter(config), "torch", recompute)
    assert fake.row == pytest.approx(real.row, rel=0.1)
    assert (fake.leaf, fake.loss) == (real.leaf, real.loss)


@pytest.fixture
def auto(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello")
    return ["target=x", f"data.train={text}", "device=cpu", "data.max_length=4096", "data.row_length=4096"]


def test_auto_takes_flat_while_it_fits_then_stream_then_checkpointing(auto):
    config = load_config(None, auto)
    costs = drafter_costs(config, PEagleDrafter(tiny_config(num_hidden_layers=4)))
    flat = costs[False].flat(num_elements(4096, config.drafter))
    plans = [make_plan(config, costs, budget, "cpu") for budget in (flat, flat - 1, costs[False].stream(4096, 60))]
    assert [(p.mode, p.recompute) for p in plans] == [("flat", False), ("stream", False), ("stream", True)]
    assert plans[0].chunk_rows is None
    assert all(p.activations <= flat for p in plans)
    with pytest.raises(InputError, match=r"rows of 4096 tokens need .* smaller data.row_length"):
        make_plan(config, costs, 1000, "cpu")


def test_a_chosen_mode_stays_and_a_budget_of_ones_own_counts(auto):
    drafter = PEagleDrafter(tiny_config(num_hidden_layers=4))
    for override, expected in [
        ("mode=partition", ("partition", None)),
        ("mode=flat", ("flat", None)),
        ("chunk_rows=100", ("stream", 100)),
        ("mode=stream", ("stream", 2048)),
    ]:
        config = load_config(None, [*auto, override])
        plan = make_plan(config, drafter_costs(config, drafter), 2**40, "cpu")
        assert (plan.mode, plan.chunk_rows) == expected
    config = load_config(None, auto)
    stream = drafter_costs(config, drafter)[False].stream(4096, 500)
    settled = settle(config.model_copy(update={"memory_budget_gib": stream / 2**30}), drafter, 0)
    assert (settled.mode, settled.activation_checkpointing, settled.memory_budget_gib) == ("stream", False, None)
    assert settled.chunk_rows == pytest.approx(500, abs=2)
    assert settle(config, drafter, 0).mode == "flat"


def test_attention_auto_is_triton_on_cuda_only(auto):
    config = load_config(None, auto)
    assert config.attention_backend == "torch"
    assert config.model_copy(update={"device": "cuda"}).attention_backend == "triton"
    assert config.model_copy(update={"device": "cuda", "attention": "dense"}).attention_backend == "dense"


def test_the_probe_follows_autocast(auto):
    drafter = PEagleDrafter(tiny_config(num_hidden_layers=2))
    full, half = (load_config(None, [*auto, f"precision={p}"]) for p in ("fp32", "bf16"))
    assert drafter_costs(half, drafter)[False].row < drafter_costs(full, drafter)[False].row
    assert drafter.fc.weight.dtype == torch.float32
