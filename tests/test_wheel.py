"""The wheel is enough: installed without the checkout, every command starts, and a head is trained and converted.

The environment is fresh but for its dependencies, which are those of this one (a .pth file: 11 GB are not installed
twice). Every process reports where its modules came from, and none may come from the checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tiny import tiny_target
from tiny_run import VOCAB_SIZE, make_tokenizer, run_options

ROOT = Path(__file__).parents[1]
COMMANDS = ("regenerate", "prepare", "extract", "train", "eval", "export", "convert", "inspect", "bench")
pytestmark = [pytest.mark.wheel, pytest.mark.slow]
# Loaded by every Python of the new environment: a module of the checkout ends the process.
WATCH = """
import atexit, os, sys
def look():
    files = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    mine = [f for f in files if f.startswith(os.environ["CHECKOUT"]) and "/site-packages/" not in f]
    if mine:
        print("from the checkout:", mine, file=sys.stderr, flush=True)
        os._exit(99)
atexit.register(look)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of what git knows, so that no build folder of the checkout is used or left."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = run(["git", "ls-files", "-co", "--exclude-standard"], ROOT).split()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(built), "."], source)
    return next(built.glob("peagle-*.whl"))


@pytest.fixture(scope="module")
def peagle(wheel, tmp_path_factory):
    """Install the wheel; return a function that runs the command `peagle` in an empty folder."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv/bin/python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home / "venv")}))
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", str(wheel)], home)
    (site / "watch.py").write_text(WATCH)
    # A line of a .pth file is a folder whose own .pth files, an editable install for one, do not count.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\nimport watch\n")
    work = home / "work"
    (work / "tools").mkdir(parents=True)  # like half of all repositories
    (work / "tools/convert.py").write_text("raise SystemExit('the tools of somebody else')")

    def call(*arguments: object, program: str = "peagle") -> str:
        return run([str(home / "venv/bin" / program), *map(str, arguments)], work)

    return call


def run(command: list[str], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment | {"CHECKOUT": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_carries_no_name_of_somebody_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "peagle", "peagle_core", "sglang_backend",
    }  # fmt: skip
    assert not [name for name in names if "demo" in name or "ablations" in name or "real_target" in name]
    for needed in ("trainer/configs/example.yaml", "trainer/export/model_card.md", "tools/bench/serve/page.html"):
        assert f"peagle/bundled/{needed}" in names
    for package in ("peagle", "peagle_core", "sglang_backend"):
        assert f"{package}/py.typed" in names


def test_every_command_starts(peagle):
    assert all(f"\n  {command} " in peagle("--help") for command in COMMANDS)
    for command in COMMANDS:
        text = peagle(command, "--help")
        assert text.startswith(f"usage: peagle {command}")
        assert "python -m t" not in text
    for bench in ("serve", "train", "step", "masks", "kernels"):
        assert peagle("bench", bench, "--help").startswith(f"usage: peagle bench {bench}")


def test_sglang_finds_the_plugin(peagle):
    found = (
        "from importlib.metadata import distribution; "
        "points = distribution('peagle').entry_points; "
        "print([point.load().__module__ for point in points if point.group.startswith('sglang')])"
    )
    assert peagle("-c", found, program="python") == "['sglang_backend.cpu', 'sglang_backend.plugin']\n"


def test_a_head_is_trained_and_converted(peagle, tmp_path):
    target, data, head = tmp_path / "target", tmp_path / "data.jsonl", tmp_path / "run/head"
    tiny_target(vocab_size=VOCAB_SIZE).save_pretrained(target)
    make_tokenizer().save_pretrained(target)
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there, what is the answer?" * 2}]
    data.write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(8)))
    tokens = tmp_path / "tokens"
    peagle("prepare", f"target={target}", f"data.train={data}", "data.max_length=64", "data.documents_per_shard=4",
           "data.workers=2", "--to", tokens)  # fmt: skip
    options = [
        f"data.train={tokens}" if o.startswith("data.train=") else o for o in run_options(target, data, head.parent)
    ]
    assert "acceptance length" in peagle("train", *options, f"data.heldout={data}")
    assert "no problems found" in peagle("inspect", head, "--target", target)
    peagle("convert", head, tmp_path / "converted", "--to", "speculators", "--target", target, "--check")
    assert "no problems found" in peagle("inspect", tmp_path / "converted")
