"""A run's manifest as a table, read with pyarrow alone. How runs are written and checked stands in datasets/runs."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from passersby.errors import InputError


def manifest_name(name: str | None = None) -> str:
    """File name of the run's manifest, or of another one over the same shards."""
    return f"manifest-{name}.parquet" if name else "manifest.parquet"


def read_manifest(run: str | os.PathLike, name: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """Every image of a run without its pixels: a row each, with scores, verdict and shard; all columns or the named.

    run: the folder that `jobs/generate.py --out` made, a path or a pyarrow filesystem URI such as s3://bucket/run.
    name: of a manifest that `jobs/refilter.py --name` made. Raises InputError where it is missing or damaged.

    >>> import passersby
    >>> manifest = passersby.read_manifest("OUT", columns=["person", "variant", "verdict"])
    >>> kept = [row for row in manifest.to_pylist() if row["verdict"] == "kept"]
    >>> kept[0]
    {'person': 0, 'variant': 0, 'verdict': 'kept'}
    """
    address = os.path.expanduser(os.fspath(run))
    shown = address
    if "://" in address:
        scheme, _, rest = address.partition("?")[0].partition("://")
        shown = f"{scheme}://{rest.rpartition('@')[2]}"  # without credentials
    shown = f"{shown.rstrip('/')}/{manifest_name(name)}"
    try:
        files, root = fs.LocalFileSystem(), address
        if "://" in address:
            files, root = fs.FileSystem.from_uri(address)
        file = files.open_input_file(f"{root.rstrip('/')}/{manifest_name(name)}")
    except (OSError, pa.ArrowInvalid) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        raise InputError(f"cannot read {shown}: {reason}: is it the folder of a run?") from None  # may show a secret
    with file:
        return manifest_rows(file, shown, columns)


def manifest_rows(file: pa.NativeFile, address: str, columns: list[str] | None = None) -> pa.Table:
    """A manifest's rows of its open file. Raises InputError, which names the address, where it is damaged."""
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{address} is damaged: remove it and run the same command again") from error
