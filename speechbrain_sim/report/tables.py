"""Numbers -> text, and the one markdown table."""

import re


def percent(score):
    """Formats an accuracy as `mean ± deviation [interval]`, in percent.

    A single seed has no deviation: a dash.

    Example
    -------
    >>> percent({"accuracy": 0.5, "deviation": 0.01, "interval": [0.4, 0.6]})
    '50.0 ± 1.0 [40.0, 60.0]'
    """
    found = score["accuracy"], *score["interval"]
    mean, low, high = (f"{100 * n:.1f}" for n in found)
    deviation = score["deviation"]
    deviation = "–" if deviation is None else f"{100 * deviation:.1f}"
    return f"{mean} ± {deviation} [{low}, {high}]"


def with_interval(score, scale=1.0, digits=2, sign="", key="value"):
    """Formats a value, of this key, with its interval; nothing for None.

    Example
    -------
    >>> with_interval({"value": 0.5, "interval": [0.4, 0.6]}, 100, 1)
    '50.0 [40.0, 60.0]'
    """
    if score is None:
        return ""
    numbers = (score[key], *score["interval"])
    value, low, high = (f"{scale * n:{sign}.{digits}f}" for n in numbers)
    return f"{value} [{low}, {high}]"


def number(value, digits=2):
    """Formats a number; a dash for None."""
    return "—" if value is None else f"{value:.{digits}f}"


def numeric_columns(header, rows):
    """Finds the columns, but the first, that hold only numbers and blanks."""
    numeric = re.compile(r"[*]*[-+−±]?\d|[-–—]?$").match
    columns = [[row[i] for row in rows] for i in range(len(header))]
    return [i > 0 and all(map(numeric, c)) for i, c in enumerate(columns)]


def escape(text):
    """Escapes what markdown would take for html or for a cell's end."""
    return text.replace("<", "&lt;").replace("|", r"\|")


def markdown_table(header, rows):
    """Makes a table in markdown, its numbers to the right.

    Arguments
    ---------
    header : list of str
        Names of the columns; the first one names the rows.
    rows : list of list of str
        Cells.

    Returns
    -------
    str
        Lines without a final line break.

    Example
    -------
    >>> print(markdown_table(["", "accuracy"], [["SIM", "92.6"]]))
    |  | accuracy |
    | --- | ---: |
    | SIM | 92.6 |
    """
    right = numeric_columns(header, rows)
    rules = ["---:" if numeric else "---" for numeric in right]
    lines = [header, rules, *rows]
    return "\n".join(f"| {' | '.join(map(escape, row))} |" for row in lines)
