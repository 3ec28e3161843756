"""The work of an export in tasks that can be done in any order, and doing some of them at a time."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from datasets.exports import trees as export_tree
from datasets.exports import write as export_files
from datasets.exports.export_images import ExportImages
from datasets.exports.manifest import RunManifest
from datasets.exports.selection import FILES_OF_MANY, Options, People, select
from datasets.storage.output import Output


@dataclasses.dataclass(frozen=True)
class Task:
    """One unit's images of a tree, or one file of many images. `run` writes what is missing of it."""

    images: int
    missing: int
    run: Callable[[], None]


def tasks(manifest: RunManifest, out: Output, options: Options, people: People, existing: set[str]) -> Iterator[Task]:
    """Every task of an export in the order of the plan, those that are done (missing == 0) among them.

    existing: names of the files that lie in `out`. Nothing but the manifest is read, some row groups at a time.
    """
    images = ExportImages(manifest, options.jpeg_quality)
    if options.format in FILES_OF_MANY:
        table = options.format == "table"
        name_of = export_files.table_name if table else export_files.tar_name
        write = export_files.write_table if table else export_files.write_tar
        pieces = select(manifest, options, people, export_files.COLUMNS)
        for index, part in enumerate(export_files.divide(pieces, options.images_per_file)):
            name = name_of(index)
            count = sum(len(piece.rows) for piece in part)
            missing = 0 if name in existing else count
            yield Task(count, missing, functools.partial(write, out, name, images, part))
        return
    for piece in select(manifest, options, people, export_tree.COLUMNS):
        market = options.format == "market1501"
        names = (
            export_tree.market1501_names(piece) if market else export_tree.folder_names(piece, people, images.suffix)
        )
        missing = sum(name not in existing for name in names) if existing else len(names)
        run = functools.partial(export_tree.write_images, out, images, piece, names, existing)
        yield Task(len(names), missing, run)


def run_tasks(work: Iterator[Task], threads: int, finished: Callable[[Task], None]) -> None:
    """Run the tasks that miss something, `threads` at a time; `finished` is called here after each of them.

    At most twice as many are held at once. The first error ends the work: tasks that run are waited for, none is
    begun, and the error is raised.
    """
    waiting: collections.deque[tuple[Task, Future]] = collections.deque()

    def finish() -> None:
        task, future = waiting.popleft()
        future.result()
        finished(task)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in work:
                if task.missing:
                    waiting.append((task, pool.submit(task.run)))
                if len(waiting) >= 2 * threads:
                    finish()
            while waiting:
                finish()
        except BaseException:  # an interruption too must not wait for all that is queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise
