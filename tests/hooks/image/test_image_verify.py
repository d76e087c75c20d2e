"""Images that have to be proved: pinned, accepted by a policy, signed for gpgv or cosign. Never a pass by default."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from podrun.errors import MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks import image as hook
from podrun_hooks.image import commands, reference
from podrun_hooks.image.trust import requirements
from podrun_hooks.image.trust.requirements import Verify
from support import image_builder as build
from support.image_samples import nothing, step
from support.image_servers import Faulty, faulty
from support.launcher import Podrun

pytestmark = [pytest.mark.root, pytest.mark.server]

IMAGE = build.image(build.tar(build.file("a", b"a")))
OTHER = build.image(build.tar(build.file("b", b"b")))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def server() -> Iterator[Faulty]:
    with faulty(IMAGE) as running:
        yield running


def policy(tmp_path: Path, default: list[Any], **transports: Any) -> Verify:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"default": default, "transports": transports}))
    return Verify(cosign_key="", policy=str(path))


REJECT = [{"type": "reject"}]
ANYTHING = [{"type": "insecureAcceptAnything"}]


def used(root: str) -> list[str]:
    return [ref.ref for ref in commands.ls(root)]


# --- policies without signatures


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


# --- signatures by gpg, made by skopeo


class Signer(NamedTuple):
    """A key of its own, its public part, and a lookaside directory."""

    home: Path
    key: str
    public: str
    armored: str
    lookaside: Path

    def sign(self, built: build.Built, name: str, *, digest: str = "", number: int = 1) -> Path:
        """Signs a manifest under a name, as skopeo does; returns the signature's file."""
        (self.home / "manifest").write_bytes(built.manifest)
        repository = reference.parse(name).repository
        place = self.lookaside / f"{repository}@{(digest or built.digest).replace(':', '=')}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"signature-{number}"
        argv = ["skopeo", "standalone-sign", "-o", str(path), str(self.home / "manifest"), name, self.key]
        subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "GNUPGHOME": str(self.home)})
        return path


def signer(place: Path, lookaside: Path) -> Signer:
    place.mkdir(mode=0o700)
    environ = {**os.environ, "GNUPGHOME": str(place)}

    def gpg(*words: str) -> bytes:
        argv = ["gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", "", *words]
        return subprocess.run(argv, check=True, capture_output=True, env=environ).stdout

    gpg("--quick-gen-key", "tester@example.org", "rsa2048", "sign", "never")
    listed = gpg("--list-keys", "--with-colons").decode()
    key = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
    (place / "public.gpg").write_bytes(gpg("--export", key))
    (place / "public.asc").write_bytes(gpg("--export", "--armor", key))
    return Signer(place, key, str(place / "public.gpg"), str(place / "public.asc"), lookaside)


def stop(one: Signer) -> None:
    subprocess.run(["gpgconf", "--homedir", str(one.home), "--kill", "gpg-agent"], capture_output=True)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Signer, Signer]]:
    if not shutil.which("skopeo") or not shutil.which("gpg"):
        pytest.skip("skopeo and gpg make the signatures")
    place = tmp_path_factory.mktemp("gpg")
    made = signer(place / "one", place / "none"), signer(place / "two", place / "none")
    yield made
    for one in made:
        stop(one)


@pytest.fixture
def sign(tmp_path: Path, signers: tuple[Signer, Signer], server: Faulty, monkeypatch: pytest.MonkeyPatch) -> Signer:
    """The first signer, with a lookaside of this test's own that registries.toml names."""
    lookaside = tmp_path / "signatures"
    (tmp_path / "registries.toml").write_text(f'[registry."{server.host}"]\nsignatures = "file://{lookaside}"')
    monkeypatch.setenv("PODRUN_REGISTRIES", str(tmp_path / "registries.toml"))
    return signers[0]._replace(lookaside=lookaside)


def signed_by(tmp_path: Path, key: str, **more: Any) -> Verify:
    return policy(tmp_path, [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": key, **more}])


@pytest.mark.parametrize("form", ["public", "armored"])
def test_an_image_that_is_signed_passes(root: str, tmp_path: Path, server: Faulty, sign: Signer, form: str) -> None:
    ref = f"{server.host}/team/web:1"
    sign.sign(IMAGE, ref)
    assert commands.pull(root, ref, verify=signed_by(tmp_path, getattr(sign, form))).digest == IMAGE.digest


def test_the_key_may_be_in_the_policy_itself(root: str, tmp_path: Path, server: Faulty, sign: Signer) -> None:
    import base64

    ref = f"{server.host}/team/web:1"
    sign.sign(IMAGE, ref)
    data = base64.b64encode(Path(sign.public).read_bytes()).decode()
    asked = policy(tmp_path, [{"type": "signedBy", "keyType": "GPGKeys", "keyData": data}])
    assert commands.pull(root, ref, verify=asked).digest == IMAGE.digest


def _unsigned(sign: Signer, other: Signer, ref: str) -> None:
    pass


def _by_another(sign: Signer, other: Signer, ref: str) -> None:
    other._replace(lookaside=sign.lookaside).sign(IMAGE, ref)


def _of_another_image(sign: Signer, other: Signer, ref: str) -> None:
    sign.sign(OTHER, ref, digest=IMAGE.digest)


def _for_another_tag(sign: Signer, other: Signer, ref: str) -> None:
    sign.sign(IMAGE, ref.replace(":1", ":2"))


def _for_another_repository(sign: Signer, other: Signer, ref: str) -> None:
    path = sign.sign(IMAGE, ref.replace("/web", "/other"))
    place = Path(str(path).replace("/other@", "/web@"))
    place.parent.mkdir(parents=True)
    shutil.copy(path, place)


def _changed(sign: Signer, other: Signer, ref: str) -> None:
    path = sign.sign(IMAGE, ref)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _empty(sign: Signer, other: Signer, ref: str) -> None:
    sign.sign(IMAGE, ref).write_bytes(b"")


def _no_signature(sign: Signer, other: Signer, ref: str) -> None:
    sign.sign(IMAGE, ref).write_bytes(b'{"critical":{}}')


def _signed_text(sign: Signer, other: Signer, ref: str) -> None:
    path = sign.sign(IMAGE, ref)
    argv = ["gpg", "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", "", "-o", str(path), "--sign"]
    subprocess.run(
        argv, input=b"good text", check=True, capture_output=True, env={**os.environ, "GNUPGHOME": str(sign.home)}
    )


def _unsigned_before_signed(sign: Signer, other: Signer, ref: str) -> None:
    path = sign.sign(IMAGE, ref)
    argv = ["gpg", "--batch", "--store", "-o", "-"]
    environ = {**os.environ, "GNUPGHOME": str(sign.home)}
    plain = subprocess.run(argv, input=b"{}", check=True, capture_output=True, env=environ).stdout
    path.write_bytes(plain + path.read_bytes())


FORGED = [_unsigned, _by_another, _of_another_image, _for_another_tag, _for_another_repository, _changed, _empty,
          _no_signature, _signed_text, _unsigned_before_signed]  # fmt: skip


@pytest.mark.parametrize("forge", FORGED, ids=lambda forge: forge.__name__.strip("_").replace("_", " "))
def test_an_image_without_a_proper_signature_is_refused(
    root: str,
    tmp_path: Path,
    server: Faulty,
    sign: Signer,
    signers: tuple[Signer, Signer],
    forge: Callable[[Signer, Signer, str], None],
) -> None:
    ref = f"{server.host}/team/web:1"
    forge(sign, signers[1], ref)
    with pytest.raises(Failure) as caught:
        commands.pull(root, ref, verify=signed_by(tmp_path, sign.public))
    assert caught.value.code == MALFORMED, caught.value
    assert "\n" not in str(caught.value)
    assert used(root) == []
    assert not server.paths("/blobs/")


def test_one_good_signature_among_others_is_enough(
    root: str, tmp_path: Path, server: Faulty, sign: Signer, signers: tuple[Signer, Signer]
) -> None:
    ref = f"{server.host}/team/web:1"
    signers[1]._replace(lookaside=sign.lookaside).sign(IMAGE, ref, number=1)
    sign.sign(IMAGE, ref, number=2)
    assert commands.pull(root, ref, verify=signed_by(tmp_path, sign.public)).digest == IMAGE.digest


@pytest.mark.parametrize(
    ("identity", "passes"),
    [
        ({"type": "matchRepository"}, True),
        ({"type": "matchExact"}, False),
        ({"type": "matchRepoDigestOrExact"}, False),
        ({"type": "exactReference", "dockerReference": "HOST/team/web:2"}, True),
        ({"type": "exactReference", "dockerReference": "HOST/team/web:1"}, False),
        ({"type": "exactReference", "dockerReference": "HOST/team/web"}, False),
        ({"type": "exactRepository", "dockerRepository": "HOST/team/web"}, True),
        ({"type": "exactRepository", "dockerRepository": "HOST/team/other"}, False),
        ({"type": "remapIdentity", "prefix": "a.example", "signedPrefix": "b.example"}, False),
        ({"type": "remapIdentity", "prefix": "HOST", "signedPrefix": "b.example"}, False),
        ({"type": "remapIdentity", "prefix": "HOST"}, False),
        ({"type": "remapIdentity", "prefix": "HOST", "signedPrefix": "no name"}, False),
        ({"type": "sigstoreIdentity"}, False),
        ({}, False),
    ],
)
def test_the_name_that_was_signed_has_to_be_the_one_that_the_policy_wants(
    root: str, tmp_path: Path, server: Faulty, sign: Signer, identity: dict[str, str], passes: bool
) -> None:
    sign.sign(IMAGE, f"{server.host}/team/web:2")
    wanted = {key: value.replace("HOST", server.host) for key, value in identity.items()}
    asked = signed_by(tmp_path, sign.public, signedIdentity=wanted)
    if passes:
        assert commands.pull(root, f"{server.host}/team/web:1", verify=asked).digest == IMAGE.digest
    else:
        with pytest.raises(Failure) as caught:
            commands.pull(root, f"{server.host}/team/web:1", verify=asked)
        assert caught.value.code in (MALFORMED, UNAVAILABLE, WRONG_FILE)


@pytest.mark.parametrize(
    ("signed", "prefix", "signed_prefix", "passes"),
    [
        ("vendor.example/web:1", "HOST/team", "vendor.example", True),
        ("vendor.example/team/web:1", "HOST", "vendor.example", True),
        ("vendor.example/shop:1", "HOST/team/web", "vendor.example/shop", True),
        ("vendor.example/web:2", "HOST/team", "vendor.example", False),
        ("HOST/team/web:1", "HOST/team", "vendor.example", False),
        # Not at a "/": another repository.
        ("vendor.example/web:1", "HOST/te", "vendor.example", False),
        ("HOST/team/web:1", "HOST/other", "vendor.example", True),
    ],
)
def test_the_image_of_a_mirror_may_be_signed_under_the_name_of_the_original(
    root: str, tmp_path: Path, server: Faulty, sign: Signer, signed: str, prefix: str, signed_prefix: str, passes: bool
) -> None:
    path = sign.sign(IMAGE, signed.replace("HOST", server.host))
    # It lies beside the mirror's image.
    place = Path(sign.lookaside, f"team/web@{IMAGE.digest.replace(':', '=')}", path.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    if path != place:
        shutil.move(path, place)
    identity = {"type": "remapIdentity", "prefix": prefix.replace("HOST", server.host), "signedPrefix": signed_prefix}
    asked = signed_by(tmp_path, sign.public, signedIdentity=identity)
    if passes:
        assert commands.pull(root, f"{server.host}/team/web:1", verify=asked).digest == IMAGE.digest
    else:
        with pytest.raises(Failure, match="signature is for the name") as caught:
            commands.pull(root, f"{server.host}/team/web:1", verify=asked)
        assert caught.value.code == MALFORMED


def test_a_pinned_digest_needs_a_signature_of_its_repository(
    root: str, tmp_path: Path, server: Faulty, sign: Signer
) -> None:
    sign.sign(IMAGE, f"{server.host}/team/web:2")
    ref = f"{server.host}/team/web@{IMAGE.digest}"
    assert commands.pull(root, ref, verify=signed_by(tmp_path, sign.public)).digest == IMAGE.digest


def test_what_was_proved_is_not_asked_for_again_until_the_key_changes(
    root: str, tmp_path: Path, server: Faulty, sign: Signer, signers: tuple[Signer, Signer]
) -> None:
    ref = f"{server.host}/team/web:1"
    path = sign.sign(IMAGE, ref)
    key = tmp_path / "key"
    shutil.copy(sign.public, key)
    asked = signed_by(tmp_path, str(key))
    commands.pull(root, ref, verify=asked)
    path.unlink()
    assert hook.up(step(Path(root), ref, verify=asked), {})["images"]["image"]["digest"] == IMAGE.digest
    shutil.copy(signers[1].public, key)
    with pytest.raises(Failure, match="no signature"):
        hook.up(step(Path(root), ref, verify=asked), {})


def test_an_image_that_was_pulled_without_proof_is_proved_before_it_is_used(
    root: str, tmp_path: Path, server: Faulty, sign: Signer
) -> None:
    ref = f"{server.host}/team/web:1"
    commands.pull(root, ref)
    for pull in ("missing", "never", "newer"):
        with pytest.raises(Failure, match="no signature"):
            hook.up(step(Path(root), ref, pull=pull, verify=signed_by(tmp_path, sign.public)), {})
    sign.sign(IMAGE, ref)
    assert hook.up(step(Path(root), ref, pull="never", verify=signed_by(tmp_path, sign.public)), {})


def test_proofs_go_with_their_image(root: str, tmp_path: Path, server: Faulty, sign: Signer) -> None:
    ref = f"{server.host}/team/web:1"
    sign.sign(IMAGE, ref)
    commands.pull(root, ref, verify=signed_by(tmp_path, sign.public))
    assert len(os.listdir(f"{root}/images/verified")) == 1
    commands.rm(root, [ref], nothing)
    assert os.listdir(f"{root}/images/verified") == []


def test_signatures_are_fetched_over_http_too(
    root: str, tmp_path: Path, server: Faulty, sign: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = f"{server.host}/team/web:1"
    content = sign.sign(IMAGE, ref).read_bytes()

    def change(request: Any) -> bool:
        request.reply(200, content) if request.path.endswith("signature-1") else request.reply(404)
        return True

    with faulty(IMAGE, change) as lookaside:
        text = f'[registry."{server.host}"]\nsignatures = "http://{lookaside.host}/sigs"'
        (tmp_path / "registries.toml").write_text(text)
        assert commands.pull(root, ref, verify=signed_by(tmp_path, sign.public)).digest == IMAGE.digest
        path = f"/sigs/team/web@{IMAGE.digest.replace(':', '=')}/signature-1"
        assert [path for _, path, _ in lookaside.seen] == [path]


# --- when nobody can verify


def test_without_gpgv_nothing_passes(
    root: str, tmp_path: Path, server: Faulty, sign: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = f"{server.host}/team/web:1"
    sign.sign(IMAGE, ref)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="gpgv, which is not installed") as caught:
        commands.pull(root, ref, verify=signed_by(tmp_path, sign.public))
    assert caught.value.code == UNAVAILABLE
    assert used(root) == []


def test_without_a_place_of_signatures_nothing_passes(root: str, tmp_path: Path, signers: Any, server: Faulty) -> None:
    with pytest.raises(Failure, match="is not known") as caught:
        commands.pull(root, f"{server.host}/web", verify=signed_by(tmp_path, signers[0].public))
    assert caught.value.code == UNAVAILABLE


@pytest.mark.parametrize("kind", ["cosign_key", "policy"])
def test_what_is_not_of_a_registry_has_no_signature(root: str, tmp_path: Path, signers: Any, kind: str) -> None:
    path = build.layout(str(tmp_path / "layout"), {"v1": IMAGE})
    asked = signed_by(tmp_path, signers[0].public)
    if kind == "cosign_key":
        asked = Verify(cosign_key=signers[0].public, policy="")
    for ref in (f"oci:{path}:v1", "host:", f"dir:{tmp_path}"):
        with pytest.raises(Failure, match="only images of registries") as caught:
            commands.pull(root, ref, verify=asked)
        assert caught.value.code == UNAVAILABLE


# --- cosign


@pytest.fixture
def key(tmp_path: Path) -> Verify:
    (tmp_path / "cosign.pub").write_text("a key")
    return Verify(cosign_key=str(tmp_path / "cosign.pub"), policy="")


@pytest.fixture
def cosign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a cosign on the PATH that notes its arguments and then does as told: the real one is rarely installed."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")

    def install(then: str) -> Path:
        (place / "cosign").write_text(f'#!/bin/sh\necho "$@" >>{place}/asked\n{then}\n')
        (place / "cosign").chmod(0o755)
        return place / "asked"

    return install


def test_cosign_is_asked_for_the_digest_and_only_once(root: str, server: Faulty, key: Verify, cosign: Any) -> None:
    asked = cosign("exit 0")
    ref = f"{server.host}/team/web:1"
    for _ in range(2):
        assert commands.pull(root, ref, verify=key).digest == IMAGE.digest
    line = f"verify --key {key.cosign_key} {server.host}/team/web@{IMAGE.digest}"
    assert asked.read_text().splitlines() == [line]


def test_what_cosign_refuses_is_refused(root: str, server: Faulty, key: Verify, cosign: Any) -> None:
    cosign("echo 'Error: no matching signatures' >&2; exit 1")
    with pytest.raises(Failure, match="no matching signatures") as caught:
        commands.pull(root, f"{server.host}/team/web:1", verify=key)
    assert caught.value.code == MALFORMED
    assert used(root) == []


def test_without_cosign_nothing_passes(
    root: str, server: Faulty, key: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="cosign, which is not installed") as caught:
        commands.pull(root, f"{server.host}/team/web:1", verify=key)
    assert caught.value.code == UNAVAILABLE


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
