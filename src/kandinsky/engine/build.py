"""From a card and options to a loaded model; networks are built by the parts that the card's family names."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from kandinsky.diffusion import caching
from kandinsky.engine.attention import check_choice
from kandinsky.engine.context import Context
from kandinsky.engine.options import RunOptions
from kandinsky.engine.parallel import check_whole, demand_of_card
from kandinsky.engine.remote_code import check_trust
from kandinsky.engine.request import checked_cache
from kandinsky.engine.text_states import open_store
from kandinsky.errors import BackendError, RequestError
from kandinsky.model.card import Card, Component
from kandinsky.model.checks import check_names
from kandinsky.model.family import Files, Part
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.lora import layer_shapes
from kandinsky.runtime import quantise, tuning
from kandinsky.runtime.adapters import Adapters, load_loras
from kandinsky.runtime.compiling import compiled
from kandinsky.runtime.parallel import launch
from kandinsky.runtime.parallel.launch import World
from kandinsky.runtime.parallel.layout import Layout, settle
from kandinsky.runtime.parallel.team import Team
from kandinsky.runtime.placement import Placement, Precision, place
from kandinsky.weights import update
from kandinsky.weights.keymaps import KeyMap, keymap_for, keymap_of
from kandinsky.weights.locate import locate_parts, revision
from kandinsky.weights.read import check_state, load_into, read_meta
from kandinsky.weights.untrusted import reading

COMPONENTS = ("dit", "text", "vae")  # the model's own file comes first
BESIDE = {"interpolation": "dit", "image_vae": "vae"}  # further networks run where these do


def places_for(options: RunOptions, names: Collection[str] = COMPONENTS) -> dict[str, torch.device]:
    """Choose a device for each network.

    Args:
        options: How the model runs.
        names: The networks.

    Returns:
        Device by network.

    Raises:
        RequestError: A device was given for a name that is not one of ``names``.
        BackendError: A device is not available.
    """
    device = options.device
    if not isinstance(device, Mapping):
        world = World.started() if options.parallel is not None else World()
        return dict.fromkeys(COMPONENTS, place(world.device(None if device is None else str(device))))
    if unknown := sorted(set(device) - set(names)):
        raise RequestError(f"device given for `{unknown[0]}`: use one of {', '.join(names)}")
    return {name: place(device.get(name)) for name in dict.fromkeys((*COMPONENTS, *device))}


def build(
    card: Card,
    options: RunOptions | None = None,
    *,
    root: Path | None = None,
    name: str | None = None,
    noise_device: torch.device | None = None,
    types: Mapping[str, str] | None = None,
) -> Context:
    """Build a model for a card whose files lie under ``root`` or where the card says.

    Files are found and their headers checked now; weights are read at first use.

    Args:
        card: The model.
        options: How it runs.
        root: Folder of its files; None = where the card says.
        name: What finds the model again, for the recipe.
        noise_device: Device of the noise generator; see ``Context``.
        types: Compute types of single networks (not `dit`) that differ from ``options.dtype``.

    Returns:
        The model.

    Raises:
        RequestError: An option does not suit the card.
        WeightsError: A file is missing or broken; the message names it.
        BackendError: A device, package or attention backend is not available.
    """
    options = options or RunOptions()
    places = places_for(options, card.components)
    cache = caching.parse(options.cache) if isinstance(options.cache, str) else options.cache
    wanted = set(card.components if options.only is None else options.only)
    check_names(sorted(wanted), card.components, "network in `only`")
    check_trust(card, options.trust_remote_code, only=wanted)
    AttentionSpec.from_dict(card.sampling.attention)  # refuses unknown names
    if card.sampling.condition not in (known := card.part("dit").conditions):
        raise RequestError(
            f"card `{card.id}`: sampling.condition `{card.sampling.condition}` is unknown: use {' or '.join(known)}"
        )
    check_choice(card, options.attention, places["dit"].type)
    calibrated = (card.sampling.mag_ratios, *(entry.sampling.get("mag_ratios") for entry in card.classes.values()))
    checked_cache(cache, card, next(filter(None, calibrated), ()))
    precision = Precision.choose(options.dtype, places["dit"])
    schemes = quantise.parse(options.quantize)
    quantise.check(schemes)
    keymap = keymap_of(card.part("dit"))
    adapters = Adapters(card.id, partial(linear_shapes, card), keymap=keymap, quantised=schemes.get("dit", ""))
    load_loras(adapters, options.lora)
    card = options.applied_to(card)
    team = _team(card, options.parallel, options.attention, places["dit"])
    choices = _choices(card, options.backends, precision, places["dit"], team)
    check_blocks(choices, options.offload or "none", places["dit"], team)
    if team.layout.cuts_weights:
        check_whole(team.layout, offload=options.offload or "none", lora=options.lora, quantize=bool(schemes))
    split = card.part("dit").split
    builders: dict[str, Callable[[], Any]] = {}
    found: dict[str, Files] = {}
    precisions: dict[str, Precision] = {}
    places = dict(places)
    for part, component in card.components.items():
        if part not in wanted:
            continue
        places.setdefault(part, places[BESIDE.get(part, part)])
        files = found[part] = locate_parts(component, root=root, model=name or card.id)
        # a swapped block is converted when it runs; until then it stays mapped from its file
        # and one that is cut is converted block by block
        stored = part == "dit" and part not in schemes and (options.offload == "block" or team.layout.cuts_weights)
        compute = (types or {}).get(part, component.dtype or precision.compute)
        precisions[part] = Precision.choose(compute, places[part])
        builder = network_builder(card.part(part), component, files, None if stored else precisions[part])
        builders[part] = partial(_quantised, builder, schemes[part], places[part]) if part in schemes else builder
        if part == "dit":
            builders[part] = partial(
                team.build, builders[part], precision.compute, None if split is None else split.rules
            )
            if choices.blocks == "compiled":
                builders[part] = partial(compiled, builders[part])
    placement = Placement(
        builders,
        device=places["dit"],
        places={part: places[part] for part in builders},
        offload=options.offload or "none",
        types={"dit": precision.compute},
        quantized=bool(schemes),
    )
    store = None
    if "text" in found and (tensors := card.part("text").tensors):
        weights = [found["text"][name] for name in tensors]
        settings = {"dtype": precisions["text"].name, "device": places["text"].type, "quantize": schemes.get("text")}
        store = open_store(card.text, found["text"], weights, settings, options.text_cache)
    # the attention that was chosen is in the recipe as any other
    named = {
        "quantize": schemes,
        "tiling": options.tiling,
        "backends": str(dataclasses.replace(choices, attention=None)),
    }
    return Context(
        card,
        placement,
        precision,
        attention=options.attention,
        name=name or card.id,
        revision=revision(card.dit, root=root),
        noise_device=noise_device,
        cache=cache,
        adapters=adapters,
        text_store=store,
        settings={key: value for key, value in named.items() if value},
        team=team,
        **computing(choices, precision),
    )


def _team(card: Card, parallel: str | Layout | None, attention: str, device: torch.device) -> Team:
    """The processes that work together.

    Raises:
        RequestError: The layout does not fit them, or the card.
    """
    if parallel is None:
        return Team()
    # a layout that is already settled was checked against the request itself
    layout = parallel
    if not isinstance(layout, Layout):
        layout, _ = settle(layout, World.started().size, demand_of_card(card, attention))
    if layout.size > 1:
        launch.meet(device.type)
    return Team(layout, device)


def _choices(card: Card, backends: str, precision: Precision, device: torch.device, team: Team) -> tuning.Choices:
    """The backends that all processes of a team compute with: one measures, since two might find different ones.

    Raises:
        RequestError: They are no choices, or measured for models of another kind.
    """
    work, more = partial(shape_of, card, precision, device), partial(ways_of, card, precision, device)
    if backends != tuning.TUNED or team.size == 1:
        return tuning.settle(backends, work, more)
    shape = work()  # refused on all, or on none
    told = team.agree(str(tuning.settle(backends, lambda: shape, more)) if team.is_first else None)
    return tuning.settle(told or tuning.DEFAULT, work)


def computing(choices: tuning.Choices, precision: Precision) -> dict[str, Any]:
    """Choices of backends as fields of ``Context``."""
    return {
        "dense_backend": choices.attention or "auto",
        "within": partial(tuning.within, choices, precision.compute),
        "together": choices.together,
        "graphs": choices.blocks == "graph",
    }


def check_blocks(choices: tuning.Choices, offload: str, device: torch.device, team: Team | None = None) -> None:
    """Refuse a choice of `blocks` that cannot run so.

    Raises:
        RequestError: The blocks come and go, or are shared.
        BackendError: A CUDA graph was asked for elsewhere.
    """
    if choices.blocks in (None, "eager"):
        return
    if offload == "block" or (team is not None and (team.layout.cuts_weights or team.layout.context > 1)):
        raise RequestError(
            f"backends `blocks={choices.blocks}` need all blocks on one device: use `--offload none` or `module`, and "
            "processes that share only passes or clips (`cfg`, `data`)"
        )
    if choices.blocks == "graph" and device.type != "cuda":
        raise BackendError(f"backends `blocks=graph` need CUDA, not `{device.type}`: use `compiled` or `eager`")


def _quantised(builder: Callable[[], Any], scheme: str, device: torch.device) -> Any:
    built = builder()
    quantise.quantise(built, scheme, device=device)
    return built


def shape_of(card: Card, precision: Precision, device: torch.device) -> tuning.Shape:
    """The work of a card's default request, as choices of backends are made for it.

    Raises:
        RequestError: The model makes audio alone.
    """
    if card.does.makes == "sound":
        raise RequestError(
            f"backends are measured for models of clips and images, and `{card.id}` makes audio: name them, as in "
            "`linear=torch`"
        )
    from kandinsky.engine import probe

    demand = demand_of_card(card, "auto")
    widths = Counter(inputs for _, inputs in linear_shapes(card).values())
    width = widths.most_common(1)[0][0] if widths else 1
    network = probe.measured(card)
    return tuning.Shape(demand.tokens, width, demand.heads, precision.name, device.type, network)


def ways_of(card: Card, precision: Precision, device: torch.device, shape: tuning.Shape) -> tuning.Ways:
    """The ways of choices that are measured by a few blocks of the card's own network."""
    from kandinsky.engine import probe

    return probe.ways(card, precision, device, shape.tokens)


def linear_shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """(outputs, inputs) of the linear layers of a card's transformer."""
    with torch.device("meta"):
        return layer_shapes(bare_network(card.part("dit"), card.dit, Path()))


def bare_network(part: Part, component: Component, path: Path) -> nn.Module:
    """Build a network without its weights, from the card's parameters and those beside the file.

    Args:
        part: The kind of network.
        component: Its entry in the card.
        path: File or folder of its weights.

    Returns:
        The network; on the meta device if that is the default device.

    Raises:
        BackendError: The kind has no bare network.
        RequestError: The parameters do not describe a network.
        WeightsError: The parameters beside the file do not describe a network.
    """
    if part.network is None:
        raise BackendError(f"`{component.kind}` cannot be built without its files")
    with reading(path, f"comes with parameters that make no `{component.kind}`"):
        return part.network()(component, path)


def stored_network(card: Card, name: str, *, root: Path | None = None, model: str | None = None) -> Callable[[], Any]:
    """How to read a network of a card in the types of its file; its tensors stay mapped from it until they are changed.

    The file is found and its header checked now.

    Args:
        card: The model.
        name: Of the network.
        root: Folder of its files; None = where the card says.
        model: What to call the model in messages.

    Returns:
        A callable that reads it anew, into main memory.

    Raises:
        WeightsError: The file is missing, truncated or of another network.
        BackendError: The component is no single network.
    """
    component = card.components[name]
    files = locate_parts(component, root=root, model=model or card.id)
    return network_builder(card.part(name), component, files, None)


def network_builder(part: Part, component: Component, files: Files, precision: Precision | None) -> Callable[[], Any]:
    """Choose how to build a component, and check its files.

    Args:
        part: The kind of network.
        component: Its entry in the card.
        files: Where its files lie.
        precision: Number types; None keeps those of its file (networks only).

    Returns:
        A callable that builds it with its weights.

    Raises:
        WeightsError: A file is truncated or does not fit the network.
        BackendError: The component cannot be read in the types of its file.
    """
    if part.network is not None:
        (path,) = (path for name, path in files.items() if name != update.PART)
        make = partial(_on_meta, part, component, path)
        checked, keymap = _check_headers(make, part, path)
        if update.PART in files:
            update.check_update(checked, files[update.PART])
        return partial(_read_network, make, [checked], keymap, path, precision, files.get(update.PART))
    if part.reader is None or precision is None:
        raise BackendError(f"component `{component.kind}` cannot be read in the types of its file")
    for name in part.tensors:
        read_meta(files[name], stored=True)  # refuses a truncated file by its header
    return partial(part.reader(), component, files, precision)


class _Uninitialised(TorchFunctionMode):
    """Layers draw no random initial values: those of a file take their place."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _on_meta(part: Part, component: Component, path: Path) -> nn.Module:
    with torch.device("meta"), _Uninitialised():
        return bare_network(part, component, path)


def _check_headers(make: Callable[[], nn.Module], part: Part, path: Path) -> tuple[nn.Module, KeyMap]:
    """Refuse a truncated or wrong file by its header, before anything heavy is read.

    Returns:
        The network without weights, and how the file's names are read.
    """
    state = read_meta(path)
    keymap = keymap_for(part, state)
    net = make()
    check_state(net, state, keymap=keymap, where=str(path))
    return net, keymap


def _read_network(
    make: Callable[[], nn.Module],
    spare: list[nn.Module],
    keymap: KeyMap,
    path: Path,
    precision: Precision | None,
    added: Path | None = None,
) -> nn.Module:
    """Read a network anew, with the update in ``added``.

    The first reading takes the network in ``spare``, which was built to check the file.
    """
    try:
        net = spare.pop()
    except IndexError:
        net = make()
    dtype = None if precision is None else precision.compute
    load_into(net, path, keymap=keymap, dtype=dtype)
    if added is not None:
        update.add_update(net, added, dtype=dtype)
    return net.eval().requires_grad_(False)
