"""Files of sqlitedict, diskcache, shelve and TinyDB: read without any of these libraries, and without running anything.

`importing` has what is public, `import_from`; each format has a file of its own.
"""
