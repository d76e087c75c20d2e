"""Tests marked ``systemd``, ``qemu`` or ``hybrid`` run on a booted host of their own, all of a kind in one boot.

Outside, such a test is not run: what pytest in the guest reports of it is reported here, as if it had run here. Inside
(PODRUN_TEST_REPORTS says where to) every report goes out as a line of JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from support.systemd_host import Boot, Broken, missing

REPORTS = os.environ.get("PODRUN_TEST_REPORTS")
#: Seconds without a word of the guest, per kind: the building of the image is not in it, the boot is.
PATIENCE = {"nspawn": 120.0, "qemu": 300.0, "hybrid": 300.0}
_MARKERS = {"systemd": "nspawn", "qemu": "qemu", "hybrid": "hybrid"}


def kind_of(item: pytest.Item) -> str:
    """Where a test wants to run: "nspawn", "qemu", "hybrid" (qemu with cgroup v1), or "" for here.

    By its markers alone: among its keywords are the names of its folders.
    """
    return next((kind for marker, kind in _MARKERS.items() if item.get_closest_marker(marker)), "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REPORTS:
        return
    for item in items:
        kind = kind_of(item)
        if not kind:
            continue
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="booting a host needs root"))
        elif lacking := missing(kind):
            item.add_marker(pytest.mark.skip(reason=f"booting a host needs {', '.join(lacking)}"))


# --- outside --------------------------------------------------------------------------------------------------------


class _Guest:
    """One boot and what it has reported so far, by test."""

    def __init__(self, config: pytest.Config, kind: str, tests: list[str]) -> None:
        self.config = config
        self.reports: dict[str, list[Any]] = {}
        self.done: set[str] = set()
        self.wrong = ""
        try:
            self.boot: Boot | None = Boot(kind, tests).__enter__()
            self.lines: Iterator[str] = self.boot.lines(PATIENCE[kind])
        except Broken as error:
            self.boot = None
            self.wrong = str(error)

    def of(self, nodeid: str) -> list[Any]:
        """The reports of a test: waits until it has run."""
        while nodeid not in self.done and not self.wrong:
            try:
                told = json.loads(next(self.lines))
            except Broken as error:
                self.wrong = str(error)
            except ValueError:
                continue
            else:
                self._take(told)
        return self.reports.get(nodeid, [])

    def _take(self, told: dict[str, Any]) -> None:
        if "over" in told:
            self.wrong = f"the tests in the guest are over (pytest ended with {told['over']}) without this one"
        elif "done" in told:
            self.done.add(told["done"])
        else:
            report = self.config.hook.pytest_report_from_serializable(config=self.config, data=told)
            if report is not None:
                self.reports.setdefault(report.nodeid, []).append(report)

    def close(self) -> None:
        if self.boot:
            self.boot.__exit__()


_guests: dict[str, _Guest] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    kind = kind_of(item)
    if REPORTS or not kind or item.get_closest_marker("skip"):
        return None
    if kind not in _guests:
        wanted = [other.nodeid for other in item.session.items if kind_of(other) == kind]
        _guests[kind] = _Guest(item.config, kind, wanted)
    guest = _guests[kind]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = guest.of(item.nodeid)
    if guest.wrong and item.nodeid not in guest.done:
        reports = [pytest.TestReport(item.nodeid, item.location, {kind: 1}, "failed", f"{kind}: {guest.wrong}", "call")]
    for report in reports:
        if report.when == "call" and item.get_closest_marker("prove"):
            print(report.capstdout, flush=True)  # its figures: what is proved by hand runs with -s
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # What the test before this one has left set up for it: the module, where that one ran here.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def pytest_sessionfinish() -> None:
    while _guests:
        _guests.popitem()[1].close()


# --- inside ---------------------------------------------------------------------------------------------------------


def _tell(told: dict[str, Any]) -> None:
    if REPORTS:
        with open(REPORTS, "a") as file:
            file.write(json.dumps(told, default=str) + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if REPORTS:
        _tell(_config.hook.pytest_report_to_serializable(config=_config, report=report))


def pytest_runtest_logfinish(nodeid: str) -> None:
    _tell({"done": nodeid})


def pytest_configure(config: pytest.Config) -> None:
    global _config
    _config = config


_config: pytest.Config
