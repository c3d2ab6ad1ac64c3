"""Part three on a GPU: the paper's artificial set at full size."""


def prepare(chosen, results):
    """Prepares the artificial set; returns the folder of its manifests."""
    from speechbrain_sim.data.corpora.artificial_speech import (
        prepare_artificial_speech,
    )

    folder = results.work / "manifests"
    prepare_artificial_speech(chosen.data, folder)
    return folder
