"""Minimal handmade documents in formats that text editors do not write."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

_WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_STYLES = (
    f'<w:styles {_WORD}><w:style w:styleId="Titre1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Plan2"><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style></w:styles>'
)


def pdf(*pages: Sequence[str]) -> bytes:
    """Returns a PDF with pages of lines; a line that begins with `# ` is also in the outline."""
    headings = [(line[2:], index) for index, page in enumerate(pages) for line in page if line.startswith("# ")]
    first_heading = 4 + 2 * len(pages)
    objects = [
        "<</Type/Catalog/Pages 2 0 R" + (f"/Outlines {first_heading} 0 R" if headings else "") + ">>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{' '.join(f'{4 + 2 * index} 0 R' for index in range(len(pages)))}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for index, page in enumerate(pages):
        shown = " ".join(f"({line.removeprefix('# ')}) Tj T*" for line in page)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET"
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {5 + 2 * index} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>"
        )
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
    if headings:
        last = first_heading + len(headings)
        objects.append(f"<</Type/Outlines/First {first_heading + 1} 0 R/Last {last} 0 R/Count {len(headings)}>>")
        for number, (title, page) in enumerate(headings, first_heading + 1):
            following = f"/Next {number + 1} 0 R" if number < last else ""
            before = f"/Prev {number - 1} 0 R" if number > first_heading + 1 else ""
            place = f"/Dest[{4 + 2 * page} 0 R/Fit]/Parent {first_heading} 0 R"
            objects.append(f"<</Title({title}){place}{following}{before}>>")
    return _file(objects)


def _file(objects: Sequence[str]) -> bytes:
    made = bytearray(b"%PDF-1.4\n")
    offsets: list[int] = []
    for number, each in enumerate(objects, 1):
        offsets.append(len(made))
        made += f"{number} 0 obj\n{each}\nendobj\n".encode()
    start = len(made)
    made += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    made += "".join(f"{offset:010} 00000 n \n" for offset in offsets).encode()
    return bytes(made + f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF".encode())


def docx(body: str, styles: str = _STYLES) -> bytes:
    """Returns a DOCX with the given body, in WordprocessingML with the prefix `w`."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("word/styles.xml", styles)
        package.writestr("word/document.xml", f"<w:document {_WORD}><w:body>{body}</w:body></w:document>")
    return made.getvalue()


def paragraph(text: str, style: str = "") -> str:
    """Returns a paragraph for a body, with a style of `docx`: `Titre1` and `Plan2` are headings."""
    said = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{said}<w:r><w:t>{text}</w:t></w:r></w:p>"
