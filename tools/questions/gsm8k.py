"""Word problems of GSM8K (MIT, https://github.com/openai/grade-school-math) or any file of the same form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from peagle_core.errors import InputError


def gsm8k_questions(path: Path) -> Iterator[str]:
    """Yield the `question` of every line of a JSON-lines file. Raises InputError naming the first line without one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)["question"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}:{number}: is no JSON object with a 'question'") from None
