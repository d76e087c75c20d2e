"""The page of published vulnerabilities: each row names a test that exists."""

from __future__ import annotations

import ast
import re

import pytest

from support.launcher import HERE

PAGE = HERE.parent / "docs/explanation/vulnerabilities.md"
ROWS = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_class_of_vulnerabilities_has_numbers_and_a_test(row: list[str]) -> None:
    _, numbers, here, named = row
    assert re.search(r"CVE-\d{4}-\d{4,}", numbers)
    assert here
    file, _, name = named.strip("`").partition("::")
    tree = ast.parse((HERE.parent / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_engine_that_the_page_speaks_of_is_in_it() -> None:
    numbers = " ".join(row[1] for row in ROWS)
    assert all(f"({name}" in numbers or f", {name}" in numbers for name in PEERS), numbers


PEERS = ("runc", "crun", "podman", "buildah", "containerd", "docker", "CNI")
