"""The JSON Schema of the pod file: it accepts what podrun accepts, and completes what it knows."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import jsonschema
import pytest

from podrun.engine import hook_loader
from podrun.errors import Failure
from podrun.options import TEXT, choice, option
from podrun.podfile import loader
from podrun.podfile.jsonschema import schema
from podrun.record import NamedTuple
from support.podfile_fakes import HOOKS, fake, load_hook

RIGHT = [
    'chain = [ { hook = "image", ref = "x" }, { hook = "container" } ]',
    """
    [pod]
    name = "web"
    stop_timeout = 20
    type = "job"
    [[chain]]
    hook = "image"
    ref = "x"
    background = true
    [[chain]]
    hook = "storage"
    target = "/data"
    for = ["app"]
    optional = true
    timeout = "3s"
    [[chain]]
    hook = "exec:/opt/metrics"
    own = { keys = [1, 2.5, "x"] }
    [[chain]]
    hook = "container"
    name = "app"
    env = { A = "1" }
    user = 1000
    memory = "256M"
    ready.port = 80
    [service]
    Nice = 5
    Environment = ["A=1"]
    """,
    """
    [pod]
    name = "${NAME}"
    [[chain]]
    hook = "${HOOK}"
    ref = "x"
    [[chain]]
    hook = "image"
    ref = "${REF}"
    pull = "${PULL}"
    [[chain]]
    hook = "storage"
    target = "${WHERE}"
    """,
]
VARIABLES = {"NAME": "web", "HOOK": "image", "REF": "x", "PULL": "always", "WHERE": "/x"}
WRONG = [
    "",
    "chain = []",
    "chain = [ {} ]",
    'chain = [ "image" ]',
    'chains = [ { hook = "container" } ]',
    'chain = [ { hook = "imag" } ]',
    'chain = [ { hook = "image" } ]',
    'chain = [ { hook = "image", ref = 5 } ]',
    'chain = [ { hook = "image", ref = "x", pull = "often" } ]',
    'chain = [ { hook = "container", comand = [] } ]',
    'chain = [ { hook = "container", name = "a/b" } ]',
    'chain = [ { hook = "container", optional = "yes" } ]',
    'chain = [ { hook = "container", ready = { port = 70000 } } ]',
    'chain = [ { hook = "storage", target = "data" } ]',
    'pod = { name = "a/b" }\nchain = [ { hook = "container" } ]',
    'pod = { nam = "a" }\nchain = [ { hook = "container" } ]',
    'pod = { type = "cron" }\nchain = [ { hook = "container" } ]',
    'service = 5\nchain = [ { hook = "container" } ]',
    'service = { "a b" = 5 }\nchain = [ { hook = "container" } ]',
    'service = { A = { b = 1 } }\nchain = [ { hook = "container" } ]',
]


@pytest.fixture(scope="module")
def validator() -> Any:
    whole = schema(HOOKS)
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


@pytest.mark.parametrize("text", RIGHT)
def test_what_podrun_accepts_is_valid(validator: Any, text: Any) -> None:
    tables = tomllib.loads(text)
    loader.from_tables(tables, load_hook=load_hook, name="web", environ=VARIABLES)
    validator.validate(tables)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_of_a_wrong_shape_is_refused_by_both(validator: Any, text: Any) -> None:
    tables = tomllib.loads(text)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(tables)
    with pytest.raises(Failure):
        loader.from_tables(tables, load_hook=load_hook, name="web")


def test_the_schema_is_json_and_documents_every_key() -> None:
    whole = json.loads(json.dumps(schema(HOOKS)))
    step = whole["$defs"]["step"]
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert all(part["description"] for part in whole["properties"].values())
    assert all(part["description"] for part in step["properties"].values())
    image = step["allOf"][list(HOOKS).index("image")]
    assert image["if"]["properties"]["hook"] == {"const": "image"}
    assert image["then"]["properties"]["pull"]["description"] == "when to fetch it"


class Odd(NamedTuple):
    pattern: str = option(choice("a", "b"), "a key that JSON Schema knows, too", "a")
    enum: str = option(TEXT, "another", "")
    properties: str = option(TEXT, "a third", "")


def test_a_hook_may_have_keys_that_json_schema_knows() -> None:
    validator = jsonschema.Draft202012Validator(schema({"odd": fake(Odd), "step": fake(None)}))
    validator.validate({"chain": [{"hook": "odd", "pattern": "b", "enum": "x", "properties": "y"}]})
    validator.validate({"chain": [{"hook": "step", "any": 1}]})
    assert not validator.is_valid({"chain": [{"hook": "odd", "pattern": "c"}]})


def test_the_first_party_hooks_make_a_valid_schema() -> None:
    hooks = {name: hook_loader.load(name) for name in hook_loader.FIRST_PARTY}
    jsonschema.Draft202012Validator.check_schema(schema(hooks))
