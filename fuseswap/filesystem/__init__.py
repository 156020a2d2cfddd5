"""The ordinary mount: every file and operation, and the guard of active swap files.

`main` mounts and serves; `operations` is what pyfuse3 calls; `inodes` names what the kernel knows, `opened`
what is open, `removal` keeps open files readable when their last name goes, `active` is swap_activate and
swap_deactivate, and `adoption` finds the swap files of engines that were there before this process.
"""
