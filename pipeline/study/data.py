"""What a study must know of a user's data: whom they show, and who is trained on and who is tested with."""

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.people.listing import (
    GALLERY,
    QUERY,
    TRAIN,
    UNKNOWN_CAMERA,
    UNKNOWN_PERSON,
    Listing,
    drawn_names,
)
from datasets.people.market1501 import toy_crowd_record
from datasets.people.readers import full_path, read_split
from datasets.people.splits import matched
from datasets.storage.output import Output
from passersby.errors import InputError

DONE = "steps"  # the folder of the records of steps that have ended
TABLE = "data/people.csv"  # data without test people get this table, with the column split
TEST_SHARE = 4  # one of so many people is set aside for the test
CARD_VARIANTS = 8  # pictures of a real person that a card compares
FEWEST = 4  # training people: two for the generator, and others beside


@dataclasses.dataclass(frozen=True)
class Facts:
    """Numbers of the training people and of the people of the test.

    many: training people with CARD_VARIANTS pictures. unlabelled: pictures of those who are not among the labelled.
    drawn: whether the people are drawn by a program, and no photographs.
    """

    name: str
    people: int
    pictures: int
    cameras: int
    many: int
    unlabelled: int
    queries: int
    test_people: int
    test_pictures: int
    notes: tuple[str, ...]
    drawn: bool = False

    def lines(self) -> list[str]:
        """The facts for people."""
        cameras = f", {self.cameras} cameras" if self.cameras else ", cameras unknown"
        return [
            f"{self.name}: {self.pictures:,} pictures of {self.people:,} people to train on{cameras}",
            f"test: {self.queries:,} queries, {self.test_pictures:,} pictures of {self.test_people:,} people",
            *(f"note: {note}" for note in self.notes),
        ]


def prepared(data: Path, output: Output) -> Path:
    """The data that all steps read: `data`, or where they do not say whom to test with, a table in the study's folder.

    The table stays as it is from the end of the first step on. Raises InputError for data that cannot be used.
    """
    data = full_path(data)
    if output.list(DONE) and output.exists(TABLE):
        return Path(output.address(TABLE))
    train = read_split(data, TRAIN)
    if UNKNOWN_PERSON in train.people or train.known_people is None:
        raise InputError(f"--data {data}: a study needs to know who is who: give a folder for each person, or a table")
    if _is_split(data, train):
        output.remove(TABLE)  # of other data, before the first step had ended
        return data
    output.write(TABLE, _split_table(data, train, Path(output.address(TABLE)).parent))
    return Path(output.address(TABLE))


def _is_split(data: Path, train: Listing) -> bool:
    found = {split: listing for split in (QUERY, GALLERY) if (listing := _read(data, split)) is not None}
    if len(found) == 1:
        (split,) = found
        missing = GALLERY if split == QUERY else QUERY
        raise InputError(
            f"--data {data}: there are pictures of the split {split} and none of the split {missing}, so the data are "
            "not whole: give both, or neither, and the study sets people aside"
        )
    return bool(found) and not set(found[QUERY].people.values()) & set(train.people.values())


def _read(data: Path, split: str) -> Listing | None:
    try:
        return read_split(data, split)
    except InputError:  # there is no such split
        return None


def _split_table(data: Path, train: Listing, folder: Path) -> bytes:
    """A table in which one of TEST_SHARE people is for the test: those whom seed 0 draws of all who can be found."""
    places = {person: np.flatnonzero(train.identities == person) for person in train.named_people()}
    by_camera = train.has_cameras
    findable = {
        train.people.get(person, str(person)): person
        for person, rows in places.items()
        if len(np.unique(train.cameras[rows]) if by_camera else rows) > 1
    }
    count = len(places) // TEST_SHARE
    if count < 2 or len(findable) < count:
        seen = "seen by two cameras" if by_camera else "with two pictures"
        raise InputError(
            f"--data {data}: {len(places)} people, {len(findable)} of them {seen}, and no query and gallery: a study "
            f"sets one in {TEST_SHARE} people aside for the test: give at least {2 * TEST_SHARE} people"
        )
    tested = {findable[name] for name in drawn_names(findable, 0)[:count]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "identity", "camera", "split"])
    for person, rows in places.items():
        queries = {int(rows[0])}
        if by_camera:  # the first picture by each camera, as in Market-1501
            queries = {int(rows[train.cameras[rows] == camera][0]) for camera in np.unique(train.cameras[rows])}
        for row in rows.tolist():
            camera = int(train.cameras[row])
            split = TRAIN if person not in tested else QUERY if row in queries else GALLERY
            path = os.path.relpath(str(train.files[row]), folder)
            name = train.people.get(person, str(person))
            writer.writerow([path, name, "" if camera == UNKNOWN_CAMERA else camera, split])
    return text.getvalue().encode("utf-8", "surrogateescape")


def facts_of(data: Path, labelled_people: int | None, label_draw: int) -> Facts:
    """The facts of prepared data. Raises InputError for too few people, and for more labelled people than there are."""
    train, query, gallery = (read_split(data, split) for split in (TRAIN, QUERY, GALLERY))
    identities, counts = np.unique(train.identities, return_counts=True)
    if len(identities) < FEWEST:
        raise InputError(f"--data {data}: {len(identities)} people to train on: a study needs at least {FEWEST}")
    if not matched(query, gallery).any():
        raise InputError(
            f"--data {data}: none of the {len(query):,} queries can be found: the gallery shows these people by the "
            "query's own camera only, which does not count: give pictures of several cameras, or pictures without "
            "cameras (a table without the column camera)"
        )
    labelled: Sequence[int] = identities.tolist()
    if labelled_people is not None:
        labelled = train.drawn_people(labelled_people, label_draw)
    cameras = np.unique(train.cameras[train.cameras != UNKNOWN_CAMERA])
    return Facts(
        name=train.name,
        people=len(identities),
        pictures=len(train),
        cameras=len(cameras),
        many=int((counts >= CARD_VARIANTS).sum()),
        unlabelled=int(counts[~np.isin(identities, labelled)].sum()),
        queries=len(query),
        test_people=len(query.people),
        test_pictures=len(query) + len(gallery),
        notes=tuple(dict.fromkeys((*train.notes, *query.notes, *gallery.notes))),
        drawn=is_drawn(data),
    )


def is_drawn(data: Path) -> bool:
    """Whether data are a toy crowd, whose people are drawn by a program. Raises InputError for a broken record."""
    return toy_crowd_record(data) is not None
