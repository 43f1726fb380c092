"""`python -m service.local.lifeline service.local.dataflow --data-dir DIR`: the server as a process."""

from service.local.dataflow.server import main

main()
