"""Places in a transformer at which its states can be read, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from embedstore.errors import InvalidInput

HIDDEN = "hidden"
FINAL_NORM = "final_norm"
ATTENTION = "attention"
MLP = "mlp"
HEAD = "head"
SITES = (HIDDEN, FINAL_NORM, ATTENTION, MLP, HEAD)
_PREFIXES = {HIDDEN: "layer", FINAL_NORM: "final-norm", ATTENTION: "attention", MLP: "mlp", HEAD: "head"}


@dataclass(frozen=True, slots=True, order=True)
class Tap:
    """One place.

    site: 'hidden', the residual stream: layer 0 is the embeddings, layer i what block i leaves, before any final norm;
        'final_norm', after that norm; 'attention' and 'mlp', what block ``layer`` (from 1) adds to the stream, before
        it is added; 'head', what one attention head (from 0) gives before the output projection.
    """

    site: str
    layer: int
    head: int | None = None

    @property
    def space_name(self) -> str:
        """As its space is called: ``layer-03``, ``attention-03``, ``head-03-11``, ``final-norm``."""
        if self.site == FINAL_NORM:
            return _PREFIXES[FINAL_NORM]
        head = "" if self.head is None else f"-{self.head:02d}"
        return f"{_PREFIXES[self.site]}-{self.layer:02d}{head}"


def taps_of(
    sites: Sequence[str], layers: str | int | Iterable[int], n_layers: int, n_heads: int, *, where: str
) -> list[Tap]:
    """The places of sites and layers in a model of so many blocks; InvalidInput for what it does not have.

    layers: 'all', or numbers; negative ones count from the end, -1 being the last.
    """
    if isinstance(sites, str) or not sites or any(site not in SITES for site in sites):
        raise InvalidInput(f"sites is {sites!r}; give a list of {', '.join(SITES)}")
    taps: list[Tap] = []
    for site in dict.fromkeys(sites):
        if site == FINAL_NORM:
            taps.append(Tap(FINAL_NORM, n_layers))
            continue
        for layer in layer_numbers(layers, n_layers, where=where):
            if layer == 0 and site != HIDDEN:
                if layers != "all" and HIDDEN not in sites:
                    raise InvalidInput(f"layer 0 is the embeddings, which have no {site!r}; it has 1 to {n_layers}")
            elif site == HEAD:
                taps += [Tap(HEAD, layer, head) for head in range(n_heads)]
            else:
                taps.append(Tap(site, layer))
    return taps


def layer_numbers(layers: str | int | Iterable[int], n_layers: int, *, where: str) -> list[int]:
    """Layers by number, 0 to ``n_layers``, in order and once each; InvalidInput for those that are not there."""
    if layers == "all":
        return list(range(n_layers + 1))
    given = [layers] if isinstance(layers, int) else layers
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(f"layers is {layers!r}; give 'all' or a list of numbers, such as [0, 3, -1]")
    found = set()
    for layer in given:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise InvalidInput(f"a layer is {layer!r}; it must be a whole number")
        number = layer + n_layers + 1 if layer < 0 else layer
        if not 0 <= number <= n_layers:
            raise InvalidInput(f"layer {layer} is not there: {where} has the layers 0 (embeddings) to {n_layers}")
        found.add(number)
    if not found:
        raise InvalidInput("layers is empty; give 'all' or a list of numbers")
    return sorted(found)
