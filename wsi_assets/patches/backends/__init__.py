"""The store backends: LMDB, HDF5, and a folder of PNG files by class."""
