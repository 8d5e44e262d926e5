"""The page of app.py: its controls, what they do, its visitors, and the server."""
