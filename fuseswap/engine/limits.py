"""How long, and how many. Not Final: a compiled module reads them when it uses them, so that tests can shorten them."""

from fuseswap.engine.private_file import BACKGROUND_MAX

SECOND_NS: int = 1_000_000_000

CALL_LIMIT_NS: int = 60 * SECOND_NS
"""A call without a reply for this long means a dead connection, as timeo does for TCP in nfs(5)."""
CONNECT_LIMIT_NS: int = 10 * SECOND_NS
BACKOFF_FIRST_NS: int = SECOND_NS // 20
BACKOFF_MAX_NS: int = 3 * SECOND_NS
RETRY_NS: int = SECOND_NS // 4
STALE_WAIT_NS: int = 30 * SECOND_NS

REQUESTS_MAX: int = 2 * BACKGROUND_MAX
"""Requests held at once; beyond it the kernel queues. The loop device alone never gets there."""
