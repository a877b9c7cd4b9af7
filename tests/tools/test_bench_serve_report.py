"""The serving benchmark without servers: turns, numbers, steps of an answer, files and the page."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from peagle_core.errors import InputError
from tools.bench.__main__ import main
from tools.bench.serve import load
from tools.bench.serve.client import Answer, Chunk
from tools.bench.serve.contenders import Contender
from tools.bench.serve.datasets import Question
from tools.bench.serve.load import Load, Measured, take_turns
from tools.bench.serve.metrics import CategoryRow, Row, acceptance, by_category, latencies, share_equal, speed
from tools.bench.serve.page import write_page
from tools.bench.serve.pictures import draw
from tools.bench.serve.results import Results, best
from tools.bench.serve.samples import Sample, ShownStep, cut
from tools.bench.serve.table import text_table, write_csv, write_json

SPEED_UP = {"none": 1.0, "EAGLE3": 1.5, "PEAGLE": 1.8}


def answer(tokens: list[int], chunks: list[int], histogram: tuple[int, ...] = ()) -> Answer:
    """An answer to a prompt of 10 tokens; chunks: tokens so far, 0.1 s each."""
    came = tuple(Chunk(0.1 * (i + 1), so_far) for i, so_far in enumerate(chunks))
    return Answer(tuple(range(10)), tuple(tokens), came, histogram, "length", None)


def row(round_: int, algorithm: str, k: int, concurrency: int, dataset: str = "d") -> Row:
    """EAGLE3 is fastest at K=3 and PEAGLE at K=7, alone; the other way round at 4."""
    ratio = SPEED_UP[algorithm]
    if k:
        ratio += k / 100 if (algorithm == "PEAGLE") == (concurrency == 1) else -k / 100
    shares = [0.5**i for i in range(1, k + 1)]
    parts = {"x": CategoryRow(4, 9.0, 2.0), "y": CategoryRow(4, 8.0, 1.5)}
    passes = {"none": None, "EAGLE3": None, "PEAGLE": 1.0}[algorithm]
    return Row(
        round_, algorithm, k, dataset, concurrency, None, 8, 800, ratio * 100, ratio, 50.0, 80.0, 10.0, 12.0,
        1 + sum(shares), shares, passes, 1.0, 1000.0, None, parts,
    )  # fmt: skip


def results(samples: list[Sample] | None = None) -> Results:
    members = [("none", 0), ("EAGLE3", 3), ("PEAGLE", 3)], [("none", 0), ("EAGLE3", 7), ("PEAGLE", 7)]
    rows = [
        row(i, algorithm, k, concurrency)
        for i, of in enumerate(members, 1) for concurrency in (1, 4) for algorithm, k in of
    ]  # fmt: skip
    machine = {"cpu": "a CPU", "cores": 2, "gpu": None, "system": "Linux"}
    return Results("tiny <model>", None, machine, {"sglang": "1"}, [], rows, samples or [])


def test_acceptance_counts_steps_by_their_correct_drafts():
    assert acceptance([[1, 0, 2, 1]], 3) == (2.75, [0.75, 0.75, 0.25])
    assert acceptance([[1], [0, 0, 0, 1]], 3) == (2.5, [0.5, 0.5, 0.5])
    assert acceptance([[], ()], 3) == (1.0, [])


def test_numbers_of_a_server_come_from_its_answers():
    answers = [[answer([1, 2, 3], [1, 3], (0, 1))], [answer([4, 5], [1, 2], (1,))]]
    side = Measured(Contender("PEAGLE", 1, SimpleNamespace()), answers, 0.5, None)
    assert speed(side) == 10
    assert share_equal(side, [(1, 2, 3), (4, 6)]) == 0.5
    assert share_equal(side, None) is None
    found = latencies([turns[0] for turns in answers])
    assert found["ttft_ms"] == pytest.approx(100)
    assert found["itl_ms"] == pytest.approx(75)  # 50 ms in one answer, 100 in the other
    questions = [Question("d", "x", ("a",)), Question("d", "y", ("b",))]
    parts = by_category(questions, side)
    assert (parts["x"].accept_length, parts["y"].accept_length) == (2.0, 1.0)
    assert parts["x"].tok_per_s == pytest.approx(15)


def test_each_sides_best_is_compared():
    alone, four = best(results().rows)
    assert (alone["EAGLE3"]["k"], alone["PEAGLE"]["k"]) == (3, 7)
    assert (four["EAGLE3"]["k"], four["PEAGLE"]["k"]) == (7, 3)
    assert alone["ratio"] == pytest.approx(1.87 / 1.47)


def test_an_answer_is_cut_where_its_steps_ended():
    drafts = {11: (2, 9, 9), 13: (4, 5, 6), 17: (7, 7, 7)}
    taken = cut(answer([1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 7, 8], (1, 1, 0, 1)), drafts)
    assert [step.tokens for step in taken] == [(1,), (2, 3), (4, 5, 6, 7), (8,)]
    assert [step.accepted for step in taken] == [0, 1, 3, 0]
    assert [step.drafted for step in taken] == [None, (2, 9, 9), (4, 5, 6), (7, 7, 7)]


def test_a_last_step_that_the_limit_cut_off_has_no_token_of_the_targets_own():
    taken = cut(answer([1, 2, 3, 4, 5], [1, 3, 5], (0, 1, 0, 1)), {13: (4, 5, 6)})
    assert [step.accepted for step in taken] == [0, 1, 2]  # of the last step's 3 correct drafts two were wanted
    assert taken[-1].drafted == (4, 5)  # the third was not refused
    assert cut(answer([1], [1]), {})[0].tokens == (1,)


class Recorder:
    """Stands for a server: notes whose turn it is. It tells no metrics."""

    status_code = 404

    def __init__(self, name: str, turns: list[tuple[str, int, int]]) -> None:
        self.name, self.turns, self.steps = name, turns, 0
        self.http = SimpleNamespace(base_url=f"http://{name}", get=lambda path: self)

    def flush_cache(self) -> None:
        self.turns.clear()  # what was asked before is the warm-up

    def json(self) -> dict:
        return {"internal_states": [{"peagle": {"decode_steps": self.steps, "decode_drafter_passes": self.steps}}]}


class Echo:
    """Stands for a prompt writer: a turn's prompt is the question's number and the number of answers so far."""

    def turns(self, question: Question) -> int:
        return len(question.turns)

    def write(self, question: Question, answers: list[str]) -> list[int]:
        return [int(question.turns[0]), len(answers)]

    def text(self, ids: tuple[int, ...]) -> str:
        return str(ids)


def test_servers_take_turns_and_hold_every_conversation_in_order(monkeypatch):
    monkeypatch.setattr(Load, "block", 2)
    turns: list[tuple[str, int, int]] = []
    servers = {name: Recorder(name, turns) for name in ("n", "e", "p")}

    async def ask(http, prompt, sampling):
        name = http.base_url.host
        turns.append((name, *prompt))
        servers[name].steps += 2
        return answer([prompt[0]] * sampling["max_new_tokens"], [1, 4])

    monkeypatch.setattr(load, "ask", ask)
    sides = [Contender(name, 0, server) for name, server in servers.items()]
    questions = [Question("d", "d", (str(i), "more")) for i in range(3)]
    count: list[int] = []
    measured = take_turns(sides, Load(questions, Echo(), {"max_new_tokens": 4}, 1), lambda: count.append(1))
    blocks = [[(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 0), (2, 1)]]
    assert turns == [(name, *asked) for block in blocks for name in servers for asked in block]
    assert len(count) == 18
    for side in measured:
        assert [[a.output_ids for a in held] for held in side.answers] == [[(i,) * 4] * 2 for i in range(3)]
        assert side.seconds > 0
        assert side.drafter_passes_per_step == 1.0


def test_files_hold_every_row(tmp_path):
    found = results()
    write_json(tmp_path / "results.json", found)
    write_csv(tmp_path / "results.csv", found.rows)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [r["tok_per_s"] for r in stored["rows"]] == [r.tok_per_s for r in found.rows]
    assert stored["best"] == best(found.rows)
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * len(found.rows)
    of_peagle = [line for line in lines if line["algorithm"] == "PEAGLE" and line["concurrency"] == "1"][:3]
    assert [line["category"] for line in of_peagle] == ["all", "x", "y"]
    assert (of_peagle[0]["accepted_2"], of_peagle[2]["accept_length"], of_peagle[2]["k"]) == ("0.25", "1.5", "3")
    text = text_table(found)
    assert "d, 1 at a time: PEAGLE at its best K=7 is 1.27 times as fast as EAGLE3 at its best K=3" in text
    assert sum("100%" in line for line in text.splitlines()) == len(found.rows)


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    shown = [
        ShownStep(["<b>"], 0, []),
        ShownStep(["two", "\n", "own"], 2, ["no"]),
        ShownStep(["all"] * 4, 3, []),
    ]
    found = results([Sample("d", "x", "why <i>?", "PEAGLE", 3, 3.0, shown)])
    write_page(tmp_path / "report.html", found, draw(found, tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|https?://', page)
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "tiny &lt;model&gt;" in page and "why &lt;i&gt;?" in page and "&lt;b&gt;" in page
    for kind, text in (("first", "&lt;b&gt;"), ("a1", "two"), ("own", "own"), ("bonus", "all")):
        assert f'<span class="t {kind}">{text}</span>' in page
    assert "<s>no</s>" in page
    for name in ("speed", "acceptance", "concurrency"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_simulated_acceptance_is_said_everywhere(tmp_path):
    found = results()
    found = replace(found, simulated="2.5", rows=[replace(r, simulated=2.5 if r.k else None) for r in found.rows])
    write_page(tmp_path / "report.html", found, draw(found, tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "Nothing was verified" in page
    assert page.count("(simulated 2.5)") == text_table(found).count("(simulated 2.5)") == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "say --target DIRECTORY"),
        (["--url", "http://x", "--target", "t"], "--url measures servers that run already"),
        (["--target", "nowhere"], "it has no config.json"),
        (["--url", "http://127.0.0.1:9"], "no SGLang server answers at http://127.0.0.1:9"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(capsys, options, said):
    assert main(["serve", "--data", "d.jsonl", *options]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_one_data_set_given_twice_must_be_named(tmp_path):
    from tools.bench.serve.command import read_datasets

    (tmp_path / "q.jsonl").write_text('{"prompt": "a"}\n')
    path = str(tmp_path / "q.jsonl")
    with pytest.raises(InputError, match="two data sets are called 'q'"):
        read_datasets([path, path], None, 1)
    assert list(read_datasets([path, f"other={path}"], None, 1)) == ["q", "other"]
