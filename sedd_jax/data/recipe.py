"""What the token blocks of a data set are made from: the settings of a preparation."""

import dataclasses
from typing import Literal

from sedd_jax.system.settings import setting


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The documents, their tokens, and how they become blocks."""

    # the text inside Python ("pydoc"); a file, a folder or a pattern; tfds:NAME or hf:NAME, either
    # with :SPLIT
    corpus: str = "pydoc"
    format: Literal[
        "auto", "text", "jsonl", "parquet", "fasta", "npy", "uint16", "uint32", "array_record"
    ] = "auto"  # of the files; auto: by the endings of their names
    field: str = "text"  # of a JSON line or a row of a table
    separator: str = ""  # splits a text file into documents; empty: the file is one document
    heldout_corpus: str = ""  # documents never trained on; empty: a part of `corpus` is held out
    heldout_fraction: float = setting(0.1, above=0, below=1)  # of `corpus`, in whole documents
    bad_documents: Literal["refuse", "skip"] = "refuse"  # skip: leave them out, and count them
    # a larger document is a bad one: a worker needs up to ten times its size in memory
    max_document_mb: int = setting(512, above=0)
    tokenizer: Literal[
        "bytes", "characters", "text8", "dna", "sentencepiece", "gpt2", "integers"
    ] = "bytes"
    tokenizer_path: str = ""  # a saved one to use again; gpt2: folder or hub id with its files
    # tokens the tokenizer must have; 0: whatever the corpus gives
    vocab_size: int = setting(257, at_least=0)
    wrap: bool = True  # documents run on over the borders of blocks; False: one document a block
