import gzip
import json
import pickle
import random
import struct
import tracemalloc
import zlib

import pytest

from sedd_jax.data import documents as documents_module
from sedd_jax.data import text_files
from sedd_jax.data.documents import BLANK, Fault, Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.data.text_files import split
from sedd_jax.errors import BadInput


def read(path, **settings):
    """All documents of `path` as (content, place)."""
    parts = pickle.loads(pickle.dumps(pieces(Recipe(**settings), str(path))))
    return [(d.content, part.place(d.where)) for part in parts for d in part.documents()]


def contents(path, **settings):
    return [content for content, _ in read(path, **settings)]


def compressed(data, ending):
    if ending == ".gz":
        return gzip.compress(data)
    if ending == ".zst":
        return pytest.importorskip("pyarrow").compress(data, "zstd", asbytes=True)
    return data


@pytest.fixture
def small(monkeypatch):
    """Sets the sizes of a piece and of a block that is read at once."""

    def set_sizes(piece, block):
        monkeypatch.setattr(documents_module, "PIECE_BYTES", piece)
        monkeypatch.setattr(text_files, "_BLOCK_BYTES", block)

    return set_sizes


def test_documents_do_not_depend_on_where_a_file_is_cut(tmp_path, small):
    rng, path = random.Random(0), tmp_path / "a.txt"
    for _ in range(300):
        separator = rng.choice(["\n", "\n\n", "---", "aba", "é\n", "abab"])
        words = ["\n", "\n\n", "a", "b", "ab", "é", "-", "---", "x", "😀"]
        data = "".join(rng.choices(words, k=rng.randint(0, 60))).encode()
        path.write_bytes(data)
        small(rng.randint(1, 12), rng.randint(1, 9))
        expected, offset = [], 0
        parts = data.split(separator.encode())
        for part in parts:
            line = data[:offset].count(b"\n") + 1
            content = part.decode()
            if content.strip():  # nothing between two separators is no document
                expected.append((content, f"{path}, line {line}"))
            offset += len(part) + len(separator.encode())
        assert read(path, separator=separator) == expected


def test_pieces_of_a_large_file(tmp_path, small):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one|two|three|four")
    small(7, 4)
    parts = pieces(Recipe(separator="|"), str(path))
    assert [part.name for part in parts] == [f"{path}[{r}]" for r in ("0:7", "7:14", "14:18")]
    assert [part.size for part in parts] == [7, 7, 4]
    # A document belongs to the piece in which it starts.
    texts = [[content for content, *_ in part.documents()] for part in parts]
    assert texts == [["one", "two"], ["three"], ["four"]]
    (whole,) = pieces(Recipe(), str(path))
    assert (whole.name, whole.size) == (str(path), 18)
    assert list(whole.documents()) == [("one|two|three|four", 0, ())]
    assert whole.place(0) == str(path)


def test_the_version_of_a_piece_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    (part,) = pieces(Recipe(), str(path))
    before = part.version()
    assert part.version() == before
    path.write_text("longer")
    assert part.version() != before


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_every_text_format_plain_and_compressed(tmp_path, ending):
    rows = [{"text": "first\r\nline"}, {"id": 1, "text": 'é "x" \U0001f600'}]
    lines = "\r\n".join([json.dumps(rows[0]), "", json.dumps(rows[1]), ""])
    for name, data, expected in (
        ("a.txt", "one\r\n===\ntwo ===\n", ["one\r\n", "\ntwo "]),
        ("a.jsonl", lines, [row["text"] for row in rows]),
        ("a.ndjson", '{"text": "x"}', ["x"]),
        ("a.json", '{"text": "x"}\n{"text": "y"}', ["x", "y"]),
        ("a.fa", ">s1 about\nacgT\nAC\r\n>s2\n\nGG\n>s3>\n A \n", ["ACGTAC", "GG", "A"]),
        ("a.fasta", "\n\n>s1\nAC", ["AC"]),
        ("a.fq", "@s1\nacgT\n+\n@+!~\n@s2\r\nGG\r\n+s2\r\n>>\r\n\r\n", ["ACGT", "GG"]),
        ("a.csv", 'id,text\r\n1,"x, ""y""\r\nz"\r\n\r\n2,é', ['x, "y"\r\nz', "é"]),
        ("a.tsv", "text\tid\none, \t1\n", ["one, "]),
    ):
        # names in capitals, and a byte order mark, change nothing
        for named, mark in ((name + ending, b""), ((name + ending).upper(), b"\xef\xbb\xbf")):
            path = tmp_path / named
            path.write_bytes(compressed(mark + data.encode(), ending))
            assert contents(path, separator="===") == expected


def test_places_count_lines_in_the_whole_file(tmp_path, small):
    lines = [f'{{"text": "line {i}"}}' for i in range(1, 41)]
    expected = [f"line {i}" for i in range(1, 41)]
    for ending in ("", ".gz", ".zst"):
        small(100, 16)
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(compressed("\n".join(lines).encode(), ending))
        assert read(path) == [(text, f"{path}, {text}") for text in expected]
    path = tmp_path / "a.fa"
    path.write_text("".join(f">s{i}\nAC\nGT\n" for i in range(20)))
    assert read(path) == [("ACGT", f"{path}, line {3 * i + 1}") for i in range(20)]


def test_one_byte_order_mark_is_dropped_at_the_start_of_a_file(tmp_path, small):
    mark, path = b"\xef\xbb\xbf", tmp_path / "a.txt"
    for piece in (1, 2, 4, 100):
        small(piece, 2)
        path.write_bytes(mark + b"one|" + mark + b"two|na\xefve")
        one, two, fault = contents(path, separator="|")
        assert (one, two) == ("one", "\ufefftwo")
        assert "the byte at offset 16 of the file does not decode" in fault.reason
        path.write_bytes(mark + b"\xff|three")
        (fault, place), (three, _) = read(path, separator="|")
        assert "the byte at offset 3 of the file does not decode" in fault.reason
        assert (three, place) == ("three", f"{path}, line 1")
    path.write_bytes(mark)
    assert contents(path) == [BLANK]
    assert contents(path, separator="|") == []


def test_lists_of_integers_in_json_lines_are_ids(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = ("[1, 0, 70000]", "[]", "[1, -2]", "[1, 2.0]", "[true]", f"[1, {2**63}]", '["a"]')
    path.write_text("".join(f'{{"ids": {row}}}\n' for row in rows))
    ids, *faults = contents(path, field="ids")
    assert ids.tolist() == [1, 0, 70000] and ids.dtype.kind == "i"
    other = "has neither text nor a list of integers in the field 'ids': "
    assert [fault.reason for fault in faults] == [
        "is blank",
        "has a negative id: -2 at position 1",
        f"{other}2.0 at position 1",
        f"{other}True at position 0",
        f"has an id that is too large: {2**63} at position 1",
        f"{other}'a' at position 0",
    ]


def test_what_is_no_fastq_record_is_a_fault_with_its_place(tmp_path):
    path = tmp_path / "a.fastq"
    path.write_text("@a\nAC\n+\nII\n@b\nACG\n+\nII\n@c\n\n+\n\n@d\nA C\n+\nIII\n@e\nA\n")
    fault = Fault("is no FASTQ record of four lines, the last as long as the second")
    found = read(path)
    assert [content for content, _ in found] == ["AC", fault, BLANK, fault, fault]
    assert [place for _, place in found] == [f"{path}, line {line}" for line in (1, 5, 9, 13, 17)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is no JSON (Expecting property name enclosed in double quotes)"),
        ("[" * 100_000, "is no JSON (maximum recursion depth exceeded while decoding a JSON array"),
        ("[1]", "is no JSON object"),
        ('{"Text": "x", "id": 1}', "has no field 'text' but Text, id"),
        ('{"text": 3}', "has no text in the field 'text' but int"),
        ('{"text": null}', "has no text in the field 'text' but NoneType"),
        ('{"text": ""}', "is blank"),
        ('{"text": " \\n"}', "is blank"),
        (
            '{"text": "\\ud800"}',
            "has half of a surrogate pair, which is no character, in the field",
        ),
    ],
)
def test_a_bad_json_line_is_a_fault_with_its_place(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n{line}\n{{"text": "too"}}')
    (first, _), (fault, place), (last, _) = read(path)
    assert (first, last, place) == ("good", "too", f"{path}, line 2")
    assert isinstance(fault, Fault) and fault.reason.startswith(reason)


def test_the_field_of_a_json_line_is_a_setting(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "body": "y"}')
    assert contents(path, field="body") == ["y"]


def test_bytes_that_are_not_utf8_are_a_fault_at_their_offset_in_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é|".encode() + b"na\xefve|fine")
    (_, (fault, place), (last, _)) = read(path, separator="|")
    assert fault.reason == (
        "is not UTF-8 text: the byte at offset 5 of the file does not decode (if it is Latin-1: "
        "iconv -f LATIN1 -t UTF-8 FILE > NEW)"
    )
    assert (last, place) == ("fine", f"{path}, line 1")


def test_nothing_between_two_separators_is_no_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" \n--a-- \t--\u00a0--b--\n")
    assert contents(path, separator="--") == ["a", "b"]
    path.write_text(" \n")
    assert contents(path, separator="--") == []
    assert contents(path) == [BLANK]
    path.write_text("")
    assert contents(path, separator="--") == []
    assert contents(path) == [BLANK]
    (tmp_path / "a.fa").write_text(">s1\n>s2\nA\n>s3\n")
    assert contents(tmp_path / "a.fa") == [BLANK, "A", BLANK]


def test_a_fasta_file_begins_with_a_header(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text("ACGT\n>s1\nAC\n")
    fault = Fault("does not begin with '>', as a FASTA record does")
    assert read(path) == [(fault, f"{path}, line 1"), ("AC", f"{path}, line 2")]
    path.write_text(">s1\nAC>s2\n>s3\nGT")
    assert contents(path) == [Fault("has a '>' inside its sequence"), "GT"]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("separator", ["\n==\n", ""])
def test_a_document_above_the_limit_is_never_held(tmp_path, ending, separator, small):
    small(2**18, 2**14)
    large = b"word " * (5 * 2**20 // 5)
    path = tmp_path / f"a.txt{ending}"
    data = b"\n==\n".join([b"before", large, b"x" * 2**20, large, b"after"])
    path.write_bytes(compressed(data, ending))
    too_large = Fault("is larger than the 1 MB of config.data.max_document_mb")
    pieces(Recipe(), str(path))  # what is imported must not count
    tracemalloc.start()
    try:
        found = read(path, separator=separator, max_document_mb=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    texts = [it._replace(detail="") if isinstance(it, Fault) else it for it, _ in found]
    if separator:
        assert texts == ["before", too_large, "x" * 2**20, too_large, "after"]
        assert [place.rpartition(" ")[2] for _, place in found] == ["1", "3", "5", "7", "9"]
    else:
        assert texts == [too_large]
    assert peak < 4.5 * 2**20


def test_memory_is_flat_in_the_size_of_a_file(tmp_path, small):
    small(2**18, 2**14)
    path = tmp_path / "a.jsonl"
    peaks = []
    for count in (5_000, 20_000):
        path.write_text(f'{{"text": "{"word " * 10}"}}\n' * count)
        tracemalloc.start()
        try:
            for part in pieces(Recipe(), str(path)):
                for _ in part.documents():
                    pass
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 2**19


def test_split_is_that_of_bytes_and_drops_what_is_too_large():
    rng = random.Random(1)
    for _ in range(500):
        data = bytes(rng.choices(b"ab", k=rng.randint(0, 40)))
        separator = rng.choice([b"a", b"ab", b"aa", b"aba", b""])
        limit, cuts = rng.randint(0, 8), sorted(rng.choices(range(41), k=5))
        blocks = [data[i:j] for i, j in zip([0, *cuts], [*cuts, 41], strict=True)]
        expected, offset = [], 0
        parts = data.split(separator) if separator else [data]
        for part in parts:
            expected.append((offset, part if len(part) <= limit else None))
            offset += len(part) + len(separator)
        found = list(split(iter(blocks), separator, limit))
        assert [(start, part) for start, part, _ in found] == expected
        assert [last for _, _, last in found] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_that_is_damaged_or_cut_short_is_named(tmp_path, ending):
    good = compressed(random.Random(0).randbytes(5000).hex().encode(), ending)
    two = good + compressed(b"more", ending)
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(two)
    (text,) = contents(path)
    assert text.endswith("more") and len(text) == 10_004
    for cut in (good[:-1], good[: len(good) // 2], two[:-1], two[: len(good) + 3], b"no archive"):
        path.write_bytes(cut)
        with pytest.raises(BadInput, match=f"a.txt{ending} is damaged or cut short .*again"):
            contents(path)


def test_a_file_of_bgzip_has_a_mark_at_its_end(tmp_path):
    def block(content):
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(content) + packer.flush()
        size = struct.pack("<H", len(packed) + 25)
        head = b"\x1f\x8b\x08\4\0\0\0\0\0\xff\6\0BC\2\0" + size
        return head + packed + struct.pack("<II", zlib.crc32(content), len(content))

    path = tmp_path / "a.txt.gz"
    path.write_bytes(block(b"one ") + block(b"two") + block(b""))
    assert contents(path) == ["one two"]
    for cut in (block(b"one "), block(b"one ") + block(b"two"), block(b"")[:-1]):
        path.write_bytes(cut)
        with pytest.raises(BadInput, match="a.txt.gz is cut short .the mark at the end of a file"):
            contents(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    for ending in ("", ".gz"):
        path = tmp_path / f"a.txt{ending}"
        path.write_bytes(compressed(b"x", ending))
        (part,) = pieces(Recipe(), str(path))
        path.unlink()
        with pytest.raises(BadInput, match=f"a.txt{ending} cannot be opened .*No such file"):
            next(part.documents())
