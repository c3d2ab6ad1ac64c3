"""Tutorials: executes the notebooks, and makes pages of them.

    python docs/tutorials.py run
    python docs/tutorials.py run walk sae

A tutorial is `docs/tutorials/NAME.ipynb`, which is kept without outputs. `run`
executes it, in its folder and in a kernel of its own, and writes `NAME.md`, the
page of the documents, and the page's pictures and sounds, `NAME/*`. Outputs
stand between markers: what is left without them is the notebook.
"""

import base64
import io
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import soundfile
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "tutorials"
#: in the order in which they are read
NAMES = "walk", "folder", "sae", "halves", "recipe"
#: the tag of the cell that a small twin replaces
PARAMETERS = "parameters"
BEGIN, END = "<!-- output -->", "<!-- end of output -->"
SOUND = re.compile(r'src="data:audio/[\w-]+;base64,([^"]+)"')
#: seconds that a cell may take
TIMEOUT = 1200


def read(name):
    """Reads a notebook."""
    return nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)


def clean(notebook):
    """Returns cells without outputs, and without what editors add."""
    cells = []
    for cell in notebook.cells:
        tags = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        made = {"cell_type": cell.cell_type, "metadata": tags}
        if cell.cell_type == "code":
            made |= {"execution_count": None, "outputs": []}
        cells.append({**made, "source": cell.source.strip()})
    return nbformat.from_dict(
        {
            "cells": cells,
            "metadata": {
                "kernelspec": {
                    "display_name": "Python 3",
                    "language": "python",
                    "name": "python3",
                },
                "language_info": {"name": "python"},
            },
            "nbformat": 4,
            "nbformat_minor": 4,
        }
    )


def write(name, notebook):
    """Writes a notebook as it is kept."""
    text = nbformat.writes(clean(notebook), indent=1)
    (FOLDER / f"{name}.ipynb").write_text(f"{text}\n", encoding="utf-8")


def execute(notebook, folder):
    """Executes a notebook in a folder, in place; raises an error of a cell."""
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": TIMEOUT, "kernel_name": "python3"}
    NotebookClient(notebook, resources=resources, **options).execute()
    for cell in notebook.cells:  # of `%run`, which does not stop a notebook
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                raise RuntimeError(f"{cell.source}\n{output.evalue}")


class Page:
    """The page of a notebook; its pictures and sounds are written to `NAME/`."""

    def __init__(self, name):
        self.name, self.count = name, 0

    def save(self, suffix):
        """Returns the path of the next file, and the link to it."""
        self.count += 1
        file = f"{self.name}/{self.count:02}{suffix}"
        (FOLDER / file).parent.mkdir(exist_ok=True)
        return FOLDER / file, file

    def output(self, output):
        """Returns an output as markdown; '' for what is not shown."""
        if output.output_type == "stream":
            text = output.text if output.name == "stdout" else ""
            return f"```text\n{text.strip()}\n```" if text.strip() else ""
        data = output.data
        if "image/png" in data:
            path, link = self.save(".webp")
            picture = Image.open(
                io.BytesIO(base64.b64decode(data["image/png"]))
            )
            picture.convert("RGB").save(path, quality=80, method=6)
            return f"![]({link})"
        if found := SOUND.search(data.get("text/html", "")):
            path, link = self.save(".mp3")
            wav = io.BytesIO(base64.b64decode(found[1]))
            soundfile.write(path, *soundfile.read(wav))
            return f'<audio controls preload="none" src="{link}"></audio>'
        if "text/markdown" in data:
            return data["text/markdown"].strip()
        return f"```text\n{data['text/plain']}\n```"

    def cell(self, cell):
        """Returns a cell as markdown, with its outputs."""
        if cell.cell_type == "markdown":
            return cell.source
        parts = [f"```python\n{cell.source}\n```"]
        shown = [text for o in cell.outputs if (text := self.output(o))]
        if shown:
            parts += [BEGIN, *shown, END]
        return "\n\n".join(parts)


def page_of(name, notebook):
    """Returns the page of a notebook, and writes the files that it shows."""
    title, *cells = map(Page(name).cell, notebook.cells)
    link = f"The notebook is [{name}.ipynb]({name}.ipynb)"
    made = f"this page, with its outputs, is made by\n`python docs/tutorials.py run {name}`"
    return "\n\n".join([title, f"{link}; {made}.", *cells]) + "\n"


def without_outputs(page):
    """Returns a page without what its cells made."""
    return re.sub(f"\n{BEGIN}.*?{END}\n", "", page, flags=re.DOTALL)


def run(name):
    """Executes a tutorial, and writes its page."""
    notebook = clean(read(name))
    write(name, notebook)
    start = time.perf_counter()
    execute(notebook, FOLDER)
    seconds = time.perf_counter() - start
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    page = page_of(name, notebook)
    (FOLDER / f"{name}.md").write_text(page, encoding="utf-8")
    print(f"{name}: {seconds:.0f} s")


def main(argv):
    """Runs a command line."""
    known = {"run", *NAMES}
    if argv[:1] != ["run"] or not set(argv) <= known:
        sys.exit(
            f"usage: python docs/tutorials.py run [{' | '.join(NAMES)}]..."
        )
    for name in argv[1:] or NAMES:
        run(name)


if __name__ == "__main__":
    main(sys.argv[1:])
