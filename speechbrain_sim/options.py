"""What an option may be: its kind, and its range.

An option has the kind of the key's value in the yaml or in one of its bases;
`__may_be: {key: example}` adds another. Text is literal.

`__must_be: {key: rule}` of a yaml states its range. A rule is a list of the
possible values (of each, in lists and mappings), or text: conditions, with
commas between, and after a colon perhaps the reason. `>= 1` (or `>`, `=`, `<=`,
`<`) is for every number in the value, `not empty` and `unique` are for lists.
Numbers are finite, unless the last condition is `or inf`.

`used_with: {option: {value: keys}}` lists keys that no other value of an option
uses: see `check_used`. The value `any` is all but null.
"""

import contextlib
import copy
import io
import operator
import re
from functools import lru_cache
from math import isfinite
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import resolve_references

#: kinds of values; others are objects, made of these
KINDS = {bool: "True or False", int: "a whole number", float: "a number"}
KINDS |= {list: "a list", dict: "a mapping", str: "text", type(None): "null"}
#: of `used_with`: whatever is not null
ANY = "any"
_SIGNS = {">=": operator.ge, ">": operator.gt, "=": operator.eq}
_SIGNS |= {"<=": operator.le, "<": operator.lt}


def parse_yaml(text, kind="rt"):
    """Reads yaml, with its tags; with the kind `safe`, without."""
    return copy.deepcopy(_parsed(text, kind))


@lru_cache(maxsize=64)
def _parsed(text, kind):
    """Reads yaml once: a study reads the same files for every run."""
    return ruamel.yaml.YAML(typ=kind, pure=True).load(text)


@lru_cache(maxsize=64)
def resolve(text):
    """Resolves the references in a yaml, some of which may lead to others."""
    before = None
    while "!ref" in text and text != before:
        text, before = resolve_references(text).getvalue(), text
    return text


def dump_yaml(content):
    """Returns what `parse_yaml` reads."""
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(content, stream)
    return stream.getvalue()


def tag_of(value):
    """Returns the tag of a yaml's value, such as `!ref`, or None."""
    return getattr(getattr(value, "tag", None), "value", None)


def kind_of(value):
    """Returns the kind of a value in `KINDS`; None for an object."""
    kinds = [kind for kind in KINDS if isinstance(value, kind)]
    return kinds[0] if kinds and not tag_of(value) else None


def _fits(value, example):
    """Whether a value is of the kind of an example; a list in all elements."""
    if isinstance(value, list) and isinstance(example, list) and example:
        return all(any(_fits(v, e) for e in example) for v in value)
    kind = kind_of(example)
    kinds = (float, int) if kind is float else (kind,)
    return kind is not None and kind_of(value) in kinds


def _examples(key, contents):
    """Returns the values of a key, and of what it may be, in yamls."""
    notes = [c for f in contents for c in (f, f.get("__may_be", {}))]
    values, examples = [c[key] for c in notes if key in c], []
    for value in values:
        if tag_of(value) == "!ref":
            whole = re.fullmatch(r"<(\w+)>", value.value)
            other = whole and whole[1] != key
            examples += _examples(whole[1], contents) if other else [""]
        elif tag_of(value) != "!PLACEHOLDER":
            examples.append(value)
    # null may be text, unless __may_be has something else
    unknown = examples and not any(e is not None for e in examples)
    return [*examples, ""] if unknown else examples


def typed(key, value, contents):
    """Returns an option, or what its text means, of a kind that the key has.

    Arguments
    ---------
    key, value : str, any
        The option.
    contents : list of dict
        Those of the yaml and its bases.

    Raises
    ------
    ValueError
        If it has no such kind.

    Example
    -------
    >>> typed("lr", "1e-3", [{"lr": 0.1}]), typed("name", "1e-3", [{"name": "x"}])
    (0.001, '1e-3')
    """
    examples = _examples(key, contents) or [""]
    value = meant = str(value) if isinstance(value, Path) else value
    if isinstance(value, str):
        with contextlib.suppress(ValueError, ruamel.yaml.error.YAMLError):
            meant = parse_yaml(value, "safe")
    # the meaning of a text may be a number, but no other text
    for found in [value] if isinstance(meant, str) else [meant, value]:
        if any(_fits(found, example) for example in examples):
            return found
    raise ValueError(f"--{key} is {value!r}, but takes {_kinds(examples)}.")


def _kinds(examples):
    kinds = {}
    for example in examples:
        if kind := kind_of(example):
            like = f" such as {example}" * (kind is list and bool(example))
            kinds.setdefault(kind, KINDS[kind] + like.replace("'", ""))
    return " or ".join(kinds.values()) or "no value: other keys make it"


def check_kinds(files):
    """Raises a ValueError if a yaml's value is of no kind that its bases have.

    `files` are contents by path, bases first. Objects may replace values, and
    anything may replace an object or what is left open.
    """
    contents = list(files.values())
    for above, (path, content) in enumerate(files.items()):
        for key in content.keys() - {"base", "uses"}:
            examples, value = _examples(key, contents[:above]), content[key]
            free = not examples or any(kind_of(e) is None for e in examples)
            if kind_of(value) is None:  # a date, unless it has a tag
                free, examples = tag_of(value), [""]
            free = free or key[:2] == "__"
            if not free and not any(_fits(value, e) for e in examples):
                kinds = _kinds(examples)
                raise ValueError(f"{path}: {key} is {value!r}, not {kinds}.")


def _leaves(value):
    """Yields what a nest of lists and mappings holds."""
    if isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _meets(value, condition):
    """Whether a value meets one condition of a rule."""
    if condition == "unique":
        return len({str(x) for x in value or ()}) == len(value or ())
    if condition == "not empty":
        parts = value if isinstance(value, list) else ()
        return all(x for x in (value, *parts) if isinstance(x, (list, dict)))
    numbers = [x for x in _leaves(value) if kind_of(x) in (int, float)]
    if condition == "finite":
        return all(map(isfinite, numbers))
    sign, bound = condition.split()
    return all(_SIGNS[sign](x, float(bound)) for x in numbers)


def check_ranges(settings, rules):
    """Raises a ValueError if a setting is out of its range.

    Arguments
    ---------
    settings : dict
        Values; objects are not looked into.
    rules : dict of str to (str or list)
        From `__must_be`.

    Example
    -------
    >>> check_ranges({"seeds": [1, 1]}, {"seeds": "unique, not empty"})
    Traceback (most recent call last):
    ValueError: --seeds is [1, 1], but must be unique, not empty.
    """
    for key, value in settings.items():
        rule, kind = rules.get(key, ""), kind_of(value)
        made = kind is None or kind is dict and not rule  # of other settings
        if made or (value is None and not isinstance(rule, list)):
            continue
        if isinstance(rule, list):
            right = all(x in rule for x in _leaves(value))
            rule = " or ".join(map(str, rule))
        else:
            text = rule.partition(":")[0]
            conditions = text.removesuffix(", or inf").split(", ")
            if "inf" not in text and not _meets(value, "finite"):
                conditions, rule = ["finite"], "finite"
            right = all(_meets(value, c) for c in conditions if c)
        rule = rule.removeprefix("= ")
        if not right:
            raise ValueError(f"--{key} is {value!r}, but must be {rule}.")


def check_used(settings, given):
    """Raises a ValueError if an option has no use with the value of another.

    Example
    -------
    >>> rule = {"used_with": {"decoder": {"waveform": ["mel"]}}}
    >>> check_used({"decoder": "spectrogram", **rule}, {"mel": 1.0})
    Traceback (most recent call last):
    ValueError: --mel has no use with --decoder spectrogram: leave it out, ...
    """
    for option, uses in settings["used_with"].items():
        there = "null" if settings[option] is None else str(settings[option])
        for value, keys in uses.items():
            unused = sorted(given.keys() & {*keys})
            fits = there in value.split(" or ")
            if unused and not (there != "null" if value == ANY else fits):
                raise ValueError(
                    f"--{unused[0]} has no use with --{option} {there}: leave "
                    f"it out, or give --{option}{f' {value}' * (value != ANY)}."
                )


def read_fields(option, given, fields, rules):
    """Makes a NamedTuple of what differs from its defaults.

    Arguments
    ---------
    option : str
        Whose value `given` is, for messages.
    given : dict
        Names and values.
    fields : type
        A NamedTuple with a default for each name; what is None may be an object.
    rules : dict of str to (str or list)
        Ranges, as in `__must_be`.

    Raises
    ------
    ValueError
        For another name, kind or range.

    Example
    -------
    >>> from typing import NamedTuple
    >>> class Settings(NamedTuple):
    ...     rows: int = 10
    >>> read_fields("sheet", {"rows": 5}, Settings, {"rows": ">= 2"})
    Settings(rows=5)
    >>> read_fields("sheet", {"rows": 1}, Settings, {"rows": ">= 2"})
    Traceback (most recent call last):
    ValueError: --sheet: rows is 1, but must be >= 2.
    """
    defaults, found = fields._field_defaults, {}
    for name, value in given.items():
        if name not in defaults:
            known = ", ".join(defaults)
            raise ValueError(f"--{option} has no setting '{name}': {known}.")
        both = defaults[name], value
        example, value = ([*x] if isinstance(x, tuple) else x for x in both)
        if example is not None:
            key = f"{option}: {name}"
            value = typed(key, value, [{key: example}])
            check_ranges({key: value}, {key: rules.get(name, "")})
        found[name] = value
    return fields(**found)
