"""Write an export: files of many images (WebDataset tars, Parquet tables), and the tasks of an export in any format.

The manifest alone decides which image goes into which file, so a file that exists never has to be written again. Equal
rows give equal bytes: files contain no time, user or host. datasets/exports/trees.py writes trees of image files.
"""

import collections
import dataclasses
import functools
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.exports import trees
from datasets.exports.manifest import RunManifest
from datasets.exports.selection import FILES_OF_MANY, ExportImages, Options, People, Piece, select
from datasets.runs.manifest import MANIFEST_SCHEMA
from datasets.storage.output import Output
from passersby.options import Json

COLUMNS = MANIFEST_SCHEMA.names
ROW_GROUP_BYTES, ROW_GROUP_ROWS = (
    16_000_000,
    4096,
)  # a row group of encoded images, which a reader with a filter reads at once
_FIRST = ["person", "variant", "camera", "height", "width", "verdict", "detector_score", "ssim"]
_FIELDS = [MANIFEST_SCHEMA.field(name) for name in [*_FIRST, *(name for name in COLUMNS if name not in _FIRST)]]
TABLE_SCHEMA = pa.schema([pa.field("identity", pa.int64()), pa.field("image", pa.binary()), *_FIELDS])


def tar_name(index: int) -> str:
    """The name of a tar, such as people-000012.tar: WebDataset reads several as people-{000000..000012}.tar."""
    return f"people-{index:06d}.tar"


def table_name(index: int) -> str:
    """The name of a table, such as table/people-000012.parquet: Parquet readers take the whole folder as one table."""
    return f"table/people-{index:06d}.parquet"


def divide(pieces: Iterator[Piece], count: int) -> Iterator[list[Piece]]:
    """Divide the images of all pieces, in order, into parts of `count` images (the last may be smaller)."""
    part, room = [], count
    for piece in pieces:
        first = 0
        while first < len(piece.rows):
            size = min(room, len(piece.rows) - first)
            part.append(piece.slice(first, size))
            first, room = first + size, room - size
            if not room:
                yield part
                part, room = [], count
    if part:
        yield part


def write_tar(out: Output, name: str, images: ExportImages, pieces: Sequence[Piece]) -> None:
    """Write a WebDataset shard: for each image `IIIIII_VVVVVV.jpg` (identity, variant) and a .json of its row.

    The JSON has the columns of the table without the image; a score that is not a number is null.
    """
    with out.replacing(name) as path, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for piece in pieces:
            rows = piece.table.select(_json_columns()).to_pylist()
            for row, image in zip(rows, images.read(piece), strict=True):
                key = f"{row['identity']:06d}_{row['variant']:06d}"
                _add(tar, f"{key}.{images.suffix}", image)
                _add(tar, f"{key}.json", json.dumps({k: finite(v) for k, v in row.items()}).encode())


def _json_columns() -> list[str]:
    return [name for name in TABLE_SCHEMA.names if name != "image"]


def finite(value: Json) -> Json:
    """The value, or None for a float that is not finite: JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time, user and group are 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_table(out: Output, name: str, images: ExportImages, pieces: Sequence[Piece]) -> None:
    """Write a Parquet file of TABLE_SCHEMA.

    It has statistics of every column except the image, so that filters can skip row groups.
    """
    columns = [field.name for field in TABLE_SCHEMA if field.name != "image"]
    columns[columns.index("mix_layers")] = "mix_layers.list.element"
    compression = {"image": "none"} | dict.fromkeys(columns, "zstd")
    with (
        out.replacing(name) as path,
        pq.ParquetWriter(
            path,
            TABLE_SCHEMA,
            compression=compression,  # pyright: ignore[reportArgumentType]  # pyarrow has no stubs: one for each column too
            use_dictionary=columns,  # pyright: ignore[reportArgumentType]  # and columns by name
            write_statistics=columns,  # pyright: ignore[reportArgumentType]  # and columns by name
        ) as writer,
    ):
        for group in _row_groups(images, pieces):
            writer.write_table(group)


def _row_groups(images: ExportImages, pieces: Sequence[Piece]) -> Iterator[pa.Table]:
    tables, rows, size = [], 0, 0
    for piece in pieces:
        content = pa.array(images.read(piece), pa.binary())
        table = piece.table.append_column("image", content).select(TABLE_SCHEMA.names).cast(TABLE_SCHEMA)
        tables.append(table)
        rows, size = rows + table.num_rows, size + content.nbytes
        if size >= ROW_GROUP_BYTES or rows >= ROW_GROUP_ROWS:
            yield pa.concat_tables(tables)
            tables, rows, size = [], 0, 0
    if tables:
        yield pa.concat_tables(tables)


# ---- The work of an export in any format: independent tasks, several of which run at the same time.


@dataclasses.dataclass(frozen=True)
class Task:
    """One unit's images of a tree, or one file of many images. `run` writes the `missing` images."""

    images: int
    missing: int
    run: Callable[[], None]


def tasks(manifest: RunManifest, out: Output, options: Options, people: People, existing: set[str]) -> Iterator[Task]:
    """Every task of an export in the order of the plan, finished tasks (missing == 0) included.

    existing: the names of the files in `out`. The function reads only the manifest, some row groups at a time.
    """
    images = ExportImages(manifest, options.jpeg_quality)
    if options.format in FILES_OF_MANY:
        if options.images_per_file is None:
            raise ValueError(f"--format {options.format}: complete the options first, as `Options.completed` does")
        table = options.format == "table"
        name_of = table_name if table else tar_name
        write = write_table if table else write_tar
        pieces = select(manifest, options, people, COLUMNS)
        for index, part in enumerate(divide(pieces, options.images_per_file)):
            name = name_of(index)
            count = sum(len(piece.rows) for piece in part)
            remaining = 0 if name in existing else count
            yield Task(count, remaining, functools.partial(write, out, name, images, part))
        return
    for piece in select(manifest, options, people, trees.COLUMNS):
        names = trees.image_names(piece, options, people, images.suffix)
        remaining = sum(name not in existing for name in names) if existing else len(names)
        run = functools.partial(trees.write_images, out, images, piece, names, existing)
        yield Task(len(names), remaining, run)


def run_tasks(work: Iterator[Task], threads: int, finished: Callable[[Task], None]) -> None:
    """Run the unfinished tasks, `threads` at a time, and call `finished` in this thread after each of them.

    Memory holds at most twice as many tasks. After the first error no task starts; the function waits for the tasks
    that run, and raises the error.
    """
    queue: collections.deque[tuple[Task, Future[None]]] = collections.deque()

    def finish() -> None:
        task, future = queue.popleft()
        future.result()
        finished(task)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in work:
                if task.missing:
                    queue.append((task, pool.submit(task.run)))
                if len(queue) >= 2 * threads:
                    finish()
            while queue:
                finish()
        except BaseException:  # also an interruption must not wait for all queued tasks
            pool.shutdown(wait=False, cancel_futures=True)
            raise
