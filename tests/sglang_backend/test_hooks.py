"""The hooks fit the installed SGLang, and a server that has lost one does not start: the test of an upgrade."""

from __future__ import annotations

import inspect
import pkgutil
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("sglang")

from byte_models import save_random_head, save_target
from servers import peagle, plugin_path, refuse

from sglang_backend.patching import SGLANG, Hook, Kind

pytestmark = pytest.mark.slow

NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@pytest.fixture(scope="module")
def hooks() -> list[Hook]:
    """Every row of the tables. Imported late: they import SGLang."""
    from sglang_backend.cpu.hooks import CPU_HOOKS
    from sglang_backend.hooks import HOOKS, VERIFICATION, dump_hooks

    return [*HOOKS, *VERIFICATION, *dump_hooks(Path("/nowhere")), *CPU_HOOKS]


def test_the_tables_are_written_for_the_version_that_is_installed():
    assert version("sglang") == SGLANG


def test_every_target_takes_the_parameters_that_ours_names(hooks):
    checked, wrong = 0, {}
    for hook in hooks:
        owner, name = hook.place()
        if hook.kind is Kind.SET and isinstance(owner, dict):
            continue  # the key may be new
        found = getattr(owner, name)
        if callable(found) and not isinstance(found, type):  # else: no kernel for this device, or a value
            checked += 1
            if said := complaints(hook, found):
                wrong[hook.target] = said
    assert not wrong
    assert checked > 30


def test_no_target_is_in_the_tables_twice(hooks):
    targets = [(hook.target, hook.kind) for hook in hooks]
    assert len(set(targets)) == len(targets)


PEAGLE, STATES = "PEAGLE", "PEAGLE_STATES_DIR"


@pytest.mark.parametrize(
    ("lost", "needed_by"),
    [
        ("sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request", PEAGLE),
        ("sglang.srt.speculative.eagle_worker_common.run_eagle_verify", PEAGLE),
        ("sglang.srt.speculative.draft_utils.DraftBackendFactory.create_draft_extend_backend", "the CPU platform"),
        ("sglang.srt.arg_groups.validation_hook.handle_aux_hidden_state_capture", STATES),
    ],
)
def test_a_server_without_a_hook_that_it_needs_does_not_start(tmp_path, lost, needed_by):
    """tests/sglang_backend/renamed_target.py makes the SGLang in which the target has another name."""
    environment = {"PYTHONPATH": plugin_path(tmp_path, "renamed_target"), "RENAMED_TARGET": lost}
    if needed_by is STATES:
        environment[STATES] = str(tmp_path / "states")
    save_target(tmp_path / "target")
    save_random_head(tmp_path / "head")
    arguments = peagle(tmp_path / "head") if needed_by is PEAGLE else []
    code, said, _ = refuse(tmp_path / "target", *arguments, **environment)
    lines = [line for line in said.splitlines() if line.startswith("peagle: ")]
    assert code != 0 and "Traceback" not in said, said[-3000:]
    assert len(lines) == 1 and lost in lines[0]


def complaints(hook: Hook, found) -> list[str]:
    """What SGLang may pass that ours does not take, and what ours wants that SGLang does not pass."""
    theirs = list(inspect.signature(found).parameters.values())
    ours = list(inspect.signature(hook.ours).parameters.values())
    if hook.kind in (Kind.AFTER, Kind.AROUND):
        ours = ours[1:]  # the result, or the original
    if isinstance(pkgutil.resolve_name(hook.target.rpartition(".")[0]), type):
        theirs, ours = theirs[1:], ours[1:]  # self, always first
    kinds = {p.kind for p in ours}
    keywords_only = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD} == kinds  # SGLang calls it so
    takes_any = keywords_only or {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds
    wrong = []
    for i, p in enumerate(theirs):
        positional = p.kind is not inspect.Parameter.KEYWORD_ONLY
        same = next((o for o in ours if o.kind in NAMED and o.name == p.name), None)
        if same is None and not (takes_any or (not positional and inspect.Parameter.VAR_KEYWORD in kinds)):
            wrong.append(f"ours does not take {p.name}")
        if same is not None and positional and same.kind is not inspect.Parameter.KEYWORD_ONLY and ours[i] is not same:
            wrong.append(f"{p.name} stands elsewhere")
    known = {p.name for p in theirs}
    return wrong + [f"SGLang passes no {o.name}" for o in ours if o.kind in NAMED and o.name not in known]
