"""The examples do what they say: `algorithm.py` runs and learns; `train_and_serve.sh` is a script that bash reads."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_algorithm_on_one_screen(capsys):
    runpy.run_path(str(ROOT / "examples/algorithm.py"), run_name="__main__")  # asserts that the output is the target's
    text = capsys.readouterr().out
    assert "* (5,3)   x   x   x   x   .   x   x   x   x   x   .   ." in text
    (early_loss, early), (late_loss, late) = re.findall(r"loss ([\d.]+), ([\d.]+) tokens", text)
    assert float(late_loss) < 0.2 < 1 < float(early_loss)
    assert float(early) < 2 and 3 < float(late) <= 5


def test_the_pipeline_is_a_script():
    subprocess.run(["bash", "-n", ROOT / "examples/train_and_serve.sh"], check=True)
