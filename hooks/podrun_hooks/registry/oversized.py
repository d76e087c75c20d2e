"""Services whose records are larger than any answer that is read: they stay as they are, and hinder no other one."""

from __future__ import annotations

import time

#: Seconds until such a service is asked for again.
_AGAIN = 5.0


class Oversized:
    """Those of one registry."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._news: list[str] = []

    def __contains__(self, service: object) -> bool:
        return isinstance(service, str) and time.monotonic() < self._until.get(service, 0.0)

    def add(self, service: str, why: Exception) -> None:
        """Notes that a service could not be read."""
        if service not in self._until:
            self._news.append(f"{service}: {why}; whoever is led there stays where it is")
        self._until[service] = time.monotonic() + _AGAIN

    def discard(self, service: str) -> None:
        """Notes that it could be read."""
        if self._until.pop(service, None) is not None:
            self._news.append(f"{service}: it can be read again")

    def news(self) -> list[str]:
        """What has changed since the last call, for the log."""
        news, self._news = self._news, []
        return news
