"""The databases, one file each, and what reads their coding files and folders."""
