"""Real vLLM, CPU, fp32: its drafts are our reference loop's slot by slot; our SGLang server accepts as much as it does.

Equality says nothing where nothing is accepted, so acceptance stands beside it, in the tests and in the table.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import table
from trials import Models, Outcome, Trial, all_trials, has_tiny

from tools.bench.serve.metrics import acceptance
from tools.judges.vllm import is_installed, serve_in_vllm
from tools.server import cpu_environment, serve

pytestmark = [
    pytest.mark.judge,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not is_installed(), reason="vLLM is installed by `make test-vllm` only"),
]
trials = pytest.mark.parametrize("trial", all_trials(), ids=str)
COMPARED_WITH_SGLANG = [
    Trial("norm_before_residual", "flat", 5),
    *([Trial("tiny target", "flat", 5)] if has_tiny() else []),
]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def outcomes(models, tmp_path_factory) -> dict[Trial, Outcome]:
    """Every trial, one engine after the other in one process."""
    asked = all_trials()
    plain = {str(models.target(trial)): models.case(trial, speculative=False) for trial in asked}
    cases = [*plain.values(), *(models.case(trial) for trial in asked)]
    log = tmp_path_factory.mktemp("vllm") / "log"
    table.note(f"vLLM's own output: {log}")
    served = serve_in_vllm(cases, log)
    outputs = {case.target: answer.outputs for case, answer in zip(cases, served[: len(plain)], strict=False)}
    found = {}
    for trial, answer in zip(asked, served[len(plain) :], strict=True):
        expected = outputs[str(models.target(trial))]
        found[trial] = Outcome(
            trial, models.layers(trial), answer, models.reference(trial), expected, models.known(trial)
        )
        table.add(found[trial])
    return found


@trials
def test_greedy_output_is_that_of_no_speculation(outcomes, trial):
    outcome = outcomes[trial]
    assert outcome.served.outputs == outcome.plain
    assert [result.output_ids for result in outcome.reference] == outcome.plain


@trials
def test_every_draft_is_the_reference_loops(outcomes, trial):
    outcome = outcomes[trial]
    different = [triple for triple in outcome.drafts() if triple[1] != triple[2]]
    assert not different, "(prompt, vLLM's draft, ours)"
    for steps, result in zip(outcome.served.steps, outcome.reference, strict=True):
        # The prefill emits one token; every step after it what our loop accepted.
        emitted = [len(step.emitted) for step in steps[1 : 1 + len(result.accept_lengths)]]
        assert emitted == result.accept_lengths


@trials
def test_much_is_accepted(outcomes, trial):
    outcome = outcomes[trial]
    assert outcome.served.accept_length == pytest.approx(outcome.our_accept_length, rel=0.02)
    if outcome.known:
        assert outcome.known_accept_length > 1 + 0.45 * trial.k
    else:
        assert outcome.served.accept_length > 1.5


@pytest.mark.parametrize("trial", COMPARED_WITH_SGLANG, ids=str)
def test_sglang_accepts_as_much(outcomes, models, trial, tmp_path):
    case, outcome = models.case(trial), outcomes[trial]
    arguments = ["--dtype", "float32", "--max-total-tokens", "8192", "--log-level", "warning"]
    arguments += ["--speculative-algorithm", "PEAGLE", "--speculative-num-steps", str(trial.k)]
    arguments += ["--speculative-draft-model-path", str(models.head(trial).absolute())]
    target = models.target(trial).absolute()
    with (
        serve(target, tmp_path / "log", *arguments, environment=cpu_environment()) as server,
        ThreadPoolExecutor(case.concurrency) as pool,
    ):
        answers = list(pool.map(lambda prompt: server.generate(prompt, case.max_new_tokens), case.prompts))
    assert [answer["output_ids"] for answer in answers] == outcome.plain
    accept_length = acceptance([a["meta_info"]["spec_correct_drafts_histogram"] for a in answers], trial.k)[0]
    table.add_sglang(trial, accept_length)
    assert accept_length == pytest.approx(outcome.served.accept_length, rel=0.02)
