"""Fenced client of MLflow: each call that changes something is preceded by a check that may forbid it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from mlflow import MlflowClient

READS = ("get_", "search_", "list_", "download_")


def fenced(client: MlflowClient, guard: Callable[[], None]) -> MlflowClient:
    """Return a client that calls `guard` before each call that is not a read; what `guard` raises ends the call."""
    return cast("MlflowClient", _FencedClient(client, guard))


class _FencedClient:
    def __init__(self, client: object, guard: Callable[[], None]) -> None:
        self._client = client
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not callable(value) or name.startswith(READS):
            return value

        @wraps(value)
        def call(*arguments: object, **words: object) -> object:
            self._guard()
            return value(*arguments, **words)

        return call
