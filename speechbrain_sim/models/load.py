"""models.load."""

from speechbrain.utils.logger import get_logger

from speechbrain_sim.encoders.huggingface import (
    MODEL_TYPES,
    load_hidden_states,
    model_type,
)
from speechbrain_sim.encoders.logmel import LOGMEL, LogMel
from speechbrain_sim.models.fetch import HUB, open_source
from speechbrain_sim.models.format import (
    ENCODER,
    MODEL_TYPE,
    load_encoder,
    load_parts,
)

logger = get_logger(__name__)


def load_front_end(source):
    """Loads what features are taken from.

    Arguments
    ---------
    source : str
        The folder `encoder` of a pretraining run, a model folder that
        `speechbrain-sim export` wrote, or its name on the Hub as
        `hf://user/model`; the folder of a Hugging Face model (see
        `load_hidden_states`); or "logmel".

    Returns
    -------
    front_end, description : (nn.Module, dict)
        Frozen, in eval mode; what it is, for the results.

    Raises
    ------
    FileNotFoundError
        If the folder holds neither.
    """
    source = str(source)
    if source == LOGMEL:
        front_end, description = LogMel(), {"model": LOGMEL, "sha256": LOGMEL}
    elif source.startswith(HUB) or model_type(source) == MODEL_TYPE:
        parts, config = load_parts(open_source(source), [ENCODER])
        front_end, about = parts[ENCODER], config["encoder"]
        description = {
            **config["training"],
            "architecture": about["architecture"],
            "layers": about["layers"],
            "sha256": about["checkpoint_sha256"],  # what decoders refer to
        }
    elif model_type(source) in MODEL_TYPES:
        front_end, description = load_hidden_states(source)
    else:
        try:
            front_end, description = load_encoder(source)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} Or give the folder of a Hugging Face model, whose "
                f"config.json has the model_type wav2vec2, hubert or wavlm."
            ) from error
    return front_end.eval().requires_grad_(False), description
