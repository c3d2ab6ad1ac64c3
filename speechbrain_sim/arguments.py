"""Constructor arguments, recorded rather than retyped."""

import functools
import inspect
import json


def records_arguments(cls):
    """Lets objects of a class keep what they were constructed with.

    `self.arguments` becomes a dict of every constructor argument, defaults
    included but those in `cls.unrecorded`, as json gives it back (tuples become
    lists), so that `cls(**self.arguments)` makes another one.

    Example
    -------
    >>> from speechbrain_sim.encoders.logmel import LogMel
    >>> LogMel(n_mels=40).arguments
    {'n_fft': 400, 'hop_length': 160, 'n_mels': 40}
    """
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        construct(self, *args, **kwargs)
        for name in ("self", *getattr(cls, "unrecorded", ())):
            del bound.arguments[name]
        self.arguments = json.loads(json.dumps(bound.arguments))

    cls.__init__ = __init__
    return cls
