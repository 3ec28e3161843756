"""Telling network files, and what people mistake for them, by their first bytes."""

import zipfile
from typing import BinaryIO

from passersby.errors import InputError

STORAGE_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch's format before 1.6 starts
_OTHERS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a git-lfs pointer: the file itself was not fetched"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a numpy array"),
)


def file_kind(data: BinaryIO) -> str:
    """ "pickle", "safetensors" or "state_dict", from the contents of a seekable file, left at its start.

    Raises `InputError` that says what the file is instead; the message does not name it.
    """
    data.seek(0)
    head = data.read(64)
    data.seek(0)
    if head.startswith(STORAGE_MAGIC):  # torch.save before PyTorch 1.6: also a pickle, so asked first
        return "state_dict"
    if head.startswith(b"PK\x03\x04"):
        _check_archive(data)
        return "state_dict"
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "pickle"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return "safetensors"
    found = next((name for magic, name in _OTHERS if head.startswith(magic)), None)
    if found is None and head.lstrip().startswith(b"<"):
        found = "an HTML or XML page: did the download fail?"
    found = found or f"a file that starts with {head[:8]!r}"
    raise InputError(f"{found}, not a network: .pkl (StyleGAN3), .safetensors or .pt")


def _check_archive(data: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(data) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"a damaged or truncated .pt file ({error}): fetch it again") from error
    data.seek(0)
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise InputError("a zip archive that is no .pt file of PyTorch")
    # PyTorch stores without compression; an archive that unpacks to more is made to fill the memory.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError("a compressed archive: PyTorch's .pt files are not compressed")
