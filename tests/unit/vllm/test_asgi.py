"""What is read of a request on its way to vLLM."""

from __future__ import annotations

from antefix.vllm.asgi import header


def test_the_first_of_several_headers_counts() -> None:
    """As in the server behind it: by another one a body could pass this layer unread."""
    headers = [(b"content-type", b"application/json"), (b"content-type", b"multipart/form-data")]
    assert header({"headers": headers}, b"content-type") == b"application/json"
    assert header({"headers": headers}, b"authorization") == b""
