"""The progress of a running sweep: lines on the screen, and the table, which is written again after each trial."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ray import tune

from datasets.storage.output import Output
from passersby.errors import InputError
from reporting.progress import LINE_SECONDS, Bar, duration
from tune.levels import Trial
from tune.sweep import TRIALS
from tune.table import Row, best_level, read_failure, read_result, write_failure, write_table
from tune.trial import PARAMETER, STEP


class SweepProgress(tune.Callback):
    """Follows the trials of one run of Tune.

    trials: name -> trial and its length, in any unit, for all trials of the sweep. rows: name -> row of a finished
    trial; this object adds rows. sharing: the arms that share level 0, as in `write_table`. failed: name -> reason, for
    the trials that failed finally.
    """

    def __init__(
        self,
        output: Output,
        trials: Mapping[str, tuple[Trial, float]],
        rows: dict[str, Row],
        sweep_hash: str,
        sharing: Mapping[str, Iterable[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.output, self.trials, self.rows, self.sweep_hash = output, trials, rows, sweep_hash
        self.sharing = sharing
        self.out = Path(output.secret_address)
        self.failed: dict[str, str] = {}
        self.running: dict[str, float] = {}  # name -> finished share of the training
        self._clock = clock
        self._start = self._last_line = clock()
        self._length_before = self._length_done()
        self._bar: Bar | None = None  # made when the first trial runs: Tune pickles its callbacks before that

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        """Note that a trial runs."""
        self.running[_name(trial)] = 0.0

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        """Note the step that a trial has reached."""
        steps = trial.config[PARAMETER]["training"].steps
        if steps and STEP in result:
            self.running[_name(trial)] = min(result[STEP] / steps, 1.0)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        """Note the end of a trial. Its folder has a result, or the reason of a failure."""
        name = _name(trial)
        self.running.pop(name, None)
        folder = self.out / TRIALS / name
        row = read_result(folder, self.sweep_hash)
        if row is None:
            self._fail(name, read_failure(folder) or "it ended without a result")
            return
        self.rows[name] = row
        self._clear()
        try:
            write_table(self.output, self.rows, self.sharing)
        except InputError as error:  # the trial's own file has its row, and the table is written again
            print(f"note: {error}", file=sys.stderr)
        print(f"{name}: mAP {row['mAP']:.1%}, Rank-1 {row['rank1']:.1%}, {row['minutes']:.1f} minutes", flush=True)

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """Note the final failure of a trial, after all retries."""
        name = _name(trial)
        self.running.pop(name, None)
        folder = self.out / TRIALS / name
        reason = read_failure(folder)
        if reason is None:
            reason = "its process or node was lost too often"
            with contextlib.suppress(InputError):  # a full disk: the line below says it too
                write_failure(folder, reason)
        self._fail(name, reason)

    def on_step_end(self, iteration, trials, **info) -> None:
        """Draw the bar, on a terminal; elsewhere print a line every LINE_SECONDS."""
        if sys.stderr.isatty():
            self._bar = self._bar or Bar(len(self.trials), sys.stderr)
            self._bar.show(len(self.rows), self.line())
        elif self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            print(self.line(), file=sys.stderr, flush=True)

    def on_experiment_end(self, trials, **info) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def line(self) -> str:
        """The line: numbers of finished, running and failed trials, the remaining time, the best level so far."""
        parts = [f"{len(self.rows)}/{len(self.trials)} trials done", f"{len(self.running)} running"]
        if any(self.running.values()):
            parts[-1] += f" ({', '.join(f'{share:.0%}' for share in self.running.values())})"
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        begun = sum(share * self.trials[name][1] for name, share in self.running.items())
        finished = self._length_done() - self._length_before + begun
        if finished > 0:
            remaining = sum(length for name, (_, length) in self.trials.items() if not self._has_ended(name)) - begun
            parts.append(f"{duration(remaining / finished * (self._clock() - self._start))} left")
        return " · ".join([*parts, *filter(None, [best_level(self.rows.values())])])

    def _has_ended(self, name: str) -> bool:
        return name in self.rows or name in self.failed

    def _length_done(self) -> float:
        return sum(length for name, (_, length) in self.trials.items() if self._has_ended(name))

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self._clear()
        print(f"{name} failed: {reason}", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.clear()


def _name(trial) -> str:
    return trial.config[PARAMETER]["name"]
