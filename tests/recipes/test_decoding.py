"""Training of decoders: the losses, the loop, its resume, what it saves."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from safetensors.torch import load_file

from speechbrain_sim.analysis.study import System
from speechbrain_sim.brains.checkpointer import Averages
from speechbrain_sim.brains.decoder import DecoderBrain
from speechbrain_sim.decoders import SPECTROGRAM, WAVEFORM, mirror
from speechbrain_sim.encoders.base import zero_padding
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import example_folder
from speechbrain_sim.models.load import load_decoder, load_encoder
from speechbrain_sim.objectives.reconstruction import (
    ReconstructionLoss,
    SpectrogramLoss,
    explained,
)
from speechbrain_sim.spectrograms import (
    frames_of,
    log_mel,
    log_power,
    mel_filters,
)
from tests.brains.test_resume import kill_at
from tests.conftest import ROOT, TINY, finish, same, start_recipe

LENGTHS = torch.tensor([4000, 2500])


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"channels": TINY["channels"], "context_channels": 4}
    return example_folder(folder, **shape)


@pytest.fixture(scope="module")
def decode_yaml(corpus, encoder_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("hparams") / "decode.yaml"
    path.write_text(
        f"base: {ROOT}/hparams/decode.yaml\n"
        "corpus: Tiny\n"
        f"encoder: {encoder_folder}\n"
        f"data_folder: {corpus.folder}\n"
        "prepare: !name:builtins.dict\n"
        f"train_csv: {corpus.train}\n"
        f"valid_csv: {corpus.valid}\n"
        "crop_samples: 4000\n"
        "random_crop: True\n"
        "sampled: True\n"
        "number_of_epochs: 5\n"
        "batch_size: 2\n"
    )
    return path


def slow_loss(decoded, wavs, lengths, weights):
    squares, mels, samples, cells = 0.0, 0.0, 0, 0
    for ours, theirs, length in zip(decoded, wavs, lengths, strict=True):
        ours, theirs = ours[None, :length], theirs[None, :length]
        squares += float(((ours - theirs) ** 2).sum())
        samples += int(length)
        difference = LogMel()(ours)["logmel"].mean
        difference = difference - LogMel()(theirs)["logmel"].mean
        mels += float(difference.abs().sum())
        cells += difference.numel()
    return weights["mse"] * squares / samples + weights["mel"] * mels / cells


@pytest.mark.parametrize(
    "weights", [{"mse": 1.0, "mel": 0.0}, {"mse": 0.5, "mel": 2.0}]
)
def test_loss_equals_utterance_by_utterance(weights):
    torch.manual_seed(0)
    decoded, wavs = torch.randn(2, 2, 4000)
    loss = ReconstructionLoss(**weights)(decoded, wavs, LENGTHS)
    slow = slow_loss(decoded, wavs, LENGTHS, weights)
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    padded = decoded.clone()
    padded[1, 2500:] = 1e3
    again = ReconstructionLoss(**weights)(padded, wavs, LENGTHS)
    torch.testing.assert_close(again, loss)


@pytest.mark.parametrize("name", ["mse", "stft", "mel"])
def test_the_truth_is_best_and_noise_is_worst(name):
    torch.manual_seed(0)
    wavs = torch.sin(torch.arange(4000) / 7).expand(2, -1)
    loss = ReconstructionLoss(**{"mse": 0.0, name: 1.0})
    near, far = wavs + 0.01 * torch.randn(2, 4000), torch.randn(2, 4000)
    scores = [loss(x, wavs, LENGTHS).item() for x in (wavs, near, far)]
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[0] < scores[1] < scores[2]
    decoded = near.clone().requires_grad_()
    loss(decoded, wavs, LENGTHS).backward()
    assert decoded.grad[0].any() and not decoded.grad[1, 2500:].any()


def test_impossible_weights():
    with pytest.raises(ValueError, match="one must be positive"):
        ReconstructionLoss(mse=0.0)
    with pytest.raises(ValueError, match="none may be negative"):
        ReconstructionLoss(mel=-1.0)


def test_a_decoder_learns_a_recording_by_heart():
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=32, context_channels=4).eval()
    wavs = torch.sin(torch.arange(1600) * torch.tensor([[0.1], [0.3]]))
    z = encoder(wavs)["module1"].mean.detach()
    z = (z - z.mean()) / z.std()  # an untrained layer is almost silent
    decoder, loss = mirror(encoder, "module1"), ReconstructionLoss()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        error = loss(decoder(z, 1600), wavs, torch.tensor([1600, 1600]))
        error.backward()
        optimizer.step()
    assert error < 0.05 * wavs.square().mean()


def test_decode_learns_and_keeps_what_it_heard(
    decode_yaml, encoder_folder, corpus, tmp_path
):
    options = ["--output_folder", str(tmp_path), "--layer", "module1"]
    options += ["--lr", "0.01", "--sampled", "False", "--tensorboard", "True"]
    options += ["--number_of_epochs", "12"]
    finish(start_recipe("decode.py", decode_yaml, *options))
    log = (tmp_path / "train_log.txt").read_text()
    explained = [
        float(line.split("valid explained: ")[1]) for line in log.splitlines()
    ]
    assert max(explained[1:]) > explained[0]
    config = json.loads((tmp_path / "config.json").read_text())
    about = config["parts"]["decoder_module1"]
    assert about["layer"] == "module1" and about["epochs"] == 12
    heard = sorted((tmp_path / "audio").iterdir())
    assert len(heard) == 2  # one batch
    wavs = [soundfile.read(path)[0] for path in sorted(heard[0].iterdir())]
    assert len(wavs) == 13  # an epoch each, and the recording
    errors = [np.square(wav - wavs[-1]).mean() for wav in wavs[:-1]]
    assert errors[-1] < errors[0]
    assert list((tmp_path / "tensorboard").glob("*tfevents*"))

    _, description = load_encoder(encoder_folder)
    digest = description["sha256"]
    decoder, about = load_decoder(tmp_path, "module1", digest)
    assert about["encoder"] == digest == load_encoder(tmp_path)[1]["sha256"]
    assert not any(weight.requires_grad for weight in decoder.parameters())
    with pytest.raises(FileNotFoundError, match="no decoder_module2, only"):
        load_decoder(tmp_path, "module2", digest)
    with pytest.raises(ValueError, match="decodes the encoder .*, not 000"):
        load_decoder(tmp_path, "module1", "0" * 64)
    with pytest.raises(FileNotFoundError, match="recipes/decode.py"):
        load_decoder(encoder_folder, "module1", digest)


def test_killed_decoder_training_ends_the_same(decode_yaml, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start_recipe(
        "decode.py", decode_yaml, "--output_folder", str(whole)
    )
    argv = ["decode.py", decode_yaml, "--output_folder", str(killed)]
    argv += ["--ckpt_interval_steps", "2"]
    for place in [(0, 2), (1, 2)]:
        kill_at(start_recipe(*argv), killed, place, 0.5)
    finish(start_recipe(*argv))
    finish(uninterrupted)
    # not the last checkpoint by name: several are written in one second
    states = [
        load_file(f / "decoder_module3.safetensors") for f in (whole, killed)
    ]
    assert same(*states)
    logs = [(f / "train_log.txt").read_text() for f in (whole, killed)]
    assert logs[0] == logs[1] and logs[0].count("epoch: ") == 5


def test_an_audible_decoder_learns_is_saved_and_sounds(
    recipes, decode_yaml, encoder_folder, tmp_path
):
    argv = [str(decode_yaml), "--output_folder", str(tmp_path)]
    argv += ["--decoder", "spectrogram", "--layer", "module1", "--lr", "0.01"]
    argv += ["--lr_decay_epochs", "4"]
    argv += ["--sampled", "False", "--num_workers", "0", "--device", "cpu"]
    recipes["decode"].main([*argv, "--number_of_epochs", "4"])
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    explained = [float(row.split("valid explained: ")[1]) for row in log]
    # of an untrained encoder, whose latents are almost silent
    assert explained[-1] > explained[0] + 0.1
    clips = sorted((tmp_path / "audio").glob("*/epoch_0004.wav"))
    assert len(clips) == 2 and all(soundfile.read(f)[0].any() for f in clips)

    model = SmoothInfoMax.from_pretrained(tmp_path)
    assert model.config["parts"]["decoder_module1"]["valid"]["explained"]
    wavs, lengths = torch.randn(2, 4000) / 9, torch.tensor([4000, 2000])
    z = model.encode_batch(wavs, lengths, "module1").mean
    heard = model.decode(z, "module1", 4000, lengths)
    assert heard[0].any() and not heard[1, 2000:].any()
    _, description = load_encoder(encoder_folder)
    decoder, _ = load_decoder(tmp_path, "module1", description["sha256"])
    assert torch.equal(decoder(z, 4000, lengths), heard)
    low = SmoothInfoMax.from_pretrained(tmp_path).to(torch.bfloat16)
    assert low.decode(z, "module1", 4000).isfinite().all()


def test_the_loss_of_spectrograms_equals_loops():
    torch.manual_seed(0)
    wavs, loss = torch.randn(2, 4000) / 9, SpectrogramLoss(mel=3.0)
    predicted = torch.randn(2, 26, 201)
    sums, cells = np.zeros(4), np.zeros(2)
    mels, filters = [], mel_filters()
    for ours, wav, end in zip(predicted, wavs, LENGTHS, strict=True):
        theirs = log_power(wav[None, :end], end[None])[0]
        pair = ours[: len(theirs)], theirs
        mels.append([log_mel(x, filters) for x in pair])
        sums[0] += float((pair[0] - pair[1]).abs().sum())
        sums[1] += float((mels[-1][0] - mels[-1][1]).abs().sum())
        cells += theirs.numel(), mels[-1][0].numel()
    slow = sums[0] / cells[0] + 3 * sums[1] / cells[1]
    predicted = zero_padding(predicted, frames_of(LENGTHS))
    found = loss(predicted, wavs, LENGTHS)
    assert found.item() == pytest.approx(slow, rel=1e-4)
    ours, theirs = (torch.cat(x) for x in zip(*mels, strict=True))
    expected = (ours - theirs).square().mean().item()
    share = explained(loss.sums(predicted, wavs, LENGTHS))
    assert share["mse"] == pytest.approx(expected, rel=1e-4)
    expected /= (theirs - theirs.mean(0)).square().mean().item()
    assert share["explained"] == pytest.approx(1 - expected, rel=1e-4)
    true = log_power(wavs, LENGTHS)
    assert loss(true, wavs, LENGTHS) == 0 < found


@pytest.mark.parametrize("kind", [WAVEFORM, SPECTROGRAM])
def test_batches_do_not_change_what_is_given_back(kind):
    """The share of the report, whose clips are all in one batch."""
    torch.manual_seed(0)
    loud = torch.tensor([[0.01], [0.1], [1.0], [1.0], [0.3]])
    wavs = loud * torch.randn(5, 1600)
    lengths = torch.full((5,), 1600)
    if kind == WAVEFORM:
        loss, predicted = ReconstructionLoss(), 0.7 * wavs + 0.1
    else:
        loss = SpectrogramLoss()
        predicted = log_power(wavs, lengths) + torch.randn(5, 11, 201)
    system = SimpleNamespace(
        wavs=wavs,
        decode=lambda layer: lambda z: z,
        decoders={kind: {"low": lambda z, samples, as_sound: z}},
    )
    decode, recorded = System.compared(system, "low", kind)
    error = (decode(predicted).detach() - recorded).square().sum()
    plain = 1 - (error / recorded.square().sum()).item()
    for size in (1, 2, 5):
        brain = DecoderBrain.__new__(DecoderBrain)
        brain.reconstruction = loss
        brain.averages = {sb.Stage.VALID: Averages()}
        parts = (x.split(size) for x in (predicted, wavs, lengths))
        for part in zip(*parts, strict=True):
            brain.record(brain.score(*part)[1], sb.Stage.VALID)
        means = brain.means(sb.Stage.VALID)
        assert list(means) == ["loss", "mse", "explained"]
        assert means["explained"] == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("loss", [ReconstructionLoss(), SpectrogramLoss()])
def test_of_silence_there_is_no_share(loss):
    wavs, lengths = torch.zeros(2, 1600), torch.tensor([1600, 800])
    decoded = wavs
    if isinstance(loss, SpectrogramLoss):
        decoded = torch.randn(2, 11, 201)
    assert list(explained(loss.sums(decoded, wavs, lengths))) == ["mse"]


def test_a_spectrogram_has_no_loss_of_waveforms(recipes, decode_yaml, tmp_path):
    argv = [str(decode_yaml), "--output_folder", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="--mel has no use with --decoder"):
        recipes["decode"].main(
            [*argv, "--decoder", "spectrogram", "--mel", "1"]
        )
    assert not (tmp_path / "out").exists()


def test_a_spectrogram_is_decoded_too(decode_yaml, tmp_path):
    options = ["--output_folder", tmp_path, "--number_of_epochs", "6"]
    options += ["--encoder", "logmel", "--layer", "logmel", "--lr", "0.01"]
    finish(start_recipe("decode.py", decode_yaml, *options))
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    losses = [float(re.search(r"train loss: (\S+),", row)[1]) for row in log]
    assert losses[-1] < losses[0]
