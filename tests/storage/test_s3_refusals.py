"""What no retry can mend is said at once, in one message without a credential in it."""

from __future__ import annotations

import logging
import pickle
import traceback

import pytest

from tests.s3_server import ACCESS, SECRET
from zscmr_ray.errors import ConfigError, DataError, ZscmrError
from zscmr_ray.storage import Store, retry, s3_request

ALIEN = "AKIAALIENALIEN123456"
HIDDEN = "hidden/SeCrEt+0123456789abcdefghijklmnop"


@pytest.fixture(autouse=True)
def no_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("retried")

    monkeypatch.setattr(retry.RetryPolicy, "wait_s", refuse)


def said(error: BaseException) -> str:
    """All that may reach a log: the message, and the whole chain of causes."""
    return str(error) + repr(error) + "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("access", "secret", "code"),
    [(ALIEN, HIDDEN, "InvalidAccessKeyId"), (ACCESS, HIDDEN, "SignatureDoesNotMatch")],
)
def test_refused_credentials(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, access: str, secret: str, code: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    store = Store(f"{s3_bucket}/x")
    for operation in (
        lambda: store.list(),
        lambda: store.write_bytes("a", b"1"),
        lambda: store.read_bytes("a"),
    ):
        with pytest.raises(DataError, match="does not accept the credentials") as caught:
            operation()
        assert code in str(caught.value.got)
        assert secret not in said(caught.value)
        assert ALIEN not in said(caught.value)
    with pytest.raises(DataError, match=r"refuses access; got: head s3://test/x/a: 403"):
        store.info("a")


def test_missing_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(ConfigError, match="no credentials for S3") as caught:
        Store(s3_bucket).list()
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.remedy)


def test_missing_objects_and_buckets(s3_bucket: str) -> None:
    store = Store(f"{s3_bucket}/nothing")
    for operation in (store.read_bytes, store.info, store.open):
        with pytest.raises(DataError, match="no such file; got: s3://test/nothing/a"):
            operation("a")
    assert not store.exists("a")
    store.delete("a")
    nowhere = Store("s3://bucket-that-nobody-made/x")
    with pytest.raises(DataError, match="no such bucket"):
        nowhere.list()
    with pytest.raises(DataError, match="no such bucket"):
        nowhere.exists("a")


@pytest.mark.parametrize(
    "address", ["not a url", "http://", "http://name.invalid:1", f"http://{ACCESS}:{SECRET}@name.invalid:1"]
)
def test_bad_endpoints(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(ZscmrError, match="endpoint cannot be used") as caught:
        Store(s3_bucket).list()
    assert SECRET not in str(caught.value)
    assert "AWS_ENDPOINT_URL" in str(caught.value.remedy)


def test_no_credential_in_what_stores_show(
    s3_bucket: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    store = Store(f"{s3_bucket}/quiet")
    store.write_json("a.json", {"x": 1})
    store.read_json("a.json")
    shown = repr(store) + str(store) + store.uri + store.path("a") + caplog.text + "".join(capfd.readouterr())
    shown += pickle.dumps(store).decode("latin-1") + store.read_bytes("a.json").decode()
    assert ACCESS not in shown
    assert SECRET not in shown


def test_the_server_is_named_without_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert s3_request.endpoint() == "AWS"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{ACCESS}:{SECRET}@host.example:9000/path?x=1")
    assert s3_request.endpoint() == "host.example:9000"
