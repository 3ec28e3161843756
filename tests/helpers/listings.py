"""Listings made by hand: labels of images that cannot be opened."""

from collections.abc import Sequence

import numpy as np

from datasets.people.listing import TRAIN, UNKNOWN_CAMERA, UNKNOWN_PERSON, Label, Listing


def known_labels(listing: Listing) -> list[tuple[int | None, int | None]]:
    """(identity, camera) of every image, None where it is not known."""
    identities = [None if identity == UNKNOWN_PERSON else identity for identity in listing.identities.tolist()]
    cameras = [None if camera == UNKNOWN_CAMERA else camera for camera in listing.cameras.tolist()]
    return list(zip(identities, cameras, strict=True))


def training_listing(
    names: Sequence[str],
    identities: Sequence[int] | None = None,
    cameras: Sequence[int] | None = None,
    labels: Sequence[Label | None] = (),
) -> Listing:
    """A listing of images of one byte each, for training. Without identities or cameras these are not known."""
    count = len(names)
    return Listing(
        name="set",
        contents=(b"x",) * count,
        identities=np.full(count, UNKNOWN_PERSON) if identities is None else np.array(identities),
        cameras=np.full(count, UNKNOWN_CAMERA) if cameras is None else np.array(cameras),
        names=tuple(names),
        people={} if identities is None else {identity: str(identity) for identity in identities},
        splits=(TRAIN,) * count,
        labels=tuple(labels),
    )
