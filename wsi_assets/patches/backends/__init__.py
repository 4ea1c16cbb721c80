"""The kinds of store: LMDB, HDF5, and a folder of PNG files by class."""
