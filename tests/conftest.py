"""At the end of a test run: a line for every parity case, and for every reason to skip others."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.getreports("skipped")
    others = {str(r.longrepr[2]) for r in skipped if "test_parity.py" not in r.nodeid}
    for reason in sorted(others):
        terminalreporter.write_line(reason)
    rows = []
    for outcome in ("passed", "skipped", "failed"):
        for report in terminalreporter.getreports(outcome):
            name = report.nodeid.rpartition("[")[2].rstrip("]")
            if "test_parity.py::test_parity[" not in report.nodeid:
                continue
            if outcome == "passed" and report.when == "call":
                rows.append((name, "passed"))
            elif outcome == "skipped":
                rows.append((name, str(report.longrepr[2]).removeprefix("Skipped: ")))
            elif outcome == "failed":
                last = str(report.longrepr).strip().splitlines()[-1]
                rows.append((name, last if "not matched" in last else f"not matched: {last}"))
    if rows:
        terminalreporter.section("parity with published code")
    for name, text in sorted(rows):
        terminalreporter.write_line(f"{name or 'all cases'}: {text}")
