"""The ordinary mount: every file and operation, and swap_activate."""
