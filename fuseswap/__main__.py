"""`python -m fuseswap`."""

import sys

from fuseswap.cli.main import main

sys.exit(main())
