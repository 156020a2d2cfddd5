"""swap_rw: one process per active file, between the kernel's loop device and the NFS server."""
