"""The heart: the swap-file contract, the plug and the reserve, as pure functions and small machines.

Nothing in this room does I/O, reads a clock or awaits. It is told what happened and answers what to do
next, so that a test can try millions of orders in seconds and a reader can learn the contract from it.
"""
