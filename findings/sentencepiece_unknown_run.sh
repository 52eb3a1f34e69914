#!/bin/bash
# sentencepiece 0.2.3: a run of characters that a model cannot spell becomes ONE unknown id, however
# long the run is, with the trainer's default options, for unigram and for bpe models alike.
#
# Why it surprises: one would guess an unknown id for each character (or each word). So the nats
# per character, and the bits per byte, of a text that the model cannot spell go to zero as the text
# grows, and decoding gives one " ⁇ " for all of it; nothing warns.
#
# Output seen:
#   unigram: 1 character -> 2 ids, 10 -> 2 ids, 1000 -> 2 ids; decoded: ' ⁇ '
#   bpe: 1 character -> 2 ids, 10 -> 2 ids, 1000 -> 2 ids; decoded: ' ⁇ '
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q sentencepiece==0.2.3
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import io
import pydoc_data.topics

import sentencepiece

lines = "\n".join(pydoc_data.topics.topics.values()).splitlines()
for kind in ("unigram", "bpe"):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=500, model_type=kind,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    counts = {size: len(processor.encode("日" * size)) for size in (1, 10, 1000)}
    decoded = processor.decode(processor.encode("日" * 1000))
    told = ", ".join(f"{size}{' character' * (size == 1)} -> {n} ids" for size, n in counts.items())
    print(f"{kind}: {told}; decoded: {decoded!r}")
    assert set(counts.values()) == {2} and decoded.strip() == "⁇", "the behaviour has changed"
PYTHON
