"""The recipe of speaker_id.yaml; knows SpeechBrain, and nothing of this package.

python tests/speaker_id.py tests/speaker_id.yaml --data_folder ... [overrides]
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml


class SpeakerBrain(sb.Brain):
    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        feats = self.modules.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)
        return self.modules.classifier(feats.abs().mean(1)).log_softmax(-1)

    def compute_objectives(self, predictions, batch, stage):
        targets = batch.label_encoded.data
        if stage != sb.Stage.TRAIN:
            self.errors.append(batch.id, predictions[:, None], targets)
        return sb.nnet.losses.nll_loss(predictions[:, None], targets)

    def on_stage_start(self, stage, epoch=None):
        self.errors = sb.utils.metric_stats.MetricStats(
            metric=lambda predictions, targets: (
                sb.nnet.losses.classification_error(
                    predictions, targets, reduction="batch"
                )
            )
        )

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": stage_loss, "error": self.errors.summarize("average")}
        self.hparams.train_logger.log_stats(
            {"Epoch": epoch}, {"loss": self.train_loss}, stats
        )
        self.checkpointer.save_and_keep_only(
            meta={"error": float(stats["error"])}, min_keys=["error"]
        )


def dataio_prep(hparams):
    encoder = sb.dataio.encoder.CategoricalEncoder()

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("pitch")
    @sb.utils.data_pipeline.provides("pitch", "label_encoded")
    def label_pipeline(pitch):
        yield pitch
        yield encoder.encode_label_torch(pitch)

    datasets = {
        part: sb.dataio.dataset.DynamicItemDataset.from_csv(
            hparams[f"{part}_annotation"],
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, label_pipeline],
            output_keys=["id", "sig", "label_encoded"],
        )
        for part in ("train", "valid")
    }
    encoder.load_or_create(
        path=f"{hparams['save_folder']}/label_encoder.txt",
        from_didatasets=[datasets["train"]],
        output_key="pitch",
    )
    return datasets


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with open(hparams_file) as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        hparams["output_folder"], hparams_file, overrides
    )
    datasets = dataio_prep(hparams)
    brain = SpeakerBrain(
        hparams["modules"],
        hparams["opt_class"],
        hparams,
        run_opts,
        hparams["checkpointer"],
    )
    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["dataloader_options"],
        valid_loader_kwargs=hparams["dataloader_options"],
    )
