"""Images that have to be proved: pinned, accepted by a policy, signed for gpgv or cosign. Never a pass by default."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks import image as hook
from podrun_hooks.image import commands
from podrun_hooks.image.trust.requirements import Verify
from support import image_builder as build
from support.image_samples import nothing, step
from support.image_servers import Faulty, faulty
from support.image_trust import IMAGE, OTHER, Signer, policy, signer, stop

pytestmark = [pytest.mark.root, pytest.mark.server]


# --- signatures by gpg, made by skopeo


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
    assert commands.ls(root) == []
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
    assert commands.ls(root) == []


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
