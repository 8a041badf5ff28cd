"""Datasets as they are stored: folders and ZIP files of images and arrays, with their labels.

files.py        reading from a folder; zip_files.py: from a ZIP
retry.py        repeating reads that fail for a while
catalog.py      which images there are, and their labels
decoding.py     images and arrays from bytes
index.py        a large ZIP's directory and labels in a file, so that it opens at once
"""
