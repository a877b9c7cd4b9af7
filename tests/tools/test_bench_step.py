"""`python -m tools.bench step` on a tiny configuration: every way is timed and its gradients are those of float32."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_target

from tools.bench.__main__ import main


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    directory = tmp_path_factory.mktemp("target")
    tiny_target().config.save_pretrained(directory)
    return f"target={directory}"


def measured(arguments, path):
    assert main(["step", *arguments, "--rounds", "1", "--json", str(path)]) == 0
    return json.loads(path.read_text())["rows"]


@pytest.mark.parametrize(
    ("options", "bound"),
    [(["device=cpu"], 1e-5), (["device=cpu", "precision=bf16"], 0.05), (["device=cpu", "algorithm=eagle3"], 1e-5)],
)
def test_every_way_has_the_gradients_of_float32(target, options, bound, tmp_path, capsys):
    rows = measured([target, *options, "--lengths", "12,24"], tmp_path / "rows.json")
    modes = {row["way"].split(",")[0] for row in rows}
    assert modes == {"flat", "stream"} | (set() if "algorithm=eagle3" in options else {"partition"})
    assert {row["length"] for row in rows} == {12, 24}
    printed = capsys.readouterr().out
    for row in rows:
        assert row["seconds"] > 0 and row["estimate"] > 0
        assert row["error"] < bound, row
        assert row["way"] in printed
    assert rows[-1]["elements"] > rows[0]["elements"] > 12


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lengths", "ten"], 1, "numbers, comma separated"),
        (["--lengths", "2"], 1, "at least 4"),
        (["--rounds", "0"], 1, "at least 1"),
        (["optim.lrr=1"], 2, "lrr"),
    ],
)
def test_bad_arguments(target, arguments, code, message, capsys):
    assert main(["step", target, *arguments]) == code
    assert message in capsys.readouterr().err
