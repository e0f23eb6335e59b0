"""The ops that Programs are made of: `reference` in numpy is the specification, `native` in C++ is held to it."""
