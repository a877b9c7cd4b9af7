from __future__ import annotations

import table


def pytest_terminal_summary(terminalreporter) -> None:
    for line in table.lines():
        terminalreporter.write_line(line)
