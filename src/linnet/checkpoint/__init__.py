"""Checkpoints in safetensors files, written atomically; no pickle."""

from linnet.checkpoint.atomic import replacing as replacing
from linnet.checkpoint.file import CheckpointInfo as CheckpointInfo
from linnet.checkpoint.file import bad_file as bad_file
from linnet.checkpoint.file import blaming as blaming
from linnet.checkpoint.file import info as info
from linnet.checkpoint.file import load as load
from linnet.checkpoint.file import named as named
from linnet.checkpoint.file import save as save
from linnet.checkpoint.folder import NAMING as NAMING
from linnet.checkpoint.folder import load_naming as load_naming
from linnet.checkpoint.folder import new_name as new_name
from linnet.checkpoint.folder import save_naming as save_naming

__all__ = [
    "NAMING",
    "CheckpointInfo",
    "bad_file",
    "blaming",
    "info",
    "load",
    "load_naming",
    "named",
    "new_name",
    "replacing",
    "save",
    "save_naming",
]
