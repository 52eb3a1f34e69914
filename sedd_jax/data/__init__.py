"""Text in, fixed blocks of token ids out: tokenizers, sources, prepared blocks, batches."""
