"""The kernel's rework of swap over NFS, patch by patch, and what became of each here.

"Repair SWAP-over-NFS" by NeilBrown, 23 patches, posted in January 2022. The NFS and SUNRPC half (12, 14 to 23)
was merged for Linux 5.18, the MM half with 11 and 13 for 5.19. Before it, swap over NFS failed at its first
write: the generic write checks refuse an active swap file, and swap took the road of ordinary writes.

fuseswap is that rework once more, in processes. Some patches have a counterpart in code, some in a rule that the
code keeps, one or two only in how the tree is laid out. `tests` names what shows it.
"""

from typing import Final

from attrs import frozen


@frozen
class Patch:
    """One patch of the series."""

    number: int
    """Its place in the series, version 3."""
    subject: str
    change: str
    """What it changed in the kernel, and why."""
    here: str
    """What fuseswap does the same, or why there is nothing to do."""
    tests: tuple[str, ...]
    """Tests that show it, as pytest names them: path::name."""
    untested: str = ""
    """What of it no test shows, and why; empty if nothing."""


_PAGE: Final = "tests/contract/test_one_page.py"
_PLUG: Final = "tests/swap/test_plug.py"
_RESERVE: Final = "tests/swap/test_reserve.py"
_TRANSPORT: Final = "tests/engine/test_transport.py"
_RPC: Final = "tests/engine/test_rpc_wire.py"
_MEMORY: Final = "tests/engine/test_engine_memory.py"
_DEADLOCK: Final = "tests/pressure/test_deadlock.py"

PATCHES: Final = (
    Patch(
        1,
        "MM: create new mm/swap.h file",
        "Declarations that only mm/ may use leave include/linux/swap.h.",
        "fuseswap/swap/ is a room: it imports no I/O and nothing of the rooms above it, and they use its public names.",
        ("tests/swap/test_purity.py::test_imports", "tests/swap/test_purity.py::test_no_waiting_and_no_io"),
    ),
    Patch(
        2,
        "MM: extend block-plugging to cover all swap reads with read-ahead",
        "All swap read-ahead runs inside one plug, so that neighbours merge whoever asked for them.",
        "The kernel's plug lies above the loop device, so reads arrive merged; the engine's plug merges"
        " neighbours in its queue, whoever asked.",
        (
            f"{_PAGE}::test_many_pages_travel_together_and_cost_no_fault",
            f"{_PLUG}::test_neighbours_of_one_batch_merge_though_slots_are_free",
        ),
    ),
    Patch(
        3,
        "MM: drop swap_set_page_dirty",
        "Making a swap-cache page dirty no longer calls the file system, whose page it is not.",
        "The engine has no cache and no write-behind: a page is the kernel's until its WRITE is answered, and"
        " nothing of it stays after that.",
        (
            f"{_PAGE}::test_one_page_out_and_in_and_out_again",
            f"{_PLUG}::test_nothing_is_kept_and_no_cycle_is_left",
        ),
    ),
    Patch(
        4,
        "MM: move responsibility for setting SWP_FS_OPS to ->swap_activate",
        "A return of zero no longer means `do all I/O through me`: the file system says so by a flag, and adds"
        " its own extents.",
        "swap_activate returns a Verdict: fs_ops, extents, span and pages. Nothing is inferred from a number.",
        (
            "tests/swap/test_activation.py::test_granted",
            "tests/swap/test_activation.py::test_a_file_that_the_kernel_swaps_to_alone",
            "tests/swap/test_extents.py::test_fs_ops_is_one_extent",
        ),
    ),
    Patch(
        5,
        "MM: reclaim mustn't enter FS for SWP_FS_OPS swap-space",
        "To write a page by file system operations reclaim needs __GFP_FS, not only __GFP_IO; else it could"
        " re-enter the file system that waits for it.",
        "The path of a page allocates nothing: no fault, no memory call, so reclaim is never entered from it."
        " PR_SET_IO_FLUSHER (PF_MEMALLOC_NOIO) is the second wall.",
        (
            f"{_MEMORY}::test_no_faults_and_no_growth",
            f"{_MEMORY}::test_only_the_whitelist_s_system_calls",
            f"{_DEADLOCK}::test_engine_and_hog_in_one_cgroup",
        ),
    ),
    Patch(
        6,
        "MM: introduce ->swap_rw and use it for reads from SWP_FS_OPS swap-space",
        "A method for swap I/O, apart from readpage and direct_IO; reads become asynchronous. A file system"
        " without it cannot activate (EINVAL).",
        "The engine is swap_rw: a process, a mount and a connection that ordinary reads never touch. A backend"
        " without it is refused with EINVAL.",
        (
            f"{_PAGE}::test_pages_move_while_the_filesystem_stands_still",
            f"{_PAGE}::test_a_stuck_chmod_delays_no_page",
            "tests/filesystem/test_activation.py::test_memory_has_no_swap_rw",
        ),
    ),
    Patch(
        7,
        "MM: perform async writes to SWP_FS_OPS swap-space using ->swap_rw",
        "Writes were one page at a time and waited; now they are queued, completed by a callback, and a failure"
        " makes the page dirty again.",
        "A WRITE is in flight like any other call, and its answer is the completion. One that fails leaves the"
        " page where it was: with its owner.",
        (f"{_PAGE}::test_many_pages_travel_together_and_cost_no_fault", f"{_PAGE}::test_a_failed_write_loses_no_page"),
    ),
    Patch(
        8,
        "DOC: update documentation for swap_activate and swap_rw",
        "locking.rst and vfs.rst say what is locked and what must not be done.",
        "Each public function of fuseswap/swap/ says its errno and the kernel function it follows.",
        (
            "tests/swap/test_purity.py::test_public_things_are_described",
            "tests/swap/test_purity.py::test_a_function_that_refuses_says_with_what_and_why",
        ),
    ),
    Patch(
        9,
        "MM: submit multipage reads for SWP_FS_OPS swap-space",
        "Adjacent pages of one read-ahead gather in one swap_iocb, up to 32.",
        "Adjacent queued READs become one NFS READ up to rsize; each gets its slice of the reply without a copy.",
        (
            f"{_PLUG}::test_reads_of_a_shared_call_get_their_slices_without_a_copy",
            f"{_PAGE}::test_many_pages_travel_together_and_cost_no_fault",
        ),
    ),
    Patch(
        10,
        "MM: submit multipage write for SWP_FS_OPS swap-space",
        "The same for reclaim: the swap_iocb grows while the next page is adjacent and of the same file.",
        "Adjacent queued WRITEs become one NFS WRITE up to wsize, sent from where the pages lie. Overlapping ones"
        " keep their order.",
        (
            f"{_PLUG}::test_256_pages_become_one_call",
            f"{_PLUG}::test_overlapping_writes_are_sent_one_after_the_other",
            f"{_PAGE}::test_many_pages_travel_together_and_cost_no_fault",
        ),
    ),
    Patch(
        11,
        "VFS: Add FMODE_CAN_ODIRECT file flag",
        "Whether a file can do direct I/O becomes a bit of the open file; loop and others test the bit.",
        "The engine's file demands O_DIRECT at open, and loop/dio is read back, since the kernel drops direct I/O"
        " without a word.",
        (
            "tests/contract/test_engine_rules.py::test_the_mounted_file",
            "tests/host/test_loop.py::test_attach_sets_the_queue_up",
            "tests/host/test_loop.py::test_without_direct_io_nothing_stays",
        ),
    ),
    Patch(
        12,
        "NFS: remove IS_SWAPFILE hack",
        "A fallback for kernels without the flag goes: there is one definition of an active swap file.",
        "One table of states and one writer of them; the loop device, `status` and the tests ask, and keep no copy.",
        (
            "tests/contract/test_one_definition.py::test_one_place_decides_what_is_active",
            "tests/swap/test_lifecycle.py::test_every_pair",
        ),
    ),
    Patch(
        13,
        "NFS: rename nfs_direct_IO and use as ->swap_rw",
        "NFS's method gets the contract of swap_rw: 0 or -EIOCBQUEUED, never a count of bytes.",
        "An answer is whole or an error. A short reply of the server goes on with the rest, and is never passed"
        " up as success.",
        (
            f"{_PLUG}::test_a_short_write_finishes_what_it_covers_and_goes_on_with_the_rest",
            f"{_TRANSPORT}::test_short_replies_are_continued",
            f"{_TRANSPORT}::test_a_write_of_nothing_is_an_error",
        ),
    ),
    Patch(
        14,
        "NFS: swap IO handling is slightly different for O_DIRECT IO",
        "Swap skips generic_write_checks (ETXTBSY), takes no i_rwsem, changes no size and invalidates no cache.",
        "Ordinary writes are refused on one mount while swap writes on another: no check, no lock and no inode is"
        " shared.",
        (
            f"{_PAGE}::test_a_stuck_chmod_delays_no_page",
            "tests/contract/test_silent_server.py::test_answers_by_descriptor_within_10_ms",
            "tests/filesystem/test_activation.py::test_an_active_file_is_guarded",
        ),
    ),
    Patch(
        15,
        "SUNRPC/call_alloc: async tasks mustn't block waiting for memory",
        "rpciod may be the only worker: if it sleeps for memory, nobody returns any. So it tries, and else comes"
        " back later.",
        "The reserve charges a request once, for all it needs, before it starts; what cannot be charged waits in"
        " a queue and holds nothing.",
        (f"{_RESERVE}::test_every_case_of_a_small_arena", f"{_RESERVE}::TestReserveMachine"),
    ),
    Patch(
        16,
        "SUNRPC/auth: async tasks mustn't block waiting for memory",
        "Looking up a credential could wait for memory: now it fails and is tried again.",
        "The credential is built at activation and is constant bytes of every call.",
        (
            f"{_RPC}::test_calls_are_what_a_strict_server_expects",
            f"{_MEMORY}::test_only_the_whitelist_s_system_calls",
        ),
    ),
    Patch(
        17,
        "SUNRPC/xprt: async tasks mustn't block waiting for memory",
        "Getting a slot or a bvec must not block the transport.",
        "A fixed number of call slots, whose headers are made at activation.",
        (
            f"{_PLUG}::test_no_more_calls_than_slots_and_never_a_free_slot_while_something_waits",
            f"{_RPC}::test_slots_do_not_share_their_headers",
            f"{_RESERVE}::test_the_accounting_allocates_nothing_that_stays",
        ),
    ),
    Patch(
        18,
        'SUNRPC: remove scheduling boost for "SWAPPER" tasks',
        "Once one file swapped, all tasks of the mount were flagged, and the boost only turned queues around.",
        "First in, first out. Writes have an advantage by the watermark of the reserve, never by overtaking in"
        " the queue.",
        (
            f"{_PLUG}::test_calls_leave_in_the_order_of_their_oldest_request",
            f"{_PLUG}::test_a_request_waits_for_no_more_calls_than_were_queued",
            f"{_RESERVE}::test_a_flood_of_writes_does_not_starve_a_read",
        ),
    ),
    Patch(
        19,
        "NFS: discard NFS_RPC_SWAPFLAGS and RPC_TASK_ROOTCREDS",
        "Reads need no privilege of memory, and the credential is the opener's.",
        "The identity is fixed at activation; that of a FUSE message is not even read. Only writes may use what"
        " lies below the watermark.",
        (
            f"{_RPC}::test_calls_are_what_a_strict_server_expects",
            f"{_RESERVE}::test_writes_may_use_what_reads_may_not",
        ),
    ),
    Patch(
        20,
        "SUNRPC: improve 'swap' handling: scheduling and PF_MEMALLOC",
        "Only swap writes may use the memory reserve, and with them whatever they may wait behind on that"
        " transport, reconnecting included.",
        "No process can have PF_MEMALLOC. The engine's reserve is for writes first, and reconnecting takes the"
        " same socket and needs no memory.",
        (
            f"{_MEMORY}::test_reconnecting_while_the_reserve_is_used_up",
            f"{_TRANSPORT}::test_a_thousand_reconnects_leave_nothing",
            f"{_RESERVE}::test_writes_may_use_what_reads_may_not",
        ),
    ),
    Patch(
        21,
        "NFSv4: keep state manager thread active if swap is enabled",
        "Recovery must not have to start a thread when memory is gone: the thread is kept.",
        "All that recovery needs is there from activation on: resolved addresses, socket, port, buffers.",
        (
            f"{_TRANSPORT}::test_a_server_that_is_down_is_waited_for",
            f"{_MEMORY}::test_reconnecting_adds_connect_and_no_more",
            f"{_DEADLOCK}::test_the_server_dies_and_returns_meanwhile",
        ),
        "The NFSv4 half: the engine speaks NFSv3, which has no lease and no state to recover.",
    ),
    Patch(
        22,
        "NFS: swap-out must always use STABLE writes",
        "A COMMIT allocates and may block, and swap never flushes: FLUSH_STABLE always.",
        "Every WRITE is FILE_SYNC and is answered after the server's reply; a lesser `committed` counts as not"
        " written. COMMIT does not exist on this road.",
        (
            f"{_PAGE}::test_one_page_out_and_in_and_out_again",
            "tests/engine/test_engine.py::test_a_server_killed_and_restarted_three_times_under_load",
            f"{_TRANSPORT}::test_unstable_is_no_success_but_may_pass",
            f"{_TRANSPORT}::test_unstable_for_ever_is_an_error",
        ),
    ),
    Patch(
        23,
        "SUNRPC: lock against ->sock changing during sysfs read",
        "Reading the status could touch a socket that was being torn down.",
        "`status` reads plain words from a shared mapping, and no object of the connection.",
        (f"{_PAGE}::test_status_is_whole_while_the_connection_comes_and_goes",),
    ),
)
"""The whole series, in its order."""
