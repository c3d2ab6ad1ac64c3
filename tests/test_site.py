"""The site of `make docs`: dead links fail, and nothing needs the network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import griffe
import pytest

import speechbrain_sim

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path):
    """A small repository with the hooks of ours."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/hooks.py", tmp_path / "docs")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/code.py").write_text("x = 1\n")
    (tmp_path / "src/NOTES.md").write_text("[back](../docs/page.md#here)\n")
    (tmp_path / "docs/index.md").write_text("[readme](../README.md)\n")
    (tmp_path / "README.md").write_text("[page](docs/page.md#here)\n")
    (tmp_path / "docs/page.md").write_text(
        "## Here\n\n[code](../src/code.py), [notes](../src/NOTES.md)\n"
        "`speechbrain_sim.a.b`, [`speechbrain_sim.c`](index.md)\n"
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


def test_files_are_part_of_the_site_and_names_lead_to_the_reference(project):
    done = build(project)
    assert done.returncode == 0, done.stderr
    site = project / "site"
    readme = 'href="repository/index.html"'
    assert readme in (site / "index.html").read_text()
    index = (site / "repository/index.html").read_text()
    assert 'href="../page.html#here"' in index
    page = (site / "page.html").read_text()
    assert "identifier='speechbrain_sim.a.b' optional><code>s" in page
    assert "[<code>speechbrain_sim.c" not in page
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


@pytest.fixture(scope="module")
def package():
    """The package as the reference reads it."""
    extensions = griffe.load_extensions(str(ROOT / "docs/griffe_headings.py"))
    return griffe.load(
        "speechbrain_sim", search_paths=[ROOT], extensions=extensions
    )


def test_headings_of_speechbrain_are_read(package):
    def kinds(name):
        sections = package[name].docstring.parse("numpy")
        return [section.kind.value for section in sections]

    function = kinds("objectives.info_nce.draw_negatives")
    assert {"parameters", "returns", "examples"} <= set(function)
    assert "attributes" in kinds("encoders.base.Latent")


def public(parent):
    """Yields modules, classes and functions without an underscore."""
    for name, member in parent.members.items():
        of = {"module", "class", "function"}
        if name[0] != "_" and not member.is_alias and member.kind.value in of:
            yield member
            yield from public(member)


def left_out(package, pages):
    """What the reference does not show: of no page, or without docstring."""
    shown = re.findall(r"^::: ([\w.]+)", pages, re.M)
    return [
        thing.path
        for thing in public(package)
        if not thing.docstring
        or not any(f"{thing.path}.".startswith(f"{x}.") for x in shown)
    ]


def test_the_reference_is_complete(package):
    pages = "\n".join(x.read_text() for x in (ROOT / "docs/api").glob("*.md"))
    assert sum(1 for _ in public(package)) > 1000
    assert left_out(package, pages) == []
    for name in speechbrain_sim.__all__:
        line = rf"\| `{name}` \| \[speechbrain_sim\.[\w.]+\.{name}\]\[\]"
        assert re.search(line, pages), name
    # and this can fail
    fewer = pages.replace("::: speechbrain_sim.integrations", "")
    found = left_out(package, fewer)
    assert "speechbrain_sim.integrations.onnx.export_onnx" in found
    code = {"kept.py": '"""Kept."""', "bare.py": '"""B."""\ndef f(): pass'}
    with griffe.temporary_visited_package("p", code) as other:
        assert left_out(other, "::: p.kept") == ["p.bare", "p.bare.f"]
        assert left_out(other, "::: p.kept\n::: p.bare") == ["p.bare.f"]
