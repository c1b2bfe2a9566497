"""What processes of :mod:`tests.kills` have loaded before they begin."""

import fl_app.cli.run
import fl_app.runtimes.inprocess
import fl_app.tracking.mlflow.tracker  # noqa: F401
