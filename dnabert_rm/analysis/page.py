"""One self-contained HTML page: style, tables, figures. No script, nothing fetched; for dark, light and paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --muted: #59636e; --paper: #ffffff; --band: #f3f5f7;
  --line: #d1d9e0; --accent: #0a5ea8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --muted: #a3adb8; --paper: #14181d; --band: #1e242b; --line: #3a434d; --accent: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.note, figcaption, nav { color: var(--muted); font-size: .92rem; }
a { color: var(--accent); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 1.2rem 0 0; }
.missing { border-left: 4px solid var(--accent); background: var(--band); padding: .6rem 1rem; margin: 1.4rem 0 0; }
.missing ul { margin: .3rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 40%; }
th, td { padding: .34rem .9rem .34rem .5rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; max-width: 28rem; }
thead th { border-bottom: 2px solid var(--muted); vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody th:not(.n) { min-width: 11rem; }
tbody tr:nth-child(even) { background: var(--band); }
td.n, tbody th.n { text-align: right; white-space: nowrap; }
thead .n { text-align: right; }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
td code { overflow-wrap: anywhere; }
.differs th::before { content: "\\2260\\00a0"; font-weight: 700; }
.differs th, .differs td { font-weight: 700; }
figure { margin: 1.1rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; padding: .6rem;
  border: 1px solid var(--line); border-radius: 6px; }
figcaption { margin-top: .4rem; max-width: 46rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
@media print {
  :root { --ink: #000000; --muted: #333333; --paper: #ffffff; --band: #f4f4f4; --line: #bbbbbb; --accent: #000000; }
  @page { margin: 15mm; }
  body { padding: 0; max-width: none; font-size: 9.5pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: 8pt; width: 100%; }
  tbody th:not(.n) { min-width: 0; }
  th, td { overflow-wrap: anywhere; padding: .15rem .3rem; max-width: none; }
  td.n { white-space: normal; }
  th { overflow-wrap: break-word; }
  thead { display: table-header-group; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the page may load: nothing but what it holds, and no script."""


class Markup(str):
    """Text that is HTML already."""


def html(value: object) -> str:
    """A value as HTML: escaped unless it is `Markup`; a dash for None."""
    return value if isinstance(value, Markup) else escape("–" if value is None else str(value))


def code(value: object) -> Markup:
    """A value in the type of code."""
    return Markup(f"<code>{escape(str(value))}</code>")


def with_code(text: str) -> Markup:
    """A sentence, with what stands between backticks in the type of code."""
    parts = text.split("`")
    return Markup("".join(code(part) if n % 2 else escape(part) for n, part in enumerate(parts)))


def heading(text: object) -> Markup:
    """The heading of a part of a section."""
    return Markup(f"<h3>{html(text)}</h3>")


def paragraph(text: object, kind: str = "") -> Markup:
    """A paragraph, of a class of `STYLE` if one is given."""
    return Markup(f'<p class="{kind}">{html(text)}</p>' if kind else f"<p>{html(text)}</p>")


def table(
    head: Sequence[object], rows: Sequence[Sequence[object]], align: str = "", marked: Sequence[int] = ()
) -> Markup:
    """A table that scrolls by itself where it is too wide; the first cell of each row is its heading.

    `align` has a letter a column: "l", or "n" for numbers, the last one for all further columns. Rows numbered in
    `marked` are shown as differing.
    """
    kinds = (align or "l").ljust(len(head), (align or "l")[-1])
    attributes = [' class="n"' if kind == "n" else "" for kind in kinds]
    cells = "".join(f'<th scope="col"{kind}>{html(cell)}</th>' for kind, cell in zip(attributes, head, strict=True))
    body = []
    for number, row in enumerate(rows):
        first, *others = (html(cell) for cell in row)
        text = f'<th scope="row"{attributes[0]}>{first}</th>'
        text += "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(attributes[1:], others, strict=True))
        body.append(f'<tr class="differs">{text}</tr>' if number in marked else f"<tr>{text}</tr>")
    lines = "\n".join(body)
    return Markup(f'<div class="wide"><table><thead><tr>{cells}</tr></thead>\n<tbody>{lines}</tbody></table></div>')


def picture(uri: str, description: str, caption: object = "") -> Markup:
    """A figure with a text in place of the image and a caption under it."""
    under = f"<figcaption>{html(caption)}</figcaption>" if caption else ""
    return Markup(f'<figure><img src="{uri}" alt="{escape(description)}">{under}</figure>')


def listing(items: Sequence[object]) -> Markup:
    """A list of sentences."""
    return Markup("<ul>" + "".join(f"<li>{html(item)}</li>" for item in items) + "</ul>")


def page(title: str, opening: Sequence[Markup], sections: Sequence[tuple[str, Sequence[Markup]]], footer: str) -> str:
    """The whole page: what stands before the contents, then the sections with their headings."""
    links = "".join(f'<li><a href="#part{n}">{escape(name)}</a></li>' for n, (name, _) in enumerate(sections, 1))
    parts = "\n".join(
        f'<section id="part{n}"><h2>{escape(name)}</h2>\n' + "\n".join(content) + "</section>"
        for n, (name, content) in enumerate(sections, 1)
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>{STYLE}</style></head>\n'
        f'<body><header><h1>{escape(title)}</h1>\n{"".join(opening)}\n<nav aria-label="Contents"><ul>{links}</ul></nav>'
        f"</header>\n<main>{parts}</main>\n<footer>{escape(footer)}</footer></body></html>\n"
    )
