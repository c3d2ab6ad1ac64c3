"""From a run to a model on the Hub, with its card."""
