"""Training loops: encoders module by module, decoders, probes; checkpoints."""

import logging

# SpeechBrain's module of loggers warns on import of a logger of images, which
# nothing here uses
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)
