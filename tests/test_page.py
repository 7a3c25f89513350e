"""Pages: one file, whole, and nothing that is given becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from circuitbase.page import Page
from tracer.errors import FormatError

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\x00</style></pre>"


class Reader(HTMLParser):
    """Elements, attributes and the text of a page; complains of what is not closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "path", "use", "image"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def svg(inner: str, attributes: str = "") -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f"{attributes}>{inner}</svg>"
    )


def test_whatever_is_given_stays_text():
    page = Page(HOSTILE, HOSTILE)
    page.section(HOSTILE, HOSTILE)
    page.heading(HOSTILE)
    page.text(f"`{HOSTILE}` **{HOSTILE}**")
    page.aside(HOSTILE)
    page.facts({HOSTILE: HOSTILE})
    page.table(pd.DataFrame({HOSTILE: [HOSTILE], "x": [[HOSTILE]], "y": [{"k": HOSTILE}]}), HOSTILE)
    page.cypher(HOSTILE, {HOSTILE: HOSTILE}, title=HOSTILE)
    page.code(HOSTILE, HOSTILE)
    page.figure(svg(f"<text>{'&lt;script&gt;'}</text>"), HOSTILE)
    page.footer(HOSTILE)
    with page.details(HOSTILE):
        page.text(HOSTILE)
    text = page.html()
    read = Reader(text)
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in read.tags}
    assert not [name for _, given in read.tags for name in given if name.startswith("on")]
    assert text.count("</style>") == 1
    assert "\u202e" not in text
    assert "\x00" not in text
    # Once in the title, and in the twenty places above, it is readable as it was.
    assert read.text.count("<script>alert(1)</script>") >= 20


def test_a_page_loads_nothing_from_elsewhere():
    page = Page("t")
    outside = (
        '<image href="https://example.org/a.png"/><image href="data:image/png;base64,AA=="/>'
        '<style>@import "https://example.org/a.css"; a{fill:url(https://example.org/b)}</style>'
        '<rect style="fill:url(https://example.org/c)"/><a href="https://example.org"><path/></a>'
        '<foreignObject><p xmlns="http://www.w3.org/1999/xhtml">x</p></foreignObject>'
    )
    page.figure(svg(outside))
    text = page.html()
    assert "example.org" not in text
    assert "data:image/png" in text
    assert "foreignObject" not in text
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text) == []
    assert "default-src 'none'" in text


def test_pictures_do_not_share_ids_or_styles():
    drawn = svg(
        '<style>*{stroke-linecap: butt}</style><defs><path id="a"/><clipPath id="c"/></defs>'
        '<use xlink:href="#a"/><g clip-path="url(#c)" style="fill: url(#a)"/>',
        'id="outer" width="10pt"',
    )
    page = Page("t")
    page.figure(drawn)
    page.figure(drawn)
    text = page.html()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) == 6
    for n in (1, 2):
        assert f'href="#picture-{n}-a"' in text
        assert f'clip-path="url(#picture-{n}-c)"' in text
        assert f"fill: url(#picture-{n}-a)" in text
        assert f"#picture-{n} {{ *{{stroke-linecap: butt}} }}" in text


def test_figures_of_matplotlib_are_taken():
    from io import StringIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    axes = figure.add_subplot()
    axes.plot([0, 1], label="<b>")
    axes.legend()
    file = StringIO()
    figure.savefig(file, format="svg")
    page = Page("t")
    page.figure(file.getvalue())
    page.figure(file.getvalue())
    read = Reader(page.html())
    assert sum(tag == "svg" for tag, _ in read.tags) == 2
    references = {g["href"][1:] for t, g in read.tags if t == "use" and "href" in g}
    assert references
    assert references <= {g["id"] for _, g in read.tags if "id" in g}


@pytest.mark.parametrize("text", ["", "no picture", "<p>x</p>", "<svg"])
def test_what_is_no_picture_is_refused(text):
    with pytest.raises(FormatError, match="a picture is"):
        Page("t").figure(text)


def test_tables_show_numbers_as_the_terminal_does():
    page = Page("t")
    frame = pd.DataFrame(
        {
            "feature_id": ["a/0/1", "a/0/2", "a/0/3"],
            "share": [0.5, 0.25, np.nan],
            "graphs": [3, 2, 1],
            "tokens": [["x", "y"], [], None],
        }
    )
    page.table(frame, "Below.", bars=["share"], limit=2, names={"graphs": "in graphs"})
    text = page.html()
    assert text.count("<tr") == 3
    assert "--part: 1.0000" in text
    assert "--part: 0.5000" in text
    assert "<span>0.2500</span>" in text
    assert '<td class="number">3</td>' in text
    assert '<td class="short">x, y</td>' in text
    assert '<th class="number">in graphs</th>' in text
    assert "Below. 1 more rows." in text
    Reader(text)
    page.table(frame.iloc[:0], empty="None at all.")
    assert "None at all." in page.html()


def test_cypher_keeps_its_text_and_shows_its_parameters():
    query = (
        "// why\nMATCH (g:Graph {slug: $slug})-[r:HAS_FEATURE]->(f)\nWHERE r.x > 1.5 RETURN 'a<b'"
    )
    page = Page("t")
    page.cypher(query, {"slug": "night", "flags": [True] * 500})
    text = page.html()
    pre = re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)[1]
    assert Reader(pre).text == query
    assert re.findall(r'<span class="k">(\w+)</span>', pre) == ["MATCH", "WHERE", "RETURN"]
    assert re.findall(r'<span class="l">(:\w+)</span>', pre) == [":Graph", ":HAS_FEATURE"]
    assert '<span class="p">$slug</span> = &quot;night&quot;' in text
    assert "(500 in all)" in text


def test_writing_is_whole_or_not_at_all(tmp_path):
    page = Page("t", "a lead")
    for number in range(3):
        page.section(f"Part {number}")
    path = page.write(tmp_path / "new" / "report.html")
    read = Reader(path.read_text(encoding="utf-8"))
    assert [given["href"] for tag, given in read.tags if tag == "a"] == [
        "#part-1",
        "#part-2",
        "#part-3",
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="cannot be written"):
        page.write(tmp_path / "file" / "report.html")
