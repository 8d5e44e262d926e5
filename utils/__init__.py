"""The plumbing: command lines, files, pictures, caches, checkpoints, logs, devices."""
