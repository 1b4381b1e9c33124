"""What a U-Net costs: figures counted once on the full-size networks, and scaled to other widths. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky.model.cost import Cost, Load, Operations

# Copies of the finest level that live at once: what came in, the way past, the narrow middle before and after.
COPIES = 6
HEAD = 64  # width of one head, for the scores that go with attention's products
KERNELS = 1500  # programs that one pass starts: about 40 blocks with some 40 each


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one network at its released width, counted on the meta device.

    Attributes:
        width: Channels of its finest level.
        linear: Operations of linear layers in one pass, per position of the latent.
        convolution: Operations of convolutions in one pass, per position of the latent.
        attention: Operations of attention in one pass, per position of the latent.
        in_stages: Share of its weights in stages, the blocks that can be moved.
        largest: Share of its weights in the largest stage.
        quantised: Share of its weights in the linear layers that are quantised, attention's; 0 if none are.
    """

    width: int
    linear: float
    convolution: float
    attention: float
    in_stages: float
    largest: float
    quantised: float = 0.0

    def operations(self, base: int, positions: float, passes: float) -> Operations:
        """Operations of ``passes`` passes over ``positions`` positions each.

        Args:
            base: Channels of the finest level.
            positions: Positions of a pass.
            passes: Number of passes.
        """
        scale = (base / self.width) ** 2 * positions
        one = Operations(
            scale * self.linear, scale * self.convolution, scale * self.attention, scale * self.attention / (4 * HEAD)
        )
        return (one + Operations(kernels=KERNELS)) * passes

    def cost(self, base: int, at_once: float, operations: Operations, load: Load, *, tokens: int) -> Cost:
        """The cost of the network, with ``at_once`` positions in one pass."""
        work = int(at_once * 2 * base * COPIES * load.width)
        return Cost(work, operations, tokens, self.in_stages, self.largest, self.quantised)
