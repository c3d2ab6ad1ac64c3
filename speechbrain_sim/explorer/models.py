"""A model that is explored: its layers, codes, decoders and probes."""

from typing import NamedTuple

from speechbrain_sim.bottlenecks.coded import DECODED, CodedEncoder
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.bottlenecks.vib import InformationBottleneck
from speechbrain_sim.bottlenecks.vsc import VariationalSparseCoder
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.explorer.jobs import Refused
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import DECODER, PROBE, parts_of

#: kinds of layers
KINDS = LAYER, SAE, VSC, VIB = "layer", "sae", "vsc", "vib"
#: and of codes, by their bottlenecks
CODES = {
    SparseAutoencoder: SAE,
    VariationalSparseCoder: VSC,
    InformationBottleneck: VIB,
}


class Explored(NamedTuple):
    """A model: its `name` in requests, its `title` on the page."""

    name: str
    title: str
    model: SmoothInfoMax

    @property
    def encoder(self):
        """Its encoder, with codes as layers."""
        return self.model.encoder

    @property
    def uncoded(self):
        """Its encoder without codes."""
        coded = isinstance(self.encoder, CodedEncoder)
        return self.encoder.encoder if coded else self.encoder

    @property
    def layers(self):
        """Maps names of layers and codes to their kinds."""
        kinds = {}
        for name in self.encoder.layer_names:
            bottleneck = self.encoder.bottleneck_of(name)
            of = [
                kind for c, kind in CODES.items() if isinstance(bottleneck, c)
            ]
            if not name.endswith(DECODED):
                kinds[name] = [*of, LAYER][0]
        return kinds

    def check(self, layer, *kinds):
        """Raises a Refused if there is no such layer, or it is of no such kind."""
        if layer not in self.layers:
            there = ", ".join(self.layers)
            raise Refused(404, f"There is no layer {layer!r:.80}, but {there}.")
        if kinds and self.layers[layer] not in kinds:
            codes = f"no codes of the kind {' or '.join(kinds)}"
            raise Refused(400, f"{layer} holds {codes}.")

    def decoder(self, layer):
        """Returns the decoder below a layer or codes; None if it has none."""
        decoders = parts_of(self.model.mods, DECODER)
        decodes = self.layers[layer] != VIB
        return decoders.get(self.encoder.origin(layer)) if decodes else None

    def frames(self, z, layer):
        """Returns the frames that codes decode to, or those of a layer."""
        bottleneck = self.encoder.bottleneck_of(layer)
        return z if bottleneck is None else bottleneck.decode(z)

    @property
    def probes(self):
        """Probes by their labels, with their entries in config.json."""
        parts = parts_of(self.model.mods, PROBE)
        entries = parts_of((self.model.config or {}).get("parts", {}), PROBE)
        return {label: (parts[label], entries[label]) for label in parts}

    def describe(self):
        """Describes it for the page."""
        layers, probes, encoder = [], [], self.encoder
        for name, kind in self.layers.items():
            layer = {"name": name, "kind": kind, "origin": encoder.origin(name)}
            hop, center = encoder.frame_geometry(name)
            layer |= {"channels": encoder.channels_of(name)}
            layer |= {"frame_rate": SAMPLE_RATE / hop}
            layer |= {"center": center / SAMPLE_RATE}
            layer |= {"posterior": encoder.has_posterior(name)}
            layer |= {"decodes": self.decoder(name) is not None}
            layers.append(layer | {"pooled": encoder.pools(name)})
        for label, (_, entry) in self.probes.items():
            probe = {"label": label, "layer": entry["best_layer"]}
            probes.append(probe | {n: entry[n] for n in ("classes", "kind")})
        names = {"name": self.name, "title": self.title}
        return names | {"layers": layers, "probes": probes}
