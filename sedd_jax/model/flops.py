"""What an answer of the network costs, counted in its matrix products."""

from sedd_jax.model.transformer import FREQUENCIES


def forward_flops(
    *,
    hidden_size: int,
    cond_dim: int,
    num_blocks: int,
    num_states: int,
    length: int,
    answered: float = 1.0,
) -> float:
    """Returns the FLOPs of one forward pass over one sequence, 2 for a multiply and an add.

        blocks (24 L D^2 + 4 L^2 D + 12 C D)  +  2 C (256 + C) + 4 C D  +  answered 2 L D V

    A block's terms are the products with its weights (queries, keys and values 3, output 1, MLP 8,
    each 2 L D^2), attention's two products over all pairs of positions, and the modulation by the
    noise, one for a sequence; then the embedding of sigma, the head's modulation, and the
    projection to the vocabulary. Norms, rotation, softmax and the loss are not products: left out,
    as is what padding of the vocabulary and a backward pass that computes things again add. The
    causal network is one with C = 0; all its pairs of positions count, as is the custom, though
    half of them are masked.

    Args:
      hidden_size: D.
      cond_dim: C, 0 for the causal network.
      num_blocks: number of transformer blocks.
      num_states: V, without padding.
      length: L.
      answered: share of the positions whose outputs are made, in [0, 1].
    """
    d, c = hidden_size, cond_dim
    block = 24 * length * d**2 + 4 * length**2 * d + 12 * c * d
    conditioning = 2 * c * (FREQUENCIES + c) + 4 * c * d
    return num_blocks * block + conditioning + answered * 2 * length * d * num_states
