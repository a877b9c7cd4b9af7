"""The whole benchmark: rounds of servers x data sets x concurrencies, written down after every load."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tools.bench.serve.contenders import NONE, Contender, Fleet, Launch, label, running
from tools.bench.serve.datasets import Question
from tools.bench.serve.load import Load, Measured, take_turns
from tools.bench.serve.memory import gpu_mib, peak_host_mib
from tools.bench.serve.metrics import Row, acceptance, by_category, drafting_ms, flat, latencies, share_equal, speed
from tools.bench.serve.prompts import PromptWriter
from tools.bench.serve.results import Results, machine, versions
from tools.bench.serve.samples import take_samples


@dataclass(frozen=True)
class Study:
    """What to measure.

    servers: how to start them, or the URLs of some that run; questions: by data set; samples: questions of each data
    set whose answers the report shows step by step; workload: said in the report; alone: how many
    questions of each data set are asked when they are asked one at a time, None for all; size: the name of a model
    without weights.
    """

    servers: Launch | tuple[str, ...]
    questions: dict[str, list[Question]]
    writer: PromptWriter
    sampling: dict[str, Any]
    concurrency: tuple[int, ...]
    samples: int
    workload: str
    alone: int | None = None
    size: str | None = None


def run_study(study: Study, directory: Path) -> Iterator[Results]:
    """Measure; yield what is known so far after every load and every round's samples."""
    launch = study.servers if isinstance(study.servers, Launch) else None
    said = str(launch.simulated) if launch and launch.simulated else None
    results = Results(study.workload, said, machine(), versions(), [], [], [], study.size)
    # The outputs of the first run without speculation, by data set and number of questions.
    expected: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    with closing(_rounds(study, directory)) as rounds:
        for number, contenders in enumerate(rounds, 1):
            results.servers.extend(_describe(contender, number) for contender in contenders)
            for dataset, questions in study.questions.items():
                for concurrency in study.concurrency:
                    asked = questions[: study.alone] if concurrency == 1 else questions
                    load = Load(asked, study.writer, study.sampling, concurrency)
                    with _bar(f"{dataset}, {concurrency} at a time", load.requests * len(contenders)) as bar:
                        measured = take_turns(contenders, load, bar.update)
                    rows = _rows(number, dataset, load, measured, launch, results.rows, expected)
                    results.rows.extend(rows)
                    yield results
            chosen = [q for questions in study.questions.values() for q in questions[: study.samples]]
            results.samples.extend(take_samples(contenders, chosen, study.writer, study.sampling))
            yield results


def _rounds(study: Study, directory: Path) -> Generator[list[Contender], None, None]:
    """Yield the servers of every round, ready. To be closed: that stops them."""
    if not isinstance(study.servers, Launch):
        print(f"servers that run: {', '.join(study.servers)}", flush=True)
        yield running(study.servers)
        return
    rounds = study.servers.rounds()
    with Fleet(study.servers, directory) as fleet:
        for i, members in enumerate(rounds, 1):
            names = ", ".join(label(algorithm, k) for algorithm, k in members)
            print(f"round {i} of {len(rounds)}: {names}", flush=True)
            yield fleet.open(members)


@contextmanager
def _bar(name: str, total: int) -> Iterator[tqdm]:
    with tqdm(total=total, desc=name, unit="request", dynamic_ncols=True) as bar:
        yield bar


def _describe(contender: Contender, number: int) -> dict[str, Any]:
    states = contender.info.get("internal_states") or [{}]
    return {
        "round": number,
        "label": contender.label,
        "arguments": list(contender.command),
        "model": contender.info.get("model_path"),
        "dtype": contender.info.get("dtype"),
        "attention_backend": contender.info.get("attention_backend"),
        "memory": states[0].get("memory_usage"),
    }


def _rows(
    number: int,
    dataset: str,
    load: Load,
    measured: Sequence[Measured],
    launch: Launch | None,
    earlier: Sequence[Row],
    expected: dict[tuple[str, int], list[tuple[int, ...]]],
) -> list[Row]:
    """Return one Row for each server.

    Sets `expected` where this is the first run without speculation, and greedy.
    """
    which = dataset, len(load.questions)
    for side in measured:
        if side.contender.algorithm == NONE and load.sampling.get("temperature") == 0:
            expected.setdefault(which, [answer.output_ids for answer in flat(side)])
    rows = [_row(number, dataset, load, side, launch, expected.get(which)) for side in measured]
    same = [row for row in earlier if (row.dataset, row.concurrency) == (dataset, load.concurrency)]
    plain = next((row.tok_per_s for row in [*rows, *same] if row.algorithm == NONE), None)
    return [replace(row, speed_up=row.tok_per_s / plain) for row in rows] if plain else rows


def _row(
    number: int,
    dataset: str,
    load: Load,
    side: Measured,
    launch: Launch | None,
    expected: Sequence[tuple[int, ...]] | None,
) -> Row:
    answers = flat(side)
    simulated, floors = (launch.simulated, launch.floors) if launch else (None, {})
    contender, session = side.contender, side.contender.server.session
    accept_length, per_position = acceptance([answer.correct_drafts for answer in answers], contender.k)
    return Row(
        round=number,
        algorithm=contender.algorithm,
        k=contender.k,
        dataset=dataset,
        concurrency=load.concurrency,
        simulated=simulated.of(contender.algorithm, contender.k) if simulated and contender.k else None,
        requests=len(answers),
        output_tokens=sum(len(answer.output_ids) for answer in answers),
        tok_per_s=speed(side),
        speed_up=None,
        **latencies(answers),  # type: ignore[arg-type]
        accept_length=accept_length,
        accept_per_position=per_position,
        drafter_passes_per_step=side.drafter_passes_per_step,
        outputs_equal=None if simulated else share_equal(side, expected),
        memory_mib=peak_host_mib(session) if session else None,
        gpu_mib=gpu_mib(session) if session else None,
        categories=by_category(load.questions, side),
        drafter_ms=drafting_ms(side, load.concurrency),
        drafter_floor_ms=floors.get((contender.algorithm, contender.k)),
    )
