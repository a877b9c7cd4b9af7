"""The configuration: files, overrides, and every refusal in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config import load_config
from trainer.errors import ConfigError


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text("hello")
    return ["target=some/model", f"data.train={text}", "device=cpu"]


def test_target_and_data_are_enough(base):
    config = load_config(None, base)
    assert config.output == Path("runs/model-peagle")
    assert (config.drafter.num_hidden_layers, config.drafter.num_depths, config.drafter.retention) == (4, 8, 0.8)


def test_overrides_win_over_the_file(base, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {lr: 0.5, epochs: 3}\nseed: 7\n")
    config = load_config(path, [*base, "optim.lr=1e-4"])
    assert (config.optim.lr, config.optim.epochs, config.seed) == (1e-4, 3, 7)


def test_saved_configuration_loads_as_the_same(base, tmp_path):
    config = load_config(None, [*base, "loss.depth_weights=[1,1,1,0.5]", "drafter.num_depths=4"])
    config.save(tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml", []) == config


def test_the_example_is_a_valid_configuration(base):
    assert load_config(Path("trainer/configs/example.yaml"), base).target == "some/model"


def test_the_heads_of_this_repository_are_trained_alike(base):
    """What a comparison of the two relies on: the same rows, optimizer and draft vocabulary.

    The depths differ: those of P-EAGLE cost no pass of the drafter.
    """
    p_eagle, eagle3 = (load_config(Path(f"heads/{name}.yaml"), base) for name in ("p-eagle", "eagle3"))
    assert (p_eagle.algorithm, eagle3.algorithm) == ("peagle", "eagle3")
    assert (p_eagle.data, p_eagle.optim, p_eagle.eval) == (eagle3.data, eagle3.optim, eagle3.eval)
    assert p_eagle.drafter.num_depths >= eagle3.drafter.num_depths
    assert p_eagle.drafter.draft_vocab_size == eagle3.drafter.draft_vocab_size


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.learning_rate=1", "unknown key 'optim.learning_rate'"),
        ("drafter.retenton=1", "did you mean 'retention'"),
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr=fast", "optim.lr"),
        ("drafter.num_depths=0", "num_depths"),
        ("drafter.retention=7", "retention"),
        ("drafter.retention_min=0.9", "retention_min"),
        ("data.max_length=9999", "data.max_length 9999 exceeds data.row_length"),
        ("data.train=/nowhere.jsonl", "no such file: /nowhere.jsonl"),
        ("data.train=setup.cfg", "no such file"),
        ("mode=quick", "'quick' is not one of auto, flat"),
        ("attention=flash", "'flash' is not one of"),
        ("num_segments=2", "num_segments is for mode: partition"),
        ("num_segments=0", "num_segments"),
        ("memory_budget_gib=-1", "memory_budget_gib"),
        ("activation_checkpointing=perhaps", "activation_checkpointing"),
        ("algorithm=medusa", "algorithm"),
        ("precision=fp8", "precision"),
        ("device=abacus", "device"),
        ("loss.depth_weights=[1,2]", "2 values for 8 depths"),
        ("eval.num_draft_tokens=[0]", "at least 1"),
        ("drafter.hidden_state_design=none", "'none' is not one of shared, depth_embedding"),
        ("optim=3", "optim"),
        ("optim.lr", "not of the form key=value"),
        ("seed.x=[1", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_it(base, override, says):
    with pytest.raises(ConfigError) as error:
        load_config(None, [*base, override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_setting_without_its_mode_is_refused(base):
    for settings, says in [
        (["mode=flat", "chunk_rows=9"], "chunk_rows is for mode: stream, found mode: flat"),
        (["mode=partition", "memory_budget_gib=1"], "memory_budget_gib is for mode: stream"),
        (["chunk_rows=9", "memory_budget_gib=1"], "not both"),
    ]:
        with pytest.raises(ConfigError, match=says):
            load_config(None, [*base, *settings])
    assert load_config(None, [*base, "mode=partition", "num_segments=2"]).step_options().num_segments == 2


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match="'target' is missing"):
        load_config(None, [])
    with pytest.raises(ConfigError, match=r"'data.train' is missing"):
        load_config(None, ["target=x"])


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2\n"])
def test_a_file_that_is_no_mapping_is_refused(base, tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path, base)
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_config(tmp_path / "gone.yaml", base)


def test_attention_sdpa_is_the_old_name_of_torch(base):
    config = load_config(None, [*base, "attention=sdpa", "mode=flat"])
    assert (config.attention, config.step_options().attention) == ("torch", "torch")
    assert config == load_config(None, [*base, "attention=torch", "mode=flat"])


def test_losses_that_aim_at_acceptance_reach_the_step(data_file):
    options = ["target=t", f"data.train={data_file}", "mode=flat"]
    plain = load_config(None, options).step_options()
    assert plain.tv == 0.0
    found = load_config(None, [*options, "loss.tv=0.3"]).step_options()
    assert (found.loss, found.tv) == ("kl", 0.3)
    with pytest.raises(ConfigError, match=r"loss\.tv"):
        load_config(None, [*options, "loss.tv=1.5"])
