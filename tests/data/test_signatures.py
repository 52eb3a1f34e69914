import gzip
import io
import zipfile

import numpy as np
import pytest

from sedd_jax.data.documents import Recipe
from sedd_jax.data.signatures import decoded
from sedd_jax.data.sources import pieces
from sedd_jax.errors import BadInput


def zip_of(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", content)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.arange(10))
    return file.getvalue()


def look(path, content, **settings):
    path.write_bytes(content)
    return pieces(Recipe(**settings), str(path))


KINDS = [
    (gzip.compress(b"text"), "compressed by gzip"),
    (b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\6\0BC\2\0\x1b\0", "compressed by bgzip .*samtools fastq"),
    (b"BAM\1\x10\0\0\0", "a BAM or CRAM file"),
    (b"BZh91AY&SY\x94\x9b", "compressed by bzip2"),
    (b"\xfd7zXZ\0\0\x04", "compressed by xz"),
    (zip_of("text"), r"a zip archive"),
    (b"a.txt".ljust(257, b"\0") + b"ustar\x0000", "a tar archive"),
    (b"PAR1\x15\x04\x15", "a Parquet file"),
    (npy(), "a NumPy array"),
    (b"SQLite format 3\0\x10", "an SQLite database"),
    (b"\x88\xd8\x34\x01\1\0\0\0", "a file of tokens with the header of llm.c"),
    ("text\n".encode("utf-16"), "UTF-16 or"),
    ("text and more\n".encode("utf-16-be"), "UTF-16 or"),
]


# names of their own: workers collect the tests at different times, which archives hold
@pytest.mark.parametrize(("content", "kind"), KINDS, ids=range(len(KINDS)))
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.fasta", "a", "a.csv"])
def test_a_file_of_another_kind_is_never_read_as_text(tmp_path, content, kind, name):
    with pytest.raises(BadInput, match=f"{name} is {kind}.* would be read as "):
        look(tmp_path / name, content)
    with pytest.raises(BadInput, match=f"a.gz is {kind}"):
        look(tmp_path / "a.gz", gzip.compress(content))


def test_what_may_be_text_is_read_if_it_is_named_so(tmp_path):
    for content in (b"%PDF-1.4\n", b"{\\rtf1 x", b">s\nACGTACGT\n", b"@s\nAC\n+\nII\n"):
        with pytest.raises(BadInput, match="a.txt "):
            look(tmp_path / "a.txt", content)
        assert len(look(tmp_path / "a.txt", content, format="text")) == 1
    for content, _ in KINDS[:4]:
        with pytest.raises(BadInput, match="a.txt is "):
            look(tmp_path / "a.txt", content, format="text")
    for name in ("a.bin", "a.tar.gz", "a.txt.xz", "a.BZ2"):
        content = gzip.compress(b"text") if name == "a.tar.gz" else b"text"
        with pytest.raises(
            BadInput, match=f"{name} is no text by its ending; set config.data.format"
        ):
            look(tmp_path / name, content)
        assert len(look(tmp_path / name, content, format="text")) == 1


def test_raw_ids_are_refused_only_for_what_is_no_chance(tmp_path):
    for content in (b"\x1f\x8b\0\0", b"\xff\xfe\1\0", np.arange(1, 99, dtype="<u2").tobytes()):
        assert len(look(tmp_path / "a.bin", content, format="uint16")) == 1
    for content in (npy(), b"\x88\xd8\x34\x01\1\0\0\0", b"PK\3\4aaaa"):
        with pytest.raises(BadInput, match="a.bin is .*, and would be read as uint16; "):
            look(tmp_path / "a.bin", content, format="uint16")


@pytest.mark.parametrize(
    ("form", "kind", "doubt"),
    [
        ("uint16", "<u2", ""),
        ("uint32", "<u4", ""),
        ("uint16", "<u4", "has 0 at every second place, as larger numbers have, and is read as"),
        ("uint16", "<i8", "has 0 at every second place"),
        ("uint32", "<i8", "has 0 at every second place"),
    ],
)
def test_raw_ids_that_may_be_of_another_type_are_told(tmp_path, capsys, form, kind, doubt):
    look(tmp_path / "zeros", np.zeros(999, "<u4").tobytes(), format=form)
    look(tmp_path / "ids", np.arange(999).astype(kind).tobytes(), format=form)
    told = capsys.readouterr().err
    assert ("zeros" not in told) and (f"ids {doubt}" in told if doubt else told == "")
    look(tmp_path / "ids", b"some text, and more\n" * 4, format=form)
    assert f"ids looks like text, and is read as {form}; config.data.f" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (">s1 about\nACGTNACGT\nACG\n", "fasta"),
        ("\ufeff>s1\r\nacgtacgt\r\n", "fasta"),
        (">aligned\n--ACGT-ACGT.*\n", "fasta"),
        (">empty\n>p\nMKVLAAGIVGLCLFVSAAPQETRWMKVLAAGIV*\n", "fasta"),
        ("@r1\nACGTN\n+r1\nIIIII\n@r2\n", "fastq"),
    ],
)
def test_sequences_under_the_name_of_text_are_refused(tmp_path, text, form):
    message = f"a.txt begins as {form.upper()} does .*; set config.data.format={form}, or .*=text"
    with pytest.raises(BadInput, match=message):
        look(tmp_path / "a.txt", text.encode())


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("> a quote\nWell, no.\n", ""),
        (">>> 1 + 1\n2\n", ""),
        ("@someone said so\nand more\n+1\n", ""),
        ("@cache\ndef f(x): pass\n", ""),
        ("@@ -1 +1,2 @@\n-foo\n+bar\n-baz\n", "FASTQ does"),
        ("@alice\nhello\n+1\nworld\nsaid she\n", "FASTQ does"),
        ("plain\n>s1\nACGTACGT\n", ""),
        ("{curly} text\n", ""),
        ("# A title\n\n> a quote\n", ""),
        ("[section]\nkey = 1\n", ""),
        ("", ""),
        (">s1\nMKVL\n", "FASTA does"),
        ("@r1\nACGTACGT\nACGT\n+\nIIIIIIIIIIII\n", "FASTQ does"),
        ('{"text": "a line"}\n', "JSON lines do"),
    ],
)
def test_text_is_read_and_told_where_it_is_in_doubt(tmp_path, capsys, text, doubt):
    assert len(look(tmp_path / "a.txt", text.encode())) == 1
    told = capsys.readouterr().err
    assert f"a.txt begins as {doubt} and is read as text" in told if doubt else told == ""
    look(tmp_path / "b.txt", text.encode())
    look(tmp_path / "a.txt", text.encode(), format="text")
    (tmp_path / "sub.md").write_text("x")
    capsys.readouterr()
    pieces(Recipe(), str(tmp_path))
    told = capsys.readouterr().err
    assert told.count("\n") == bool(doubt) and ("and 1 more likewise" in told) == bool(doubt)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            '[{"text": "a"},\n{"text": "b"}]',
            r"is one JSON array; one object a line",
        ),
        ("a.jsonl", '\ufeff\n [\n{"text": "a"}\n]', r"is one JSON array; .*: jq -c '.\[\]'"),
        ("a.json", '{\n  "text": "a"\n}\n', "has a JSON object on several lines; one object a"),
        ("a.fa", ">s1\rACGT\r>s2\rGG\r", "has the line ends of old Macs.*; convert it: tr"),
        ("a.csv", "text,id\ra,1\rb,2\r", "has the line ends of old Macs"),
        ("a.fq", "@s\nAC\nGT\n+\nII\nII\n", "is no FASTQ of four lines a record.* seqtk"),
        ("a.fq", ">s\nAC\n", "does not begin with '@', as FASTQ does"),
    ],
)
def test_a_layout_that_is_not_read_is_named(tmp_path, name, content, message):
    for settings in ({}, {"bad_documents": "skip"}):
        with pytest.raises(BadInput, match=f"{name} {message}"):
            look(tmp_path / name, content.encode(), **settings)


def test_text_of_a_file_is_decoded_without_its_mark():
    assert decoded(b"\xef\xbb\xbf\xef\xbb\xbfa\r\n", "x") == "\ufeffa\r\n"
    with pytest.raises(BadInput, match="x is not UTF-8 text: the byte at offset 4 does not decode"):
        decoded(b"\xef\xbb\xbfa\xff", "x")
    with pytest.raises(BadInput, match="x is UTF-16 or UTF-32 text, .*; convert it"):
        decoded("text".encode("utf-16"), "x")
