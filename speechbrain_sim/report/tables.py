"""Numbers -> text, and the one markdown table."""

import re

#: a cell where there is no number, and a `Gap` states why
NOT_MEASURED = "not measured"
#: what markdown takes for markup: at the beginning of a line, and inside
MARKUP = re.compile(
    r"^([#>+=-])(?=\1|\s|$)|(?<=^\d)[.)](?=\s|$)"
    r"|[\\`*|$~]|_(?![^\W_])|(?<![^\W_])_|\](?=[(\[:])|!(?=\[)"
)


def percent(score):
    """Formats an accuracy as `mean ± deviation [interval]`, in percent.

    A single seed, or a solved probe, has no deviation.

    Example
    -------
    >>> percent({"accuracy": 0.5, "deviation": 0.01, "interval": [0.4, 0.6]})
    '50.0 ± 1.0 [40.0, 60.0]'
    """
    found = score["accuracy"], *score["interval"]
    mean, low, high = (f"{100 * n:.1f}" for n in found)
    deviation = score["deviation"]
    deviation = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{mean}{deviation} [{low}, {high}]"


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


def cell(score, scale=1, digits=2, sign=""):
    """Formats a number, or a score with its interval; None and gaps, too.

    Example
    -------
    >>> cell({"value": 0.5, "interval": [0.4, 0.6]}, 100, 0), cell({"gap": "Few."})
    ('50 [40, 60]', 'not measured')
    """
    if score is None or (isinstance(score, dict) and "gap" in score):
        return NOT_MEASURED
    if isinstance(score, dict) and "interval" in score:
        return with_interval(score, scale, digits, sign)
    value = score["value"] if isinstance(score, dict) else score
    return number(scale * value, digits)


def number(value, digits=2):
    """Formats a number; a dash for None."""
    return "—" if value is None else f"{value:.{digits}f}"


def numeric_columns(header, rows):
    """Finds the columns, but the first, that hold only numbers and blanks."""
    numeric = re.compile(rf"[-+−±]?\d|({NOT_MEASURED}|[-–—]?)$").match
    columns = [[row[i] for row in rows] for i in range(len(header))]
    return [i > 0 and all(map(numeric, c)) for i, c in enumerate(columns)]


def escape(text):
    r"""Makes one line of markdown that shows a text as it is.

    Example
    -------
    >>> print(escape("# a_b |\n<i>`$x$` _[0.1, 0.2]"))
    \# a_b \| &lt;i>\`\$x\$\` \_[0.1, 0.2]
    """
    text = " ".join(text.split())  # a line break ends a cell or a heading
    text = re.sub("&(?=#?\\w+;)", "&amp;", text).replace("<", "&lt;")
    return MARKUP.sub(r"\\\g<0>", text)


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
    header, *rows = (list(map(escape, row)) for row in (header, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rules, *rows))
