"""Code questions made of the Python standard library, whose source every machine has.

The files are parsed, not imported. A function with a docstring gives a request to write it, or, where it is short, a
request to explain it; which one depends on its name alone, so every machine with this Python makes the same questions.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

# Folders whose functions say nothing to somebody who asks about Python.
LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "__pycache__", "turtledemo")
LONGEST_SOURCE, SHORTEST_DOC, LONGEST_DOC = 700, 40, 500  # characters

Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_questions(library: Path | None = None) -> Iterator[str]:
    """Yield one question per documented public function, in the order of paths and lines.

    library: the folder to read; default: the standard library of the running Python.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if any(part in LEFT_OUT or part.startswith("_") for part in parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, UnicodeDecodeError, SyntaxError):
            continue  # a broken or foreign file is no question
        for node in ast.walk(tree):
            if isinstance(node, Function) and not node.name.startswith("_"):
                question = _question(node, source, ".".join(parts).removesuffix(".py"))
                if question is not None:
                    yield question


def _question(function: Function, source: str, module: str) -> str | None:
    doc = (ast.get_docstring(function) or "").strip()
    first = " ".join(doc.split("\n\n")[0].split())
    if not SHORTEST_DOC <= len(first) <= LONGEST_DOC:
        return None
    arguments = [a.arg for a in function.args.posonlyargs + function.args.args if a.arg not in ("self", "cls")]
    signature = f"{function.name}({', '.join(arguments)})"
    code = ast.get_source_segment(source, function) or ""
    choice = crc32(f"{module}.{function.name}".encode()) % 4
    if choice == 0 and len(code) <= LONGEST_SOURCE:
        return f"What does this Python function do?\n\n```python\n{code}\n```"
    if choice == 1:
        return f"Write a short example in Python that shows how `{function.name}` of the module `{module}` is used."
    return f"Write a Python function `{signature}`. {first}"
