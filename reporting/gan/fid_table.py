"""FID beside FID: what the study lists, and our own rows, each marked with the images that it is about."""

import dataclasses
import html
from collections.abc import Sequence

STUDY = "Generation of Images using Generative Adversarial Networks for Augmentation of Training Data in " + (
    "Re-identification Models, Universidad Autonoma de Yucatan"
)
MARKET = "Market-1501"
TOY = "toy crowd (drawn people)"
WARNING = (
    "Only rows of one data set, image size, reference and number of images can be compared. FIDs of the toy crowd "
    "(people drawn by a program) say nothing beside those of Market-1501 (photographs). The study's own 9.29 is "
    "against the images that its network was trained on; the other rows do not say what theirs are against."
)
HEADINGS = ("model", "FID", "data set", "compared with", "source")


@dataclasses.dataclass(frozen=True)
class FidRow:
    """One line: which model, its FID, on which data set, what it was compared with ("" = not stated), who says so."""

    model: str
    fid: float
    data_set: str
    compared_with: str
    source: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADINGS."""
        return self.model, f"{self.fid:.2f}", self.data_set, self.compared_with or "not stated", self.source


# The study's table of FIDs on Market-1501, with the sources that it names.
PUBLISHED = tuple(
    FidRow(model, fid, MARKET, compared_with, source)
    for model, fid, compared_with, source in [
        ("real images", 7.22, "", "Hao Chen et al."),
        ("StyleGAN3 of the study", 9.29, "its own training set, 51,247 images", "the study"),
        ("DG-Net", 18.24, "", "Hao Chen et al."),
        ("DG-GAN", 18.24, "", "Saleh Hussin et al."),
        ("GCL", 53.07, "", "Hao Chen et al."),
        ("PN-GAN", 54.23, "", "Zhedong Zheng et al."),
        ("DCGAN", 136.26, "", "Saleh Hussin et al."),
        ("LSGAN", 136.26, "", "Zhedong Zheng et al."),
        ("PG-GAN", 151.16, "", "Zhedong Zheng et al."),
        ("FD-GAN", 257.00, "", "Saleh Hussin et al."),
        ("IS-GAN", 281.63, "", "Hao Chen et al."),
    ]
)


def fid_rows(own: Sequence[FidRow] = ()) -> list[FidRow]:
    """Our rows first, then the published ones; both from the best to the worst."""
    return sorted(own, key=lambda row: row.fid) + list(PUBLISHED)


def fid_text(own: Sequence[FidRow] = ()) -> str:
    """The table as monospaced text with the warning below it."""
    cells = [HEADINGS, *(row.cells for row in fid_rows(own))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = [
            text.rjust(w) if i == 1 else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", WARNING])


def fid_markdown(own: Sequence[FidRow] = ()) -> str:
    """The table as Markdown; our rows are bold."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---:|---|---|---|"]
    for row in fid_rows(own):
        cells = [text.replace("|", "\\|") for text in row.cells]
        if row in own:
            cells[:2] = [f"**{text}**" for text in cells[:2]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", WARNING, "", f"Published rows: {STUDY}."])


def fid_html(own: Sequence[FidRow] = ()) -> str:
    """The table as an HTML fragment, everything escaped; our rows have the class "own"."""

    def line(cells: Sequence[str], tag: str, name: str = "") -> str:
        body = "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in cells)
        return f"<tr{name}>{body}</tr>"

    rows = [line(row.cells, "td", ' class="own"' * (row in own)) for row in fid_rows(own)]
    head = f"<thead>{line(HEADINGS, 'th')}</thead>"
    note = html.escape(f"{WARNING} Published rows: {STUDY}.")
    return f'<table class="fid">{head}<tbody>{"".join(rows)}</tbody></table><p>{note}</p>'
