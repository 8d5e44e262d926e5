"""The plumbing: command lines, files, pictures, caches, checkpoints, logs, devices. The method is in the parent folder."""
