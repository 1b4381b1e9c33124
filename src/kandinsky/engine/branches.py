"""The branches of a loaded model: which were loaded under which name, and how one is held while it works."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.model.card import Component
from kandinsky.model.given import Control, Given, Reference
from kandinsky.printing import escaped
from kandinsky.weights.branch_files import CONTROL, KINDS, REFERENCE, BranchFile, read_branch

if TYPE_CHECKING:
    from kandinsky.engine.context import Context
    from kandinsky.model.card import Card
    from kandinsky.model.values import Request


@dataclass
class LoadedBranches:
    """Branches by name.

    Attributes:
        loaded: Each, in the order in which they were loaded.
    """

    loaded: dict[str, BranchFile] = field(default_factory=dict)

    def load(self, source: str | Path, card: Card, *, name: str | None = None) -> str:
        """Take in a branch; see ``Pipeline.load_branch``."""
        found = read_branch(source)
        if found.kind not in card.part("dit").branches:
            raise RequestError(
                f"no branch can stand beside the network of `{card.id}`: use a model of Kandinsky 4 or 5"
            )
        found.check_beside(card.dit, card.id)
        chosen = name or found.path.stem
        if chosen in self.loaded:
            raise RequestError(f"a branch named `{escaped(chosen)}` is loaded: give another `name`, or unload it first")
        self.loaded[chosen] = found
        return chosen

    def remove(self, name: str | None = None) -> list[BranchFile]:
        """Forget one, or all. Returns: them. Raises: RequestError where the name is not loaded."""
        if name is not None and name not in self.loaded:
            names = ", ".join(f"`{escaped(one)}`" for one in self.loaded) or "none"
            raise RequestError(f"no branch named `{escaped(name)}` is loaded: loaded are {names}")
        return [self.loaded.pop(one) for one in (list(self.loaded) if name is None else [name])]

    def named(self, request: Request) -> Request:
        """A request whose conditions name files in the place of loaded branches.

        A name in ``branch`` is that of a loaded branch. A control or reference for which neither the request nor the
        condition names a branch gets the loaded one of its kind.

        Raises:
            RequestError: Several are loaded that it could mean.
        """
        if not self.loaded:
            return request
        given = [self._file(one) for one in request.branches]
        own = {read_branch(one).kind for one in given}
        conditions = tuple(self._named(one, own) for one in request.conditions)
        loaded = {one.kind for one in self.loaded.values()} - own
        short = [kind for kind in KINDS if getattr(request, kind) is not None and kind in loaded]
        files = [*given, *(str(self._only(kind).path) for kind in short)]
        return request.with_values(conditions=conditions, branch=files or None)

    def _file(self, name: str | Path) -> str | Path:
        found = self.loaded.get(str(name))
        return name if found is None else str(found.path)

    def _named(self, one: Given, own: Collection[str]) -> Given:
        """A condition with the file of its branch, unless the request itself has one of the kinds in ``own``."""
        if not isinstance(one, Control | Reference):
            return one
        if one.branch is not None:
            return replace(one, branch=self._file(one.branch))
        kind = CONTROL if isinstance(one, Control) else REFERENCE
        if kind in own or not any(each.kind == kind for each in self.loaded.values()):
            return one
        return replace(one, branch=str(self._only(kind, getattr(one, "signal", None)).path))

    def _only(self, kind: str, signal: str | None = None) -> BranchFile:
        of_kind = {name: one for name, one in self.loaded.items() if one.kind == kind}
        fitting = {name: one for name, one in of_kind.items() if signal is None or one.signal == signal} or of_kind
        if len(fitting) > 1:
            names = " and ".join(f"`{escaped(name)}`" for name in fitting)
            raise RequestError(f"the branches {names} are told a {kind}: name one in the condition's `branch`")
        return next(iter(fitting.values()))


PLACE = "branch "  # what placement calls networks of branches, before a digest


def place_name(file: BranchFile) -> str:
    """What placement calls the network of a branch."""
    return f"{PLACE}{file.sha256[:16]}"


def free_branches(context: Context, used: Collection[BranchFile]) -> None:
    """Forget the networks of branches that earlier requests named, but for those that were loaded.

    Args:
        context: The model.
        used: Branches of the run that begins; where there are none, those of the last run may come again and stay.
    """
    if not used:
        return
    kept = {place_name(one) for one in (*used, *context.branches.loaded.values())}
    for name in context.placement.names:
        if name.startswith(PLACE) and name not in kept and not context.placement.is_held(name):
            context.placement.drop(name)


def hold_branch(context: Context, file: BranchFile) -> AbstractContextManager[Any]:
    """A branch on the device of the denoiser, for a `with` block; it is read at the first.

    Args:
        context: The model.
        file: The branch.

    Raises:
        WeightsError: The file is damaged, or its tensors are not those of such a branch.
    """
    from kandinsky.engine.build import network_builder

    placement, name = context.placement, place_name(file)
    if name not in placement:
        kind = context.part("dit").branches[file.kind]
        component = Component(kind, (), dict(file.component))
        # a swapped block is converted when it runs
        precision = None if placement.offload == "block" else context.precision
        builder = network_builder(context.card.family.part(kind), component, {"": file.path}, precision)
        placement.add(name, builder, beside="dit")
    return placement.hold(name)
