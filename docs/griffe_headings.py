"""An extension of griffe: SpeechBrain's headings are read as numpydoc's."""

import re

import griffe

#: SpeechBrain's heading: numpydoc's
HEADINGS = {"Arguments": "Parameters", "Example": "Examples"}


class Headings(griffe.Extension):
    """Renames underlined headings in docstrings."""

    def on_object(self, *, obj, **kwargs):
        """Renames those of one function, class or module."""
        if obj.docstring is None:
            return
        headings = dict(HEADINGS)
        if obj.is_class and "NamedTuple" in map(str, obj.bases):
            headings["Arguments"] = "Attributes"  # griffe finds no __init__
        for ours, theirs in headings.items():
            obj.docstring.value = re.sub(
                rf"^{ours}\n-+$",
                f"{theirs}\n{'-' * len(theirs)}",
                obj.docstring.value,
                flags=re.M,
            )
