"""Training of a decoder on a frozen layer."""

import soundfile
import speechbrain as sb
import torch

from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.encoders.base import absolute_lengths, to_device
from speechbrain_sim.files import file_of
from speechbrain_sim.models.format import DECODER, save_parts
from speechbrain_sim.objectives.reconstruction import explained
from speechbrain_sim.randomness import keyed_generator

#: validation recordings that are kept as audio, every epoch
AUDIO_SAMPLES = 3


class DecoderBrain(ResumableBrain):
    """Trains a decoder on the latents of one layer of a frozen encoder.

    `modules` is {"decoder": Decoder}. Hyper-parameters read from `hparams`
    beside those of `ResumableBrain`: `frozen_encoder`, `layer`, `sampled`
    (decode draws from the posteriors, or means), `reconstruction` (the loss),
    `audio_folder`, `output_folder` (which holds the
    encoder, or a reference to it).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.frozen_encoder = self.hparams.frozen_encoder.to(self.device)
        self.reconstruction = self.hparams.reconstruction.to(self.device)
        self.examples = {}

    def compute_forward(self, batch, stage):
        """Encodes and decodes a batch: what the decoder predicts."""
        wavs, lengths = self.recorded(batch)
        layer, sampled = self.hparams.layer, self.hparams.sampled
        noise = keyed_generator(*self.key("noise", stage), device=self.device)
        with torch.no_grad():
            latents = self.frozen_encoder(
                wavs, lengths, [layer], sampled, noise
            )
        z, samples = latents[layer].sample, wavs.shape[1]
        return self.modules["decoder"](z, samples, lengths, as_sound=False)

    def learn(self, batch, should_step):
        """See `ResumableBrain`."""
        with self.training_ctx:
            decoded = self.compute_forward(batch, sb.Stage.TRAIN)
            loss, stats = self.score(decoded, *self.recorded(batch))
        self.backward("decoder", loss, should_step)
        return loss.detach(), stats

    def recorded(self, batch):
        """Returns the waveforms of a batch, and their lengths."""
        lengths = absolute_lengths(*batch.sig)
        return to_device(batch.sig.data, self.device), lengths

    def score(self, predictions, wavs, lengths):
        """Scores what was predicted: loss, dict of stats."""
        loss = self.reconstruction(predictions, wavs, lengths)
        with torch.no_grad():
            sums = self.reconstruction.sums(predictions, wavs, lengths)
        return loss, {"loss": loss.detach(), **sums}

    def compute_objectives(self, predictions, batch, stage):
        """Scores what was predicted; keeps the first validation clips."""
        wavs, lengths = self.recorded(batch)
        loss, stats = self.score(predictions, wavs, lengths)
        self.record(stats, stage)
        if stage == sb.Stage.VALID and self.step == 1:
            few = slice(AUDIO_SAMPLES)
            pair, ends = (predictions[few].detach().float(), wavs), lengths[few]
            decoder, samples = self.unwrapped["decoder"], wavs.shape[1]
            pair = decoder.sound(pair[0], samples, ends).cpu(), wavs[few].cpu()
            self.examples = {
                name: (wav[:end], decoded[:end])
                for name, decoded, wav, end in zip(
                    batch.id[few], *pair, ends, strict=True
                )
            }
        return loss

    def means(self, stage):
        """Returns the mean loss, and `explained` of all recordings so far."""
        means = super().means(stage)
        loss = {key: means.pop(key) for key in ("loss",) if key in means}
        return loss | explained(means) if means else loss

    def save_result(self, training):
        """Saves the decoder and a few decoded recordings."""
        hparams, epoch = self.hparams, training["epochs"]
        metadata = {"layer": hparams.layer, "sampled": hparams.sampled}
        metadata["reconstruction"] = hparams.reconstruction.weights
        name = f"{DECODER}_{hparams.layer}"
        part = {name: self.unwrapped["decoder"]}
        save_parts(hparams.output_folder, part, {name: metadata | training})
        board = getattr(hparams, "tensorboard_logger", None)
        for name, (wav, decoded) in self.examples.items():
            folder = file_of(hparams.audio_folder, name)
            folder.mkdir(parents=True, exist_ok=True)
            for stem, x in ("recorded", wav), (f"epoch_{epoch:04}", decoded):
                x = x.clamp(-1, 1).numpy()
                soundfile.write(folder / f"{stem}.wav", x, SAMPLE_RATE)
            if board is not None:
                board.log_audio(name, decoded[None], SAMPLE_RATE)
