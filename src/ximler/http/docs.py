"""The API's documentation page. Its script and style come from an installed package, not from anybody's CDN."""

from importlib.util import find_spec
from pathlib import Path

from litestar import Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.static_files import create_static_files_router

from ximler import __version__

__all__ = ["assets", "openapi"]

_PATH = "/docs/assets"


def openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Ximler",
        version=__version__,
        description="REST beside GraphQL: `POST /graphql` is the main interface; its schema can be introspected.",
        path="/docs",
        components=Components(security_schemes={"session": SecurityScheme(type="http", scheme="bearer")}),
        render_plugins=[
            SwaggerRenderPlugin(
                path="/",
                js_url=f"{_PATH}/swagger-ui-bundle.js",
                css_url=f"{_PATH}/swagger-ui.css",
                standalone_preset_js_url=f"{_PATH}/swagger-ui-standalone-preset.js",
                favicon="",
            ),
            JsonRenderPlugin(),
        ],
    )


def assets() -> Router:
    """Only the static files of the package: it is found, not imported."""
    spec = find_spec("swagger_ui")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package swagger-ui-py is not installed")
    return create_static_files_router(
        path=_PATH, directories=[Path(spec.origin).parent / "static"], include_in_schema=False, name="docs-assets"
    )
