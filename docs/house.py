"""Counts and draws the house: `python docs/house.py counts`, or `draw`.

`counts` prints the size of each room (a sub-package or a module of
`speechbrain_sim`) and fails if a limit is exceeded. `draw` writes
`docs/house.svg`: the rooms, and an arrow wherever one imports another.
"""

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

from floor_plan import circles, svg

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, RECIPES = "speechbrain_sim", "recipes"
DRAWING = ROOT / "docs/house.svg"

#: most code lines of the package, and of recipes and yamls together
PACKAGE_CODE, RECIPES_CODE = 20300, 2720
#: docstring lines per code line; lines of a file, and of a function
RATIO, FILE_LINES, FUNCTION_LINES = 0.6, 450, 60

#: a name for importlib
LAZY = re.compile(rf"{PACKAGE}(\.\w+)+")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)


class File(NamedTuple):
    """A python file: its lines, and what it imports of the package."""

    path: Path
    lines: int
    code: int
    docstring: int
    functions: list  # (lines, name)
    imports: set  # dotted names of modules, and of what they hold


def read_file(path):
    """Parses one python file."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    docstring = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            first = node.body[0]
            docstring |= set(range(first.lineno - 1, first.end_lineno))
    filled = [i for i, line in enumerate(lines) if line.strip()]
    code = [i for i in filled if i not in docstring]
    return File(
        path,
        len(lines),
        sum(not lines[i].lstrip().startswith("#") for i in code),
        len(filled) - len(code),
        [
            (node.end_lineno - node.lineno + 1, node.name)
            for node in ast.walk(tree)
            if isinstance(node, FUNCTIONS)
        ],
        _imports(tree),
    )


def _imports(tree):
    """Returns the dotted names that a file imports.

    Also inside functions, and by a string that is such a name.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and LAZY.fullmatch(str(node.value)):
            names.add(node.value)
    # `__version__` is no part of a room
    return {n for n in names if n.split(".")[0] == PACKAGE and "__" not in n}


def read_package(root=ROOT):
    """Parses the package: {dotted module name: File}."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        files[".".join(parts)] = read_file(path)
    return files


def arrows_of(files):
    """Returns {module: set of modules that it imports}."""

    def module_of(name):
        while name not in files and "." in name:
            name = name.rpartition(".")[0]
        return name if name in files else None

    return {
        name: {module_of(n) for n in file.imports} - {None, name}
        for name, file in files.items()
    }


def room_of(module):
    """Returns the room of a module; the package's own file is the entrance."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


def arrows_of_rooms(arrows):
    """Returns {room: set of rooms that its modules import}."""
    rooms = {room_of(module): set() for module in arrows}
    for module, targets in arrows.items():
        rooms[room_of(module)] |= {room_of(target) for target in targets}
    return {room: targets - {room} for room, targets in rooms.items()}


# ---------------------------------------------------------------------- counts


def yaml_lines(root=ROOT):
    """Counts the lines of the yamls that are not blank: (code, comments)."""
    lines = [
        line.strip()
        for path in sorted((root / "hparams").rglob("*.yaml"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    comments = sum(line.startswith("#") for line in lines)
    return len(lines) - comments, comments


def print_rooms(files):
    """Prints a table of rooms, and in total."""
    table = "{:<22}{:>6}{:>8}{:>8}{:>12}{:>8}"
    print(table.format("room", "files", "lines", "code", "docstrings", "ratio"))
    rooms = {}
    for module, file in files.items():
        rooms.setdefault(room_of(module), []).append(file)
    for room, members in (*rooms.items(), ("total", list(files.values()))):
        lines, code, docstring = (
            sum(getattr(file, kind) for file in members)
            for kind in ("lines", "code", "docstring")
        )
        ratio = f"{docstring / max(code, 1):.2f}"
        print(table.format(room, len(members), lines, code, docstring, ratio))
    return code, docstring


def print_longest(files, number=5):
    """Prints the longest files and functions: the largest of each."""
    by_lines = sorted(
        ((file.lines, str(file.path.relative_to(ROOT))) for file in files),
        reverse=True,
    )
    functions = sorted(
        (
            (lines, f"{file.path.relative_to(ROOT)}: {name}")
            for file in files
            for lines, name in file.functions
        ),
        reverse=True,
    )
    for title, longest in ("files", by_lines), ("functions", functions):
        print(f"\nlongest {title}")
        for lines, name in longest[:number]:
            print(f"{lines:6}  {name}")
    return by_lines[0][0], functions[0][0]


def counts():
    """Prints all counts beside their limits; returns whether all are kept."""
    files = read_package()
    code, docstring = print_rooms(files)
    recipes = [read_file(p) for p in sorted((ROOT / "recipes").rglob("*.py"))]
    recipe_code = sum(file.code for file in recipes)
    yaml_code, yaml_comments = yaml_lines()
    all_lines = sum(file.lines for file in recipes) + yaml_code + yaml_comments
    print(
        f"\nrecipes: {recipe_code} code lines; yamls: {yaml_code}; with "
        f"comments and docstrings {all_lines}"
    )
    longest = print_longest([*files.values(), *recipes])
    found = circles(arrows_of(files))
    limits = {
        "code lines of the package": (code, PACKAGE_CODE),
        "code lines of recipes and yamls": (
            recipe_code + yaml_code,
            RECIPES_CODE,
        ),
        "docstring lines per code line": (round(docstring / code, 2), RATIO),
        "lines of the longest file": (longest[0], FILE_LINES),
        "lines of the longest function": (longest[1], FUNCTION_LINES),
        "import circles": (len(found), 0),
    }
    print()
    for what, (measured, limit) in limits.items():
        verdict = "ok" if measured <= limit else "EXCEEDED"
        print(f"{what:<34}{measured:>8}  limit {limit:>6}  {verdict}")
    for circle in found:
        print("circle:", " ".join(circle))
    return all(measured <= limit for measured, limit in limits.values())


# ---------------------------------------------------------------------- drawing


def contents_of(files):
    """Returns the modules of each room."""
    members = {}
    for module in files:
        names = members.setdefault(room_of(module), [])
        parts = module.split(".")
        if len(parts) == 3:
            names.append(parts[2])
    return members


def draw():
    """Draws the package; its users, the recipes, stand above."""
    files = read_package()
    rooms, contents = arrows_of_rooms(arrows_of(files)), contents_of(files)
    recipes = {
        p.stem: read_file(p) for p in sorted((ROOT / RECIPES).glob("*.py"))
    }
    names = {name for file in recipes.values() for name in file.imports}
    rooms[RECIPES] = {room_of(name) for name in names}
    return svg(rooms, {**contents, RECIPES: list(recipes)})


def main(argv):
    """Runs one of the two commands; returns the exit status."""
    if argv == ["counts"]:
        return 0 if counts() else 1
    if argv == ["draw"]:
        DRAWING.write_text(draw(), encoding="utf-8")
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
