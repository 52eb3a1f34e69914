"""Makes the golden data of GPT-2: what `transformers` computes on random weights.

Usage: python tests/golden/gpt2.py, with torch, transformers and safetensors.
"""

import pathlib

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

FOLDER = pathlib.Path(__file__).parent / "gpt2"


def main() -> None:
    """Writes the weights as transformers saves them, tokens and logits."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=12, n_embd=16, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = 60
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # they start with zero biases and scales of one
            parameter.normal_(std=0.3)
        tokens = torch.randint(0, 61, (3, 12))
        logits = model.double()(tokens).logits
    model.float().save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        FOLDER / "golden.npz",
        tokens=tokens.numpy().astype(np.int32),
        logits=logits.numpy().astype(np.float32),
    )


if __name__ == "__main__":
    main()
