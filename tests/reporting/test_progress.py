"""The progress line, with a clock that the test moves."""

import io

import pytest

from reporting.progress import ProgressLine, duration


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def line(clock, stream=None, **arguments):
    stream = io.StringIO() if stream is None else stream
    settings = {"total_units": 10, "total_images": 1000} | arguments
    return ProgressLine(**settings, stream=stream, clock=clock), stream


def test_says_units_images_kept_rate_and_time_left():
    clock = Clock()
    progress, stream = line(clock)
    clock.now += 10
    progress.update(images=100, kept=82)
    assert stream.getvalue() == "1/10 units · 100/1,000 images · 82.0% kept · 10.0 images/s · 1 min 30 s left\n"


def test_off_a_terminal_at_most_one_line_each_ten_seconds_and_the_last():
    clock = Clock()
    progress, stream = line(clock)
    for _ in range(9):
        clock.now += 4
        progress.update(100, 50)
    lines = stream.getvalue().splitlines()
    assert [text.split()[0] for text in lines] == ["1/10", "4/10", "7/10"]  # at 4, 16 and 28 s
    progress.close()
    last = stream.getvalue().splitlines()[-1]
    assert last == "9/10 units · 900/1,000 images · 50.0% kept · 25.0 images/s · took 36 s"


def test_on_a_terminal_one_line_is_rewritten_and_no_old_letters_stay(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    clock = Clock()
    progress, stream = line(clock, Terminal(), total_images=100_000)
    for images in (1, 9000):  # from "11 d left" with 1 image/s to something shorter
        clock.now += 10
        progress.update(images, images)
    text = stream.getvalue()
    assert "\n" not in text
    _, first, second = text.split("\r")
    assert len(second) >= len(first)
    progress.close()
    progress.close()
    assert stream.getvalue().count("\n") == 1


def test_a_narrow_terminal_does_not_wrap(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    clock = Clock()
    progress, stream = line(clock, Terminal())
    clock.now += 1
    progress.update(100, 50)
    assert max(map(len, stream.getvalue().split("\r"))) == 39


def test_rate_is_of_the_last_minute_and_of_this_run_only():
    clock = Clock()
    progress, _ = line(clock, done_units=5, done_images=500)
    clock.now += 600  # a slow start
    progress.update(100, 0)
    assert progress.rate() == pytest.approx(100 / 600)  # slower than the window: still a rate
    for _ in range(4):
        clock.now += 20
        progress.update(100, 0)
    assert progress.rate() == pytest.approx(5.0)
    assert progress.done_images == 1000


def test_work_of_earlier_runs_counts_as_done_but_not_as_kept():
    clock = Clock()
    progress, stream = line(clock, done_units=9, done_images=900)
    clock.now += 10
    progress.update(100, 25)
    assert stream.getvalue().startswith("10/10 units · 1,000/1,000 images · 25.0% kept")


def test_a_run_with_nothing_to_do_closes_without_a_rate():
    progress, stream = line(Clock(), done_units=10, done_images=1000)
    with progress:
        pass
    assert stream.getvalue() == "10/10 units · 1,000/1,000 images · took 0 s\n"


def test_work_without_filters_shows_no_share():
    clock = Clock()
    progress, stream = line(clock)
    clock.now += 10
    progress.update(100)
    assert "kept" not in stream.getvalue()
    progress.fail()
    progress.close()
    assert "1 unit failed" in stream.getvalue()


def test_more_kept_than_made_is_refused():
    progress, _ = line(Clock())
    with pytest.raises(ValueError, match="between 0 and 3"):
        progress.update(3, 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (11220, "3 h 07 min"), (188_000, "2 d 04 h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
