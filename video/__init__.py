"""Videos and animations for test_video.py: read, enlarged in segments, written again."""
