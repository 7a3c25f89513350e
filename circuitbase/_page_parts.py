"""Parts of a page that take more than escaping: pictures, Cypher, cells of a table."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree

from tracer.errors import FormatError

__all__ = ["embedded_svg", "highlighted", "inline", "parameter_lines", "printable"]

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "http://www.w3.org/1999/xlink"
# What a picture needs; everything else (scripts, foreign content, metadata) is left out.
_ELEMENTS: Final = """
svg g defs path rect circle ellipse line polyline polygon text tspan title desc use symbol clipPath
mask pattern marker linearGradient radialGradient stop style image
"""
_DRAWN: Final = frozenset(_ELEMENTS.split())
_URL: Final = re.compile(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)")
_OUTSIDE: Final = re.compile(r"url\(\s*['\"]?(?!#)[^)]*\)|@import[^;]*;?|</", re.IGNORECASE)


def embedded_svg(svg: str, name: str) -> str:
    """SVG to stand inside a page, on its own.

    Ids get a prefix, style sheets hold within the picture only, and whatever is no drawing
    (scripts, event handlers, links to elsewhere) is left out.

    Parameters
    ----------
    svg
        The picture's text, whole.
    name
        An id that no other picture of the page has.

    Raises
    ------
    FormatError
        If it is no SVG.

    Examples
    --------
    >>> embedded_svg('<svg width="9"><path id="a" onload="x()"/><script>y()</script></svg>', "p")
    '<svg xmlns="http://www.w3.org/2000/svg" width="9" id="p" role="img"><path id="p-a" /></svg>'
    """
    try:
        root = ElementTree.fromstring(svg)  # noqa: S314 - expat bounds entities, none are fetched
    except ElementTree.ParseError as error:
        raise FormatError(
            f"a picture is no XML ({error})", "Give the whole text of an SVG"
        ) from None
    if root.tag not in (f"{{{_SVG}}}svg", "svg"):
        raise FormatError(f"a picture is <{root.tag}>, not <svg>", "Give the text of an SVG")
    made = _copied(root, name)
    made.attrib = {
        "xmlns": _SVG,
        **{key: value for key, value in made.attrib.items() if key != "id"},
        "id": name,
        "role": "img",
    }
    return ElementTree.tostring(made, encoding="unicode")


def _copied(element: ElementTree.Element, name: str) -> ElementTree.Element:
    """Element without name spaces and without what does not belong into a picture."""
    made = ElementTree.Element(_local(element.tag))
    for key, value in element.attrib.items():
        kept = _attribute(_local(key), value, name)
        if kept is not None:
            made.set(_local(key), kept)
    made.text, made.tail = element.text, element.tail
    if made.tag == "style":
        # Rules of one picture must not reach the page; nested, they hold below its id.
        made.text = f"#{name} {{ {_restyled(element.text or '', name)} }}"
    for child in element:
        if isinstance(child.tag, str) and _local(child.tag) in _DRAWN:
            made.append(_copied(child, name))
    return made


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str | None:
    """Value that an attribute keeps; None if it does not belong into a picture."""
    if key.lower().startswith("on"):
        return None
    if key == "href":
        if value.startswith("#"):
            return f"#{name}-{value[1:]}"
        return value if value.startswith("data:image/png;") else None
    if key == "id":
        return f"{name}-{value}"
    return _restyled(value, name) if "url" in value or key == "style" else value


def _restyled(text: str, name: str) -> str:
    return _URL.sub(rf"url(#{name}-\1)", _OUTSIDE.sub("", text))


# Cypher ------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(
    r"(?P<c>//[^\n]*|/\*.*?\*/)"
    r"|(?P<s>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")"
    r"|(?P<p>\$\w+)"
    r"|(?P<l>(?<=[\[(:|&\w]):[A-Z_]\w*|(?<=[\s(\[])(?::[A-Z_]\w*))"
    r"|(?P<n>(?<![\w.])\d+(?:\.\d+)?\b)"
    r"|(?P<w>\b[A-Za-z_]\w*\b)",
    re.DOTALL,
)
_WORDS: Final = """
MATCH OPTIONAL WHERE WITH RETURN ORDER BY LIMIT SKIP UNWIND AS AND OR NOT XOR IN IS NULL CASE WHEN
THEN ELSE END DISTINCT CREATE MERGE ON SET REMOVE DELETE DETACH CALL YIELD UNION ALL ANY NONE SINGLE
EXISTS STARTS ENDS CONTAINS DESC ASC TRUE FALSE COUNT COLLECT FOREACH
"""
_KEYWORDS: Final = frozenset(_WORDS.split())


def highlighted(text: str) -> str:
    """Cypher as HTML, its keywords, labels, parameters and texts marked.

    Examples
    --------
    >>> highlighted("MATCH (n) WHERE n.x < $y").replace("<span class=", "<")
    '<"k">MATCH</span> (n) <"k">WHERE</span> n.x &lt; <"p">$y</span>'
    """
    text = printable(text)
    parts, end = [], 0
    for match in _TOKEN.finditer(text):
        kind, word = match.lastgroup or "", match[0]
        if kind == "w":
            kind = "k" if word.isupper() and word in _KEYWORDS else ""
        escaped = html.escape(word)
        parts += [html.escape(text[end : match.start()])]
        parts += [f'<span class="{kind}">{escaped}</span>' if kind else escaped]
        end = match.end()
    return "".join([*parts, html.escape(text[end:])])


def parameter_lines(parameters: Mapping[str, Any], length: int = 110) -> str:
    """Parameters as HTML, one a line; long lists are cut.

    Examples
    --------
    >>> parameter_lines({"ids": list(range(1000))}, 30)
    '<span class="p">$ids</span> = [0, 1, 2, 3, 4, 5, … (1,000 in all)'
    """
    lines = []
    for key, value in parameters.items():
        text = json.dumps(value, ensure_ascii=False, default=str)
        if len(text) > length:
            many = f" ({len(value):,} in all)" if isinstance(value, list | tuple | dict) else ""
            text = f"{text[: length - 11].rstrip()} …{many}"
        lines.append(
            f'<span class="p">${html.escape(printable(str(key)))}</span> = '
            f"{html.escape(printable(text))}"
        )
    return "\n".join(lines)


# Texts -------------------------------------------------------------------------------------------


def inline(text: str) -> str:
    """Text as HTML, in which ```code``` and ``**strong**`` mean something and nothing else does.

    Examples
    --------
    >>> inline("`a < b` and **c**")
    '<code>a &lt; b</code> and <strong>c</strong>'
    """
    escaped = html.escape(printable(text))
    escaped = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*\n]+)\*\*", r"<strong>\1</strong>", escaped)


def printable(text: str) -> str:
    """Text with signs for what a page cannot hold or what would turn its direction around."""
    return "".join(
        sign
        if sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn")
        else sign.encode("unicode_escape").decode()
        for sign in text
    )
