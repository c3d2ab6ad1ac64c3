"""Measures decoded speech: what is given back, and what a probe reads of it.

    python -m benchmarks.decoded results/demo/SIM_1 \
        --decoder results/demo/SIM_1/decoder_* results/demo/SIM_1/spectrogram_* \
        --data_folder results/demo/corpus \
        --train results/demo/manifests/train.csv \
        --test results/demo/manifests/test.csv

Prints a table: the recordings themselves, the spectrograms of the recordings
through Griffin-Lim, which is the most that a spectrogram decoder can reach, and
each decoder, on recordings that none has seen. The probe is a logistic
regression from log-mel frames of recordings to phones; it never sees decoded
speech before it reads it.
"""

import argparse

import torch

from speechbrain_sim.analysis.study import RECORDED
from speechbrain_sim.data.batches import classes_of, make_dataset
from speechbrain_sim.data.labels import FRAMES, frames_of_labels
from speechbrain_sim.decoders import SPECTROGRAM, WAVEFORM
from speechbrain_sim.encoders.logmel import LOGMEL, LogMel
from speechbrain_sim.logistic import solve_logistic
from speechbrain_sim.models.format import DECODER, load_parts, parts_of
from speechbrain_sim.models.load import load_decoder, load_encoder
from speechbrain_sim.report.tables import markdown_table
from speechbrain_sim.rows import moments
from speechbrain_sim.spectrograms import griffin_lim, log_power

#: strengths of the probe, of which the best on half of the training recordings
#: is taken
STRENGTHS = (0.1, 0.01, 0.001)


def read(manifest, data_folder, classes, most, label="phones"):
    """Reads (waveform, targets) of at most so many recordings, evenly drawn."""
    options = {"label": label, "classes": classes, "kind": FRAMES}
    dataset = make_dataset(manifest, data_folder, **options)
    step = max(1, len(dataset) // most)
    dataset.data_ids = dataset.data_ids[::step][:most]
    return [(item["sig"], item["target"]) for item in dataset]


def mel(wav):
    """Returns the log-mel of a waveform, (frames, bands)."""
    return LogMel()(wav[None])[LOGMEL].mean[0]


def frames(recordings):
    """Returns the log-mel of every label, and the labels."""
    x, y = [], []
    for wav, target in recordings:
        at = frames_of_labels(len(target), *LogMel().frame_geometry(LOGMEL))
        x.append(mel(wav)[at])
        y.append(target)
    return torch.cat(x), torch.cat(y)


def fit_probe(recordings):
    """Fits the probe whose strength is best on recordings left out of it.

    Returns a function: recordings -> share of the labels that it predicts.
    """
    x, y = frames(recordings[::2])
    mean, std = moments([x])
    classes = 1 + int(max(target.max() for _, target in recordings))
    solved = solve_logistic((x - mean) / std, y, classes, STRENGTHS)

    def score(recordings):
        x, y = frames(recordings)
        right = solved.predict((x - mean) / std) == y
        return right.float().mean(1)

    best = score(recordings[1::2]).argmax()
    return lambda recordings: float(score(recordings)[best])


def row_of(name, decoded, recordings, probe):
    """Compares decoded speech with recordings: a row of the table."""
    wavs = [wav for wav, _ in recordings]
    mels = [
        (mel(ours), mel(wav)) for ours, wav in zip(decoded, wavs, strict=False)
    ]
    energy, kept = torch.cat(wavs), torch.cat(list(decoded))
    ours, theirs = (torch.cat(x) for x in zip(*mels, strict=False))
    share = 1 - (kept - energy).square().sum() / energy.square().sum()
    lost = (ours - theirs).square().sum()
    lost = lost / (theirs - theirs.mean(0)).square().sum()
    targets = [target for _, target in recordings]
    accuracy = probe(list(zip(decoded, targets, strict=True)))
    return {
        "": name,
        f"{RECORDED[WAVEFORM]} (%)": f"{100 * share:.0f}",
        f"{RECORDED[SPECTROGRAM]} (%)": f"{100 * (1 - lost):.0f}",
        "mel distance (nepers)": f"{(ours - theirs).abs().mean():.2f}",
        "phones (%)": f"{100 * accuracy:.1f}",
    }


@torch.no_grad()
def measure(encoder, decoders, recordings, probe):
    """Returns the rows of recordings, Griffin-Lim, and (name, layer, decoder)."""
    wavs, through = [wav for wav, _ in recordings], []
    for wav in wavs:
        lengths = torch.tensor([len(wav)])
        spectrogram = log_power(wav[None], lengths)
        through.append(griffin_lim(spectrogram, len(wav), lengths)[0])
    rows = [row_of("recordings", wavs, recordings, probe)]
    rows.append(row_of("Griffin-Lim", through, recordings, probe))
    for name, layer, decoder in decoders:
        latents = [encoder(w[None], None, [layer])[layer].mean for w in wavs]
        decoded = [
            decoder(z, len(w))[0] for z, w in zip(latents, wavs, strict=True)
        ]
        rows.append(row_of(name, decoded, recordings, probe))
    whole = float(rows[0]["phones (%)"])
    for row in rows:
        row["of the recordings' (%)"] = (
            f"{100 * float(row['phones (%)']) / whole:.0f}"
        )
    return rows


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoded", description=__doc__
    )
    parser.add_argument("encoder", help="a run, or a model")
    parser.add_argument("--decoder", nargs="+", default=[], help="runs")
    for name in ("--train", "--test", "--data_folder"):
        parser.add_argument(name, required=True)
    parser.add_argument("--recordings", type=int, default=100)
    return parser


def main(argv=None):
    """Prints the table."""
    given = make_parser().parse_args(argv)
    encoder, description = load_encoder(given.encoder)
    decoders = []
    for run in given.decoder:
        for layer in parts_of(load_parts(run, [])[1]["parts"], DECODER):
            decoder, _ = load_decoder(run, layer, description["sha256"])
            kind = type(decoder).__name__.removesuffix("Decoder").lower()
            decoders.append((f"{layer}, {kind}", layer, decoder))
    place = (
        given.data_folder,
        classes_of(given.train, given.data_folder, "phones", FRAMES),
    )
    probe = fit_probe(read(given.train, *place, given.recordings))
    recordings = read(given.test, *place, given.recordings)
    rows = measure(encoder, decoders, recordings, probe)
    print(markdown_table(list(rows[0]), [list(r.values()) for r in rows]))


if __name__ == "__main__":
    main()
