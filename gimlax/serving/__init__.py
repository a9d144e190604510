"""Responses out of passes: generation of one sequence, embeddings of many texts, images."""

from gimlax.serving.agreement import Agreement, check, compare
from gimlax.serving.answering import answer_rows, line_of
from gimlax.serving.array_rows import (
    ArrayRows,
    check_outputs,
    read_array_rows,
    records,
    write_arrays,
)
from gimlax.serving.batch import Answer, RowsRunner, StepRowsRunner, generate_rows
from gimlax.serving.belonging import digests_of
from gimlax.serving.embedding import EncoderModel, embed
from gimlax.serving.generate import (
    Finish,
    Request,
    Statistics,
    Token,
    check_fits,
    follow,
    generate,
)
from gimlax.serving.images import ImageModel, ImagePhases, make_images
from gimlax.serving.journal import Journal
from gimlax.serving.keeping import Kept, keep, shard_of
from gimlax.serving.lines import (
    Asked,
    Format,
    JsonLines,
    OpenAiLines,
    Reply,
    TextLines,
    is_openai,
    most_tokens,
    read_all,
    up_to_stop,
)
from gimlax.serving.png import write_png
from gimlax.serving.rows import Rows, write_jsonl, write_npy
from gimlax.serving.runner import Runner, StepRunner, chunk_length, warm_up
from gimlax.serving.sampling import Sampling, sample
from gimlax.serving.summary import Summary
from gimlax.serving.text import TextModel
from gimlax.serving.text_rows import check_utf8, read_lines
from gimlax.serving.usage import Busy, moved_bytes, shares

__all__ = [
    "Agreement",
    "Answer",
    "ArrayRows",
    "Asked",
    "Busy",
    "EncoderModel",
    "Finish",
    "Format",
    "ImageModel",
    "ImagePhases",
    "Journal",
    "JsonLines",
    "Kept",
    "OpenAiLines",
    "Reply",
    "Request",
    "Rows",
    "RowsRunner",
    "Runner",
    "Sampling",
    "Statistics",
    "StepRowsRunner",
    "StepRunner",
    "Summary",
    "TextLines",
    "TextModel",
    "Token",
    "answer_rows",
    "check",
    "check_fits",
    "check_outputs",
    "check_utf8",
    "chunk_length",
    "compare",
    "digests_of",
    "embed",
    "follow",
    "generate",
    "generate_rows",
    "is_openai",
    "keep",
    "line_of",
    "make_images",
    "most_tokens",
    "moved_bytes",
    "read_all",
    "read_array_rows",
    "read_lines",
    "records",
    "sample",
    "shard_of",
    "shares",
    "up_to_stop",
    "warm_up",
    "write_arrays",
    "write_jsonl",
    "write_npy",
    "write_png",
]
