import msgspec
import pytest

from ximler.graphql.engine.names import snake


@pytest.mark.parametrize(
    ("sdl", "python"),
    [
        ("name", "name"),
        ("apiCalls", "api_calls"),
        ("createdAt", "created_at"),
        ("userID", "user_id"),
        ("imageURLPath", "image_url_path"),
        ("address2Line", "address2_line"),
        ("from", "from_"),
        ("__typename", "__typename"),
    ],
)
def test_sdl_names_become_python_names(sdl: str, python: str) -> None:
    assert snake(sdl) == python


@pytest.mark.parametrize("python", ["name", "api_calls", "stripe_customer_id", "created_at", "push"])
def test_the_names_that_structs_are_encoded_under_lead_back_to_their_attributes(python: str) -> None:
    struct = msgspec.defstruct("S", [python], rename="camel")
    assert snake(struct.__struct_encode_fields__[0]) == python
