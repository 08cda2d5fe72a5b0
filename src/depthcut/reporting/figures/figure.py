"""A figure: a chart with its numbers, written as SVG, PNG and CSV, inlined in the page."""

import csv
import io
import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from depthcut.files import write_file
from depthcut.frames import Row
from depthcut.reporting.figures.theme import Spec

VEGA_LITE = "6.4"
_CLIPS = re.compile(r"\b(?:clip|gradient_)\d+\b")


@dataclass(frozen=True)
class Figure:
    """A chart, what one sees in it, and the numbers behind it."""

    name: str
    """Of its files."""
    title: str
    caption: str
    spec: Spec
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def svg(self) -> str:
        """The chart, drawn offline."""
        import vl_convert

        text: str = vl_convert.vegalite_to_svg(
            json.dumps(self.spec), vl_version=VEGA_LITE, allowed_base_urls=[]
        )
        # Numbered by the process; named by the figure they are the same every time.
        numbers = {name: place for place, name in enumerate(dict.fromkeys(_CLIPS.findall(text)))}
        return _CLIPS.sub(lambda found: f"{self.name}-clip-{numbers[found[0]]}", text)

    def csv(self) -> str:
        """The numbers, unrounded."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


def write_figure(figure: Figure, folder: Path, *, overwrite: bool) -> str:
    """Write NAME.svg, NAME.png (two pixels a point) and NAME.csv; returns the SVG."""
    import vl_convert

    svg = figure.svg()
    files = {
        "svg": svg.encode(),
        "png": vl_convert.svg_to_png(svg, scale=2),
        "csv": figure.csv().encode(),
    }
    for ending, content in files.items():
        write_file(folder / f"{figure.name}.{ending}", content, overwrite=overwrite)
    return svg


def inlined(svg: str, title: str) -> str:
    """An SVG for the page: one titled image, no background or fonts of its own, half the bytes.

    Labels of marks become data-tip (shown by the page's script); the figure's caption speaks to
    screen readers instead, who would hear every one of hundreds of marks.
    """
    text = re.sub(r'<rect [^>]*fill="#ffffff"/>', "", svg, count=1)
    text = re.sub(r' (?:role|aria-roledescription|aria-hidden|font-family|class)="[^"]*"', "", text)
    text = re.sub(r' (?:xmlns:xlink|version)="[^"]*"| pointer-events="none"| opacity="1"', "", text)
    text = re.sub(r"<path [^>]*display=\"none\"/>", "", text)
    text = text.replace(" aria-label=", " data-tip=")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    text = re.sub(r'" fill="(#\w+)"/><path d="(?=[^"]*" fill="\1"/>)', "", text)  # one path
    return re.sub(r"(?<=[\d.])\d*\.\d{3,}|\d+\.\d{3,}", _shortened, text)


def _shortened(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
