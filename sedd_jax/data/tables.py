"""Tables with a column of text: Parquet files, and data sets of TFDS and of Hugging Face."""

import itertools
import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sedd_jax.data.columns import Fields, check_fields
from sedd_jax.data.documents import Document, Piece, RowRange, file_version, ranges
from sedd_jax.data.sequences import damaged, number_of_records
from sedd_jax.errors import BadInput, first_line
from sedd_jax.system.files import check_readable
from sedd_jax.system.packages import package

TFDS = "tfds:"
HUGGING_FACE = "hf:"
_BATCH = 64  # rows read at a time
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
_BUFFER_BYTES = 2**20  # a row group may be large: its pages are read when they are needed


def parquet(path: pathlib.Path, fields: Fields, limit: int) -> list[Piece]:
    """Returns the row groups of a Parquet file.

    Args:
      path: the file.
      fields: the columns that are read.
      limit: the largest document, in bytes.

    Raises:
      BadInput: the file is damaged or has no such column.
    """
    file = _parquet_file(path)
    check_fields(fields, file.schema_arrow.names, str(path))
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    return [
        _RowGroup(path, limit, number, number + 1, group.total_byte_size, fields)
        for number, group in enumerate(groups)
    ]


@dataclass(frozen=True)
class _RowGroup(RowRange):
    """The row group number `start` of a Parquet file."""

    fields: Fields

    @property
    def name(self) -> str:
        return f"{self.source}[group {self.start}]"

    def documents(self) -> Iterator[Document]:
        import pyarrow

        file = _parquet_file(self.source)
        number = sum(file.metadata.row_group(group).num_rows for group in range(self.start))
        try:
            for batch in file.iter_batches(_BATCH, [self.start], self.fields.names):
                for row in _rows(batch, self.fields):
                    yield self.fields.document(row, number, self.limit)
                    number += 1
        except pyarrow.ArrowNotImplementedError as error:
            kind = file.schema_arrow.field(self.fields.text).type
            raise _other_type(self.fields.text, self.source, kind) from error
        except (OSError, pyarrow.ArrowException) as error:
            raise damaged(self.source, first_line(error)) from error


def _rows(batch: Any, fields: Fields) -> Iterator[dict[str, Any]]:
    """Yields the rows of a batch of an Arrow table, each with the fields that are read."""
    columns = [_values(batch.column(fields.text))]
    for told in fields.told:
        column = batch.column(told.name)
        column.validate(full=True)
        columns.append(column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(fields.names, values, strict=True))


def _values(column: Any) -> Iterator[Any]:
    """Yields the values of a column of an Arrow table: bytes, arrays, or what is a fault.

    Raises:
      pyarrow.ArrowException: it holds something else, or its buffers are damaged.
    """
    import pyarrow

    kind = column.type
    if not (_is_list(kind) or pyarrow.types.is_null(kind)):
        # as bytes, so that text that does not decode is the fault of a row
        column = column.cast(pyarrow.large_binary())
    column.validate(full=True)  # what is mapped was not looked at, and may point anywhere
    if _is_list(kind) and pyarrow.types.is_integer(kind.value_type):
        for row in column:
            ids = row.values
            # a list of Python numbers, where one is missing
            has_all = ids is not None and not ids.null_count
            yield ids.to_numpy() if has_all else row.as_py()
        return
    yield from column.to_pylist()


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _other_type(field: str, place: object, kind: Any) -> BadInput:
    return BadInput(
        f"The field {field!r} of {place} has the type {kind}, neither text nor a list of integers; "
        "set config.data.field."
    )


def _parquet_file(path: pathlib.Path) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        )
    except (OSError, pyarrow.ArrowException) as error:
        raise damaged(path, first_line(error)) from error


def tfds(corpus: str, fields: Fields, limit: int) -> list[Piece]:
    """Returns the pieces of a data set of TensorFlow Datasets.

    A data set that is not on this machine yet is downloaded and prepared, as ArrayRecord files, in
    the folder of TFDS (TFDS_DATA_DIR).

    Args:
      corpus: "tfds:NAME[:SPLIT]" or "tfds:FOLDER[:SPLIT]"; the split is "train" by default.
      fields: the features that are read.
      limit: the largest document, in bytes.

    Raises:
      BadInput: the data set, the split or the field is not available.
    """
    # a version may follow the name, and a split such as train[:50%] has a colon
    name, split = re.fullmatch(
        r"([^:]*(?::[\d*][\d.*]*)?)(?::(.*))?", corpus.removeprefix(TFDS)
    ).groups(default="train")
    module = package("tensorflow_datasets", "tensorflow-datasets", f"The corpus {corpus}")
    # preparing a data set of TFDS may raise anything
    try:
        if pathlib.Path(name).is_dir():
            builder = module.builder_from_directory(name)
        else:
            builder = module.builder(name, file_format="array_record")
            builder.download_and_prepare()
        source = builder.as_data_source(split)
    except ImportError as error:
        raise BadInput(
            f"The corpus {corpus} needs one more package to be prepared: pip install {error.name}"
        ) from error
    except Exception as error:
        raise BadInput(
            f"The corpus {corpus} cannot be opened ({first_line(error)}); check the name, the "
            f"split and the network, or prepare it elsewhere with 'tfds build {name} "
            "--file_format=array_record' and give the folder."
        ) from error
    for shard in builder.info.splits[split].file_instructions:
        wanted = shard.examples_in_shard
        if ".array_record" in shard.filename and wanted != number_of_records(shard.filename):
            reason = f"it does not have the {wanted} records that dataset_info.json says"
            raise damaged(shard.filename, reason)
    check_fields(fields, builder.info.features, corpus)
    total = max(sum(part.num_examples for part in builder.info.splits.values()), 1)
    per_example = builder.info.dataset_size // total
    return [
        _Examples(corpus, limit, start, stop, size, fields, str(builder.data_path), split)
        for start, stop, size in ranges(len(source), len(source) * per_example)
    ]


@dataclass(frozen=True)
class _Examples(RowRange):
    """Examples [start, stop) of a split of a prepared folder of TFDS."""

    fields: Fields
    folder: str
    split: str
    _unit = "example"

    @property
    def name(self) -> str:
        return f"{TFDS}{self.folder}:{self.split}[{self.start}:{self.stop}]"

    def documents(self) -> Iterator[Document]:
        import tensorflow_datasets

        builder = tensorflow_datasets.builder_from_directory(self.folder)
        source = builder.as_data_source(self.split)
        for start in range(self.start, self.stop, _BATCH):
            numbers = range(start, min(start + _BATCH, self.stop))
            try:
                rows = source.__getitems__(numbers)
            except Exception as error:  # of any type: the bytes of an example are parsed, too
                raise self._damage(builder, source, numbers) from error
            for number, row in zip(numbers, rows, strict=True):
                yield self.fields.document(row, number, self.limit)

    def _damage(self, builder: Any, source: Any, numbers: range) -> BadInput:
        """Returns the error of the first of these examples that cannot be read, with its file."""
        shards, number, reason = builder.info.splits[self.split].file_instructions, 0, "?"
        for number in numbers:
            try:
                source[number]
            except Exception as error:
                reason = first_line(error)
                break
        stops = itertools.accumulate(shard.take for shard in shards)
        file = next(s.filename for s, stop in zip(shards, stops, strict=True) if number < stop)
        return damaged(file, f"{self.place(number)}: {reason}")

    def version(self) -> str:
        return file_version(pathlib.Path(self.folder) / "dataset_info.json")


def hugging_face(corpus: str, fields: Fields, limit: int) -> list[Piece]:
    """Returns the pieces of a data set of Hugging Face.

    Args:
      corpus: "hf:FOLDER[:SPLIT]", written by `save_to_disk` of the package datasets, or
        "hf:ID[:SPLIT]", from the local cache or downloaded, where ID is OWNER/NAME or, with several
        configurations, OWNER/NAME/CONFIG; the split is "train" by default.
      fields: the columns that are read.
      limit: the largest document, in bytes.

    Raises:
      BadInput: the data set, the split or the field is not available.
    """
    name, _, split = corpus.removeprefix(HUGGING_FACE).partition(":")
    module = package("datasets", '"sedd_jax[hub]"', f"The corpus {corpus}")
    # the package may raise anything while it looks for a data set
    try:
        if pathlib.Path(name).is_dir():
            dataset = module.load_from_disk(name)
            if isinstance(dataset, module.DatasetDict):
                dataset = dataset[split or "train"]
            elif split:
                raise ValueError("it has no splits")
        else:
            parts = name.split("/", 2)
            dataset = module.load_dataset("/".join(parts[:2]), *parts[2:], split=split or "train")
    except Exception as error:
        for path in sorted(pathlib.Path(name).rglob("*.arrow")):
            _check_arrow(path)
        raise BadInput(
            f"The corpus {corpus} cannot be opened ({first_line(error)}); check the name, the "
            "split and the network, or give a folder that save_to_disk wrote."
        ) from error
    check_fields(fields, dataset.column_names, corpus)
    for file in dataset.cache_files:
        _check_arrow(file["filename"])
    texts = dataset.select_columns(fields.names)
    return [
        _HubRows(corpus, limit, start, stop, size, fields, texts)
        for start, stop, size in ranges(len(texts), texts.data.nbytes)
    ]


def _check_arrow(path: str | pathlib.Path) -> None:
    """Raises BadInput unless a stream of Arrow has its marks; a reader does without the last."""
    check_readable(path)
    with open(path, "rb") as file:
        begin = file.read(4)
        file.seek(-min(len(_ARROW_END), os.path.getsize(path)), os.SEEK_END)
        if begin != _ARROW_END[:4] or file.read() != _ARROW_END:
            raise damaged(path, "it does not begin and end as a stream of Arrow does")


@dataclass(frozen=True)
class _HubRows(RowRange):
    """Rows [start, stop) of a `datasets.Dataset`, which is pickled as the names of its files."""

    fields: Fields
    dataset: Any
    _unit = "example"

    def documents(self) -> Iterator[Document]:
        import pyarrow

        rows = self.dataset.with_format("arrow")
        for start in range(self.start, self.stop, _BATCH):
            try:
                batch = rows[start : min(start + _BATCH, self.stop)]
                for number, row in enumerate(_rows(batch, self.fields), start):
                    yield self.fields.document(row, number, self.limit)
            except pyarrow.ArrowNotImplementedError as error:
                text = self.fields.text
                kind = batch.schema.field(text).type
                raise _other_type(text, self.source, kind) from error
            except pyarrow.ArrowException as error:
                raise damaged(f"{self.place(start)} or a later one", first_line(error)) from error

    def version(self) -> str:
        # a name that the package derives from the content and its history
        return self.dataset._fingerprint
