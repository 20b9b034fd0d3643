"""The harness of the black-box tests: real peers, the real binary, and clients that see every byte."""
