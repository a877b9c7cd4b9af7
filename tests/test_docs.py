"""What pages and scripts show exists: files, links, make targets, modules, options and configuration keys."""

from __future__ import annotations

import functools
import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest
from docs_commands import CODE_BLOCK, ROOT, RUN_BY, Command, commands, parse

from trainer.config import load_config

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("heads/*.md")])
SCRIPTS = sorted([*ROOT.glob("examples/*.sh"), *ROOT.glob("heads/*.sh")])
FOLDERS = "docs|examples|heads|peagle_core|sglang_backend|trainer|tools|tests"
COMMANDS = [command for page in (*PAGES, *SCRIPTS) for command in commands(page)]
names = functools.partial(pytest.mark.parametrize, ids=lambda path: str(path.relative_to(ROOT)))


@names("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    named = re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w)(?=[`\s):,;]|$)", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@names("page", PAGES)
def test_links_lead_somewhere(page):
    text = CODE_BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], link


def test_the_pages_show_commands():
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_can_be_given_as_it_is_shown(command):
    program, *arguments = command.words
    if program == "make":
        assert set(arguments) <= make_targets(), arguments
        return
    if program == "peagle":
        arguments = ["-m", program, *arguments]
    assert "-m" in arguments, "a program of ours is started as a module"
    at = arguments.index("-m") + 1
    if at == len(arguments):  # `python -m`, as a word
        return
    module, arguments = arguments[at], arguments[at + 1 :]
    if module.partition(".")[0] == "sglang":
        assert [option for option in arguments if option.startswith("--") and option not in sglang_options()] == []
    else:
        check_ours(command, module, arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.whole and c.words[0] != "make"], ids=str)
def test_a_test_runs_it_or_it_is_marked_as_needing_a_gpu(command):
    if command.what in RUN_BY:
        assert (ROOT / "tests" / RUN_BY[command.what]).is_file()
        return
    lines = command.page.read_text().splitlines()
    line = next(i for i, line in enumerate(lines) if " ".join(command.words[:3]) in line)
    assert "GPU" in "".join(lines[max(0, line - 4) : line + 5]), f"no test runs {command.what!r}"


def test_every_test_that_runs_commands_runs_one_that_is_shown():
    assert RUN_BY.keys() <= {command.what for command in COMMANDS if command.whole}


def check_ours(command: Command, module: str, arguments: list[str]) -> None:
    """Fail unless the module exists, its options do, and, for the trainer, keys and values are what it takes."""
    assert importlib.util.find_spec(module)
    if module == "pytest" or (len(arguments) < 2 and not command.whole):
        return
    try:
        parsed = parse(module, arguments)
    except ValueError as error:
        assert not command.whole and "required" in str(error), error
        return
    config, overrides = getattr(parsed.options, "config", None), getattr(parsed.options, "overrides", [])
    if hasattr(parsed.options, "overrides"):
        config = ROOT / config if config and (ROOT / config).exists() else None
        keys = [key for key in (*overrides, *parsed.more) if not key.startswith(("data.train=", "data.heldout="))]
        load_config(config, [*([] if config else ["target=T"]), *keys], needs_data=False)  # without the reader's files
    else:
        assert parsed.more == []


def make_targets() -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    return {*phony[1].split(), ".venv-vllm/.installed"}


@functools.cache
def sglang_options() -> set[str]:
    """Return SGLang's options, read off the fields in its sources: importing them takes half a minute."""
    spec = importlib.util.find_spec("sglang")
    assert spec and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "srt"
    sources = [folder / "server_args.py", *folder.glob("arg_groups/**/*.py")]
    fields = {name for path in sources for name in re.findall(r"^ {4}(\w+):", path.read_text(), re.MULTILINE)}
    return {"--" + field.replace("_", "-") for field in fields} | {"--tp-size"}


@names("page", PAGES)
def test_lists_and_tables_stand_apart(page):
    """The site's Markdown wants an empty line before a list or a table; GitHub's does not."""
    lines = CODE_BLOCK.sub("", page.read_text()).splitlines()
    begins = re.compile(r"([-*] |\d+\. |\|)")
    wrong = [line for before, line in pairwise(lines)
             if begins.match(line) and before.strip() and not begins.match(before) and before[0] != " "]  # fmt: skip
    assert wrong == []


def test_the_readme_is_one_screen():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
