"""The paper's rejected hidden-state designs through the trainer: trained, resumed and measured, but never a head."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_run import run_options

from peagle_core.config import HIDDEN_STATE_DESIGNS
from peagle_core.errors import InputError
from trainer.checkpoint.checkpoints import load_trained, newest_checkpoint
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.export.export import run_export
from trainer.train.assemble import open_run
from trainer.train.optimizer import make_optimizers
from trainer.train.run import run_eval, run_train

REJECTED = HIDDEN_STATE_DESIGNS[1:]
MODES = ("mode=flat", "mode=partition", "mode=stream")


@pytest.fixture
def options(target_dir, data_file, tmp_path):
    return run_options(target_dir, data_file, tmp_path / "run")


@pytest.mark.parametrize(("design", "mode"), zip(REJECTED, (*MODES, "mode=stream"), strict=True))
def test_it_trains_is_measured_and_stays_a_checkpoint(options, tmp_path, capsys, design, mode):
    config = load_config(None, [*options, mode, f"drafter.hidden_state_design={design}"])
    before = open_run(config).drafter
    assert run_train(config) is None
    assert f"{design} is for research: no head" in capsys.readouterr().out
    assert not (config.output / "head").exists()
    checkpoint = newest_checkpoint(config.checkpoints)
    after = load_trained(checkpoint)
    assert after.config.hidden_state_design == design
    for old, new in zip(before.hidden_design.parameters(), after.hidden_design.parameters(), strict=True):
        assert not torch.equal(old, new)
    metrics = json.loads((config.output / "metrics.json").read_text())
    again, by_path = run_eval(config).to_dict(), run_eval(config, checkpoint).to_dict()
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(by_path)) == {key: metrics[key] for key in again}
    with pytest.raises(InputError, match=f"'{design}' is an experiment that no serving engine runs"):
        run_export(config, destination=tmp_path / "exported")
    assert not list(tmp_path.glob("exported*"))


def test_dropout_is_the_seeds_and_a_resumed_run_has_the_same(options, tmp_path):
    """Two halves in two processes, each with another random state of its own, are the whole."""
    options = [*options, "mode=stream", "drafter.hidden_state_design=regularised_ntp", "optim.schedule=linear"]
    whole = load_config(None, options)
    torch.manual_seed(5)
    run_train(whole)
    halves = load_config(None, [*options, f"output_dir={tmp_path / 'halves'}"])
    torch.manual_seed(6)
    run_train(halves)
    newest_checkpoint(halves.checkpoints).rename(tmp_path / "the end")
    torch.manual_seed(7)
    run_train(halves, resume=True)  # from step 4
    first, second = (load_trained(newest_checkpoint(c.checkpoints)) for c in (whole, halves))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_another_design_does_not_resume(options):
    run_train(load_config(None, [*options, "drafter.hidden_state_design=projected_ntp"]))
    with pytest.raises(InputError, match="hidden_state_design = projected_ntp, this run says regularised_ntp"):
        run_train(load_config(None, [*options, "drafter.hidden_state_design=regularised_ntp"]), resume=True)


def test_depth_embeddings_are_no_matrices(options):
    """Neither Muon nor weight decay takes them: both are for linear maps."""
    config = load_config(None, [*options, "drafter.hidden_state_design=projected_ntp_depth_embedding"])
    drafter = open_run(config).drafter
    muon, adamw = make_optimizers(drafter, config.optim.model_copy(update={"optimizer": "muon"}), torch.float32)
    design = drafter.hidden_design
    assert any(p is design.projection.weight for p in muon.param_groups[0]["params"])
    (group,) = (g for g in adamw.param_groups if any(p is design.depth_embedding.weight for p in g["params"]))
    assert group["weight_decay"] == 0


def test_more_drafts_than_depth_embeddings_are_refused_before_training(options):
    for design, refused in (("depth_embedding", True), ("projected_ntp", False)):
        settings = [*options, f"drafter.hidden_state_design={design}", "eval.num_draft_tokens=[3,4]"]
        if not refused:
            load_config(None, settings)
            continue
        with pytest.raises(ConfigError, match=r"eval.num_draft_tokens 4 exceeds drafter.num_depths 3"):
            load_config(None, settings)
