import dataclasses
import json
import pathlib
import subprocess
import sys
import tracemalloc
import typing

import numpy as np
import pytest

from sedd_jax.data import characters
from sedd_jax.data.documents import Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.data.tokenizer import (
    GPT2,
    TOKENIZERS,
    Bytes,
    Characters,
    Integers,
    SentencePiece,
    build_tokenizer,
    find_tokenizer,
    has_gpt2_files,
    load_tokenizer,
)
from sedd_jax.errors import BadInput
from sedd_jax.system import hub

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
GPT2_FOLDER = SHARED / "gpt2_bpe"
WIKITEXT = SHARED / "wikitext-2-raw" / "wiki.test.raw"
needs_gpt2 = pytest.mark.skipif(not GPT2_FOLDER.is_dir(), reason="the GPT-2 vocabulary is absent")

HARD_TEXTS = [
    "",
    " ",
    "  two spaces, a trailing one ",
    "emoji 😀👩‍👩‍👧 and 你好，世界",
    "tab\there\u00a0NBSP, double\n\nnewline\r\nand\rreturn\n",
    "\ufeffbyte order mark, nul \x00, combining e\u0301",
    "sentencepiece's own marks: ▁ ▁▁ \u2585 \u2047 <0x0A> <s></s><unk>",
    "literal <|endoftext|> <|endoftext|>",
]


@pytest.fixture(scope="module")
def topics():
    return [document.content for document in pieces(Recipe(), "pydoc")[0].documents()][:12]


@pytest.fixture(
    scope="module",
    params=["bytes", "characters", "sentencepiece", pytest.param("gpt2", marks=needs_gpt2)],
)
def tokenizer(request, topics):
    documents = [*topics, *HARD_TEXTS]
    path = str(GPT2_FOLDER) if request.param == "gpt2" else ""
    recipe = Recipe(tokenizer=request.param, vocab_size=500, tokenizer_path=path)
    return build_tokenizer(recipe, lambda: documents, "".join(sorted(set().union(*documents))))


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_round_trip_is_exact(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text and tokenizer.exact


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_the_pieces_of_a_text_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text


def test_pieces_of_half_a_character_and_of_marks():
    assert Bytes().pieces([97, 0xC3, 0xA9, 0xC3, 257, 0xC3]) == ["a", "", "é", "�", "░", "�"]
    assert Bytes().pieces([0xC3, 256]) == ["�", "<|endoftext|>"]
    assert Integers(9).pieces([1, 9, 8]) == ["1 ", "░ ", "8 "]
    with pytest.raises(BadInput, match="Cannot decode the id 258"):
        Bytes().pieces([258])


def test_a_piece_keeps_its_space(topics):
    tokenizer = SentencePiece.fit(topics, 500)
    (the,) = tokenizer.encode(" the")
    assert tokenizer.pieces([the]) == [" the"]
    assert tokenizer.pieces([0]) == [" \u2047 "]  # what is unknown


def test_every_code_point_round_trips(tokenizer):
    if tokenizer.unknown:
        pytest.skip("an alphabet is finite")
    rng = np.random.default_rng(0)
    points = np.concatenate([np.arange(0x3000), rng.integers(0xE000, 0x110000, 2000)])
    text = "a".join(map(chr, points))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_gives_real_tokens_only(tokenizer, topics):
    for text in [*HARD_TEXTS, topics[0]]:
        ids = tokenizer.encode(text)
        assert np.all((ids >= 0) & (ids < tokenizer.vocab_size) & (ids != tokenizer.eod_id))


def test_decode_shows_the_end_of_a_document_and_the_mask(tokenizer):
    ids = [*tokenizer.encode("ab"), tokenizer.eod_id, tokenizer.vocab_size, *tokenizer.encode(" c")]
    assert tokenizer.decode(ids) == "ab<|endoftext|>░ c"
    assert tokenizer.decode(ids, mask="[M]") == "ab<|endoftext|>[M] c"


def test_decode_takes_any_ids_in_range(tokenizer):
    ids = np.random.default_rng(1).integers(0, tokenizer.vocab_size + 1, 3000)
    ids[[7, 8, -1]] = tokenizer.vocab_size
    # A glyph of its own: "░" is a token of GPT-2 as well.
    assert tokenizer.decode(ids, mask="[[mask]]").count("[[mask]]") == np.sum(
        ids == tokenizer.vocab_size
    )
    for i in range(0, tokenizer.vocab_size + 1, 1 + tokenizer.vocab_size // 600):
        assert isinstance(tokenizer.decode([i]), str)


@pytest.mark.parametrize("offset", [-1, 1])
def test_decode_refuses_ids_out_of_range(tokenizer, offset):
    wrong = -1 if offset < 0 else tokenizer.vocab_size + 1
    with pytest.raises(BadInput, match=f"Cannot decode the id {wrong}: .* for the mask"):
        tokenizer.decode([0, wrong])


def test_save_and_load(tokenizer, tmp_path, topics):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert type(loaded) is type(tokenizer)
    assert (loaded.vocab_size, loaded.eod_id) == (tokenizer.vocab_size, tokenizer.eod_id)
    text = topics[0] + "".join(HARD_TEXTS)
    np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))


def test_bytes_are_the_utf8_bytes():
    tokenizer = Bytes()
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (257, 256)
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 0xC3]) == "a\ufffd"


def test_characters_are_numbered_in_the_order_of_the_alphabet():
    tokenizer = build_tokenizer(Recipe(tokenizer="characters"), alphabet="abc😀")
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (5, 4)
    assert tokenizer.encode("😀ba").tolist() == [3, 1, 0]


@pytest.mark.parametrize("unknown", ["d", "😀", "\U0010ffff", "A"])
def test_characters_names_what_it_does_not_know(unknown):
    with pytest.raises(BadInput, match=rf"1 character\(s\) outside .* \('{unknown}'|position 2"):
        Characters("abc").encode(f"ab{unknown}c")


def test_characters_needs_a_proper_alphabet():
    for alphabet in ("", "aba"):
        with pytest.raises(BadInput, match="must be distinct characters"):
            Characters(alphabet)


def test_text8_has_27_ids_and_no_end_of_document(tmp_path):
    tokenizer = build_tokenizer(Recipe(tokenizer="text8"))
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (27, None)
    assert tokenizer.encode("a z").tolist() == [1, 0, 26]
    assert tokenizer.decode([1, 27, 26]) == "a░z"
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).eod_id is None
    with pytest.raises(BadInput, match="outside the alphabet of 27 .*'A'.* position 0"):
        tokenizer.encode("A")


def test_sentencepiece_training_is_deterministic_and_exact_in_size(topics):
    first, second = (SentencePiece.fit(topics, 400) for _ in range(2))
    assert first._files() == second._files()
    assert first.vocab_size == 400
    assert len(first.encode(topics[0])) < 0.75 * len(topics[0])


def test_sentencepiece_learns_from_long_lines_and_lines_with_its_marks():
    # Each of these lines would be skipped without a word if it went to the trainer as it is.
    tokenizer = SentencePiece.fit(["wxyz " * 30_000], 270)
    assert len(tokenizer.encode("wxyz")) == 1
    tokenizer = SentencePiece.fit(["\u2585▁wxyz\n" * 50], 266)
    assert len(tokenizer.encode("wxyz")) == 1


@pytest.mark.parametrize(
    ("documents", "vocab_size", "message"),
    [
        (["some words"], 5000, "vocab_size=5000 on this text, lower it .*too high.* <= "),
        (["some words"], 100, "vocab_size=100 on this text, raise it"),
        ([""], 300, "vocab_size=300 on this text, .*there is no text"),
    ],
)
def test_sentencepiece_says_which_size_it_cannot_reach(documents, vocab_size, message):
    with pytest.raises(BadInput, match=message) as caught:
        SentencePiece.fit(documents, vocab_size)
    assert "\n" not in str(caught.value)


@needs_gpt2
@pytest.mark.skipif(not WIKITEXT.is_file(), reason="WikiText-2 is absent")
def test_gpt2_counts_the_tokens_of_wikitext():
    # 286,221: counted with tiktoken 0.14 on the whole text at once, its line ends kept.
    with WIKITEXT.open(newline="", encoding="utf-8") as file:
        text = file.read()
    tokenizer = GPT2(GPT2_FOLDER)
    ids = tokenizer.encode(text)
    assert len(ids) == 286_221
    assert tokenizer.decode(ids) == text


@needs_gpt2
def test_gpt2_has_the_published_ids():
    tokenizer = GPT2(GPT2_FOLDER)
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (50257, 50256)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]


@needs_gpt2
def test_gpt2_refuses_damaged_files(tmp_path):
    merges = (GPT2_FOLDER / "vocab.bpe").read_bytes()
    (tmp_path / "encoder.json").write_bytes((GPT2_FOLDER / "encoder.json").read_bytes())
    (tmp_path / "vocab.bpe").write_bytes(merges)
    GPT2(tmp_path)
    # The same path with other contents: tiktoken's cache must not hide the change.
    (tmp_path / "vocab.bpe").write_bytes(merges[: len(merges) // 2])
    with pytest.raises(BadInput, match="are damaged or do not belong together"):
        GPT2(tmp_path)


def test_gpt2_refuses_another_vocabulary(tmp_path):
    pytest.importorskip("tiktoken")
    printable = [chr(b) for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    symbols = printable + [chr(256 + n) for n in range(256 - len(printable))]
    (tmp_path / "encoder.json").write_text(json.dumps({c: i for i, c in enumerate(symbols)}))
    (tmp_path / "vocab.bpe").write_text("#version\n")
    with pytest.raises(BadInput, match="has 256 tokens, GPT-2 has 50256"):
        GPT2(tmp_path)


def test_gpt2_names_the_missing_file_and_the_missing_package(tmp_path, monkeypatch):
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(BadInput, match="vocab.bpe is not there"):
        GPT2(tmp_path)
    (tmp_path / "vocab.bpe").write_text("")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(BadInput, match=r'pip install "sedd_jax\[gpt2\]"'):
        GPT2(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "byte"}, "Unknown tokenizer 'byte'; choose one of bytes, characters, text8"),
        ({"tokenizer": "sentencepiece", "vocab_size": 0}, "'sentencepiece' needs a vocab_size"),
        ({"tokenizer": "integers", "vocab_size": 0}, "'integers' needs a vocab_size"),
        ({"tokenizer": "gpt2"}, "'gpt2' needs a path: .*; set config.data.tokenizer_path"),
    ],
)
def test_build_tokenizer_checks_its_settings(settings, message):
    with pytest.raises(BadInput, match=message):
        build_tokenizer(Recipe(**settings), lambda: ["x"], "x")


def test_every_kind_of_a_recipe_is_known():
    assert typing.get_args(typing.get_type_hints(Recipe)["tokenizer"]) == TOKENIZERS


def test_dna_has_four_ids_and_no_end_of_document():
    tokenizer = build_tokenizer(Recipe(tokenizer="dna"))
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (4, None)
    assert tokenizer.encode("GATTACA").tolist() == [2, 0, 3, 3, 0, 1, 0]
    with pytest.raises(BadInput, match="outside the alphabet of 4 .*'N'.* position 3"):
        tokenizer.encode("ACGN")


def test_integers_pass_through(tmp_path):
    tokenizer = build_tokenizer(Recipe(tokenizer="integers", vocab_size=300))
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (300, None)
    ids = tokenizer.encode(np.array([0, 299, 7], np.uint16))
    assert ids.dtype == np.int32 and ids.tolist() == [0, 299, 7]
    assert tokenizer.decode([0, 299, 300, 300, 7]) == "0 299 ░ ░ 7"
    assert tokenizer.decode([300]) == "░" and tokenizer.decode([]) == ""
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 300
    for wrong, dtype in ((300, np.uint32), (-1, np.int64), (2**40, np.uint64)):
        with pytest.raises(BadInput, match=f"The id {wrong} at position 1 is outside .* 0 to 299"):
            tokenizer.encode(np.array([5, wrong, wrong], dtype))


def test_text_and_integers_are_not_mistaken_for_each_other():
    with pytest.raises(BadInput, match="'bytes' takes text, but the document is integers"):
        Bytes().encode(np.arange(3))
    with pytest.raises(BadInput, match="'integers' takes integers, but the document is text"):
        Integers(10).encode("1 2 3")


def test_a_long_text_is_looked_up_in_parts(monkeypatch):
    monkeypatch.setattr(characters, "_CHUNK", 5)
    text = "abcab" * 4 + "cc"
    assert Characters("abc").encode(text).tolist() == ["abc".index(c) for c in text]
    with pytest.raises(BadInput, match=r"2 character\(s\) outside .* \('y', 'z'\), .* position 7"):
        Characters("abc").encode("abcabcaz" + "abcy")


def test_characters_take_little_memory_beside_their_ids():
    text, tokenizer = "ab " * 2_000_000, Characters(" ab")
    tracemalloc.start()
    try:
        ids = tokenizer.encode(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - ids.nbytes < 32 * characters._CHUNK


@pytest.mark.parametrize("text", ["héé☃ the the\u2581 ", "the the the ☃☃"])
def test_the_size_of_tokens_counts_half_characters(tmp_path, text):
    kinds = [Bytes(), Characters("".join(sorted(set(text)))), SentencePiece.fit(["the the"], 266)]
    for tokenizer in kinds + ([GPT2(GPT2_FOLDER)] if GPT2_FOLDER.is_dir() else []):
        ids = tokenizer.encode(text)
        sizes = [tokenizer.size(ids[:count]) for count in range(len(ids) + 1)]
        assert sizes[0] == 0 and sizes[-1] == len(text.encode())
        # the bytes of the tokens add up, wherever the text is cut
        assert sizes[:-1] == [sizes[-1] - tokenizer.size(ids[n:]) for n in range(len(ids))]
        assert np.diff(sizes).min() >= 1
    assert Integers(9).size(np.array([8, 8, 1])) == 3


def test_a_fingerprint_tells_tokenizers_apart(tmp_path):
    tokenizers = [
        Bytes(),
        Characters("ab"),
        Characters("ba"),
        Characters("ab", eod=False),
        Integers(3),
        Integers(4),
        SentencePiece.fit(["aabb" * 9], 263),
        SentencePiece.fit(["ccdd" * 9], 263),
    ]
    prints = [tokenizer.fingerprint() for tokenizer in tokenizers]
    assert len(set(prints)) == len(prints) and {len(text) for text in prints} == {64}
    for number, tokenizer in enumerate(tokenizers):
        tokenizer.save(tmp_path / str(number))
        assert load_tokenizer(tmp_path / str(number)).fingerprint() == prints[number]


@pytest.mark.parametrize(
    ("kind", "built"),
    [
        ("bytes", Bytes()),
        ("text8", Characters(" abcdefghijklmnopqrstuvwxyz", eod=False)),
        ("dna", Characters("ACGT", eod=False)),
        ("characters", Characters("xyz")),
        ("integers", Integers(9)),
    ],
)
def test_a_saved_tokenizer_is_used_again(tmp_path, kind, built):
    built.save(tmp_path)
    recipe = Recipe(tokenizer=kind, tokenizer_path=str(tmp_path))
    assert build_tokenizer(recipe).fingerprint() == built.fingerprint()
    for other in {"bytes", "dna", "sentencepiece"} - {kind}:
        message = f"of the kind '{built.kind}' .* not config.data.tokenizer '{other}'"
        with pytest.raises(BadInput, match=message):
            build_tokenizer(dataclasses.replace(recipe, tokenizer=other))


def test_a_tokenizer_path_without_a_tokenizer_is_named(tmp_path):
    for kind in ("bytes", "sentencepiece"):
        with pytest.raises(BadInput, match="There is no tokenizer in .*absent"):
            build_tokenizer(Recipe(tokenizer=kind, tokenizer_path=str(tmp_path / "absent")))
    with pytest.raises(BadInput, match="There is no sentencepiece model .*a.model"):
        build_tokenizer(Recipe(tokenizer="sentencepiece", tokenizer_path=str(tmp_path / "a.model")))


def _trained(path, **settings):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    with path.open("wb") as file:
        trainer.train(
            sentence_iterator=iter(["some plain words to train on"] * 20),
            model_writer=file,
            **{"vocab_size": 18, "minloglevel": 2} | settings,
        )


def test_a_sentencepiece_model_trained_elsewhere_is_used(tmp_path):
    path = tmp_path / "a.model"
    _trained(path)
    recipe = Recipe(tokenizer="sentencepiece", tokenizer_path=str(path))
    tokenizer = build_tokenizer(recipe)
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (18, 2)
    assert tokenizer.decode(tokenizer.encode("plain words")) == "plain words"
    tokenizer.save(tmp_path / "saved")
    again = build_tokenizer(dataclasses.replace(recipe, tokenizer_path=str(tmp_path / "saved")))
    assert again.fingerprint() == tokenizer.fingerprint()


def test_a_text_with_the_mark_of_spaces_gets_no_more_spaces(tmp_path):
    _trained(
        tmp_path / "a.model", byte_fallback=True, vocab_size=275, remove_extra_whitespaces=False
    )
    tokenizer = SentencePiece.read(tmp_path / "a.model")
    for text in ("some\u2581words", "\u2581words", "to \u2581\u2581 train"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_parts_of_a_document_keep_their_spaces(tmp_path):
    _trained(tmp_path / "a.model")
    tokenizer = SentencePiece.read(tmp_path / "a.model")
    ids, end = tokenizer.encode("some plain words"), tokenizer.eod_id
    cut = 1 + next(i for i in range(len(ids)) if tokenizer.decode(ids[: i + 1]) == "some")
    assert tokenizer.decode(ids[cut:], first=False) == " plain words"
    assert tokenizer.decode(ids[cut:]) == "plain words"
    for first in (True, False):
        for parts in ([*ids, end, *ids], [tokenizer.vocab_size, *ids]):
            pieces = tokenizer.pieces(parts, first=first)
            assert "".join(pieces) == tokenizer.decode(parts, first=first)


def test_a_sentencepiece_model_that_cannot_be_used_is_refused(tmp_path):
    path = tmp_path / "a.model"
    recipe = Recipe(tokenizer="sentencepiece", tokenizer_path=str(path))
    _trained(path, eos_id=-1)
    with pytest.raises(BadInput, match="a.model has no id for the end of a sentence"):
        build_tokenizer(recipe)
    model = SentencePiece.fit(["some words " * 9], 270)._model
    for damaged in (
        b"no model at all",
        b"",
        model[:-1],
        model[: len(model) // 2],
        model + b"more",
        model.replace(b"<0x2D>", b"<0\xf82D>"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="a.model is damaged or no sentencepiece model"):
            build_tokenizer(recipe)


@needs_gpt2
def test_gpt2_is_found_under_its_names_on_the_hub(tmp_path, monkeypatch):
    hub_folder = tmp_path / "hub"
    hub_folder.mkdir()
    for name, hub_name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (hub_folder / hub_name).write_bytes((GPT2_FOLDER / name).read_bytes())
    # The one of the hub, which is none of ours.
    (hub_folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    asked = []
    monkeypatch.setattr(hub, "folder", lambda *args: asked.append(args) or hub_folder)
    recipe = Recipe(tokenizer="gpt2", tokenizer_path="openai-community/gpt2")
    tokenizer = build_tokenizer(recipe)
    assert asked == [("openai-community/gpt2", ("vocab.json", "merges.txt"), has_gpt2_files)]
    assert tokenizer.fingerprint() == GPT2(GPT2_FOLDER).fingerprint()
    tokenizer.save(tmp_path / "saved")
    recipe = dataclasses.replace(recipe, tokenizer_path=str(tmp_path / "saved"))
    assert build_tokenizer(recipe).fingerprint() == tokenizer.fingerprint()
    assert len(asked) == 1


def test_load_tokenizer_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(BadInput, match="There is no tokenizer in"):
        load_tokenizer(tmp_path)
    for damaged in ("{", '{"kind": "runes"}', "[]", '{"kind": "characters"}'):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(BadInput, match="tokenizer.json is damaged"):
            load_tokenizer(tmp_path)


def test_heavy_packages_are_not_imported_with_the_modules():
    code = (
        "import sys, sedd_jax.data.pipeline, sedd_jax.data.prepared;"
        "print({'grain', 'sentencepiece', 'tiktoken', 'pyarrow', 'datasets', 'tensorflow_datasets',"
        "'array_record', 'huggingface_hub'} & sys.modules.keys() or '[]')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_find_tokenizer_takes_what_is_there(tmp_path):
    assert find_tokenizer(tmp_path) is None
    Characters("abc").save(tmp_path)
    assert find_tokenizer(tmp_path).alphabet == "abc"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="is damaged"):
        find_tokenizer(tmp_path)
    assert not has_gpt2_files(tmp_path)
    (tmp_path / "encoder.json").touch()
    assert not has_gpt2_files(tmp_path)
    (tmp_path / "vocab.bpe").touch()
    assert has_gpt2_files(tmp_path)
