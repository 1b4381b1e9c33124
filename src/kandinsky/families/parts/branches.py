"""The branches beside a transformer: copies of its blocks, or narrow ones, that see a control; attention to an image.

The layers that add to the network begin at zero, so a new branch changes nothing.

Source: Zhang et al., Adding Conditional Control to Text-to-Image Diffusion Models (copies and zero-initialised layers);
Chen et al., PixArt-δ, section 4 (copies of the first blocks of a transformer, each joined behind its own); Zavadski
et al., ControlNet-XS (a narrow network of its own, which sees what the large one makes at each block before it adds to
it); Ye et al., IP-Adapter, section 3.2 (attention to image tokens beside the attention to text).

Legend: B batch; T H W C latent frames, rows, columns, channels; S visual tokens; L image tokens; D width of the
network; N heads; K head width; R width of a narrow branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.families.parts.branch_params import ReferenceParams
from kandinsky.families.parts.transformer import NORM_EPS, VisualEmbeddings, patchify
from kandinsky.ops.attention import attention
from kandinsky.ops.branches import Adds, Site
from kandinsky.ops.linear import Linear
from kandinsky.ops.precision import island

NEARNESS = 1.0  # queries and keys have it in common at first: two thirds of the attention is to the same place of 6 x 6
WAVES = 4  # cosines and sines that say where an image token is, for rows and for columns


class Beneath(Protocol):
    """What a branch needs to know of the network that it stands beside."""

    @property
    def in_visual_dim(self) -> int: ...

    @property
    def model_dim(self) -> int: ...

    @property
    def patch_size(self) -> tuple[int, int, int]: ...


def silent(width_in: int, width_out: int) -> Linear:
    """A linear layer that begins at zero."""
    layer = Linear(width_in, width_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ControlBranch(nn.Module):
    """Copies of the first blocks, which see the latent of a control clip added to the network's own tokens.

    Args:
        params: Of the network beside.
        blocks: New blocks of its kind.
    """

    def __init__(self, params: Beneath, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        D = params.model_dim
        self.control_embeddings = VisualEmbeddings(params.in_visual_dim, D, params.patch_size)
        self.blocks = nn.ModuleList(blocks)
        self.joins = nn.ModuleList(silent(D, D) for _ in blocks)

    def start_from(self, blocks: Iterable[nn.Module]) -> None:
        """Give the copies the weights of the network's first blocks."""
        for copy, block in zip(self.blocks, blocks, strict=False):
            copy.load_state_dict(block.state_dict())

    def beside(self, signal: Tensor, site: Site) -> Adds:
        """See ``ops/branches.Branch``; ``signal`` is the latent of the control clip, [B, T, H, W, C]."""
        compute = self.control_embeddings.in_layer.weight.dtype
        hidden: list[Tensor] = []

        def adds(number: int, before: Tensor, after: Tensor) -> Tensor | None:
            if number >= len(self.blocks):
                return None
            if number == 0:
                hidden[:] = [before + site.place(self.control_embeddings(signal.to(compute)))]
            hidden[0] = site.run(number, self.blocks[number], hidden[0])
            out: Tensor = self.joins[number](hidden[0])
            return out

        return adds


class SlimBlock(nn.Module):
    """What a narrow branch makes behind a block: it sees the block's tokens, goes on from its own, and adds to them."""

    def __init__(self, width: int, slim: int) -> None:
        super().__init__()
        self.see = Linear(width, slim)
        self.in_layer = Linear(slim, 2 * slim)
        self.out_layer = Linear(2 * slim, slim)
        self.join = silent(slim, width)

    def forward(self, own_R: Tensor, beside_D: Tensor) -> tuple[Tensor, Tensor]:
        """The branch's tokens behind it, and what is added to the network's; both of any leading shape."""
        seen = own_R + self.see(_normed(beside_D))
        own_R = own_R + self.out_layer(F.gelu(self.in_layer(_normed(seen)), approximate="tanh"))
        return own_R, self.join(own_R)


class SlimControlBranch(nn.Module):
    """Narrow blocks beside the network's first ones, which see the latent of a control clip and the network's tokens.

    They look at one token alone: what lies around it, the network's own attention brings to its tokens.

    Args:
        params: Of the network beside.
        blocks: How many there are.
        slim: Their width.
    """

    def __init__(self, params: Beneath, blocks: int, slim: int) -> None:
        super().__init__()
        self.control_embeddings = VisualEmbeddings(params.in_visual_dim, slim, params.patch_size)
        self.blocks = nn.ModuleList(SlimBlock(params.model_dim, slim) for _ in range(blocks))

    def beside(self, signal: Tensor, site: Site) -> Adds:
        """See ``ops/branches.Branch``; ``signal`` is the latent of the control clip, [B, T, H, W, C]."""
        compute = self.control_embeddings.in_layer.weight.dtype
        own: list[Tensor] = []

        def adds(number: int, before: Tensor, after: Tensor) -> Tensor | None:
            if number >= len(self.blocks):
                return None
            if number == 0:
                own[:] = [site.place(self.control_embeddings(signal.to(compute)))]
            own[0], more = self.blocks[number](own[0], after)
            out: Tensor = more
            return out

        return adds


def _normed(x: Tensor) -> Tensor:
    """Tokens of mean 0 and variance 1, in float32 within."""
    with island(x):
        return F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS).to(x.dtype)


class ImageAttention(nn.Module):
    """Attention of a block's tokens to image tokens; it answers with zeros at first.

    With ``rotary``, it begins by looking at the same place of the frame.
    """

    def __init__(self, width: int, params: ReferenceParams) -> None:
        super().__init__()
        self.head_dim = params.head_dim
        self.to_query = Linear(width, params.width)
        self.to_key = Linear(params.width, params.width)
        self.to_value = Linear(params.width, params.width)
        self.out_layer = silent(params.width, width)
        if params.rotary:
            for layer in (self.to_query, self.to_key):
                nn.init.zeros_(layer.bias)
                # the last head finds what it looks for by what it shows alone
                nn.init.constant_(layer.bias[: max(params.width - params.head_dim, params.head_dim)], NEARNESS)

    def forward(self, x_BSD: Tensor, image_BLW: Tensor, angles: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What is added to the tokens.

        Args:
            x_BSD: Tokens behind a block.
            image_BLW: Tokens of the image.
            angles: Of both, by which they are turned: [B, S, K / 2] and [1, L, K / 2].
        """
        heads, normed = (-1, self.head_dim), _normed(x_BSD)
        query, key, value = (
            one.unflatten(-1, heads)
            for one in (self.to_query(normed), self.to_key(image_BLW), self.to_value(image_BLW))
        )
        if angles is not None:
            query, key = _turned(query, angles[0]), _turned(key, angles[1])
        mixed = attention(query, key, value)
        out: Tensor = self.out_layer(mixed.flatten(-2))
        return out


class ReferenceBranch(nn.Module):
    """Image tokens, through a small projection, that the blocks' tokens attend to.

    Args:
        params: Of the branch.
        beneath: Of the network beside.
        count: Number of its visual blocks.

    Raises:
        RequestError: The hyper-parameters describe no network.
    """

    def __init__(self, params: ReferenceParams, beneath: Beneath, count: int) -> None:
        super().__init__()
        if params.width % params.head_dim:
            raise RequestError(f"reference branch: width {params.width} is no multiple of head_dim {params.head_dim}")
        if params.rotary and (params.inputs or params.head_dim % 4):
            raise RequestError("reference branch: `rotary` needs latents, and a head_dim that is a multiple of 4")
        if params.first >= count:
            raise RequestError(f"reference branch: first is block {params.first}, and the network has {count}")
        self.params, self.patch = params, (1, *beneath.patch_size[1:])
        space = self.patch[1] * self.patch[2]
        inputs = params.inputs or space * (beneath.in_visual_dim + 4 * WAVES)
        self.image_embeddings = Linear(inputs, params.width)
        self.image_norm = nn.LayerNorm(params.width, eps=NORM_EPS)
        self.attentions = nn.ModuleList(ImageAttention(beneath.model_dim, params) for _ in range(params.first, count))

    def beside(self, signal: Tensor, site: Site) -> Adds:
        """See ``ops/branches.Branch``; ``signal`` is a latent [B, 1, H, W, C], or image tokens [B, L, inputs]."""
        compute = self.image_embeddings.weight.dtype
        tokens = signal if self.params.inputs else patchify(placed(signal), self.patch).flatten(1, 3)
        x = self.image_embeddings(tokens.to(compute))
        with island(x):
            norm = self.image_norm
            x = F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        image_BLW = x.to(compute)
        rows, columns = (1, 1) if self.params.inputs else tokens_of(signal, self.patch)
        angles: list[tuple[Tensor, Tensor]] = []

        def adds(number: int, before: Tensor, after: Tensor) -> Tensor | None:
            if number < self.params.first:
                return None
            x_BSD = site.clips(after)
            if self.params.rotary and not angles:
                of_image = places(rows, columns, self.params.head_dim // 4, after.device)
                frames = x_BSD.shape[1] // (rows * columns)
                of_clip = site.place(of_image.expand(len(image_BLW), frames, -1, -1, -1).contiguous())
                angles.append((site.clips(of_clip), of_image.flatten(1, 3)))
            out: Tensor = site.back(self.attentions[number - self.params.first](x_BSD, image_BLW, *angles))
            return out

        return adds


def tokens_of(latent_BTHWC: Tensor, patch: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of a latent's tokens."""
    return latent_BTHWC.shape[2] // patch[1], latent_BTHWC.shape[3] // patch[2]


def places(rows: int, columns: int, count: int, device: torch.device) -> Tensor:
    """Angles that say where in the frame a token lies, [1, 1, rows, columns, 2 · count]: of rows, then of columns.

    They are shares of the frame, so that they mean the same at any size; the fastest one turns ``count`` / 2 times.
    """
    turns = torch.pi * torch.arange(1, count + 1, device=device)
    of_rows, of_columns = (torch.outer((torch.arange(n, device=device) + 0.5) / n, turns) for n in (rows, columns))
    both = (of_rows[:, None].expand(-1, columns, -1), of_columns[None].expand(rows, -1, -1))
    return torch.cat(both, dim=-1)[None, None]


def _turned(x_BSNK: Tensor, angles_BSH: Tensor) -> Tensor:
    """Heads turned by angles, of which each belongs to a number of the first half and one of the second."""
    with island(x_BSNK):
        cos, sin = angles_BSH.float().cos()[:, :, None], angles_BSH.float().sin()[:, :, None]
        a, b = x_BSNK.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x_BSNK.dtype)


def placed(latent_BTHWC: Tensor) -> Tensor:
    """A latent with channels that say where each place is: cosines and sines of row and column."""
    B, T, H, W, _ = latent_BTHWC.shape
    turns = torch.pi * torch.arange(1, WAVES + 1, device=latent_BTHWC.device)

    def waves(size: int) -> Tensor:
        angles = torch.outer((torch.arange(size, device=latent_BTHWC.device) + 0.5) / size, turns)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    rows, columns = waves(H)[:, None].expand(H, W, -1), waves(W)[None].expand(H, W, -1)
    where = torch.cat((rows, columns), dim=-1).to(latent_BTHWC.dtype).expand(B, T, H, W, -1)
    return torch.cat((latent_BTHWC, where), dim=-1)
