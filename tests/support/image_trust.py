"""Policies, keys and signatures for tests of images that have to be proved."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from podrun_hooks.image import reference
from podrun_hooks.image.trust.requirements import Verify
from support import image_builder as build

IMAGE = build.image(build.tar(build.file("a", b"a")))


OTHER = build.image(build.tar(build.file("b", b"b")))


REJECT = [{"type": "reject"}]


ANYTHING = [{"type": "insecureAcceptAnything"}]


def policy(tmp_path: Path, default: list[Any], **transports: Any) -> Verify:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"default": default, "transports": transports}))
    return Verify(cosign_key="", policy=str(path))


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
