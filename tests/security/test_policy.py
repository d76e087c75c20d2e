"""A policy never fails open: what another reader of it would refuse is refused, and the machine's own policy holds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from podrun.errors import MALFORMED, WRONG_FILE, Failure
from podrun_hooks.image import commands, reference
from podrun_hooks.image.trust import policy, requirements
from support import image_builder as build

pytestmark = [pytest.mark.root, pytest.mark.server]

IMAGE = build.image(build.tar(build.file("a", b"a")))
REJECT, ANYTHING = [{"type": "reject"}], [{"type": "insecureAcceptAnything"}]
SIGNED = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}


def scoped(required: object, transport: str = "docker", scope: str = "a.example") -> str:
    return json.dumps({"default": ANYTHING, "transports": {transport: {scope: required}}})


#: Policies that accept what they were written to reject, for a reader who passes over what it does not know.
WRONG = {
    "transport": json.dumps({"default": ANYTHING, "transport": {"docker": {"": REJECT}}}),
    "Transports": json.dumps({"default": ANYTHING, "Transports": {"docker": {"": REJECT}}}),
    "no default": json.dumps({"transports": {"docker": {"": ANYTHING}}}),
    "an empty default": json.dumps({"default": []}),
    "an empty scope": scoped([]),
    "a scope that is null": scoped(None),
    "transports that are null": '{"default": [{"type": "insecureAcceptAnything"}], "transports": []}',
    "an unknown type": scoped([{"type": "rejekt"}]),
    "a type of another case": scoped([{"type": "Reject"}]),
    "a requirement with another key": scoped([{"type": "insecureAcceptAnything", "keyPath": "/k"}]),
    "two defaults": '{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
    "two scopes": '{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"a": [{"type": "reject"}],'
    ' "a": [{"type": "insecureAcceptAnything"}]}}}',
    "two types": '{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
    "two keys": scoped([{**SIGNED, "keyPaths": ["/k"]}]),
    "no key": scoped([{"type": "signedBy", "keyType": "GPGKeys"}]),
    "a misspelt key": scoped([{**SIGNED, "signedIdentiti": {"type": "matchExact"}}]),
    "an unknown identity": scoped([{**SIGNED, "signedIdentity": {"type": "matchAnything"}}]),
    "an identity that is null": scoped([{**SIGNED, "signedIdentity": None}]),
    "an identity with another key": scoped([{**SIGNED, "signedIdentity": {"type": "matchExact", "prefix": "a"}}]),
    "an identity that lacks one": scoped([{**SIGNED, "signedIdentity": {"type": "exactReference"}}]),
    "something behind it": '{"default": [{"type": "insecureAcceptAnything"}]} {}',
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_skopeo_refuses_to_read_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(Failure, match=r"is not a containers-policy\.json") as caught:
        policy.read(path.read_bytes(), str(path))
    assert caught.value.code == WRONG_FILE
    (tmp_path / "from").mkdir()
    argv = ["skopeo", "copy", "--policy", str(path), f"dir:{tmp_path}/from", f"dir:{tmp_path}/to"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert "policy" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (scoped(REJECT, transport="dokcer"), "unknown key 'dokcer'"),
        (scoped([{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": []}]), "keyPaths is not"),
        (scoped([{**SIGNED, "keyPath": "k"}]), "absolute"),
        ("[" * 100_000, "nested"),
    ],
)
def test_more_is_refused_that_could_only_be_meant_otherwise(text: str, said: str) -> None:
    with pytest.raises(Failure, match=said):
        policy.read(text.encode(), "p")


@pytest.mark.parametrize(
    "identity",
    [
        {"type": "matchExact"},
        {"type": "matchRepoDigestOrExact"},
        {"type": "matchRepository"},
        {"type": "exactReference", "dockerReference": "a.example/b:1"},
        {"type": "exactRepository", "dockerRepository": "a.example/b"},
        {"type": "remapIdentity", "prefix": "a.example", "signedPrefix": "b.example"},
    ],
)
def test_what_the_page_of_the_manual_has_is_read(identity: dict[str, str]) -> None:
    found = policy.read(scoped([{**SIGNED, "signedIdentity": identity}]).encode(), "p")
    assert found.requirements("docker", ["a.example"])[0]["signedIdentity"] == identity
    assert found.requirements("docker", ["b.example"]) == ANYTHING
    assert found.requirements("oci", ["a.example"]) == ANYTHING


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's policy; write it."""
    path = tmp_path / "machine.json"
    monkeypatch.setattr(requirements, "GLOBAL", str(path))
    return path


def oci(tmp_path: Path) -> str:
    return f"oci:{build.layout(str(tmp_path / 'layout'), {'web': IMAGE})}:web"


@pytest.mark.parametrize(("text", "code"), [(json.dumps({"default": REJECT}), MALFORMED), ("{", WRONG_FILE)])
def test_the_machines_policy_holds_for_every_image_and_an_error_in_it_is_a_refusal(
    tmp_path: Path, machine: Path, text: str, code: int
) -> None:
    image = oci(tmp_path)
    root = str(tmp_path / "root")
    commands.pull(root, image)
    machine.write_text(text)
    for ref in (image, "registry.example/web"):
        with pytest.raises(Failure) as caught:
            commands.pull(root, ref, policy="never")
        assert caught.value.code == code
        with pytest.raises(Failure):
            requirements.demands(None, reference.parse(ref))


def test_the_machine_itself_and_its_directories_are_no_images(machine: Path) -> None:
    machine.write_text(json.dumps({"default": REJECT}))
    assert requirements.demands(None, reference.parse("host:")) == []
    assert requirements.demands(None, reference.parse("dir:/srv/x")) == []


def test_a_policy_of_the_steps_own_stands_in_for_the_machines_and_a_key_adds_to_it(
    tmp_path: Path, machine: Path
) -> None:
    machine.write_text(json.dumps({"default": REJECT}))
    (tmp_path / "own.json").write_text(json.dumps({"default": ANYTHING}))
    named = reference.parse("registry.example/web")
    assert requirements.demands(requirements.Verify("", str(tmp_path / "own.json")), named) == []
    (tmp_path / "key").write_text("k")
    with pytest.raises(Failure, match="rejects it"):
        requirements.demands(requirements.Verify(str(tmp_path / "key"), ""), named)
