"""Watch over a Ray cluster that was joined: its head may go, and Ray ends the driver without a word a minute later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

POLL: Final = 2.0  # seconds between two looks
PATIENCE: Final = 40.0  # seconds for which the cluster may be away; Ray itself ends the process after 60


class ClusterWatch:
    """Watch beside the main thread, which a call to a cluster that has gone may hold for good."""

    def __init__(
        self,
        look: Callable[[], str],
        say: Callable[[str], None],
        end: Callable[[str], None],
        poll: float = POLL,
        patience: float = PATIENCE,
    ) -> None:
        """Prepare to `look` for why the cluster is away, empty while it is there.

        `say` gets a sentence when it goes and when it comes back, `end` the reason once it stays away.
        """
        self.look = look
        self.say = say
        self.end = end
        self.poll = poll
        self.patience = patience
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="cluster-watch", daemon=True)

    def __enter__(self) -> ClusterWatch:
        """Start to watch."""
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        self.over.set()
        self.thread.join()

    def wait(self) -> None:
        """Return once the cluster answers; where it does not, the watch ends the process meanwhile."""
        while self.look() and self.thread.is_alive():
            time.sleep(self.poll)

    def _watch(self) -> None:
        away_since: float | None = None
        while not self.over.wait(self.poll):
            why = self.look()
            now = time.monotonic()
            if not why:
                if away_since is not None:
                    self.say("the Ray cluster answers again")
                away_since = None
                continue
            if away_since is None:
                away_since = now
                self.say(f"{why}; waiting for it")
            if now - away_since >= self.patience:
                self.end(why)
                return
