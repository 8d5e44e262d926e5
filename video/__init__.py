"""What test_video.py is made of: reading clips, encoding frames, and segments kept on disk."""
