"""Credentials for registries: reads and writes docker's config.json (auths, credHelpers, credsStore).

The docker package speaks the credential helpers' protocol. It takes 130 ms to import, so it is imported only when
config.json names a helper.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import warnings
from typing import Any, NamedTuple

from podrun import atomic
from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure, of_oserror
from podrun_hooks.support import trusted

#: The key under which docker keeps the credentials for docker.io.
_DOCKER_HUB = "https://index.docker.io/v1/"


class Credentials(NamedTuple):
    """Credentials for a registry; all fields empty: anonymous."""

    user: str = ""
    password: str = ""
    #: An OAuth2 refresh ("identity") token instead of a password.
    identity_token: str = ""


def anonymous(_registry: str) -> Credentials:
    """No credentials, for any registry."""
    return Credentials()


def file() -> str:
    """The path of config.json: $REGISTRY_AUTH_FILE, as for podman and skopeo; else in $DOCKER_CONFIG, or ~/.docker."""
    chosen = os.environ.get("REGISTRY_AUTH_FILE")
    return chosen or f"{os.environ.get('DOCKER_CONFIG') or os.path.expanduser('~/.docker')}/config.json"


def known(registry: str) -> Credentials:
    """The credentials that config.json or its helpers have for a registry's host[:port].

    A helper that is not installed, or an empty entry, counts as none: the pull is anonymous then. Raises Failure:
    UNAVAILABLE if a helper fails, WRONG_FILE if the file cannot be understood.
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
    """For messages: the helper that config.json names for a registry, if it is not installed; else ""."""
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
    # docker-credential-helpers: this user name marks the secret as an identity token.
    return Credentials("", "", secret) if user == "<token>" else Credentials(user, secret, "")


def keep(registry: str, who: Credentials) -> str:
    """Stores credentials with the helper that config.json names, else in config.json; returns where, for messages."""
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
    """Removes the credentials for a registry; returns False if there were none."""
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


def stored() -> list[str]:
    """The registries for which config.json, or a helper that it names for one, has credentials."""
    config = _config(file())
    helpers = config.get("credHelpers")
    keys = [*config.get("auths", {}), *(helpers if isinstance(helpers, dict) else ())]
    return list(dict.fromkeys("docker.io" if key == _DOCKER_HUB else _host(key) for key in keys))


def _key(registry: str) -> str:
    return _DOCKER_HUB if registry == "docker.io" else registry


def _host(key: str) -> str:
    """The host[:port] of a key, which may be in the old form "https://registry.example/v1/"."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _helper(config: dict[str, Any], registry: str) -> str:
    """The name of the helper for a registry; "" if the file itself holds the credentials.

    Raises Failure if other users could have changed the helper: root runs it.
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

    class Helper:
        """A proxy for docker's Store that raises its errors as Failures."""

        def __getattr__(self, verb: str) -> Any:
            def ask(*words: str) -> Any:
                try:
                    return getattr(credentials.Store(helper), verb)(*words)
                except credentials.CredentialsNotFound:
                    raise
                except credentials.StoreError as error:
                    raise Failure(f"docker-credential-{helper}: {error}", code=UNAVAILABLE) from None

            return ask

    return Helper()


def _keep_docker_quiet() -> None:
    """Suppresses the docker package's warning about a missing helper: podrun reports it itself."""
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
    """Replaces the file with mode 0600: it holds secrets."""
    path = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        trusted.place(os.path.dirname(path), "/root/.docker", strict=False)
        atomic.replace(path, json.dumps(config, indent=2), sync=True)
    except PermissionError as error:
        raise Failure(f"{path}: {error.strerror}", code=NOT_ALLOWED) from None
    except OSError as error:
        raise of_oserror(error) from None
