"""Who we are at a registry: docker's config.json (auths, credHelpers, credsStore), read and written.

The docker package knows the file and the helpers' protocol. It takes 130 ms to import, so it is asked only when a
registry wants to know who we are and there is a file.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import warnings
from typing import Any, NamedTuple

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure, of_oserror
from podrun_hooks.support import trusted

#: Under which docker keeps the credentials of docker.io.
_DOCKER_HUB = "https://index.docker.io/v1/"


class Credentials(NamedTuple):
    """What a person has for a registry; the empty ones are anonymous."""

    user: str = ""
    password: str = ""
    #: An OAuth2 refresh ("identity") token instead of a password.
    identity_token: str = ""


def anonymous(_registry: str) -> Credentials:
    """No credentials for anybody."""
    return Credentials()


def file() -> str:
    """The path of config.json: in $DOCKER_CONFIG, else in ~/.docker."""
    return f"{os.environ.get('DOCKER_CONFIG') or os.path.expanduser('~/.docker')}/config.json"


def known(registry: str) -> Credentials:
    """The credentials that config.json or its helpers have for a registry's host[:port].

    A helper that is not installed and an entry with nothing in it have none: the pull is an anonymous one. Raises
    Failure (UNAVAILABLE) when a helper cannot be asked, WRONG_FILE when the file cannot be understood.
    """
    path = file()
    if not os.path.exists(path):
        return Credentials()
    config = _config(path)
    helper = _helper(config, registry)
    if helper and shutil.which(f"docker-credential-{helper}"):
        return _of_helper(helper, registry, path)
    try:
        return _of_file(config, registry)
    except ValueError:
        raise Failure(f"{path}: what it has for a registry is not base64 of user:password", code=WRONG_FILE) from None


def missing_helper(registry: str) -> str:
    """The helper that config.json names for a registry and that is not installed, for messages; else ""."""
    try:
        helper = _helper(_config(file()), registry)
    except Failure:
        return ""
    return f"docker-credential-{helper}" if helper and not shutil.which(f"docker-credential-{helper}") else ""


def _of_file(config: dict[str, Any], registry: str) -> Credentials:
    auths = config.get("auths", {})
    keys = [_key(registry), *(key for key in auths if _host(key) == registry)]
    entry: dict[str, Any] = next(
        (auths[key] for key in keys if isinstance(auths.get(key), dict) and any(auths[key].values())), {}
    )
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        text = base64.b64decode(str(entry["auth"]), validate=True).decode()
        user, colon, password = text.partition(":")
        if not colon:
            raise ValueError(text)
        password = password.strip("\0")
    return Credentials(user, password, str(entry.get("identitytoken") or ""))


def _of_helper(helper: str, registry: str, path: str) -> Credentials:
    from docker.credentials.errors import CredentialsNotFound

    try:
        found = _store(helper).get(_key(registry))
    except CredentialsNotFound:
        return Credentials()
    except Failure as failure:
        what = f"the credentials for {registry} cannot be had: {failure.what[:300]}"
        raise Failure(what, code=UNAVAILABLE, hint=f"{path} names the helper") from None
    user, secret = str(found.get("Username") or ""), str(found.get("Secret") or "")
    # docker-credential-helpers: a token in the place of a password.
    return Credentials("", "", secret) if user == "<token>" else Credentials(user, secret, "")


def keep(registry: str, who: Credentials) -> str:
    """Stores credentials where config.json says, else in itself; returns that place."""
    path = file()
    config = _config(path)
    helper = _helper(config, registry)
    if helper:
        _store(helper).store(_key(registry), who.user, who.password)
        return f"docker-credential-{helper}"
    secret = base64.b64encode(f"{who.user}:{who.password}".encode()).decode()
    config.setdefault("auths", {})[_key(registry)] = {"auth": secret}
    _write(path, config)
    return path


def forget(registry: str) -> bool:
    """Removes the credentials for a registry; False when there were none."""
    path = file()
    config = _config(path)
    helper = _helper(config, registry)
    found = False
    if helper:
        from docker.credentials.errors import CredentialsNotFound

        try:
            _store(helper).erase(_key(registry))
            found = True
        except CredentialsNotFound:
            pass
    auths = config.get("auths", {})
    keys = [key for key in auths if key == _key(registry) or _host(key) == registry]
    for key in keys:
        del auths[key]
    if keys:
        _write(path, config)
    return found or bool(keys)


def _key(registry: str) -> str:
    return _DOCKER_HUB if registry == "docker.io" else registry


def _host(key: str) -> str:
    """The host[:port] of a key of old: "https://registry.example/v1/"."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _helper(config: dict[str, Any], registry: str) -> str:
    """The name of the helper for a registry; "" when the file itself has the credentials.

    Raises Failure: a helper is a program that root runs.
    """
    helpers = config.get("credHelpers")
    name = (helpers.get(_key(registry)) if isinstance(helpers, dict) else None) or config.get("credsStore") or ""
    if not isinstance(name, str) or "/" in name:
        raise Failure(f"{file()}: {name!r} cannot be the name of a helper", code=WRONG_FILE)
    program = shutil.which(f"docker-credential-{name}") if name else None
    if program:
        trusted.place(program, "/usr/local/bin", strict=False)
    return name


def _store(helper: str) -> Any:
    from docker import credentials

    _keep_docker_quiet()

    class Told:
        """The helper, its errors as Failures."""

        def __getattr__(self, verb: str) -> Any:
            def ask(*words: str) -> Any:
                try:
                    return getattr(credentials.Store(helper), verb)(*words)
                except credentials.CredentialsNotFound:
                    raise
                except credentials.StoreError as error:
                    raise Failure(f"docker-credential-{helper}: {error}", code=UNAVAILABLE) from None

            return ask

    return Told()


def _keep_docker_quiet() -> None:
    """A helper that is missing is told of once, by us."""
    warnings.filterwarnings("ignore", message="docker-credential-", category=UserWarning)


def _config(path: str) -> dict[str, Any]:
    try:
        config = json.loads(trusted.text(path, "/root/.docker, or where DOCKER_CONFIG says"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise Failure(f"{path} is not JSON: {error}", code=WRONG_FILE) from None
    if not isinstance(config, dict) or not isinstance(config.get("auths", {}), dict):
        raise Failure(f"{path} is not docker's configuration", code=WRONG_FILE)
    return config


def _write(path: str, config: dict[str, Any]) -> None:
    """Replaces the file; it holds secrets, so nobody else may read it."""
    path = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        trusted.place(os.path.dirname(path), "/root/.docker", strict=False)
        new = f"{path}.{os.getpid()}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as opened:
            json.dump(config, opened, indent=2)
            opened.flush()
            os.fsync(fd)
        os.rename(new, path)
    except PermissionError as error:
        raise Failure(f"{path}: {error.strerror}", code=NOT_ALLOWED) from None
    except OSError as error:
        raise of_oserror(error) from None
