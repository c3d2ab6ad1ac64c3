"""The members of one family: SIM, GIM, CPC, ..., which differ in numbers only."""

from types import SimpleNamespace

from hyperpyyaml import load_hyperpyyaml

from speechbrain_sim.config import MODELS, check_keys, model_changes
from speechbrain_sim.objectives.greedy import ContrastiveModule, SmoothInfoNCE
from speechbrain_sim.objectives.supervised import SupervisedModule
from speechbrain_sim.options import check_ranges, parse_yaml, typed


def training_modules(
    encoder, objective="contrastive", classes=0, per_frame=False, **contrastive
):
    """Divides an encoder into modules that train on their own.

    Arguments
    ---------
    encoder : GreedyEncoder
        Its layers are shared with the modules.
    objective : str
        "contrastive" or "supervised".
    classes, per_frame : int, bool
        Supervised: number of classes; one label per 10 ms, or per utterance.
    **contrastive :
        See `contrastive_modules`.

    Returns
    -------
    dict of str to GreedyModule
    """
    if objective == "contrastive":
        return contrastive_modules(encoder, **contrastive)
    if objective != "supervised":
        raise ValueError(
            f"objective is '{objective}'; not 'contrastive' or 'supervised'."
        )
    if classes < 2:
        raise ValueError(f"classes is {classes}; it must be 2 or more.")
    layers, top = dict(encoder.layers), encoder.layer_names[-1]
    geometry = encoder.frame_geometry(top) if per_frame else None
    shape = encoder.channels_of(top), classes
    return {"encoder": SupervisedModule("encoder", layers, *shape, geometry)}


def contrastive_modules(
    encoder, greedy=True, kl_weight=0.0, num_samples=1, noise=True, **settings
):
    """Makes a dict of one ContrastiveModule per layer, or of one for all.

    Arguments
    ---------
    greedy : bool
        One module per layer (SIM, GIM), or one for all (CPC, end-to-end SIM).
    kl_weight : float or list of float
        Beta; a list gives one for each convolutional module, bottom first.
    encoder, num_samples, noise :
        See `training_modules` and `ContrastiveModule`.
    **settings :
        See `SmoothInfoNCE`; a list gives one value for each layer.
    """
    names = encoder.layer_names
    gaussian = [name for name in names if not encoder.predicts_input(name)]
    kl = _per_layer("kl_weight", kl_weight, gaussian), num_samples, noise
    settings = {
        argument: _per_layer(argument, value, names)
        for argument, value in settings.items()
    }
    stacks = {name: [name] for name in names} if greedy else {"encoder": names}
    tops = [encoder.layers[stack[-1]] for stack in stacks.values()]
    if num_samples > 1 and not (noise and any(t.has_posterior for t in tops)):
        raise ValueError(
            f"num_samples is {num_samples}, but nothing here is drawn from the "
            f"posterior of a module's topmost layer: it must be 1."
        )
    modules = {}
    for name, stack in stacks.items():
        top = stack[-1]
        z = names[names.index(top) - encoder.predicts_input(top)]
        options = {key: value[top] for key, value in settings.items()}
        channels = encoder.channels_of(z), encoder.channels_of(top)
        objective = SmoothInfoNCE(*channels, **options)
        layers = {layer: encoder.layers[layer] for layer in stack}
        modules[name] = ContrastiveModule(name, layers, objective, *kl)
    return modules


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
        `encoder`, `modules` (for a GreedyBrain), and every hyper-parameter.
    """
    path = MODELS / "sim.yaml"
    text = path.read_text(encoding="utf-8")
    content, changes = parse_yaml(text), {**model_changes(name), **changes}
    check_keys(path, content, changes)
    overrides = {k: typed(k, v, [content]) for k, v in changes.items()}
    check_ranges(overrides, content["__must_be"])
    return SimpleNamespace(**load_hyperpyyaml(text, overrides))
