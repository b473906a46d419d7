"""`python -m streamlog`: the command line."""

from streamlog.cli import main

raise SystemExit(main())
