"""Which attention a request gets: the card's for its size, with the user's choice.

Imports torch only if a device is named, so that the command line refuses a wrong name at once.
"""

from __future__ import annotations

import dataclasses

from kandinsky.errors import BackendError, RequestError
from kandinsky.model.card import Card, Sampling
from kandinsky.ops.attention_spec import AttentionSpec


def attention_for(
    card: Card, sampling: Sampling, choice: str, device_type: str | None = None, *, dense_backend: str = "auto"
) -> AttentionSpec:
    """The visual self attention under a card's sampling values.

    Args:
        card: The model.
        sampling: The card's values for the size.
        choice: `auto`, or what ``AttentionSpec.chosen`` reads.
        device_type: Where it must run, such as `cuda`; None skips that check.
        dense_backend: Backend of dense attention where neither the card nor the choice names one.

    Returns:
        The attention.

    Raises:
        RequestError: The choice is unknown or does not fit the model.
        BackendError: It cannot run there.
    """
    spec = AttentionSpec.from_dict(sampling.attention).chosen(choice)
    if spec.type not in card.part("dit").attention:
        raise RequestError(f"attention `{choice}` is not for `{card.id}`: use `dense` or one of its backends")
    if spec.type == "dense" and spec.backend == "auto":
        spec = dataclasses.replace(spec, backend=dense_backend)
    if device_type is not None and spec.backend != "auto":
        from kandinsky.ops.attention import require

        require(spec.backend, device_type, sparse=spec.type == "nabla")
    return spec


def check_choice(card: Card, choice: str, device_type: str) -> None:
    """Refuse a choice of attention that fits none of a card's sizes.

    Args:
        card: The model.
        choice: `auto`, or what ``AttentionSpec.chosen`` reads.
        device_type: Where it must run, such as `cuda`.

    Raises:
        RequestError: The choice is unknown or does not fit the model.
        BackendError: It cannot run there.
    """
    sizes = (card.sampling_for(*map(int, size.split("x"))) for size in card.clip.sizes)
    refusals: list[BackendError | RequestError] = []
    for sampling in (card.sampling, *sizes):
        try:
            attention_for(card, sampling, choice, device_type)
        except (BackendError, RequestError) as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]
