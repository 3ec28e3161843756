"""The table of FIDs: the published rows, ours among them, and the mark of what each is about."""

import re

from reporting.gan.scores import PUBLISHED, FidRow, fid_markdown, fid_rows

OWN = FidRow("ours <b>|x", 31.456, "toy crowd (drawn people)", "held-out people, 64x32", "measured here")


def test_published_rows_are_the_studys(shared_dir):
    text = (shared_dir / "facts" / "study-results.md").read_text()
    section = text.partition("## FID on Market-1501")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([^|]+) \|$", section, re.MULTILINE)
    names = {"Real": "real images", "StyleGAN3 (the study)": "StyleGAN3 of the study"}
    expected = {(names.get(model, model), float(fid), source.partition(",")[0]) for model, fid, source in listed}
    assert {(row.model, row.fid, row.source) for row in PUBLISHED} == expected
    assert len(expected) == 11


def test_ours_come_first_and_every_row_names_its_data_set():
    rows = fid_rows([FidRow("worse", 90.0, "toy", "", "here"), OWN])
    assert [row.model for row in rows[:3]] == [OWN.model, "worse", "real images"]
    assert all(row.data_set == "Market-1501" for row in rows[2:])
    assert [row.fid for row in rows[2:]] == sorted(row.fid for row in PUBLISHED)


def test_the_table_warns_of_comparing_a_toy_with_photographs():
    text = fid_markdown([OWN])
    assert "FIDs of the toy crowd (people drawn by a program) say nothing beside those of Market-1501" in text
    assert "31.46" in text
    assert "toy crowd (drawn people)" in text
    assert "281.63" in text


def test_markdown_has_as_many_cells_in_each_line():
    lines = [line for line in fid_markdown([OWN]).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert lines[2].startswith("| **ours <b>\\|x** | **31.46** |")
