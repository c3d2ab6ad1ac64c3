"""Models through SpeechBrain's yaml: its Pretrainer, for safetensors.

The yaml of an exported model names `SafetensorsPretrainer`; see
`speechbrain_sim.inference.SmoothInfoMax.from_hparams`.
"""

from pathlib import Path

from speechbrain.utils.fetching import FetchConfig, link_with_strategy
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_sim.files import sha256
from speechbrain_sim.models.fetch import open_source
from speechbrain_sim.models.format import (
    CONFIG,
    WEIGHTS,
    describe,
    fetch_weights,
    read_weights,
)

#: how files are fetched unless something else is asked for
DEFAULTS = FetchConfig()
#: key of config.json: which class the yaml is for; runs have no such yaml
INTERFACE = "speechbrain_interface"


def source_options(fetch_config):
    """Translates SpeechBrain's FetchConfig into options of `open_source`."""
    return {
        "revision": fetch_config.revision,
        "token": fetch_config.token or None,
        "allow_network": fetch_config.allow_network,
        "cache_dir": fetch_config.huggingface_cache_dir,
    }


class SafetensorsPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer for safetensors, strict.

    For each loadable, `<name>.safetensors` is fetched, compared with the hash
    in the `config.json` beside it, and must hold exactly the weights that the
    loadable has. Arguments are those of
    `speechbrain.utils.parameter_transfer.Pretrainer`; `paths` are `<source>` or
    `<source>/<file>.safetensors`. `collect_in` is not used: files stay in their
    folder, or in the cache of the Hub.

    Example
    -------
    >>> from speechbrain_sim.models.format import example_folder
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> encoder = GreedyEncoder(channels=4, context_channels=2)
    >>> pretrainer = SafetensorsPretrainer(loadables={"encoder": encoder})
    >>> files = pretrainer.collect_files(folder)
    >>> pretrainer.load_collected()
    """

    #: file and hash of each loadable that was fetched
    collected = None
    #: config.json of the default source
    config = None

    def collect_files(
        self, default_source=None, local_strategy=None, fetch_config=DEFAULTS
    ):
        """Fetches the files and the hashes they must have, in every process.

        Arguments as in the parent class; `local_strategy` is ignored, since
        nothing is copied. Returns the paths by name.

        Raises
        ------
        FileNotFoundError, HubError, ValueError
            If a file cannot be had, or its hash is not known.
        """
        self.collected = {}
        for name in filter(self.is_loadable, self.loadables):
            source, part = self.paths.get(name, default_source), name
            if str(source).endswith(WEIGHTS):
                source, part = self.split_path(str(source))
                part = part.removesuffix(WEIGHTS)
            if source is None:
                raise ValueError(f"There is no source for '{name}': give one.")
            source = open_source(source, **source_options(fetch_config))
            config = describe(source)
            self.config = self.config if name in self.paths else config
            self.collected[name] = fetch_weights(source, config, part)
        return {name: path for name, (path, _) in self.collected.items()}

    def load_collected(self):
        """Loads what `collect_files` fetched, strictly: see `read_weights`."""
        if self.collected is None:
            raise RuntimeError(
                "First call collect_files, in every process: not by run_on_main."
            )
        for name, file in self.collected.items():
            model = self.loadables[name]
            model.load_state_dict(read_weights(model, *file))


def check_loaded(hparams, config, yaml):
    """Refuses a yaml that leaves weights of the model as they were drawn."""
    pretrainer = hparams.pretrainer
    collected = getattr(pretrainer, "collected", None) or ()
    loaded = {name: pretrainer.loadables[name] for name in collected}
    missing = set(config["parts"]) - set(loaded)
    missing |= {
        name
        for name, module in hparams.modules.items()
        if module is not loaded.get(name) and module.state_dict()
    }
    if missing:
        raise ValueError(
            f"{yaml} loads no weights into {', '.join(sorted(missing))}: list "
            f"them under 'loadables', or use from_pretrained."
        )


def fetch_model(source, hparams_file, savedir, strategy, fetch_config):
    """Fetches an exported model: the path of its yaml, and its config.json.

    Links or copies all files into `savedir`, if it is not None and holds no
    other model's. See `speechbrain_sim.inference.SmoothInfoMax.from_hparams`.
    """
    source = open_source(source, **source_options(fetch_config))
    config = describe(source)
    if INTERFACE not in config:
        raise ValueError(
            f"Use from_pretrained: {source.name} is no `speechbrain-sim export`."
        )
    paths = [source.fetch(name) for name in (hparams_file, CONFIG)]
    paths += [fetch_weights(source, config, n)[0] for n in config["parts"]]
    if savedir is None:
        return paths[0], config
    targets = {path: Path(savedir, path.name) for path in paths}
    for path, target in targets.items():
        free = fetch_config.overwrite or not target.exists()
        if not free and sha256(target) != sha256(path):
            raise ValueError(
                f"{savedir} holds {path.name} of another model, or of another "
                f"revision: choose another savedir, or none."
            )
    Path(savedir).mkdir(parents=True, exist_ok=True)
    for path, target in targets.items():
        if target.resolve() != path.resolve():
            link_with_strategy(path.resolve(), target, strategy)
    return paths[0], config
