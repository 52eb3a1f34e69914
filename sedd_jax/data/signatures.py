"""What a file is by its first bytes, whatever its name says: none is read as what it is not."""

import codecs
import pathlib
import re

from sedd_jax.errors import BadInput

HEAD_BYTES = 2**16
MARK = codecs.BOM_UTF8  # some editors put it before a text, of which it is no part

_NAMED = "let its name end in {0}, or set config.data.format"
# by a pattern of the first bytes: what the file is, and what to do
_SIGNATURES = {
    rb"\x1f\x8b\x08\x04.{8}BC\x02\0": (
        "compressed by bgzip (BAM files are; samtools fastq converts them)",
        "let its name end in .gz",
    ),
    rb"BAM\x01|CRAM[\x02\x03]": ("a BAM or CRAM file", "convert it (samtools fastq)"),
    rb"\x1f\x8b": ("compressed by gzip", "let its name end in .gz"),
    rb"\x28\xb5\x2f\xfd": ("compressed by zstd", "let its name end in .zst"),
    rb"\xfd7zXZ\0": ("compressed by xz", "decompress it (xz -d)"),
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": ("compressed by bzip2", "decompress it (bunzip2)"),
    rb"PK\x03\x04": ("a zip archive (as .docx, .xlsx, .epub and .npz are)", "unpack it"),
    rb".{257}ustar[\0 ]": ("a tar archive", "unpack it"),
    rb"PAR1\x15": ("a Parquet file", _NAMED.format(".parquet")),
    rb"\x93NUMPY": ("a NumPy array", _NAMED.format(".npy")),
    rb"\x88\xd84\x01": (
        "a file of tokens with the header of llm.c",
        "cut that off: tail -c +1025 FILE > NEW.uint16",
    ),
    rb"SQLite format 3\0": ("an SQLite database", "write a table of it as CSV"),
    rb"%PDF-\d": ("a PDF", "extract its text (pdftotext)"),
    rb"\{\\rtf\d": ("an RTF document", "extract its text"),
    rb"\xff\xfe|\xfe\xff|([^\0]\0){8}|(\0[^\0]){8}": (
        "UTF-16 or UTF-32 text",
        "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
    ),
}
_KNOWN = {re.compile(pattern, re.DOTALL): what for pattern, what in _SIGNATURES.items()}
_PERHAPS_TEXT = ("a PDF", "an RTF document")
_LONG = 4  # so many first bytes are no chance, where a file may begin with any
# not a quotation, which has a space after its mark, nor a line about @someone
_PERHAPS_OTHER = {
    re.compile(rb">[^\s>]"): "FASTA does",
    re.compile(rb"@.*\n(\S+\r?\n)+\+"): "FASTQ does",
    re.compile(rb'\s*\{\s*"[^"\n]*"\s*:'): "JSON lines do",
}
# a line of a sequence, with gaps; a short one of a protein may be a word in capitals
_SEQUENCE = re.compile(rb"([*.-]*[ACGTUNacgtun]){8,}[*.-]*|([*.-]*[A-Z]){30,}[*.-]*")


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
    sequences = {b">": ("fasta", _is_fasta), b"@": ("fastq", _is_fastq)}
    other, is_sure = sequences.get(head[:1], ("", bool))
    if other and is_sure(lines):
        raise BadInput(
            f"{path} begins as {other.upper()} does and would be read as text; set "
            f"config.data.format={other}, or config.data.format=text if it is text."
        )
    for begin, others in _PERHAPS_OTHER.items():
        if begin.match(head):
            return f"begins as {others} and is read as text"
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
        raise BadInput(f"{path} does not begin with '@', as FASTQ does; set config.data.format.")
    if len(lines) > 3 and not lines[2].startswith(b"+"):
        raise BadInput(
            f"{path} is no FASTQ of four lines a record: its third line does not begin with '+'; "
            "join the lines of a sequence: seqtk seq FILE > NEW.fastq"
        )


def _is_fasta(lines):
    body = next((line for line in lines if not line.startswith(b">")), b"")
    return _SEQUENCE.fullmatch(body.strip())


def _is_fastq(lines):
    _, letters, plus, qualities, more = [*lines[:5], b"", b"", b"", b"", b""][:5]
    is_record = letters.isalpha() and plus.startswith(b"+") and len(letters) == len(qualities)
    return is_record and more[:1] in b"@"
