"""Install speculators 0.9.0 into an environment of its own when it is first needed.

The training benchmark races its training step, and tests/judges compares its logits with ours.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from peagle_core.errors import InputError

NAME = "speculators 0.9.0"
DIRECTORY = Path(".venv-speculators")
STEP_WORKER = Path(__file__).with_name("workers") / "speculators_steps.py"
# In this order: its own requirements would pull a GPU build of torch and a server.
INSTALLS = (
    ["torch==2.13.0"],
    ["--no-deps", "speculators==0.9.0", "hs-connectors==0.9.0"],
    ["numpy", "transformers<5.16", "pydantic", "pydantic-settings", "safetensors", "huggingface-hub", "tqdm", "rich",
     "loguru", "httpx", "click", "typer", "openai", "datasets<=5.1.0"],
)  # fmt: skip


def is_installed() -> bool:
    return (DIRECTORY / "installed").is_file()


def python(directory: Path = DIRECTORY) -> Path:
    """Return the interpreter of that environment, which is built first if it is not there (minutes, some gigabytes).

    Raises InputError when the installation fails.
    """
    interpreter = directory / "bin" / "python"
    ready = directory / "installed"
    if ready.is_file():
        return interpreter
    print(f"installing {NAME} into {directory} ...", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        for packages in INSTALLS:
            subprocess.run([str(interpreter), "-m", "pip", "install", "-q", *packages], check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"{directory}: could not install {NAME} ({error}); leave the peer out with --no-peer"
        ) from None
    ready.write_text(NAME + "\n")
    return interpreter
