"""A training loop that names what is not finite, and never saves it."""

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

REMEDY = "lower the learning rate or clip gradients (--max_grad_norm) in "
REMEDY += "another --output_folder, or correct the audio"
#: utterances that a message lists
LISTED = 8


class WatchedBrain(sb.Brain):
    """A Brain whose errors name module, step and utterances of the first NaN.

    Before anything is saved, modules and optimizers are checked.
    """

    #: what `check_loss_isfinite` is about: step, batch, losses of modules
    watched = 0, None, {}
    diverged = None

    def check_loss_isfinite(self, loss):
        """Counts steps whose loss is not finite; the error names the first."""
        if torch.isfinite(loss):
            return
        found = self._describe(loss)
        logger.warning(found)
        self.diverged = self.diverged or found
        try:
            super().check_loss_isfinite(loss)
        except ValueError as error:
            raise ValueError(
                f"{self.diverged}, and --nonfinite_patience is exhausted: "
                f"{REMEDY}."
            ) from error

    def evaluate_batch(self, batch, stage):
        """Warns of a loss that is not finite, which no mean includes."""
        self.watched = self.step, batch, {}
        loss = super().evaluate_batch(batch, stage)
        if not loss.isfinite():
            logger.warning(f"{self._describe(loss)}, in the {stage.name} set")
        return loss

    def _describe(self, loss):
        """Describes the present step: modules, values, utterances."""
        step, batch, losses = self.watched
        bad = [(n, x) for n, x in losses.items() if not x.isfinite()]
        name, value = (f" of {bad[0][0]}", bad[0][1]) if bad else ("", loss)
        ids = list(getattr(batch, "id", ()))
        wavs = zip(ids, batch.sig.data if ids else (), strict=False)
        odd = [n for n, wav in wavs if not wav.isfinite().all()]
        of = ", ".join((odd or ids)[:LISTED])
        what = "whose samples are not finite" if odd else "in this batch"
        of = f", of {of}, {what}" if ids else ""
        at = f"epoch {self.hparams.epoch_counter.current}, step {step}"
        return f"In {at}, the loss{name} is {float(value)}{of}"

    def check_epoch(self, epoch, validated):
        """Raises a ValueError if an epoch diverged, before its result is saved.

        The averages are of finite values only.
        """
        self.check_state(f"At the end of epoch {epoch}")
        train = self.averages[sb.Stage.TRAIN].means()
        valid = self.averages[sb.Stage.VALID].means() if validated else train
        lost = [name for name in train if name not in valid]
        if lost or (self.diverged and not train):
            which = f"validation's {lost[0]}" if lost else "a loss"
            raise ValueError(
                f"Epoch {epoch} diverged: never was {which} finite."
                f"{self._first()} Nothing of it is saved: {REMEDY}."
            )

    def check_state(self, when):
        """Raises a ValueError if weights or optimizers are not finite."""
        if self.checkpointer is not None:
            try:
                self.checkpointer.check_finite()
            except ValueError as error:
                message = f"{when}, {error}{self._first()}"
                raise ValueError(message) from error

    def _first(self):
        return f" {self.diverged}." if self.diverged else ""
