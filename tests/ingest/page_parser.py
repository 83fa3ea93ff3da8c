"""A preview page taken apart by the standard library's HTML parser."""

import base64
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass
class Page(HTMLParser):
    """The tags of a page, its samples with their pictures, and its text."""

    tags: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    text: str = ""
    inside: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        told = dict(attrs)
        self.links += [told[name] for name in ("src", "href", "srcset") if name in told]
        if tag not in ("wbr", "span", "i"):
            self.handle_data("\n")
        if tag == "article":
            self.inside = True
            self.samples.append({"text": ""})
        elif tag == "img" and self.inside:
            self.samples[-1][told["alt"]] = told["src"]

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "article"

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.samples[-1]["text"] += data


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


def pixels(source: str) -> np.ndarray:
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)
