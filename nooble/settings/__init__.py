"""The one settings module of every process; NOOBLE_ENV chooses between dev, test and prod.

One file per concern; each reads the environment through `nooble.env` only.
"""

from nooble.settings.admin import *  # noqa: F403
from nooble.settings.api import *  # noqa: F403
from nooble.settings.base import *  # noqa: F403
from nooble.settings.celery import *  # noqa: F403
from nooble.settings.channels import *  # noqa: F403
from nooble.settings.database import *  # noqa: F403
from nooble.settings.execution import *  # noqa: F403
from nooble.settings.logging import *  # noqa: F403
from nooble.settings.security import *  # noqa: F403
