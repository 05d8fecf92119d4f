"""Files and folders of any origin: resolved paths, checked reading, strict JSON, and flushing to disk."""
