"""Who is told which secret: the origin that asks, its challenge, and the credentials that there are for the registry."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import NOT_ALLOWED, Failure
from podrun_hooks.image import commands
from podrun_hooks.image.registry.client import origin
from support import image_builder as build
from support.image_servers import Faulty, Request, basic, faulty

pytestmark = [pytest.mark.root, pytest.mark.server]

IMAGE = build.image(build.tar(build.file("a", os.urandom(2000))))
PASSWORD, IDENTITY = basic("me", "secret").removeprefix("Basic "), "long-lived"


class Cast:
    """The registry, where it redirects to, and a third server; each takes any credentials for a token."""

    def __init__(self, stack: ExitStack) -> None:
        self.challenge = ""
        self.moved = ""
        self.asks = ""
        self.registry = stack.enter_context(faulty(IMAGE, self.at_the_registry))
        self.elsewhere = stack.enter_context(faulty(IMAGE, self.at_another))
        self.third = stack.enter_context(faulty(IMAGE, self.at_another))

    def at_the_registry(self, request: Request) -> bool:
        if self.moved and self.moved in request.path:
            request.reply(307, Location=f"http://{self.elsewhere.host}{request.path}")
            return True
        return self.asked(request, "registry")

    def at_another(self, request: Request) -> bool:
        return self.asked(request, "elsewhere" if request.server is self.elsewhere else "third")

    def asked(self, request: Request, who: str) -> bool:
        if request.path.startswith("/token"):
            request.server.seen.append(
                ("BODY", request.rfile.read(int(request.headers.get("Content-Length", 0))).decode(), {})
            )
            request.reply(200, b'{"token": "t"}')
            return True
        if self.asks != who or request.headers.get("Authorization"):
            return False
        request.reply(401, b"{}", WWW_Authenticate=self.challenge)
        return True

    def told(self) -> set[str]:
        """The servers that have seen the secret, in a header, a URL or a form."""
        servers = {"registry": self.registry, "elsewhere": self.elsewhere, "third": self.third}
        return {name for name, server in servers.items() if knows(server)}


def knows(server: Faulty) -> bool:
    return any(PASSWORD in str(seen) or IDENTITY in str(seen) for seen in server.seen)


@pytest.fixture
def cast() -> Iterator[Cast]:
    with ExitStack() as stack:
        yield Cast(stack)


@pytest.mark.parametrize("secret", [{"auth": PASSWORD}, {"identitytoken": IDENTITY}], ids=["password", "identity"])
@pytest.mark.parametrize(
    ("asks", "moved", "challenge", "told"),
    [
        ("registry", "", "Basic", {"registry"}),
        ("registry", "", "registry", {"registry"}),
        ("registry", "", "third", {"third"}),
        ("registry", "/blobs/", "Basic", {"registry"}),
        ("registry", "/blobs/", "third", {"third"}),
        ("elsewhere", "/blobs/", "Basic", set()),
        ("elsewhere", "/blobs/", "registry", set()),
        ("elsewhere", "/blobs/", "elsewhere", set()),
        ("elsewhere", "/blobs/", "third", set()),
        ("elsewhere", "/manifests/", "Basic", set()),
        ("elsewhere", "/manifests/", "third", set()),
        ("elsewhere", "/v2/", "third", set()),
        ("third", "/blobs/", "third", set()),
    ],
)
def test_only_the_registrys_own_origin_may_ask_for_its_credentials(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cast: Cast,
    secret: Any,
    asks: str,
    moved: str,
    challenge: str,
    told: Any,
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {cast.registry.host: secret}}))
    cast.asks, cast.moved = asks, moved
    realm = getattr(cast, challenge).host if challenge != "Basic" else ""
    cast.challenge = f'Bearer realm="http://{realm}/token",service="s"' if realm else 'Basic realm="x"'
    try:
        commands.pull(str(tmp_path / "root"), f"{cast.registry.host}/web")
    except Failure as failure:
        assert failure.code == NOT_ALLOWED
    # An identity token answers no Basic challenge: there is no user.
    assert cast.told() == (set() if challenge == "Basic" and "auth" not in secret else told)


def test_a_password_that_a_token_service_was_sent_stays_there_when_it_redirects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cast: Cast
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {cast.registry.host: {"auth": PASSWORD}}}))
    cast.asks, cast.moved = "registry", "/token"
    cast.challenge = f'Bearer realm="http://{cast.registry.host}/token"'
    commands.pull(str(tmp_path / "root"), f"{cast.registry.host}/web")
    assert cast.told() == {"registry"}
    assert cast.elsewhere.paths("/token")


def test_a_stranger_that_asks_is_named_and_nobody_is_told_to_log_in(tmp_path: Path, cast: Cast) -> None:
    cast.asks, cast.moved, cast.challenge = "elsewhere", "/blobs/", 'Basic realm="x"'
    with pytest.raises(Failure, match=f"sends us to {cast.elsewhere.host}, which wants") as caught:
        commands.pull(str(tmp_path / "root"), f"{cast.registry.host}/web")
    assert (caught.value.code, caught.value.hint) == (NOT_ALLOWED, "")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.example/v2/", "https://a.example:443/x", True),
        ("https://A.example/", "https://a.example/", True),
        ("https://a.example/", "https://me@a.example/", True),
        ("https://a.example/", "http://a.example/", False),
        ("https://a.example/", "https://a.example:5000/", False),
        ("https://a.example/", "https://a.example@b.example/", False),
        ("https://a.example/", "https://a.example.b.example/", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert (origin(one) == origin(other)) is same
