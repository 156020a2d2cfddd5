"""Files on an NFSv3 server, through libnfs's raw calls.

`url` reads the source, `mount` asks portmapper and MOUNT for the root handle, `codec` turns each procedure
into a `Call` and its reply into values, `connection` is one TCP connection (one rpc_context of libnfs), and
`client` keeps calls alive over connections that come and go. `unstable` remembers what the server may still
lose, `backend` is the backend protocol on top of all that.
"""
