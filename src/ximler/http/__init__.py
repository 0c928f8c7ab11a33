"""REST routes, pages for people, and the layers that every request passes.

Each module lists its own handlers in `routes`; nothing else registers them. REST is under `/v1`. Pages,
health, metrics, docs and webhooks are not, because their addresses are kept by browsers, probes and other
services.
"""

import pkgutil
from importlib import import_module

from litestar.types import ControllerRouterHandler

from ximler.core import extensions

__all__ = ["routes"]


def routes() -> list[ControllerRouterHandler]:
    """The handlers of every module of this package, and of extensions."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [handler for module in [*modules, *extensions.modules("http")] for handler in getattr(module, "routes", ())]
