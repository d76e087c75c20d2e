"""TOML that has been parsed before is not parsed again, and nobody else can slip a result in."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from podrun.podfile import cache

TABLES = {"pod": {"name": "web"}, "chain": [{"hook": "image", "n": 1, "f": 0.5, "b": True}]}


def tables_of(place: Any, text: Any, tables: Any = TABLES) -> Any:
    """(the tables of a text, whether they had to be parsed)"""
    asked = []
    with cache.Results(str(place)) as results:
        found = results.of(text, lambda: asked.append(text) or tables)
    return found, bool(asked)


def test_a_text_is_parsed_once(tmp_path: Path) -> None:
    place = tmp_path / "parsed"
    assert tables_of(place, "text") == (TABLES, True)
    assert tables_of(place, "text") == (TABLES, False)
    assert tables_of(place, "text ") == (TABLES, True)


def test_nothing_is_kept_of_a_file_that_turns_out_wrong(tmp_path: Path) -> None:
    place = tmp_path / "parsed"
    with pytest.raises(ValueError), cache.Results(str(place)) as results:
        results.of("text", lambda: TABLES)
        raise ValueError
    assert not place.exists()


def test_what_is_made_of_the_tables_does_not_change_what_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "parsed"
    with cache.Results(str(place)) as results:
        results.of("text", lambda: {"a": {}})["a"]["b"] = 1
    assert tables_of(place, "text")[0] == {"a": {}}


def test_a_directory_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    place = tmp_path / "parsed"
    tables_of(place, "text")
    place.chmod(0o770)
    assert tables_of(place, "text")[1]
    tables_of(place, "other")
    assert len(list(place.iterdir())) == 1


def test_a_symlink_in_the_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    tables_of(tmp_path / "real", "text")
    (tmp_path / "parsed").symlink_to(tmp_path / "real")
    assert tables_of(tmp_path / "parsed", "text")[1]


def test_a_torn_result_is_parsed_anew(tmp_path: Path) -> None:
    place = tmp_path / "parsed"
    tables_of(place, "text")
    [file] = place.iterdir()
    file.write_text('{"a":')
    assert tables_of(place, "text") == (TABLES, True)
    assert tables_of(place, "text") == (TABLES, False)


def test_dates_are_not_kept(tmp_path: Path) -> None:
    when = {"when": datetime.date(2026, 1, 1)}
    assert tables_of(tmp_path / "parsed", "text", when) == (when, True)
    assert tables_of(tmp_path / "parsed", "text", when) == (when, True)


def test_forgetting_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "parsed"
    cache.forget(str(place))
    tables_of(place, "text")
    cache.forget(str(place))
    assert not place.exists()
