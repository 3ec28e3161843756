"""The page of a study: a chapter for each step, from the first contact sheet to the answer, in one HTML file."""

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.people.decoding import decode_listing, decode_scaled
from datasets.people.listing import TRAIN, drawn_names
from datasets.people.readers import read_split
from datasets.storage.output import Output
from passersby.errors import InputError
from pipeline.study.run import card_verdict, ended, is_done
from pipeline.study.steps import (
    ANSWER,
    CARD,
    EXPORT,
    GENERATOR,
    JUDGE,
    LOOK,
    PEOPLE,
    SWEEP,
    SWEEP_REPORT,
    Step,
    Study,
    steps,
)
from reporting.gan.teaching import gate_rows
from reporting.grid import SheetCell, SheetRow, contact_sheet
from reporting.page import is_toy, rendered
from reporting.progress import duration
from reporting.run.results import counts_of, read_summary
from reporting.sweep.page import comparisons_of, read_sweep
from reporting.tables import discard_rows, filters_set, percent

PAGE = "index.html"
_PEOPLE, _PICTURES = 10, 8  # of the sheet of real people
_QUALITY, _WIDEST = 85, 1800  # of the JPEG files in the page


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in the page. kind: "image/jpeg" or "image/png"; content: base64; wide: it scrolls on a phone."""

    kind: str
    content: str
    caption: str
    wide: bool = True


@dataclasses.dataclass(frozen=True)
class Chapter:
    """What the page tells of a step. state: whether it is done, in words; links: (text, relative address)."""

    name: str
    title: str
    state: str
    command: str
    texts: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()
    links: Sequence[tuple[str, str]] = ()


def study_page(study: Study, command: str, program: str | None = None, stopped: Sequence[str] = ()) -> str:
    """The page as HTML. command: that of the study; stopped: why it stopped before the sweep, and what would help."""
    made = steps(study)
    chapters = [_chapter(study, step, program) for step in made]
    records = [record for step in made if (record := ended(study, step)) is not None]
    facts, kept = study.facts, study.kept()
    headline = [(f"{facts.people:,}", "people to train on"), (f"{facts.test_people:,}", "people in the test")]
    if study.options.labelled_people is not None:
        headline.append((f"{study.options.labelled_people:,}", "of them labelled"))
    if kept is not None:
        headline += [(f"{kept[0]:,}", "artificial people kept"), (f"{kept[1]:,}", "of their pictures")]
    headline.append((duration(sum(record.seconds for record in records)), "in all"))
    summary = read_summary(Output(str(study.out / PEOPLE)))
    return rendered(
        "study.html.j2",
        title=f"Study: {facts.name}",
        toy=is_toy(summary.get("network", {})) if summary else False,
        answers=_answers(study),
        stopped=stopped,
        headline=headline,
        chapters=chapters,
        command=command,
    )


def _chapter(study: Study, step: Step, program: str | None) -> Chapter:
    record = ended(study, step)
    state = "not yet"
    if is_done(study, step) and record is not None:
        state = f"done in {duration(record.seconds)}"
    elif record is not None:
        state = f"ended with exit code {record.code}: the same command goes on here"
    tell = _TELL[step.name]
    begun = (study.out / step.name).is_dir() or step.name in (CARD, ANSWER)
    about = tell(study) if begun else {}
    return Chapter(step.name, step.title, state, step.command(program), **about)


def _answers(study: Study) -> list[str]:
    try:
        sweep, trials = read_sweep(Output(str(study.out / SWEEP)))
    except InputError:  # no trial has ended
        return []
    found = comparisons_of(trials, sweep)
    return [f"{answer['labelled'].capitalize()}: {text}" for answer in found for text in answer["sentences"]]


# ---- The chapters.


def _look(study: Study) -> dict:
    detector = study.calibration().get("detector")
    texts = study.facts.lines()
    words = study.thresholds()
    if words:
        texts.append(f"Thresholds that the real pictures propose: {' '.join(words)}")
    elif isinstance(detector, Mapping):
        texts.append("The thresholds are the usual ones (--thresholds usual).")
    pictures = [*_sheet(study), *_of_file(study.out / LOOK / "calibration.png", "What thresholds would reject")]
    return {"texts": texts, "pictures": pictures, "links": _links(study, [("figures", f"{LOOK}/calibration.json")])}


def _sheet(study: Study) -> list[Picture]:
    """Some of the training people, drawn by their names."""
    listing = read_split(study.data, TRAIN)
    names = {listing.people.get(person, str(person)): person for person in listing.named_people()}
    rows = []
    for name in drawn_names(names, 0)[:_PEOPLE]:
        places = np.flatnonzero(listing.identities == names[name])
        chosen = places[np.unique(np.linspace(0, len(places) - 1, min(_PICTURES, len(places))).astype(np.int64))]
        try:
            images, _, _ = decode_listing(listing.take(chosen), 128, 64, decode_one=decode_scaled)
        except InputError:  # none of this person's pictures can be read
            continue
        rows.append(SheetRow(name, [SheetCell(image) for image in images]))
    if not any(row.cells for row in rows):
        return []
    sheet = contact_sheet(rows, title=f"{listing.name}: people of the training")
    return [_encoded(sheet, "People of the training, with pictures spread over each one's list")]


def _generator(study: Study) -> dict:
    folder = study.out / GENERATOR
    grids = [max(folder.glob(f"grids/{name}-*.png"), default=None) for name in ("identities", "people")]
    captions = ("A person in each row, the same ways of being seen in all rows", "People of the generator")
    pictures = []
    for path, caption in zip(grids, captions, strict=True):
        if path is not None:
            pictures += _of_file(path, caption)
            break
    pictures += _of_file(folder / "curves.png", "The training's losses")
    labels = study.options.labelled_people
    whose = "of everybody" if labels is None else f"of {labels:,} people"
    text = f"Trained by identity pairs on {study.options.kimg:g} thousand images, with the identity labels {whose}."
    if study.options.identity_loss:
        text += " The judge was part of its loss: to the judge, a person's pictures shall be as alike as real ones."
    return {"texts": [text], "pictures": pictures, "links": _links(study, [("log", f"{GENERATOR}/log.txt")])}


def _judge(study: Study) -> dict:
    text = (
        f"A re-identification network that learned the labels of {study.judge_people:,} people. It judges whether "
        "pictures show one person, and finds near-copies of real pictures."
    )
    pictures = _of_file(study.out / JUDGE / "curves.png", "The judge's training")
    return {"texts": [text], "pictures": pictures, "links": _links(study, [("log", f"{JUDGE}/log.txt")])}


def _card(study: Study) -> dict:
    card, verdict = study.card(), card_verdict(study)
    if card is None or verdict is None:
        return {}
    path = study.network().relative_to(study.out)
    texts = [f"At truncation {study.truncation()}: {verdict}.", *(f"What would help: {text}." for text in verdict.help)]
    rows = [("", "figure", "wanted", "verdict"), *gate_rows(card)]
    name = str(path.with_name(f"{path.stem}.card.json"))
    return {"texts": texts, "table": rows, "links": _links(study, [("card", name)])}


def _people(study: Study) -> dict:
    output = Output(str(study.out / PEOPLE))
    summary = read_summary(output)
    if summary is None:
        return {}
    rows = discard_rows(counts_of(summary), filters_set(summary["thresholds"]))
    table = [("", "images", "of all"), *((row.label, f"{row.count:,}", percent(row.of_all)) for row in rows)]
    pictures = _of_file(study.out / PEOPLE / "contact_sheet.png", "A person in each row; framed pictures were rejected")
    privacy = summary.get("privacy")
    copies = privacy["near_copies"] if privacy else None
    texts = [f"{copies['count']:,} near-copies of real pictures."] if copies else []
    return {
        "texts": texts,
        "table": table,
        "pictures": pictures,
        "links": _links(study, [("the run's page, with sliders", f"{PEOPLE}/report.html")]),
    }


def _export(study: Study) -> dict:
    folder = study.out / EXPORT / study.options.export
    text = f"The kept pictures lie in {folder}."
    if study.options.export == "market1501":
        text += f" torchreid loads them with root {folder.parent}, fast-reid with FASTREID_DATASETS={folder}."
    return {
        "texts": [text],
        "links": _links(study, [("who is who", f"{EXPORT}/{study.options.export}/identities.csv")]),
    }


def _sweep(study: Study) -> dict:
    try:
        sweep, trials = read_sweep(Output(str(study.out / SWEEP)))
    except InputError:  # no trial has ended
        return {"texts": study.arms()[1]}
    texts = [f"{len(set(trials['trial'].to_pylist())):,} of {sweep.get('trials', 0):,} trainings have ended."]
    head = ("arm", "it adds", "people", "mAP", "Rank-1", "difference", "verdict")
    table: list[tuple[str, ...]] = []
    for answer in comparisons_of(trials, sweep):
        table.append(head)
        table += [
            (line["arm"], line["adds"], line["level"], line["mAP"], line["rank1"], line["difference"], line["verdict"])
            for line in answer["lines"]
        ]
    return {"texts": [*texts, *study.arms()[1]], "table": table}


def _answer(study: Study) -> dict:
    page = study.out / SWEEP / SWEEP_REPORT
    pictures = []
    if page.is_file():  # its picture of queries is in no other file
        drawn = re.search(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page.read_text("utf-8"))
        if drawn:
            image = cv2.imdecode(np.frombuffer(base64.b64decode(drawn[1]), np.uint8), cv2.IMREAD_COLOR)
            caption = "Queries that gained and lost most, with what was found for them before and after"
            pictures = [] if image is None else [_encoded(image[:, :, ::-1], caption)]
    links = _links(study, [("the sweep's page, with all figures", f"{SWEEP}/{SWEEP_REPORT}")])
    return {"texts": _answers(study), "pictures": pictures, "links": links}


_TELL = {
    LOOK: _look, GENERATOR: _generator, JUDGE: _judge, CARD: _card, PEOPLE: _people, EXPORT: _export, SWEEP: _sweep,
    ANSWER: _answer,
}  # fmt: skip


# ---- Pictures and links.


def _links(study: Study, links: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(text, address) for text, address in links if (study.out / address).is_file()]


def _of_file(path: Path, caption: str) -> list[Picture]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    return [] if image is None else [_encoded(image[:, :, ::-1], caption)]


def _encoded(image: np.ndarray, caption: str) -> Picture:
    """An image [H, W, 3] uint8 RGB as a JPEG file of modest size."""
    height, width = image.shape[:2]
    if width > _WIDEST:
        image = cv2.resize(image, (_WIDEST, round(height * _WIDEST / width)), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return Picture("image/jpeg", base64.b64encode(jpeg.tobytes()).decode(), caption, wide=width > 500)
