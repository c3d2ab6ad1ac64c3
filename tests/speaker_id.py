"""The recipe of speaker_id.yaml; knows SpeechBrain, and nothing of this package.

In the shape of SpeechBrain's template, with three switches of other recipes:
features that are called by `hparams`, detached, or cached.

python tests/speaker_id.py tests/speaker_id.yaml --data_folder ... [overrides]
"""

import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.data_pipeline import (
    CachedDynamicItem,
    provides,
    takes,
)


class SpeakerBrain(sb.Brain):
    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        feats, lens = self.prepare_features(batch, stage)
        return self.modules.classifier(feats.abs().mean(1)).log_softmax(-1)

    def prepare_features(self, batch, stage):
        if self.hparams.feats_cache_dir:
            feats, lens = batch.feats
        else:
            wavs, lens = batch.sig
            feats = getattr(self, self.hparams.features_of).compute_features(
                wavs
            )
        if self.hparams.detach:
            feats = feats.detach()
        return self.modules.mean_var_norm(feats, lens), lens

    def compute_objectives(self, predictions, batch, stage):
        targets = batch.label_encoded.data
        if stage != sb.Stage.TRAIN:
            self.errors.append(batch.id, predictions[:, None], targets)
        return sb.nnet.losses.nll_loss(predictions[:, None], targets)

    def on_stage_start(self, stage, epoch=None):
        self.errors = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": stage_loss, "error": self.errors.summarize("average")}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                {"Epoch": epoch, "lr": old_lr}, {"loss": self.train_loss}, stats
            )
            self.checkpointer.save_and_keep_only(
                meta={"error": float(stats["error"])}, min_keys=["error"]
            )
        else:
            self.test_stats = stats


def dataio_prep(hparams):
    encoder = sb.dataio.encoder.CategoricalEncoder()

    @takes("wav")
    @provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @takes("pitch")
    @provides("pitch", "label_encoded")
    def label_pipeline(pitch):
        yield pitch
        yield encoder.encode_label_torch(pitch)

    items, keys = [audio_pipeline, label_pipeline], ["id", "label_encoded"]
    if hparams["feats_cache_dir"]:

        @CachedDynamicItem.cache(hparams["feats_cache_dir"])
        @takes("id", "sig")
        @provides("feats")
        def feature_pipeline(uid, sig):
            feats = hparams["compute_features"](sig[None])[0]
            return torch.from_numpy(feats.numpy())  # as files of HDF5 need it

        items, keys = [*items, feature_pipeline], [*keys, "feats"]
    else:
        keys = [*keys, "sig"]
    datasets = {
        part: sb.dataio.dataset.DynamicItemDataset.from_csv(
            hparams[f"{part}_annotation"],
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=items,
            output_keys=keys,
        )
        for part in ("train", "valid")
    }
    encoder.load_or_create(
        path=f"{hparams['save_folder']}/label_encoder.txt",
        from_didatasets=[datasets["train"]],
        output_key="pitch",
    )
    return datasets


def main(argv):
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
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
    brain.evaluate(
        datasets["valid"],
        min_key="error",
        test_loader_kwargs=dict(hparams["dataloader_options"]),
    )
    return brain


if __name__ == "__main__":
    main(sys.argv[1:])
