"""NFSv3 through libnfs's asynchronous raw calls."""
