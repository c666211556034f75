raise ImportError("tests/clone.py says why")
