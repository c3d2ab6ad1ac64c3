"""The site of `make docs`: dead links fail, and nothing needs the network."""

import shutil
import subprocess
import sys
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path):
    """A small repository with the hooks of ours."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/hooks.py", tmp_path / "docs")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/code.py").write_text("x = 1\n")
    (tmp_path / "src/NOTES.md").write_text("[back](../docs/page.md#here)\n")
    (tmp_path / "README.md").write_text("[page](docs/page.md#here)\n")
    (tmp_path / "docs/page.md").write_text(
        "## Here\n\n[code](../src/code.py), [notes](../src/NOTES.md)\n"
    )
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: test\ntheme: {name: material, font: false}\n"
        "use_directory_urls: false\nplugins: []\nhooks: [docs/hooks.py]\n"
        "exclude_docs: /*.py\nnav: [index.md, page.md]\n"
        "not_in_nav: repository/*\nvalidation: {links: {anchors: warn}}\n"
    )
    return tmp_path


def build(project):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def test_the_readme_is_the_first_page_and_files_are_part_of_the_site(project):
    done = build(project)
    assert done.returncode == 0, done.stderr
    site = project / "site"
    assert 'href="page.html#here"' in (site / "index.html").read_text()
    page = (site / "page.html").read_text()
    assert 'href="repository/src/code.py"' in page
    assert 'href="repository/src/NOTES.html"' in page
    notes = (site / "repository/src/NOTES.html").read_text()
    assert 'href="../../page.html#here"' in notes
    assert (site / "repository/src/code.py").read_text() == "x = 1\n"


@pytest.mark.parametrize(
    "text",
    [
        "[a](../src/nothing.py)",
        "[a](nothing.md)",
        "[a](page.md#nowhere)",
        '<script src="https://example.org/x.js"></script>',
        "![a](//example.org/x.png)",
    ],
)
def test_dead_links_and_the_network_fail_the_build(text, project):
    with open(project / "docs/page.md", "a") as file:
        file.write(f"\n{text}\n")
    assert build(project).returncode != 0


def test_headings_of_speechbrain_are_read():
    extensions = griffe.load_extensions(str(ROOT / "docs/griffe_headings.py"))
    package = griffe.load(
        "speechbrain_sim", search_paths=[ROOT], extensions=extensions
    )

    def kinds(name):
        sections = package[name].docstring.parse("numpy")
        return [section.kind.value for section in sections]

    function = kinds("objectives.info_nce.draw_negatives")
    assert {"parameters", "returns", "examples"} <= set(function)
    assert "attributes" in kinds("encoders.base.Latent")
