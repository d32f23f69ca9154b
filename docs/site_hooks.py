"""MkDocs hook: on the site, links to files outside docs/ become plain text.

The site contains only docs/. In the repository such links work, and docs/check_links.py checks them.
"""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)\s]+\)")
"""A link whose target is above docs/."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the text of a page with the text of each link to a file outside docs/ in place of the link."""
    return OUTSIDE.sub(r"\1", markdown)
