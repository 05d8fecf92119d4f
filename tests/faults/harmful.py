"""Making files that do harm, as somebody does who knows what a checkpoint looks like."""

import hashlib
import json
import pickle
import struct
import zipfile

import torch

MEMORY = {"kind": "memory", "size": 500_000_000}
ALIEN = [
    "custom_checkpoint_0.pkl",
    "pytorch_model.bin",
    "optimizer.bin",
    "scheduler.bin",
    "random_states_0.pkl",
    ".metadata",
    "data.pkl",
    "sitecustomize.py",
]


def seal(folder):
    """Write the manifest of what lies in a folder now, as somebody can who has tampered with it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "MANIFEST.json":
            content = path.read_bytes()
            entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            files[str(path.relative_to(folder))] = entry
    (folder / "MANIFEST.json").write_text(json.dumps({"schema": 1, "files": files}, indent=1))


def pickled(payload, way):
    """A pickle, alone or in the archive that torch.save writes."""
    if way == "archive":
        path = payload.mark.with_suffix(".pt")
        torch.save(payload, path)
        content = path.read_bytes()
        path.unlink()
        return content
    return pickle.dumps(payload, protocol=0 if way == "text" else 4)


def safetensors(header, body=b"", claimed=None):
    """A file with this header; `claimed` is another length for it than its own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + body


def zip_bomb(path):
    """An archive as torch.save writes it, with a tensor of 4 GB packed into 4 MB."""
    torch.save({"0.weight": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            if "/data/" not in name:
                archive.writestr(name, content)
                continue
            with archive.open(name, "w", force_zip64=True) as file:
                block = bytes(2**24)
                for _ in range(4_000_000_000 // len(block)):
                    file.write(block)
