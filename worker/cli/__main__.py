"""`python -m worker.cli`."""

import sys

try:
    from worker.cli.main import main

    main()
except KeyboardInterrupt:  # also while the imports above still run
    sys.exit(130)
