"""For MkDocs, which builds docs/ into a site: the project's files that pages link to become pages there.

Pages link to files as they lie beside docs/ (`../config/x.py`), which is right for who reads the repository. A link
to a file that is not there is left as it is, and MkDocs complains of it.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(\.\./([^)#\s]+)")
LANGUAGES = {".py": "python", ".sh": "bash", ".h": "cpp"}


def on_files(files: Files, config: MkDocsConfig):
    """Adds a page for every file that is linked to."""
    texts = [Path(file.abs_src_path).read_text(encoding="utf-8") for file in files.documentation_pages()]
    for path in sorted({path for text in texts for path in LINK.findall(text)}):
        if (ROOT / path).is_file():
            content = source_page(path, (ROOT / path).read_text(encoding="utf-8"))
            page = File.generated(config, f"source/{path}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(page)


def source_page(path: str, text: str) -> str:
    """A page that shows a file; the site's search leaves it out."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n`````{language}\n{text}`````\n"


def on_page_markdown(markdown: str, **_) -> str:
    """Leads links to those pages."""

    def led(found: re.Match) -> str:
        return f"](source/{found[1]}.md" if (ROOT / found[1]).is_file() else found[0]

    return LINK.sub(led, markdown)
