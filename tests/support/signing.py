"""Checkpoints with a right digest and any content, following the docstring of linnet.checkpoint and nothing else."""

import hashlib
import json

import safetensors.torch


def signed_text(text, tensors):
    """The bytes of a file with this text in its metadata, which holds 64 zeros in the place of the digest."""
    data = safetensors.torch.save(tensors, metadata={"linnet": text})
    at = data.index(b"0" * 64)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


def text_of(description):
    return json.dumps({**description, "sha256": "0" * 64}, separators=(",", ":"))


def signed(description, tensors):
    return signed_text(text_of(description), tensors)


def parts(data):
    """Description and tensors of the bytes of a checkpoint."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["linnet"]), safetensors.torch.load(data)
