"""Analysis: delta with every clip decoded once, against the plain way."""

import torch

from benchmarks.measure import in_turn, time_row
from speechbrain_sim.analysis.delta import draw_pairs, measure_distances
from speechbrain_sim.decoders import mirror
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.traversals import most_different, swap

CLIPS, PAIRS, COUNTS = 6, 10, [2, 16, 128]


def plain_distances(decode, latents, pairs, counts):
    """Decodes start, target and mixture of every pair and every N."""
    found = torch.empty(len(pairs), len(counts))
    for row, (start, target) in enumerate(latents[pair] for pair in pairs):
        for column, count in enumerate(counts):
            ranked = most_different(start, target)[:count]
            three = torch.stack([start, target, swap(start, target, ranked)])
            wavs = decode(three)
            found[row, column] = (wavs[2] - wavs[1]).abs().mean()
    return found


def delta(repetitions=3):
    """Both ways on the decoders of a network of 128 channels."""
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=128, context_channels=0).eval()
    wavs, pairs, rows = torch.randn(CLIPS, 10240), draw_pairs(CLIPS, PAIRS), []
    with torch.inference_mode():
        latents = encoder(wavs)
        for layer in ("module1", "module3"):
            decoder, z = mirror(encoder, layer).eval(), latents[layer].mean
            work = (lambda z, d=decoder: d(z, 10240)), z, pairs, COUNTS
            ours = measure_distances(*work)["mae"].mixtures
            plain = plain_distances(*work).numpy()
            assert abs(ours - plain).max() < 1e-5 * abs(plain).max()
            timings = in_turn(
                {
                    "ours": lambda work=work: measure_distances(*work),
                    "plain": lambda work=work: plain_distances(*work),
                },
                repetitions,
            )
            rows.append(
                time_row(
                    "δ(N), every clip decoded once: times faster",
                    f"δ of {PAIRS} pairs × {len(COUNTS)} N, {layer}",
                    timings,
                    "ours",
                    "plain",
                    "≥ 2.0",
                )
            )
    return rows
