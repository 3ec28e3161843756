"""The bytes of exported images: as they are stored, or converted from PNG to JPEG where that was asked for."""

import dataclasses
from collections.abc import Sequence

import cv2

from datasets.exports.manifest import RunManifest
from datasets.exports.selection import Piece
from datasets.people.decoding_part import DecodingError, decode
from passersby.errors import InputError


@dataclasses.dataclass(frozen=True)
class ExportImages:
    """Reads the images of a piece. JPEG is never encoded again: `jpeg_quality` is for runs of PNG images only."""

    manifest: RunManifest
    jpeg_quality: int | None = None

    @property
    def suffix(self) -> str:
        """jpg or png."""
        return "png" if self.manifest.plan.configuration.format == "png" and self.jpeg_quality is None else "jpg"

    def read(self, piece: Piece, indices: Sequence[int] | None = None) -> list[bytes]:
        """The bytes of all images of a piece, or of those with the given indices, in that order.

        Raises InputError when the shard is missing or damaged, or an image cannot be converted.
        """
        rows = piece.rows if indices is None else piece.rows[list(indices)]
        found = self.manifest.images(piece.unit, rows)
        if self.jpeg_quality is None:
            return found
        try:
            return [_to_jpeg(image, self.jpeg_quality) for image in found]
        except DecodingError as error:
            raise InputError(
                f"unit {piece.unit.unit} of {self.manifest.run.root_address}: {error}; remove its shard and run "
                "jobs/generate.py again"
            ) from error


def _to_jpeg(image: bytes, quality: int) -> bytes:
    pixels = decode(image)  # [H, W, 3] uint8 RGB
    _, content = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])  # OpenCV takes BGR
    return content.tobytes()
