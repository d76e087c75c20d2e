"""Policies (containers-policy.json(5)) that need no signature: what they accept, reject, and which scope counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks import image as hook
from podrun_hooks.image import commands, reference
from podrun_hooks.image.trust import requirements
from podrun_hooks.image.trust.requirements import Verify
from support.image_samples import step
from support.image_servers import Faulty
from support.image_trust import ANYTHING, IMAGE, REJECT, policy
from support.launcher import Podrun

pytestmark = [pytest.mark.root, pytest.mark.server]


def test_a_policy_that_accepts_anything_lets_it_pass(root: str, tmp_path: Path, server: Faulty) -> None:
    found = commands.pull(root, f"{server.host}/web", verify=policy(tmp_path, ANYTHING))
    assert found.digest == IMAGE.digest


def test_what_a_policy_rejects_is_not_even_asked_for(root: str, tmp_path: Path, server: Faulty) -> None:
    with pytest.raises(Failure, match="rejects it") as caught:
        commands.pull(root, f"{server.host}/web", verify=policy(tmp_path, REJECT))
    assert caught.value.code == MALFORMED
    assert server.seen == []


def test_an_image_that_is_stored_is_rejected_all_the_same(root: str, tmp_path: Path, server: Faulty) -> None:
    commands.pull(root, f"{server.host}/web")
    path = policy(tmp_path, REJECT).policy
    table = {"cosign_key": "", "policy": path}
    with pytest.raises(Failure, match="rejects it"):
        hook.up(step(Path(root), f"{server.host}/web", verify=Verify(**table)), {})
    [problem] = hook.check(step(Path(root), f"{server.host}/web", verify=Verify(**table)))
    assert problem.code == MALFORMED


@pytest.mark.parametrize(
    ("scopes", "accepted"),
    [
        ({}, False),
        ({"": ANYTHING}, True),
        ({"registry.example": ANYTHING}, True),
        ({"registry.example": REJECT, "registry.example/team": ANYTHING}, True),
        ({"registry.example/team": REJECT, "registry.example/team/web": ANYTHING}, True),
        ({"registry.example/team/web": REJECT, "registry.example/team/web:1": ANYTHING}, True),
        ({"registry.example/team/web:1": REJECT, "registry.example": ANYTHING}, False),
        ({"registry.example/team/we": ANYTHING}, False),
        ({"registry.example/tea": ANYTHING}, False),
        ({"*.example": ANYTHING}, True),
        ({"*.example": ANYTHING, "registry.example": REJECT}, False),
        ({"*.other": ANYTHING}, False),
    ],
)
def test_the_most_specific_scope_of_a_policy_counts(tmp_path: Path, scopes: dict[str, Any], accepted: bool) -> None:
    named = reference.parse("registry.example/team/web:1")
    asked = policy(tmp_path, REJECT, docker=scopes)
    if accepted:
        assert requirements.demands(asked, named) == []
    else:
        with pytest.raises(Failure, match="rejects it"):
            requirements.demands(asked, named)


@pytest.mark.parametrize(
    ("ref", "scopes", "accepted"),
    [
        ("oci:/srv/images:web", {"/srv": ANYTHING}, True),
        ("oci:/srv/images:web", {"/srv/images:web": REJECT, "/srv": ANYTHING}, False),
        ("oci:/srv/images:web", {"": ANYTHING}, True),
        ("dir:/srv/rootfs", {"": ANYTHING}, True),
        ("host:", {"": ANYTHING}, True),
        ("docker-daemon:web", {"": ANYTHING}, True),
        ("oci:/srv/images:web", {}, False),
    ],
)
def test_local_images_have_scopes_too(tmp_path: Path, ref: str, scopes: dict[str, Any], accepted: bool) -> None:
    named = reference.parse(ref)
    asked = policy(tmp_path, REJECT, **{named.kind: scopes})
    if accepted:
        assert requirements.demands(asked, named) == []
    else:
        with pytest.raises(Failure):
            requirements.demands(asked, named)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", WRONG_FILE),
        ("{", WRONG_FILE),
        ("[]", WRONG_FILE),
        ("{}", WRONG_FILE),
        ('{"default": []}', WRONG_FILE),
        ('{"default": "reject"}', WRONG_FILE),
        ('{"default": [{}]}', WRONG_FILE),
        ('{"default": ["reject"]}', WRONG_FILE),
        ('{"default": [{"type": "sigstoreSigned"}]}', UNAVAILABLE),
        ('{"default": [{"type": "insecureAcceptAnything"}, {"type": "signedBaseLayer"}]}', UNAVAILABLE),
        ('{"default": [{"type": "insecureAcceptAnything"}, {"type": "reject"}]}', MALFORMED),
        ('{"default": [{"type": "signedBy"}]}', WRONG_FILE),
        ('{"default": [{"type": "signedBy", "keyType": "GPGKeys"}]}', WRONG_FILE),
        ('{"default": [{"type": "signedBy", "keyType": "X509", "keyPath": "/k"}]}', WRONG_FILE),
        ('{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/nonexistent"}]}', WRONG_FILE),
    ],
)
def test_what_a_policy_says_that_is_not_understood_never_passes(tmp_path: Path, text: str, code: int) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(Failure) as caught:
        requirements.demands(Verify(cosign_key="", policy=str(path)), reference.parse("web"))
    assert caught.value.code == code


def test_a_verify_that_demands_nothing_is_wrong() -> None:
    with pytest.raises(Failure) as caught:
        requirements.demands(Verify(cosign_key="", policy=""), reference.parse("web"))
    assert caught.value.code == WRONG_FILE


def test_a_pod_file_says_verify(podrun: Podrun, tmp_path: Path) -> None:
    path = podrun.home / "policy.json"
    path.write_text(json.dumps({"default": REJECT}))
    chain = (
        f'[[chain]]\nhook = "image"\nref = "host:"\nverify = {{ policy = "{path}" }}\n[[chain]]\nhook = "container"\n'
    )
    done = podrun("up", podrun.file("web", chain + 'command = ["true"]\n'))
    assert done.returncode == 65, done.stderr
    assert "rejects it" in done.stderr
    wrong = podrun("check", podrun.file("web", chain.replace("policy =", "polcy =")))
    assert wrong.returncode == 78
    assert "did you mean 'policy'?" in wrong.stderr
