"""Constructor arguments, recorded rather than retyped."""

import functools
import inspect


def records_arguments(cls):
    """Lets objects of a class keep what they were constructed with.

    `self.arguments` becomes a dict of every constructor argument, defaults
    included, in json's kinds (tuples become lists), so that
    `cls(**self.arguments)` makes another one. Those that `cls.unrecorded`
    lists, if it has such an attribute, are left out.

    Arguments
    ---------
    cls : type
        The class; its constructor takes plain values by name.

    Returns
    -------
    type
        The same class.

    Example
    -------
    >>> @records_arguments
    ... class Box:
    ...     def __init__(self, size, sides=(1, 2)):
    ...         self.area = size * size
    >>> Box(3).arguments
    {'size': 3, 'sides': [1, 2]}
    """
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        construct(self, *args, **kwargs)
        unrecorded = {"self", *getattr(cls, "unrecorded", ())}
        self.arguments = {
            name: _plain(value)
            for name, value in bound.arguments.items()
            if name not in unrecorded
        }

    cls.__init__ = __init__
    return cls


def _plain(value):
    """Tuples and mappings as json gives them back."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
