"""The page of every step's keys is what the hooks declare today."""

from __future__ import annotations

import importlib.util

from support.launcher import HERE

DOCS = HERE.parent / "docs"


def test_the_page_is_what_the_hooks_declare() -> None:
    spec = importlib.util.spec_from_file_location("docs_keys", DOCS / "keys.py")
    assert spec and spec.loader
    keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keys)
    assert keys.PAGE.read_text() == keys.page(), "python docs/keys.py writes it"
