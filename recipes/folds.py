"""The folds of a study: an option of the corpus takes each of some values."""


def folds_of(hparams, runs):
    """Maps each fold to its settings and runs; None to the study without any."""
    option, folds = hparams["folds"].get("option"), {}
    for value in hparams["folds"].get("values", ()):
        folder = f"{hparams['output_folder']}/{option}_{value}"
        own = runs._replace(fold={option: value})
        folds[f"{option}: {value}"] = {**hparams, "output_folder": folder}, own
    return folds or {None: (hparams, runs)}


def by_fold(trained):
    """Joins what `train_and_probe` of recipes/study.py returns for each fold.

    The folders of the probes are by fold, if there are any: label -> system ->
    fold -> list. All else is of the first fold.
    """
    encoders, probed, logs = next(iter(trained.values()))
    if None not in trained:
        probed = {
            label: {
                name: {
                    fold: p[label][name] for fold, (_, p, _) in trained.items()
                }
                for name in systems
            }
            for label, systems in probed.items()
        }
    return encoders, probed, logs
