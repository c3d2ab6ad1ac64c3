"""family."""

from types import SimpleNamespace

from hyperpyyaml import load_hyperpyyaml

from speechbrain_sim.config import MODELS, model_changes
from speechbrain_sim.encoders.greedy import CONTEXT
from speechbrain_sim.objectives.greedy import (
    ContrastiveModule,
    SmoothInfoNCE,
    SupervisedModule,
)


def training_modules(
    encoder,
    objective="contrastive",
    greedy=True,
    kl_weight=0.0,
    draws=1,
    noise=True,
    classes=0,
    per_frame=False,
    **smooth_info_nce,
):
    """Divides an encoder into modules that train on their own.

    Arguments
    ---------
    encoder : GreedyEncoder
        Its layers are shared with the modules.
    objective : str
        "contrastive" or "supervised".
    greedy : bool
        Contrastive: one module per layer (SIM, GIM), or one for all (CPC,
        end-to-end SIM).
    kl_weight : float or list of float
        Beta; a list gives one for each layer with a posterior, bottom first.
    draws : int
        L, Monte-Carlo draws of (c, z).
    noise : bool
        Contrastive: whether training draws from posteriors.
    classes : int
        Supervised: number of classes.
    per_frame : bool
        Supervised: one label per 10 ms (phones), or one per utterance.
    **smooth_info_nce :
        Further arguments of `speechbrain_sim.objectives.greedy.SmoothInfoNCE`; a list
        gives one value for each layer, bottom first.

    Returns
    -------
    dict of str to GreedyModule

    Raises
    ------
    ValueError
        If the objective is unknown, a list has not one value per layer, or a
        supervised model has no classes.

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=4, context_channels=2)
    >>> list(training_modules(encoder, kl_weight=0.01))
    ['module1', 'module2', 'module3', 'context']
    >>> list(training_modules(encoder, greedy=False))
    ['encoder']
    """
    names = encoder.layer_names
    if objective == "supervised":
        if classes < 2:
            raise ValueError(f"classes is {classes}; it must be 2 or more.")
        module = SupervisedModule(
            "encoder",
            dict(encoder.layers),
            encoder.layers[names[-1]].out_channels,
            classes,
            encoder.frame_geometry(names[-1]) if per_frame else None,
        )
        return {"encoder": module}
    if objective != "contrastive":
        raise ValueError(
            f"objective is '{objective}'; it must be 'contrastive' or "
            f"'supervised'."
        )
    with_posterior = [name for name in names if name != CONTEXT]
    kl_weights = _per_layer("kl_weight", kl_weight, with_posterior)
    settings = {
        argument: _per_layer(argument, value, names)
        for argument, value in smooth_info_nce.items()
    }

    def contrastive(name, layer_names):
        top = layer_names[-1]
        z_name = with_posterior[-1] if top == CONTEXT else top
        return ContrastiveModule(
            name,
            {layer: encoder.layers[layer] for layer in layer_names},
            SmoothInfoNCE(
                encoder.layers[z_name].out_channels,
                encoder.layers[top].out_channels,
                **{
                    argument: value[top] for argument, value in settings.items()
                },
            ),
            kl_weights,
            draws,
            noise,
        )

    if greedy:
        return {name: contrastive(name, [name]) for name in names}
    return {"encoder": contrastive("encoder", names)}


def _per_layer(argument, value, layers):
    """Spreads a value, or a list with one for each layer, over the layers."""
    if not isinstance(value, (list, tuple)):
        value = [value] * len(layers)
    if len(value) != len(layers):
        raise ValueError(
            f"{argument} lists {len(value)} values for the {len(layers)} "
            f"layers {', '.join(layers)}."
        )
    return dict(zip(layers, value, strict=True))


def build_model(name="sim", **changes):
    """Builds a member of the family, untrained, with the paper's settings.

    Arguments
    ---------
    name : str
        `sim`, `gim`, `sim_beta0`, `sim_kl_only`, `cpc`, `sim_end_to_end`,
        `supervised` or `random`.
    **changes : any
        Other values for keys of `hparams/models/sim.yaml`.

    Returns
    -------
    SimpleNamespace
        With `encoder` (GreedyEncoder), `modules` (what a GreedyBrain trains)
        and every hyper-parameter.

    Example
    -------
    >>> model = build_model("gim", channels=16, context_channels=8)
    >>> model.encoder.layer_names == list(model.modules)
    True
    """
    with open(MODELS / "sim.yaml", encoding="utf-8") as file:
        content = load_hyperpyyaml(file, {**model_changes(name), **changes})
    return SimpleNamespace(**content)
