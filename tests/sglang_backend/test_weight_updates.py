"""Weight updates on the model class and the hooks: fc(mask_hidden) follows the weights, whichever way they come."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from byte_models import save_random_head
from safetensors.torch import load_file
from transformers import LlamaConfig

pytest.importorskip("sglang")

from sglang.srt.runtime_context import get_context, get_parallel

from peagle_core.errors import InputError
from sglang_backend.corrections import weight_updates


@pytest.fixture
def head(tmp_path, monkeypatch):
    """(the SGLang model of a random head, that head's tensors, other tensors of the same shapes)."""
    from sglang_backend import drafter_model

    save_random_head(tmp_path, draft_vocab_size=64)
    tensors = load_file(tmp_path / "model.safetensors")
    others = {name: torch.arange(64) if name == "d2t" else t + 0.1 * torch.randn_like(t) for name, t in tensors.items()}
    config = LlamaConfig.from_pretrained(tmp_path)
    config.name_or_path = str(tmp_path)
    monkeypatch.setattr(drafter_model, "HeadRope", lambda _: None)  # needs a platform, and has no weights
    with (
        get_context().override_server_args(model_path=str(tmp_path)),
        get_parallel().override(tp_rank=0, attn_tp_rank=0),
    ):
        model = drafter_model.PEagleForCausalLM(config)
    model.load_weights(tensors.items())
    return model, tensors, others


def assert_projected(model, tensors) -> None:
    """The mask state is fc(mask_hidden) of these tensors (no norm before fc in these heads)."""
    expected = tensors["mask_hidden"].view(1, -1) @ tensors["fc.weight"].T
    torch.testing.assert_close(model.model.mask_fused, expected, rtol=1e-5, atol=1e-5)


def test_loading_again_projects_again_in_place(head):
    model, tensors, others = head
    assert_projected(model, tensors)
    address, map_address = model.model.mask_fused.data_ptr(), model.hot_token_id.data_ptr()
    model.load_weights(others.items())
    assert_projected(model, others)
    assert model.model.mask_fused.data_ptr() == address, "captured graphs read the old place"
    assert model.hot_token_id.tolist() == [2 * i for i in range(64)] and model.hot_token_id.data_ptr() == map_address


@pytest.mark.parametrize("name", ["fc.weight", "mask_hidden"])
def test_a_bucket_with_one_of_the_two_projects_again(head, name):
    model, tensors, others = head
    model.load_weights([(name, others[name])])
    assert_projected(model, {**tensors, name: others[name]})


def test_tensors_of_the_target_pass_by(head):
    model, _, others = head
    before = {name: t.clone() for name, t in model.named_parameters()}
    target = {f"model.{name}": t for name, t in others.items() if name.startswith("layers.")}
    model.load_weights([*target.items(), ("model.embed_tokens.weight", others["embed_tokens.weight"])])
    assert all(torch.equal(t, before[name]) for name, t in model.named_parameters())


def test_a_tensor_that_does_not_fit_changes_nothing(head):
    model, tensors, others = head
    with pytest.raises(InputError, match=r"weight update: tensor 'fc.weight' has shape \(2, 2\)"):
        model.load_weights([("mask_hidden", others["mask_hidden"]), ("fc.weight", torch.ones(2, 2))])
    assert_projected(model, tensors)

    def update(_updater, _tensors):
        model.load_weights([("fc.weight", torch.ones(2, 2))])

    success, message = weight_updates.update_from_tensor(update, None, [])
    assert not success and "'fc.weight' has shape" in message


def test_shared_tensors_are_the_targets(head):
    """Where the head reads the target's embedding, an update of the head must not write into it."""
    model, _, others = head
    model.own.discard("embed_tokens.weight")
    before = model.model.embed_tokens.weight.clone()
    model.load_weights([("embed_tokens.weight", others["embed_tokens.weight"])])
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_the_end_of_an_update_projects_what_was_written_directly(head):
    model, _, others = head
    model.model.fc.weight.data.copy_(others["fc.weight"])
    model.model.mask_hidden.data.copy_(others["mask_hidden"])
    weight_updates.end_update(None, SimpleNamespace(get_model=lambda: model), run_post_load=False)
    assert_projected(model, others)
