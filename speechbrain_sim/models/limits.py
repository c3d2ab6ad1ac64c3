"""What a config.json may state of its parts, before memory is taken."""

#: bounds of a config.json: its bytes, numbers in a list, and numbers, by class
#: (LogMel takes memory as soon as it is made) and by argument
LARGEST_FILE, LONGEST_LIST = 1 << 24, 1000
SPECTRAL_CLASSES = ("LogMel", "StackedLogMel", "Mfcc")
LARGEST = {None: 1_000_000, **dict.fromkeys(SPECTRAL_CLASSES, 10_000)}
LEAST = {"context_channels": 0, "paddings": 0, "refinements": 0, "hidden": 0}
LEAST |= {"decoder_hidden": 0, "num_classes": 0}
LEAST["initial_log_var"] = -LARGEST[None]
MOST = {"refinements": LONGEST_LIST, "probes": LONGEST_LIST}
LEAST["text_units"] = 0
#: bottlenecks, and their arguments that are sizes; others are names and numbers
BOTTLENECKS = "SparseAutoencoder", "VariationalSparseCoder"
BOTTLENECKS += "TextHalf", "UtteranceHalf"
SIZES = "input_channels", "num_units", "num_classes", "num_pseudo_inputs"
SIZES += "hidden", "decoder_hidden", "layers", "labels", "classes", "text_units"


def out_of_range(kind, arguments):
    """Yields what no constructor of a part takes, before memory is taken."""
    largest = LARGEST.get(kind, LARGEST[None])
    for key, value in arguments.items():
        if kind in BOTTLENECKS and key not in SIZES:
            continue  # takes no memory; its constructor checks it
        values = value if isinstance(value, list) else [value]
        values = [*value.values()] if isinstance(value, dict) else values
        rows = [x if isinstance(x, list) else [x] for x in values]
        values = [x for row in rows for x in row]
        if len(values) > LONGEST_LIST:
            yield f"{len(values)} values of {key}"
        least, most = LEAST.get(key, 1), MOST.get(key, largest)
        kinds = (int, float) if key == "initial_log_var" else int
        for x in values:
            if not isinstance(x, bool) and not (
                isinstance(x, kinds) and least <= x <= most
            ):
                yield f"{key} {x!r:.40}"
