"""One line that says how far a run is: units, images, share kept, images/s, time left."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

WINDOW_SECONDS = 60.0  # short, so that the slow start of the workers soon no longer lowers the rate
LINE_SECONDS = 10.0  # off a terminal (log files, `ray job logs`) one line each 10 s is enough


def duration(seconds: float) -> str:
    """Seconds in words: `8 s`, `2 min 05 s`, `3 h 07 min`, `2 d 04 h`; negative ones are 0."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


class Bar:
    """A bar of tqdm on a terminal, and beside it a text from the caller."""

    def __init__(self, total: int, stream: TextIO) -> None:
        from tqdm import tqdm  # imported here: modules below the jobs must not need tqdm

        # Nothing is drawn before the first text; a refresh is never left out, as units take seconds.
        self._bar = tqdm(total=total, file=stream, bar_format="{desc} {bar}", delay=1e-9, mininterval=0)

    def show(self, done: int, text: str) -> None:
        """Draw the bar anew, cut to the terminal's width: a longer line would wrap."""
        self._bar.n, self._bar.ncols = done, max(10, shutil.get_terminal_size().columns - 1)
        self._bar.set_description_str(text)

    def clear(self) -> None:
        """Take the bar away, so that a line can be printed; the next text draws it again."""
        self._bar.clear()

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        self._bar.close()


class ProgressLine:
    """Counts finished units; on a terminal beside a bar, elsewhere in a line at most every 10 s.

    `total_units` and `total_images` are those of the whole plan, `done_units` and `done_images`
    those that earlier runs finished: they count as done, but rate, time left and share kept are of this run only.
    `clock` gives seconds and never goes back. Also a context manager that closes itself.
    """

    def __init__(
        self,
        total_units: int,
        total_images: int,
        done_units: int = 0,
        done_images: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_units, self.total_images = total_units, total_images
        self.done_units, self.done_images = done_units, done_images
        self.images, self.kept, self.failed = 0, 0, 0  # of this run; failed counts units
        self._stream = sys.stderr if stream is None else stream
        self._bar = Bar(total_units, self._stream) if self._stream.isatty() else None
        self._clock = clock
        self._start = clock()
        self._points = deque([(self._start, 0)])  # (seconds, images of this run until then)
        self._last_printed: float | None = None
        self._closed = False
        self._filters = False  # whether there is a share to show

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, images: int, kept: int | None = None) -> None:
        """One more unit is finished: it holds `images` images, of which `kept` passed every filter.

        Without `kept` in any update the line says nothing about shares. Raises ValueError unless 0 <= kept <= images.
        """
        self._filters = self._filters or kept is not None
        kept = images if kept is None else kept
        if not 0 <= kept <= images:
            raise ValueError(f"kept must lie between 0 and {images} (the unit's images), not {kept}")
        now = self._clock()
        self.done_units += 1
        self.done_images += images
        self.images += images
        self.kept += kept
        self._points.append((now, self.images))
        # The newest point older than the window stays: units slower than the window still have a rate.
        while len(self._points) > 2 and self._points[1][0] <= now - WINDOW_SECONDS:
            self._points.popleft()
        if self._bar is not None:
            self._bar.show(self.done_units, self._line(self.rate()))
        elif self._last_printed is None or now - self._last_printed >= LINE_SECONDS:
            self._last_printed = now
            print(self._line(self.rate()), file=self._stream, flush=True)

    def fail(self) -> None:
        """One more unit has failed for good: it will not be done in this run."""
        self.failed += 1

    def rate(self) -> float:
        """Images/s of this run over the last minute; 0.0 before the first unit."""
        (first_time, first_images), (last_time, last_images) = self._points[0], self._points[-1]
        return (last_images - first_images) / (last_time - first_time) if last_time > first_time else 0.0

    def close(self) -> None:
        """Print the last line, with the average rate and the time taken. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        seconds = self._clock() - self._start
        average = self.images / seconds if seconds > 0 else 0.0
        line = self._line(average, ending=f"took {duration(seconds)}")
        if self._bar is not None:
            self._bar.show(self.done_units, line)
            self._bar.close()
        else:
            print(line, file=self._stream, flush=True)

    def _line(self, rate: float, ending: str | None = None) -> str:
        parts = [
            f"{self.done_units:,}/{self.total_units:,} units",
            f"{self.done_images:,}/{self.total_images:,} images",
        ]
        if self.images and self._filters:
            parts.append(f"{100 * self.kept / self.images:.1f}% kept")
        if self.failed:
            parts.append(f"{self.failed:,} unit{'s' * (self.failed != 1)} failed")
        if rate > 0:
            parts.append(f"{rate:,.1f} images/s" if rate < 100 else f"{rate:,.0f} images/s")
        if ending is None and rate > 0:
            ending = f"{duration(max(0, self.total_images - self.done_images) / rate)} left"
        return " · ".join([*parts, *([ending] if ending else [])])
