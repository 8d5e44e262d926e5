"""The page of app.py: its controls, its visitors, and a server for nothing else."""
