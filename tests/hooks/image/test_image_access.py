"""Whom podrun asks for an image, and as whom: registries.toml, docker's config.json, login and logout."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks.image import commands, reference
from podrun_hooks.image.registry import client, config, credentials
from support import image_builder as build
from support.image_servers import Request, asks_for_a_password, asks_for_a_token, basic, faulty, free_port
from support.launcher import Podrun

pytestmark = [pytest.mark.root, pytest.mark.server, pytest.mark.usefixtures("own_configuration")]

IMAGE = build.image(build.tar(build.file("a", os.urandom(200_000))), build.tar(build.file("b", b"b")))
LARGEST = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))


def docker_config(tmp_path: Path, **config: object) -> Path:
    path = tmp_path / "docker/config.json"
    path.write_text(json.dumps(config))
    return path


def docker_auth(user: str, password: str) -> dict[str, str]:
    return {"auth": basic(user, password).removeprefix("Basic ")}


# --- registries.toml


def test_without_the_file_there_is_nothing_special(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PATH", "/nonexistent/registries.toml")
    assert config.load({}) == {}


def test_a_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is not there") as caught:
        config.load({"PODRUN_REGISTRIES": str(tmp_path / "nothing")})
    assert caught.value.code == WRONG_FILE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[registry", "Expected ']' at the end of a table declaration"),
        ("[registries.x]", "unknown key 'registries'; did you mean 'registry'?"),
        ('[registry."a.example"]\nmirror = []', "unknown key 'mirror'; did you mean 'mirrors'?"),
        ('[registry."a.example"]\nmirrors = "x"', "expected an array"),
        ('[registry."a.example"]\nmirrors = ["https://x.example"]', "expected a registry"),
        ('[registry."a.example"]\nmirrors = ["nohost"]', "expected a registry"),
        ('[registry."a.example"]\nmirrors = ["x.example/UPPER"]', "expected a registry"),
        ('[registry."a.example"]\ninsecure = 1', "expected true or false"),
        ('[registry."a.example"]\nca = "ca.pem"', "expected an absolute path"),
        ('[registry."a.example"]\nsignatures = "ftp://x"', "expected a URL"),
        ('[registry."nohost"]\ninsecure = true', "expected a registry"),
        ('[registry."a.example/b"]\ninsecure = true', "a whole registry"),
    ],
)
def test_a_wrong_file_is_told_with_its_name_and_nothing_is_asked(registered: Path, text: str, said: str) -> None:
    registered.write_text(text)
    with pytest.raises(Failure) as caught:
        config.load()
    assert caught.value.code == WRONG_FILE
    assert said in caught.value.what
    assert caught.value.what.startswith(str(registered))


def test_a_file_that_everybody_can_write_is_refused(registered: Path) -> None:
    registered.chmod(0o666)
    with pytest.raises(Failure) as caught:
        config.load()
    assert caught.value.code == NOT_ALLOWED


def test_mirrors_come_first_and_the_registry_last(registered: Path) -> None:
    registered.write_text(
        '[registry."docker.io"]\nmirrors = ["m.example:5000/hub/cache", "[::1]:5000"]\n'
        '[registry."m.example:5000"]\ninsecure = true\n'
    )
    found = config.endpoints(config.load(), reference.parse("nginx"))
    assert [(one.registry, one.repository, one.insecure) for one in found] == [
        ("m.example:5000", "hub/cache/library/nginx", True),
        ("[::1]:5000", "library/nginx", False),
        ("docker.io", "library/nginx", False),
    ]


# --- mirrors


def test_an_image_comes_from_the_mirror_and_keeps_its_name(root: str, registered: Path) -> None:
    with faulty(IMAGE) as mirror, faulty(IMAGE) as server:
        registered.write_text(f'[registry."{server.host}"]\nmirrors = ["{mirror.host}/cache"]')
        found = commands.pull(root, f"{server.host}/team/web:1")
        assert found.ref == f"{server.host}/team/web:1"
        assert mirror.paths("/v2/cache/team/web/manifests/1")
        assert server.seen == []


@pytest.mark.parametrize("status", [404, 401, 403, 500])
def test_a_mirror_that_does_not_have_it_is_passed_over(root: str, registered: Path, status: int) -> None:
    def change(request: Request) -> bool:
        request.reply(status, b"{}", Retry_After="1000")
        return True

    with faulty(IMAGE, change) as mirror, faulty(IMAGE) as server:
        registered.write_text(f'[registry."{server.host}"]\nmirrors = ["127.0.0.1:{free_port()}", "{mirror.host}"]')
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest


def test_a_mirror_that_goes_away_in_the_middle_is_taken_over_from_at_the_same_byte(root: str, registered: Path) -> None:
    content = IMAGE.blobs[LARGEST]

    def change(request: Request) -> bool:
        if request.path.endswith(LARGEST):
            if request.headers.get("Range"):
                request.reply(404)
            else:
                request.reply(200, content[:100_000], length=len(content))
            return True
        return False

    with faulty(IMAGE, change) as mirror, faulty(IMAGE) as server:
        registered.write_text(f'[registry."{server.host}"]\nmirrors = ["{mirror.host}"]')
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        ranges = [headers.get("Range") for _, path, headers in server.seen if path.endswith(LARGEST)]
    assert ranges == ["bytes=100000-"]


def test_when_nobody_has_it_the_registrys_own_words_count(root: str, registered: Path) -> None:
    with faulty(IMAGE, lambda request: request.reply(500) or True) as mirror:
        with faulty(IMAGE, lambda request: request.reply(404) or True) as server:
            registered.write_text(f'[registry."{server.host}"]\nmirrors = ["127.0.0.1:{free_port()}"]')
            with pytest.raises(Failure, match="does not have it"):
                commands.pull(root, f"{server.host}/web")
        assert mirror.seen == []


# --- TLS


def test_a_certificate_that_nobody_vouches_for_is_refused(root: str, certificate: str) -> None:
    with faulty(IMAGE, certificate=certificate) as server, pytest.raises(Failure, match="certificate") as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code == UNAVAILABLE


def test_a_ca_makes_a_registry_trusted(root: str, registered: Path, certificate: str) -> None:
    with faulty(IMAGE, certificate=certificate) as server:
        registered.write_text(f'[registry."{server.host}"]\nca = "{certificate}"')
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest


def test_an_insecure_registry_is_not_asked_for_a_certificate(root: str, registered: Path, certificate: str) -> None:
    with faulty(IMAGE, certificate=certificate) as server:
        registered.write_text(f'[registry."{server.host}"]\ninsecure = true')
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest


def test_what_is_said_of_one_registry_holds_for_no_other_that_it_redirects_to(
    root: str, registered: Path, certificate: str
) -> None:
    with faulty(IMAGE, certificate=certificate) as store:

        def change(request: Request) -> bool:
            if "/blobs/" in request.path:
                request.reply(307, Location=f"https://{store.host}{request.path}")
            return "/blobs/" in request.path

        with faulty(IMAGE, change, certificate) as server, pytest.raises(Failure, match="certificate"):
            registered.write_text(f'[registry."{server.host}"]\ninsecure = true')
            commands.pull(root, f"{server.host}/web")


def test_a_ca_file_that_is_not_there_or_holds_none_is_wrong(root: str, registered: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    for path in (tmp_path / "nothing", tmp_path / "empty"):
        registered.write_text(f'[registry."registry.example"]\nca = "{path}"')
        with pytest.raises(Failure, match="ca of") as caught:
            commands.pull(root, "registry.example/web")
        assert caught.value.code == WRONG_FILE


@pytest.mark.parametrize("insecure", [True, False])
def test_elsewhere_plain_http_is_spoken_only_to_a_registry_that_is_named_insecure(
    root: str, registered: Path, monkeypatch: pytest.MonkeyPatch, insecure: bool
) -> None:
    monkeypatch.setattr(client, "is_loopback", lambda _: False)
    with faulty(IMAGE) as server:
        registered.write_text(f'[registry."{server.host}"]\ninsecure = {str(insecure).lower()}')
        if insecure:
            assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        else:
            with pytest.raises(Failure) as caught:
                commands.pull(root, f"{server.host}/web")
            assert caught.value.code == UNAVAILABLE
            assert server.seen == []


# --- credentials


@pytest.mark.parametrize("guard", [asks_for_a_password, asks_for_a_token])
def test_the_credentials_of_config_json_open_the_registry(root: str, tmp_path: Path, guard: Any) -> None:
    with faulty(IMAGE, guard("me", "secret:word")) as server:
        docker_config(tmp_path, auths={server.host: docker_auth("me", "secret:word")})
        assert commands.pull(root, f"{server.host}/team/web").digest == IMAGE.digest


@pytest.mark.parametrize("guard", [asks_for_a_password, asks_for_a_token])
@pytest.mark.parametrize("auths", [{}, {"auths": {}}, {"auths": "others"}])
def test_without_credentials_the_registry_stays_shut(root: str, tmp_path: Path, guard: Any, auths: Any) -> None:
    with faulty(IMAGE, guard("me", "secret")) as server:
        if auths.get("auths") == "others":
            auths = {"auths": {"other.example": docker_auth("me", "secret")}}
        docker_config(tmp_path, **auths)
        with pytest.raises(Failure) as caught:
            commands.pull(root, f"{server.host}/web")
    assert caught.value.code == NOT_ALLOWED
    assert f"podrun login {server.host}" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_an_identity_token_is_exchanged_for_a_token(root: str, tmp_path: Path) -> None:
    with faulty(IMAGE, asks_for_a_token("me", "secret", identity="long-lived")) as server:
        docker_config(tmp_path, auths={server.host: {"identitytoken": "long-lived"}})
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        assert {command for command, path, _ in server.seen if path == "/token"} == {"POST"}


HELPER = """#!/bin/sh
read server
echo "$1 $server" >>"$(dirname "$0")/asked"
case "$1:$server" in
get:{host}) echo '{{"ServerURL":"{host}","Username":"{user}","Secret":"{secret}"}}' ;;
get:*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a docker-credential-test on the PATH that knows one registry."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")

    def install(host: str, user: str, secret: str) -> Path:
        path = place / "docker-credential-test"
        path.write_text(HELPER.format(host=host, user=user, secret=secret))
        path.chmod(0o755)
        return place / "asked"

    return install


@pytest.mark.parametrize("where", ["credsStore", "credHelpers"])
def test_a_credential_helper_is_asked(root: str, tmp_path: Path, helper: Any, where: str) -> None:
    with faulty(IMAGE, asks_for_a_token("me", "secret")) as server:
        asked = helper(server.host, "me", "secret")
        docker_config(tmp_path, **{where: "test" if where == "credsStore" else {server.host: "test"}})
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
    assert asked.read_text().splitlines()[0] == f"get {server.host}"


def test_a_helper_may_have_an_identity_token(root: str, tmp_path: Path, helper: Any) -> None:
    with faulty(IMAGE, asks_for_a_token("me", "secret", identity="long-lived")) as server:
        helper(server.host, "<token>", "long-lived")
        docker_config(tmp_path, credsStore="test")
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest


def test_a_helper_that_is_not_there_is_told_of(root: str, tmp_path: Path) -> None:
    with faulty(IMAGE, asks_for_a_password("me", "secret")) as server:
        docker_config(tmp_path, credsStore="nowhere")
        with pytest.raises(Failure, match="credentials") as caught:
            commands.pull(root, f"{server.host}/web")
    assert caught.value.code == NOT_ALLOWED
    assert "docker-credential-nowhere" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"credsStore": "nowhere"}, {"auths": {"HOST": {"auth": ""}}}, {"auths": {"HOST": {}}}]
)
def test_what_config_json_lacks_does_not_fail_an_anonymous_pull(
    root: str, tmp_path: Path, given: dict[str, Any]
) -> None:
    with faulty(IMAGE) as server:
        docker_config(tmp_path, **json.loads(json.dumps(given).replace("HOST", server.host)))
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest


@pytest.mark.parametrize(
    ("header", "offered"),
    [
        ('Bearer realm="https://a/t",service="s,x"', [("bearer", {"realm": "https://a/t", "service": "s,x"})]),
        ('Negotiate, Bearer realm="https://a/t"', [("negotiate", {}), ("bearer", {"realm": "https://a/t"})]),
        ('Basic realm="x", Negotiate', [("basic", {"realm": "x"}), ("negotiate", {})]),
        ("Basic realm=x", [("basic", {"realm": "x"})]),
        ("", []),
    ],
)
def test_several_challenges_in_one_answer_are_told_apart(header: str, offered: list[Any]) -> None:
    assert client._challenges(header) == offered


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": []}', '{"auths": {"HOST": {"auth": "%%%"}}}'])
def test_a_config_json_that_cannot_be_understood_is_told_of(root: str, tmp_path: Path, text: str) -> None:
    with faulty(IMAGE, asks_for_a_password("me", "secret")) as server:
        (tmp_path / "docker/config.json").write_text(text.replace("HOST", server.host))
        with pytest.raises(Failure, match=r"config\.json") as caught:
            commands.pull(root, f"{server.host}/web")
    assert caught.value.code == WRONG_FILE


def test_nobody_is_told_a_password_that_did_not_ask(root: str, tmp_path: Path) -> None:
    with faulty(IMAGE) as server:
        docker_config(tmp_path, auths={server.host: docker_auth("me", "secret")})
        commands.pull(root, f"{server.host}/web")
        assert not any(headers.get("Authorization") for _, _, headers in server.seen)


@pytest.mark.parametrize("guard", [asks_for_a_password, asks_for_a_token])
def test_neither_password_nor_token_follows_a_redirect(root: str, tmp_path: Path, guard: Any) -> None:
    with faulty(IMAGE) as store:
        check = guard("me", "secret")

        def change(request: Request) -> bool:
            if check(request):
                return True
            if "/blobs/" in request.path:
                request.reply(307, Location=f"http://{store.host}{request.path}")
                return True
            return False

        with faulty(IMAGE, change) as server:
            docker_config(tmp_path, auths={server.host: docker_auth("me", "secret")})
            assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        assert len(store.seen) == 3
        assert not any("Authorization" in headers for _, _, headers in store.seen)


def test_a_mirror_is_told_its_own_credentials_and_not_the_registrys(
    root: str, tmp_path: Path, registered: Path
) -> None:
    with faulty(IMAGE, asks_for_a_password("mirror", "m")) as mirror, faulty(IMAGE) as server:
        registered.write_text(f'[registry."{server.host}"]\nmirrors = ["{mirror.host}"]')
        auths = {server.host: docker_auth("me", "secret"), mirror.host: docker_auth("mirror", "m")}
        docker_config(tmp_path, auths=auths)
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        assert {headers.get("Authorization") for _, _, headers in mirror.seen} == {None, basic("mirror", "m")}
        assert server.seen == []


@pytest.mark.parametrize("guard", [asks_for_a_password, asks_for_a_token])
def test_what_has_not_changed_is_not_read_again_where_credentials_are_wanted(
    root: str, tmp_path: Path, guard: Any
) -> None:
    with faulty(IMAGE, guard("me", "secret")) as server:
        docker_config(tmp_path, auths={server.host: docker_auth("me", "secret")})
        first = commands.pull(root, f"{server.host}/web")
        server.seen.clear()
        assert commands.pull(root, f"{server.host}/web") == first
        assert not server.paths("/blobs/")


def test_what_has_not_changed_is_one_request(root: str) -> None:
    def change(request: Request) -> bool:
        if request.path.endswith("/manifests/latest"):
            request.reply(200, IMAGE.manifest, Docker_Content_Digest=IMAGE.digest)
        return request.path.endswith("/manifests/latest")

    with faulty(IMAGE, change) as server:
        first = commands.pull(root, f"{server.host}/web")
        server.seen.clear()
        assert commands.pull(root, f"{server.host}/web") == first
        assert [(command, path) for command, path, _ in server.seen] == [("HEAD", "/v2/web/manifests/latest")]


def test_the_token_of_one_repository_is_not_used_for_another(root: str, tmp_path: Path) -> None:
    with faulty(IMAGE, asks_for_a_token("me", "secret")) as server:
        docker_config(tmp_path, auths={server.host: docker_auth("me", "secret")})
        for name in ("one", "two"):
            assert commands.pull(root, f"{server.host}/{name}").digest == IMAGE.digest


def test_a_token_that_expires_in_the_middle_is_fetched_again(root: str, tmp_path: Path) -> None:
    given: list[int] = []
    used: dict[str, int] = {}

    def change(request: Request) -> bool:
        if request.path.startswith("/token"):
            given.append(1)
            request.reply(200, json.dumps({"token": f"t{len(given)}"}).encode())
            return True
        token = request.headers.get("Authorization", "")
        used[token] = used.get(token, 0) + 1
        if request.path != "/v2/" and (not token or used[token] > 3):
            challenge = f'Bearer realm="http://{request.headers["Host"]}/token"'
            request.reply(401, b"{}", WWW_Authenticate=challenge)
            return True
        return False

    with faulty(IMAGE, change) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
    assert len(given) > 1


# --- login


@pytest.mark.parametrize("guard", [asks_for_a_password, asks_for_a_token])
def test_login_keeps_what_the_registry_takes_and_logout_forgets_it(podrun: Podrun, guard: Any) -> None:
    environ = {"DOCKER_CONFIG": str(podrun.home / "docker")}
    with faulty(IMAGE, guard("me", "secret")) as server:
        assert podrun("image", "pull", f"{server.host}/web", **environ).returncode == 77
        argv = [*podrun.argv("login", "-u", "me", "--password-stdin", server.host)]
        done = subprocess.run(
            argv, input="secret\n", env={**podrun.environ, **environ}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "secret" not in done.stdout + done.stderr
        path = podrun.home / "docker/config.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert podrun("image", "pull", "-q", f"{server.host}/web", **environ).stdout.strip() == IMAGE.digest
        assert podrun("logout", server.host, **environ).stdout == f"{server.host}: logged out\n"
        assert podrun("logout", server.host, **environ).stdout == f"{server.host}: was not logged in\n"
        assert podrun("image", "pull", f"{server.host}/other", **environ).returncode == 77


@pytest.mark.parametrize("guard", [asks_for_a_password, asks_for_a_token])
def test_a_login_that_the_registry_refuses_is_not_kept(tmp_path: Path, guard: Any) -> None:
    with faulty(IMAGE, guard("me", "secret")) as server, pytest.raises(Failure) as caught:
        commands.login(server.host, "me", "wrong")
    assert caught.value.code == NOT_ALLOWED
    assert not (tmp_path / "docker/config.json").exists()


def test_login_leaves_the_rest_of_config_json_alone(tmp_path: Path) -> None:
    path = docker_config(tmp_path, auths={"a.example": docker_auth("a", "b")}, detachKeys="ctrl-x", psFormat="x")
    with faulty(IMAGE, asks_for_a_password("me", "secret")) as server:
        commands.login(server.host, "me", "secret")
        assert commands.logout(server.host)
    assert json.loads(path.read_text()) == {
        "auths": {"a.example": docker_auth("a", "b")},
        "detachKeys": "ctrl-x",
        "psFormat": "x",
    }


def test_login_gives_the_password_to_the_helper_where_there_is_one(tmp_path: Path, helper: Any) -> None:
    path = docker_config(tmp_path, credsStore="test")
    before = path.read_text()
    with faulty(IMAGE, asks_for_a_password("me", "secret")) as server:
        asked = helper(server.host, "me", "secret")
        assert commands.login(server.host, "me", "secret") == "docker-credential-test"
    assert path.read_text() == before
    assert asked.read_text().startswith("store ")


def test_docker_hub_is_kept_under_dockers_own_name_for_it(tmp_path: Path) -> None:
    credentials.keep("docker.io", credentials.Credentials("me", "secret"))
    assert list(json.loads((tmp_path / "docker/config.json").read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert credentials.known("docker.io") == credentials.Credentials("me", "secret")
    assert commands.logout("docker.io")


@pytest.mark.parametrize("registry", ["nohost", "https://a.example", "a.example/team", ""])
def test_login_wants_a_registry(registry: str) -> None:
    with pytest.raises(Failure) as caught:
        commands.login(registry, "me", "secret")
    assert caught.value.code == WRONG_FILE
