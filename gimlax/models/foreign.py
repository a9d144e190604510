"""What a file is that holds weights in a way that gimlax does not open, by its first bytes.

Names say nothing: a pickle may be called anything, and opening it may run anything. None of these
is ever opened, unpacked or measured, so that an archive that would unpack to a disk full of zeros
is refused as fast as any other.
"""

import re

from gimlax.errors import SpecError

__all__ = ["NUM_BYTES", "recognise", "refuse_foreign"]

NUM_BYTES = 300  # of the start of a file that tell
ARCHIVES = {
    b"PK\3\4": "a zip archive, such as torch.save and numpy.savez write around other files",
    b"PK\5\6": "a zip archive with nothing in it",
    b"PK\7\10": "a part of a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file, which may hold a pickle",
}
# Of protocols 0 and 1: a global, a mark and what may follow it, or an empty container.
OLD_PICKLE = re.compile(rb"c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n|\([ldtIKVSXUcFGJMNi(\]}]|[\]})][qp]")
TAR = 257, b"ustar"
HOW = (
    "gimlax opens none, whatever they are called: convert it to safetensors where you trust it"
    " (`model.save_pretrained(folder)` of transformers writes them)"
)


def recognise(start: bytes) -> str:
    """What a file is that starts with these bytes; empty if it is nothing of the kind.

    A file of safetensors may start with any byte: it has a brace in ninth place.
    """
    if start[8:9] == b"{":
        return ""
    if start[:1] == b"\x80" and start[1:2] in (b"\1", b"\2", b"\3", b"\4", b"\5"):
        return "a pickle, which can run any code when it is opened"
    if OLD_PICKLE.match(start):
        return "a pickle of an old protocol, which can run any code when it is opened"
    if start[TAR[0] : TAR[0] + len(TAR[1])] == TAR[1]:
        return "a tar archive"
    return next((what for magic, what in ARCHIVES.items() if start.startswith(magic)), "")


def refuse_foreign(path: object, start: bytes) -> None:
    """Raises `SpecError` with the advice to convert for what `recognise` knows."""
    what = recognise(start)
    if what:
        raise SpecError(f"'{path}' is {what}; {HOW}")
