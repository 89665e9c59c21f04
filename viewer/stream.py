"""Renders for one browser: the latest camera wins, one picture on its way at most, quick first and full when still.

A stream is one thread. It takes the newest request, renders it, hands the picture over and waits until the browser
has it; requests that came meanwhile have replaced each other. So there is never a backlog: a slow machine or a slow
line means fewer pictures, not older ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

log = logging.getLogger("featuresplat.viewer")

STILL_AFTER = 0.2
"""Seconds without a change after which a full picture is rendered."""
FRAME_TIME = 0.05
"""What a picture may take while moving, seconds."""
LEAST, MOST = 20_000, 4_000_000
"""Pixels of a picture."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ticket(Generic[T]):
    """One picture to make: ``what`` was asked for, how many ``pixels`` it may have, ``full`` when nothing moves."""

    what: T
    pixels: int
    full: bool


class Pace:
    """How many pixels fit into a frame time, learned from the pictures so far."""

    def __init__(self, start: float = 2.0e6):
        self._speed = start  # pixels a second

    def learn(self, pixels: int, seconds: float) -> None:
        if seconds > 0:
            self._speed = 0.7 * self._speed + 0.3 * pixels / max(seconds, 1e-3)

    def pixels(self) -> int:
        return int(min(max(self._speed * FRAME_TIME, LEAST), MOST))


class Stream(Generic[T]):
    """Renders the newest request of one browser in a thread of its own."""

    def __init__(self, make: Callable[[Ticket[T]], bool], name: str = "stream"):
        """``make`` renders a ticket, hands it over and returns when it has arrived; False when nothing was drawn."""
        self._make = make
        self._condition = threading.Condition()
        self._wanted: T | None = None
        self._changed = 0.0
        self._moving = False
        self._full_done = True
        self._drawing = False
        self._closed = False
        self.pace = Pace()
        self.frames = 0
        self.frame_seconds = 0.0
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self.thread.start()

    def request(self, what: T, moving: bool) -> None:
        """Ask for a picture; it replaces what was asked for before. ``moving``: quick first, full later."""
        with self._condition:
            self._wanted, self._moving = what, moving
            self._changed = time.monotonic()
            self._full_done = False
            self._condition.notify_all()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def join(self, timeout: float | None = None) -> None:
        self.thread.join(timeout)

    def idle(self) -> bool:
        """Nothing is left to draw."""
        with self._condition:
            return self._full_done and not self._drawing

    def _next(self) -> Ticket[T] | None:
        """Wait for the next ticket; None when closed."""
        with self._condition:
            self._drawing = False
            while not self._closed:
                if self._full_done or self._wanted is None:
                    self._condition.wait()
                elif self._moving:
                    self._moving, self._drawing = False, True  # still, until the next request says otherwise
                    return Ticket(self._wanted, self.pace.pixels(), False)
                else:
                    rest = self._changed + STILL_AFTER - time.monotonic()
                    if rest <= 0 or self.frames == 0:
                        self._full_done = self._drawing = True
                        return Ticket(self._wanted, MOST, True)
                    self._condition.wait(rest)
        return None

    def _loop(self) -> None:
        while (ticket := self._next()) is not None:
            began = time.monotonic()
            try:
                drawn = self._make(ticket)
            except Exception:
                log.exception("a picture failed")
                drawn = False
            if drawn:
                self.frames += 1
                self.frame_seconds = time.monotonic() - began
