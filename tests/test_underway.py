"""What may be closed when: after the requests that had begun, and not after those that came later."""

import threading

from handlers.underway import UnderWay


def test_what_has_begun_is_waited_for_and_what_comes_later_is_not() -> None:
    under_way, done = UnderWay(), threading.Event()
    with under_way.one():
        waiting = under_way.after_these(done.set)
        with under_way.one():
            assert under_way.count == 2
            assert not done.wait(0.1)
        assert not done.wait(0.1)
        later = under_way.one()
        later.__enter__()
    assert done.wait(10)
    waiting.join(10)
    assert under_way.count == 1
    later.__exit__(None, None, None)
    assert under_way.count == 0


def test_with_nobody_under_way_it_happens_at_once_and_closing_waits_for_nobody() -> None:
    under_way, done = UnderWay(), threading.Event()
    under_way.after_these(done.set)
    assert done.wait(10)
    with under_way.one():
        stuck = threading.Event()
        under_way.after_these(stuck.set)
        under_way.close()
        assert stuck.wait(10)
