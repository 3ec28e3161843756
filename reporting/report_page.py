"""One HTML file that needs nothing beside itself: a template of this folder with its style and its script inside."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from reporting.grid import FRAME_COLOURS
from reporting.tables import percent

# Not allowed in HTML, or not encodable: control characters and lone halves of surrogate pairs.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_FOLDER = Path(__file__).parent
_DARK = 200  # sum of red, green and blue: below, a frame cannot be seen on a dark page


def rendered(template: str, script_file: str | None = None, **values: Any) -> str:
    """The page as text: `values` go into the template, escaped, with the style of all pages and, if named, one script.

    The page's content policy allows that script by its hash, and no other.
    """
    script = f"\n{(_FOLDER / script_file).read_text()}" if script_file else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = markupsafe.Markup((_FOLDER / "report.css").read_text() + _frame_colours())
    page = _environment().get_template(template)
    html = page.render(style=style, script=markupsafe.Markup(script), script_hash=f"sha256-{digest}", **values)
    return _FORBIDDEN.sub("\ufffd", html)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,  # names, messages and records come from files that anybody may have made
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def _frame_colours() -> str:
    lifted = {
        key: tuple((c + 170) // 2 for c in colour) for key, colour in FRAME_COLOURS.items() if sum(colour) < _DARK
    }
    light, dark = (
        "".join(f".v-{key} {{ --verdict: rgb{colour}; }}\n" for key, colour in colours.items())
        for colours in (FRAME_COLOURS, lifted)
    )
    return f"{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
