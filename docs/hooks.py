"""Hooks of MkDocs: files of the repository in the site, and no network.

A link from a page to a file outside of `docs` adds that file to the site, a
markdown file (the README, a model's card) as a page; the build fails if there
is none, as it does for every dead link (`mkdocs build --strict`). Names such as
`speechbrain_sim.probes.LinearProbe` lead to the reference, where they are in it.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
#: `](target#anchor` of links and pictures, not to the network or within a page
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)")
#: a name of the package, in backticks and in no link
NAME = re.compile(r"(?<![`\[])`(speechbrain_sim(?:\.\w+)+)`(?!`)")
#: whatever a browser loads by itself
LOADED = re.compile(
    r"<(?:script|img|iframe|source|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|icon|preconnect))"
    r"[^>]*\bhref=[\"']?(?:https?:)?//"
    r"|@import\s+(?:url\()?[\"']?(?:https?:)?//|\burl\([\"']?(?:https?:)?//",
)


def _place(path):
    """Returns where a file of the repository lies in the site's sources."""
    docs = ROOT / "docs"
    if path.is_relative_to(docs):
        return path.relative_to(docs).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def _source(file):
    """Returns the file of the repository that a page is made of."""
    outside = file.src_uri.removeprefix("repository/")
    folder = ROOT if outside != file.src_uri else ROOT / "docs"
    return folder / outside


def _targets(source):
    """Returns the files of the repository that a markdown file links to."""
    for _, link in LINK.findall(source.read_text(encoding="utf-8")):
        path = Path(os.path.normpath(source.parent / unquote(link)))
        if path.is_relative_to(ROOT):
            yield path


def on_files(files, config):
    """Adds the files that pages link to."""
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        for path in _targets(_source(waiting.pop())):
            place = _place(path)
            if files.get_file_from_path(place) is None and path.is_file():
                added = File.generated(config, place, abs_src_path=str(path))
                files.append(added)
                if added.is_documentation_page():
                    waiting.append(added)
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links within the repository into links within the site."""
    source = _source(page.file)

    def relative(match):
        start, link = match.groups()
        path = Path(os.path.normpath(source.parent / unquote(link)))
        if not path.is_relative_to(ROOT):
            return match[0]
        return start + os.path.relpath(
            _place(path), os.path.dirname(page.file.src_uri) or "."
        )

    name = r"<autoref identifier='\1' optional><code>\1</code></autoref>"
    return NAME.sub(name, LINK.sub(relative, markdown))


def on_post_page(output, page, config):
    """Refuses pages that load anything from the network."""
    loaded = LOADED.search(output)
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads {loaded[0]}...")
    return output
