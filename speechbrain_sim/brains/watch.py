"""A training loop that names what is not finite, and never saves it."""

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

REMEDY = "lower the learning rate, clip gradients (--max_grad_norm), or "
REMEDY += "correct the audio"
#: utterances that a message lists
LISTED = 8


class WatchedBrain(sb.Brain):
    """A Brain whose errors name module, step and utterances of the first NaN.

    Before anything is saved, modules and optimizers are checked.
    """

    #: loss of each module in this step, where there are several
    losses = {}
    batch = diverged = None

    def on_fit_batch_start(self, batch, should_step):
        """Keeps the batch, to name its utterances."""
        self.batch = batch

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

    def _describe(self, loss):
        """Describes the present step: modules, values, utterances."""
        losses = {n: float(x) for n, x in self.losses.items()}
        finite = torch.isfinite(torch.tensor([*losses.values()])).tolist()
        bad = [n for n, good in zip(losses, finite, strict=True) if not good]
        where = f"the loss of {bad[0]}" if bad else "the loss"
        value = losses[bad[0]] if bad else float(loss)
        ids = list(getattr(self.batch, "id", ()))
        good = self.batch.sig.data.isfinite().flatten(1).all(1).tolist()
        odd = [n for n, good in zip(ids, good, strict=False) if not good]
        of = ", ".join((odd or ids)[:LISTED]) or "unnamed utterances"
        of = (
            f"{of}, whose samples are not finite" if odd else f"a batch of {of}"
        )
        at = f"epoch {self.hparams.epoch_counter.current}, step {self.step}"
        return f"In {at}, {where} is {value}, of {of}"

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

    def _save_intra_epoch_ckpt(self):
        epoch = self.hparams.epoch_counter.current
        self.check_state(f"In epoch {epoch}, after step {self.step}")
        super()._save_intra_epoch_ckpt()
