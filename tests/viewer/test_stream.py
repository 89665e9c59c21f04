"""Latest camera wins, never a backlog, quick while moving and full when still."""

from __future__ import annotations

import threading

import pytest
from wire import until

from featuresplat.viewer.stream import FRAME_TIME, LEAST, MOST, Pace, Stream, Ticket


class Recorder:
    """Makes pictures that take as long as the test says."""

    def __init__(self, hold: bool = False):
        self.tickets: list[Ticket] = []
        self.may_go = threading.Event()
        if not hold:
            self.may_go.set()

    def __call__(self, ticket: Ticket) -> bool:
        self.tickets.append(ticket)
        self.may_go.wait(60)
        return True


@pytest.fixture
def recorder():
    return Recorder()


def test_a_still_request_is_drawn_in_full_and_only_once(recorder):
    stream: Stream[str] = Stream(recorder)
    stream.request("a", moving=False)
    until(stream.idle)
    until(lambda: stream.frames == 1)
    assert [(t.what, t.full) for t in recorder.tickets] == [("a", True)]
    assert recorder.tickets[0].pixels == MOST
    stream.close()


def test_moving_is_quick_first_and_full_when_it_stops(recorder):
    stream: Stream[str] = Stream(recorder)
    stream.request("a", moving=True)
    until(lambda: stream.idle() and stream.frames == 2)
    assert [t.full for t in recorder.tickets] == [False, True]
    stream.close()


def test_what_came_while_a_picture_was_on_its_way_is_one_picture_later():
    recorder = Recorder(hold=True)
    stream: Stream[int] = Stream(recorder)
    stream.request(0, moving=True)
    until(lambda: recorder.tickets)
    for i in range(1, 100):
        stream.request(i, moving=True)
    assert len(recorder.tickets) == 1  # the one that is still on its way
    recorder.may_go.set()
    until(stream.idle)
    assert [(t.what, t.full) for t in recorder.tickets] == [(0, False), (99, False), (99, True)]
    stream.close()


def test_a_picture_that_fails_is_not_the_end():
    calls = []

    def make(ticket):
        calls.append(ticket.what)
        if ticket.what == "bad":
            raise RuntimeError("no")
        return True

    stream: Stream[str] = Stream(make)
    stream.request("bad", moving=False)
    until(lambda: calls)
    stream.request("good", moving=False)
    until(lambda: stream.frames == 1)
    assert calls == ["bad", "good"]
    stream.close()


def test_closing_ends_the_thread(recorder):
    stream: Stream[str] = Stream(recorder)
    stream.close()
    stream.join(60)
    stream.request("late", moving=False)
    assert recorder.tickets == []


def test_pace_learns_from_the_clock():
    pace = Pace(start=1e6)
    assert pace.pixels() == int(1e6 * FRAME_TIME)
    for _ in range(50):
        pace.learn(100_000, 10.0)  # ten thousand pixels a second: as few as allowed
    assert pace.pixels() == LEAST
    for _ in range(50):
        pace.learn(10_000_000, 0.01)
    assert pace.pixels() == MOST
    pace.learn(1, 0.0)  # a clock that stands still teaches nothing
    assert pace.pixels() == MOST
