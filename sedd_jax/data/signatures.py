"""What a file is by its first bytes, whatever its name says: none is read as what it is not."""

import codecs
import itertools
import pathlib
import re

from sedd_jax.errors import BadInput

HEAD_BYTES = 2**16
MARK = codecs.BOM_UTF8  # some editors put it before a text, of which it is no part

_NAMED = "let its name end in {0}, or set data.format"
_RECODE = "convert it: iconv -f {0} -t UTF-8 FILE > NEW"
# by a pattern of the first bytes: what the file is, and what to do
_SIGNATURES = {
    rb"\x1f\x8b": ("compressed by gzip", "let its name end in .gz"),
    rb"\x28\xb5\x2f\xfd": ("compressed by zstd", "let its name end in .zst"),
    rb"\xfd7zXZ\0": ("compressed by xz", "decompress it (xz -d)"),
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": ("compressed by bzip2", "decompress it (bunzip2)"),
    rb"\x04\x22\x4d\x18": ("compressed by lz4", "decompress it (lz4 -d)"),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    rb"Rar!\x1a\x07": ("a rar archive", "unpack it"),
    rb"PK\x03\x04": ("a zip archive (as .docx, .xlsx, .epub and .npz are)", "unpack it"),
    rb".{257}ustar[\0 ]": ("a tar archive", "unpack it"),
    rb"PAR1\x15": ("a Parquet file", _NAMED.format(".parquet")),
    rb"ARROW1\0\0|FEA1|\xff\xff\xff\xff..\0\0": ("an Arrow file", "write it as Parquet"),
    rb"\x93NUMPY": ("a NumPy array", _NAMED.format(".npy")),
    rb"\x88\xd84\x01": (
        "a file of tokens with the header of llm.c",
        "cut that off: tail -c +1025 FILE > NEW.uint16",
    ),
    rb"SQLite format 3\0": ("an SQLite database", "write a table of it as CSV"),
    rb"\x89HDF\r\n": ("an HDF5 file", "write its arrays as .npy, or its text as JSON lines"),
    rb"%PDF-\d": ("a PDF", "extract its text (pdftotext)"),
    rb"\{\\rtf\d": ("an RTF document", "extract its text"),
    rb"\xd0\xcf\x11\xe0": ("a document of an old Office", "extract its text"),
    rb"\x7fELF": ("a program", "give text"),
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a": ("an image", "give text"),
    rb"\xff\xfe\0\0|\0\0\xfe\xff": ("UTF-32 text", _RECODE.format("UTF-32")),
    rb"\xff\xfe|\xfe\xff": ("UTF-16 text", _RECODE.format("UTF-16")),
    rb"([^\0]\0){8}": ("UTF-16 text", _RECODE.format("UTF-16LE")),
    rb"(\0[^\0]){8}": ("UTF-16 text", _RECODE.format("UTF-16BE")),
}
_KNOWN = {re.compile(pattern, re.DOTALL): what for pattern, what in _SIGNATURES.items()}
_PERHAPS_TEXT = ("a PDF", "an RTF document")
_LONG = 4  # so many first bytes are no chance, where a file may begin with any
# lines of a sequence, with gaps; short ones of a protein may be a word in capitals
_NUCLEOTIDES = re.compile(rb"([*.-]*[ACGTUNacgtun]){8,}[*.-]*")
_RESIDUES = re.compile(rb"([*.-]*[A-Z]){30,}[*.-]*")
_WORD = re.compile(rb"[*.-]*[A-Za-z][A-Za-z*.-]*|\d+( \d+)+")  # or the qualities of bases


def check(path: pathlib.Path, head: bytes, form: str, *, named: bool) -> str:
    """Checks that a file of text is of the format that it is read as.

    Args:
      path: the file, for messages.
      head: its first HEAD_BYTES, decompressed.
      form: the format.
      named: the user names the format; else it is that of the name's ending, and text if that is
        unknown. What may be text by its bytes is read so if it is named so.

    Returns:
      A reason to doubt, as a predicate of the file; empty if there is none.

    Raises:
      BadInput: it is something else.
    """
    named_text = named and form == "text"
    check_known(path, head, form, text=named_text)
    head = head.removeprefix(MARK)
    lines = head.splitlines()
    if form != "text" and b"\n" not in head and len(head.split(b"\r")) > 2:
        raise BadInput(
            f"{path} has the line ends of old Macs, which are not read; convert it: "
            "tr '\\r' '\\n' < FILE > NEW"
        )
    if form == "jsonl":
        _check_json(path, head)
    if form == "fastq":
        _check_fastq(path, lines)
    if form != "text" or named_text:
        return ""
    for other, (is_sure, is_doubtful) in {
        "fasta": _fasta(lines),
        "fastq": _fastq(lines),
        "jsonl": (False, re.match(rb'\s*\{\s*"[^"\n]*"\s*:', head)),
    }.items():
        if is_sure:
            raise BadInput(
                f"{path} begins as {other.upper()} does and would be read as text; set "
                f"data.format={other}, or data.format=text if it is text."
            )
        if is_doubtful:
            return f"begins as {other.upper()} does and is read as text"
    return ""


def check_known(path: pathlib.Path, head: bytes, form: str, *, text: bool = False) -> None:
    """Raises BadInput if a file is one of another kind by its first bytes.

    Args:
      path: the file, for messages.
      head: its first bytes.
      form: what it is read as, for the message; raw ids ("uint16", "uint32") may begin with any
        two bytes by chance.
      text: what may be text is no fault.
    """
    for pattern, (kind, advice) in _KNOWN.items():
        found = pattern.match(head)
        if not found or (text and kind in _PERHAPS_TEXT):
            continue
        if form.startswith("uint") and (len(found[0]) < _LONG or "UTF" in kind):
            continue
        if kind.startswith("compressed") and advice.endswith(path.suffix.lower() or "."):
            advice = "decompress it"  # compressed twice, or no place to read it compressed
        raise BadInput(f"{path} is {kind}, and would be read as {form}; {advice}.")


def doubt_of_ids(head: bytes, form: str) -> str:
    """Returns why raw ids, uint16 or uint32, may be of another type by their first bytes."""
    width = int(form.removeprefix("uint")) // 8
    if re.match(rb"(?!\0*$)(.{%d}\0{%d}){64}" % (width, width), head, re.DOTALL):
        return f"has 0 at every second place, as larger numbers have, and is read as {form}"
    if re.fullmatch(rb"[\t\r\n -~]{64,}", head):
        return f"looks like text, and is read as {form}"
    return ""


def decoded(content: bytes, name: str) -> str:
    """Returns the text of a file, without a byte order mark.

    Args:
      content: all its bytes.
      name: of the file, as the subject of a message.

    Raises:
      BadInput: it is not UTF-8 text.
    """
    check_known(pathlib.Path(name), content[:HEAD_BYTES], "text", text=True)
    start = len(MARK) if content.startswith(MARK) else 0
    try:
        return content[start:].decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name} is not UTF-8 text: the byte at offset {start + error.start} does not decode."
        ) from error


def _check_json(path, head):
    start = head.lstrip()
    if start.startswith(b"["):
        raise BadInput(
            f"{path} is one JSON array; one object a line is expected: jq -c '.[]' FILE > NEW.jsonl"
        )
    if re.match(rb"\{[ \t]*\r?\n", start):
        raise BadInput(
            f"{path} has a JSON object on several lines; one object a line is expected: "
            "jq -c . FILE > NEW.jsonl"
        )


def _check_fastq(path, lines):
    if lines and not lines[0].startswith(b"@"):
        raise BadInput(f"{path} does not begin with '@', as FASTQ does; set data.format.")
    if len(lines) > 3 and not lines[2].startswith(b"+"):
        raise BadInput(
            f"{path} is no FASTQ of four lines a record: its third line does not begin with '+'; "
            "join the lines of a sequence: seqtk seq FILE > NEW.fastq"
        )


def _fasta(lines):
    """Whether a text surely is FASTA, and whether it may be."""
    lines = list(itertools.dropwhile(lambda line: line[:1] in b";#!", lines))  # comments
    headers = next((i for i, line in enumerate(lines) if not line.startswith(b">")), len(lines))
    body = lines[headers].strip() if headers < len(lines) else b""
    sure = headers and (_NUCLEOTIDES.fullmatch(body) or _RESIDUES.fullmatch(body))
    doubtful = _WORD.fullmatch(body) if body else not lines[:1] or lines[0][1:2].strip()
    return sure, headers == 1 and doubtful


def _fastq(lines):
    """Whether a text surely is FASTQ, and whether it may be."""
    if len(lines) < 2 or not lines[0].startswith(b"@"):
        return False, False
    sequence = lines[1].strip()
    if len(lines) > 3 and lines[2].startswith(b"+") and _WORD.fullmatch(sequence):
        return len(lines[3].strip()) == len(sequence), True
    return False, _NUCLEOTIDES.fullmatch(sequence)
