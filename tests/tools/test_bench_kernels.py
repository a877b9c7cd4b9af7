"""`python -m tools.bench kernels` from end to end at toy shapes, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tools.bench.__main__ import main


@pytest.mark.slow
def test_toy_shapes(tmp_path):
    pytest.importorskip("triton")
    path = tmp_path / "kernels.json"
    command = [sys.executable, "-m", "tools.bench", "kernels", "--toy", "--slots", "12", "--json", str(path)]
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(path.read_text())["rows"]
    done = {(row["what"], row["how"]) for row in rows}
    for how in ("triton", "triton deterministic", "torch backend", "SDPA, dense mask"):
        assert {("attention forward", how), ("attention backward", how)} <= done
    assert {("distillation chunk", "triton"), ("distillation chunk", "torch")} <= done
    tolerance = 0.02 if torch.cuda.is_available() else 1e-5
    for row in rows:
        assert row["error"] < tolerance, row
        assert row["ms"] > 0
        assert row["over_floor"] == pytest.approx(row["ms"] / row["floor_ms"])


@pytest.mark.skipif(torch.cuda.is_available() or bool(os.environ.get("TRITON_INTERPRET")), reason="the kernels can run")
def test_without_a_gpu_it_says_so(capsys):
    assert main(["kernels"]) == 1
    assert "need a CUDA device" in capsys.readouterr().err
