"""Which attention a request gets: the card's for its size, with what somebody asked for.

Imports torch only where a device is named, so that the command line refuses a bad word at once.
"""

from __future__ import annotations

from kandinsky.errors import BackendError, RequestError
from kandinsky.model.card import Card, Sampling
from kandinsky.ops.attention_spec import AttentionSpec


def attention_for(card: Card, sampling: Sampling, choice: str, device_type: str | None = None) -> AttentionSpec:
    """The visual self attention under a card's sampling values.

    Args:   choice: `auto`, or what ``AttentionSpec.chosen`` reads.   device_type: where it must run, such as `cuda`.
    Raises: RequestError or BackendError for a choice that is not known, does not fit the model, or cannot run there.
    """
    spec = AttentionSpec.from_dict(sampling.attention).chosen(choice)
    if spec.type not in card.part("dit").attention:
        raise RequestError(f"attention `{choice}` is not for `{card.id}`: use `dense` or one of its backends")
    if device_type is not None and spec.backend != "auto":
        from kandinsky.ops.attention import require

        require(spec.backend, device_type, sparse=spec.type == "nabla")
    return spec


def check_choice(card: Card, choice: str, device_type: str) -> None:
    """Refuse what fits none of a card's sizes. Raises: as ``attention_for``."""
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
