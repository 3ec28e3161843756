"""What a sweep says while it runs, and the table that it writes anew as trials end."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ray import tune

from datasets.storage.output import Output
from reporting.progress import LINE_SECONDS, duration
from tune.levels import Trial
from tune.sweep import TRIALS
from tune.table import Row, best_level, read_failure, read_result, write_failure, write_table
from tune.trial import PARAMETER, STEP


class SweepProgress(tune.Callback):
    """Follows the trials of one run of Tune.

    trials: all of the sweep, by name, with how long each takes, in any unit. rows: of the finished ones, filled up.
    sharing: arms that share level 0, as `write_table` wants them.
    failed: name -> reason, of those that failed for good.
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
        self.running: dict[str, float] = {}  # the share of its training that is done
        self._clock = clock
        self._started = self._said = clock()
        self._length_before = self._length_done()

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        """One more runs."""
        self.running[_name(trial)] = 0.0

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        """One has got as far as this step."""
        steps = trial.config[PARAMETER]["training"]["steps"]
        if steps and STEP in result:
            self.running[_name(trial)] = min(result[STEP] / steps, 1.0)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        """One has ended: with a result on the disk, or with a reason there."""
        name = _name(trial)
        self.running.pop(name, None)
        folder = self.out / TRIALS / name
        row = read_result(folder, self.sweep_hash)
        if row is None:
            self._fail(name, read_failure(folder) or "it ended without a result")
            return
        self.rows[name] = row
        write_table(self.output, self.rows, self.sharing)
        print(f"{name}: mAP {row['mAP']:.1%}, Rank-1 {row['rank1']:.1%}, {row['minutes']:.1f} minutes", flush=True)

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """One has failed as often as it may."""
        name = _name(trial)
        self.running.pop(name, None)
        folder = self.out / TRIALS / name
        reason = read_failure(folder)
        if reason is None:
            reason = "its process or node was lost too often"
            write_failure(folder, reason)
        self._fail(name, reason)

    def on_step_end(self, iteration, trials, **info) -> None:
        """A line now and then."""
        if self._clock() - self._said >= LINE_SECONDS:
            self._said = self._clock()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Trials done and running, failed ones, time left, the best level so far."""
        parts = [f"{len(self.rows)}/{len(self.trials)} trials done", f"{len(self.running)} running"]
        if any(self.running.values()):
            parts[-1] += f" ({', '.join(f'{share:.0%}' for share in self.running.values())})"
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        begun = sum(share * self.trials[name][1] for name, share in self.running.items())
        done = self._length_done() - self._length_before + begun
        if done > 0:
            left = sum(length for name, (_, length) in self.trials.items() if not self._has_ended(name)) - begun
            parts.append(f"{duration(left / done * (self._clock() - self._started))} left")
        return " · ".join([*parts, *filter(None, [best_level(self.rows.values())])])

    def _has_ended(self, name: str) -> bool:
        return name in self.rows or name in self.failed

    def _length_done(self) -> float:
        return sum(length for name, (_, length) in self.trials.items() if self._has_ended(name))

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        print(f"{name} failed: {reason}", file=sys.stderr, flush=True)


def _name(trial) -> str:
    return trial.config[PARAMETER]["name"]
